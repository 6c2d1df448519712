"""Which program has which core: what is measured has core 0 alone, all else shares the others."""

import contextlib
import os
from collections.abc import Generator

SERVER_CORES = {0}
REST = set(range(1, os.cpu_count() or 1)) or {0}


@contextlib.contextmanager
def cores(wanted: set[int]) -> Generator[None]:
    """Run what starts in this block on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, wanted & before or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
