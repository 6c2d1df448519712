"""The tasks that the engine is measured with."""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

from runwire import streams, task
from tests.benchmarks.fed import events_of, stream_of


@task(id="noop")
async def noop() -> None:
    """Do nothing."""


@task(id="stamp")
async def stamp(payload: int) -> float:
    """Return how many milliseconds ago (on this machine's monotonic clock) it was triggered."""
    return (time.monotonic_ns() - payload) / 1e6


@task(id="relay")
async def relay(payload: str) -> None:
    """Write each line of a named pipe to the stream that it says it belongs to."""
    writers: dict[str, Any] = {}
    with await asyncio.to_thread(open, payload) as pipe:
        async with AsyncExitStack() as stack:
            async for arrived in events_of(pipe):
                for event in arrived:
                    key = stream_of(event)
                    if key not in writers:
                        writers[key] = await stack.enter_async_context(streams.writer(key))
                    await writers[key].write(event)
