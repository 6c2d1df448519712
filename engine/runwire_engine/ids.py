"""Ids of runs, batches and workers.

The first nine characters are the millisecond an id was made, so that ids of one prefix sort by age
and land at the right edge of an index; the rest is random. Ids are names, not secrets: what a
caller may see is decided by its credential alone.
"""

import secrets
import time
from datetime import UTC, date, datetime
from typing import Final

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuv"
_TIME_CHARACTERS: Final = 9  # 45 bits of milliseconds: enough until the year 3084
_RANDOM_CHARACTERS: Final = 16  # 80 bits
_LAST_MILLISECOND: Final = 253_402_300_799_999  # of the year 9999


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


def day_of(id: str) -> date | None:
    """Return the UTC day an id was made on; None for a text that is none of our ids."""
    _, _, digits = id.partition("_")
    if len(digits) != _TIME_CHARACTERS + _RANDOM_CHARACTERS or not set(digits) <= set(_DIGITS):
        return None
    milliseconds = int(digits[:_TIME_CHARACTERS], 32)
    if milliseconds > _LAST_MILLISECOND:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).date()


def _base32(number: int, characters: int) -> str:
    return "".join(_DIGITS[(number >> (5 * place)) & 31] for place in range(characters - 1, -1, -1))
