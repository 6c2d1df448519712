"""Ids of runs, batches and workers.

The first nine characters are the millisecond an id was made, so that ids of one prefix sort by age
and land at the right edge of an index; the rest is random. Ids are names, not secrets: what a
caller may see is decided by its credential alone.
"""

import secrets
import time
from typing import Final

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuv"
_TIME_CHARACTERS: Final = 9  # 45 bits of milliseconds: enough until the year 3084
_RANDOM_CHARACTERS: Final = 16  # 80 bits


def new_run_id() -> str:
    """Return a fresh run id."""
    return f"run_{_fresh()}"


def new_batch_id() -> str:
    """Return a fresh batch id."""
    return f"batch_{_fresh()}"


def new_worker_id() -> str:
    """Return a fresh worker id: one per process start, never one per host."""
    return f"worker_{_fresh()}"


def _fresh() -> str:
    milliseconds = time.time_ns() // 1_000_000
    random = secrets.randbits(5 * _RANDOM_CHARACTERS)
    return _base32(milliseconds, _TIME_CHARACTERS) + _base32(random, _RANDOM_CHARACTERS)


def _base32(number: int, characters: int) -> str:
    return "".join(_DIGITS[(number >> (5 * place)) & 31] for place in range(characters - 1, -1, -1))
