"""Ids of runs, batches, schedules, waitpoints and workers.

The first nine characters are the millisecond an id was made, so that ids of one prefix sort by age
and land at the right edge of an index; the rest is random. Ids are names, not secrets: what a
caller may see is decided by its credential alone.
"""

import secrets
import time

from runwire_engine.id_format import RANDOM_BITS, spelled


def new_run_id() -> str:
    """Return a fresh run id."""
    return f"run_{_fresh()}"


def new_batch_id() -> str:
    """Return a fresh batch id."""
    return f"batch_{_fresh()}"


def new_waitpoint_id() -> str:
    """Return a fresh waitpoint id."""
    return f"waitpoint_{_fresh()}"


def new_schedule_id() -> str:
    """Return a fresh schedule id."""
    return f"sched_{_fresh()}"


def new_worker_id() -> str:
    """Return a fresh worker id: one per process start, never one per host."""
    return f"worker_{_fresh()}"


def _fresh() -> str:
    return spelled(time.time_ns() // 1_000_000, secrets.randbits(RANDOM_BITS))
