"""Trigger → first line of the task, in milliseconds: an idle worker, so many triggers a second.

Ours twice: over HTTP with the Python client, as an application triggers, and by the engine in the
triggering process, which is how the peers do it; our worker is another process in both. The first
triggers of a process, which open its connections and prepare what it asks, count for nobody.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

import uvloop

from runwire import AsyncRunwire
from runwire_engine.engine import open_engine
from runwire_engine.settings import EngineSettings
from runwire_engine.wanted_runs import NewRun
from tests.benchmarks import queues, worker
from tests.benchmarks.comparison import OURS, Column, Comparison, Figures, Goal, in_turn
from tests.benchmarks.cores import SERVER_CORES
from tests.benchmarks.pace import steadily
from tests.benchmarks.stand import Stand, serving

PER_SECOND = 100
CONCURRENCY = 10
OVER_HTTP = "runwire over HTTP"
WARM = 50

# Opens what triggers, and yields what makes one trigger.
Trigger: TypeAlias = Callable[[], AbstractAsyncContextManager[Callable[[], Awaitable[object]]]]


def tables(stand: Stand, rounds: int, *, short: bool) -> Iterator[Comparison]:
    """Measure it; in short form, fewer triggers."""
    runs = PER_SECOND * (2 if short else 5)
    worker.announce(stand, SERVER_CORES)

    def measure(trigger: Trigger) -> Figures:
        # The worker has core 0, as the peers' one process has; and a loop like theirs triggers.
        with worker.working(stand, CONCURRENCY, SERVER_CORES):
            return queues.percentiles(uvloop.run(_measured(stand, trigger, runs)))

    def over_http() -> Figures:
        # Beside the worker, as the peers trigger where they work; Postgres has the client's core.
        with serving(stand, on=SERVER_CORES) as server:
            return measure(lambda: _over_http(server))

    peers = {
        name: lambda name=name: queues.start(stand, name, PER_SECOND, runs, CONCURRENCY, warm=WARM)
        for name in queues.SCRIPTS
    }
    yield in_turn(
        f"trigger → first line of the task, {PER_SECOND}/s, an idle worker, milliseconds",
        {
            OURS: lambda: measure(lambda: _by_engine(stand)),
            OVER_HTTP: over_http,
            **peers,
        },
        rounds=rounds,
        columns=[Column("p50", "p50", ".2f"), Column("p99", "p99", ".2f")],
        goals=[
            Goal("p50", 2, most=True),
            Goal("p99", 5, most=True),
            Goal("p50", 2, most=True, row=OVER_HTTP),
            Goal("p99", 5, most=True, row=OVER_HTTP),
        ],
        command="python -m tests.benchmarks start",
    )


async def _measured(stand: Stand, trigger: Trigger, runs: int) -> list[float]:
    async with trigger() as one:
        for count in (WARM, runs):
            await steadily(one, PER_SECOND, count)
            _, took = await asyncio.to_thread(worker.finished, stand, "stamp", count, 30)
    return took


@asynccontextmanager
async def _by_engine(stand: Stand) -> AsyncGenerator[Callable[[], Awaitable[object]]]:
    async with open_engine(EngineSettings(database_url=stand.dsn), sweeping=False) as engine:

        async def one() -> None:
            new = NewRun(task="stamp", payload=str(time.monotonic_ns()))
            await engine.runs.trigger(stand.environment_id, new)

        yield one


@asynccontextmanager
async def _over_http(stand: Stand) -> AsyncGenerator[Callable[[], Awaitable[object]]]:
    async with AsyncRunwire(api_url=stand.url, access_token=stand.key) as runwire:

        async def one() -> None:
            await runwire.tasks.trigger("stamp", time.monotonic_ns())

        yield one
