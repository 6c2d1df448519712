"""Which program has which core: what is measured has core 0 alone, all else shares the others."""

import contextlib
import os
from collections.abc import Generator

SERVER_CORES = {0}
REST = set(range(1, os.cpu_count() or 1)) or {0}
# What this process may use; blocks within blocks choose from all of it.
_ALLOWED = os.sched_getaffinity(0)


@contextlib.contextmanager
def cores(wanted: set[int]) -> Generator[None]:
    """Run what starts in this block on these cores, whatever a block around it says."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, wanted & _ALLOWED or _ALLOWED)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
