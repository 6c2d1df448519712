"""Calls at a fixed rate, and what the runs that they start tell: ours and each peer's.

Nothing here but the standard library, since peers have an environment of their own.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def waits(per_second: float, count: int) -> Iterator[float]:
    """Yield, before each of so many calls, for how many seconds it is too early."""
    start = time.monotonic()
    for number in range(count):
        yield max(0.0, start + number / per_second - time.monotonic())


async def steadily(call: Callable[[], Awaitable[T]], per_second: float, count: int) -> list[T]:
    """Call it so many times a second, whether or not the last call has returned."""

    async def one() -> T:
        return await call()

    calls: list[asyncio.Task[T]] = []
    for wait in waits(per_second, count):
        await asyncio.sleep(wait)
        calls.append(asyncio.create_task(one()))
    return await asyncio.gather(*calls)


class Tally:
    """What the first line of each run of a peer says: when it began, and how late that was."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._starts: list[float] = []
        self._latencies: list[float] = []

    def start(self, triggered_at: int = 0) -> bool:
        """Note a start, of a trigger at this time (monotonic ns) if it is timed.

        Returns whether all have started.
        """
        self._starts.append(time.monotonic())
        if triggered_at:
            self._latencies.append((time.monotonic_ns() - triggered_at) / 1e6)
        return len(self._starts) == self._count

    def say(self, mode: str) -> None:
        """Print what was asked for, as one line of JSON.

        Runs per second are from the first start to the last start, not to the last write of an end:
        a little in the peer's favour.
        """
        if mode == "throughput":
            said: object = {"runs": self._count / (max(self._starts) - min(self._starts))}
        else:
            said = {"latencies": self._latencies}
        print(json.dumps(said), flush=True)
