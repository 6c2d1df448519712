"""The tasks that the engine is measured with."""

import time

from runwire import task


@task(id="noop")
async def noop() -> None:
    """Do nothing."""


@task(id="stamp")
async def stamp(payload: int) -> float:
    """Return how many milliseconds ago (on this machine's monotonic clock) it was triggered."""
    return (time.monotonic_ns() - payload) / 1e6
