"""Ids of runs, batches and workers.

The first nine characters are the millisecond an id was made, so that ids of one prefix sort by age
and land at the right edge of an index; the rest is random. Ids are names, not secrets: what a
caller may see is decided by its credential alone.
"""

import secrets
import time

from runwire_engine.id_days import DIGITS, RANDOM_CHARACTERS, TIME_CHARACTERS


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
    random = secrets.randbits(5 * RANDOM_CHARACTERS)
    return _base32(milliseconds, TIME_CHARACTERS) + _base32(random, RANDOM_CHARACTERS)


def _base32(number: int, characters: int) -> str:
    return "".join(DIGITS[(number >> (5 * place)) & 31] for place in range(characters - 1, -1, -1))
