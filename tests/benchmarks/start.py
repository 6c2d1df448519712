"""Trigger → first line of the task, in milliseconds: an idle worker, so many triggers a second.

Ours twice: over HTTP with the Python client, as an application triggers, and by the engine in the
triggering process, which is how the peers do it; our worker is another process in both.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator

from runwire import AsyncRunwire
from runwire_engine.engine import open_engine
from runwire_engine.settings import EngineSettings
from runwire_engine.wanted_runs import NewRun
from tests.benchmarks import queues, worker
from tests.benchmarks.comparison import OURS, Column, Comparison, Figures, Goal, in_turn
from tests.benchmarks.cores import REST, SERVER_CORES
from tests.benchmarks.pace import steadily
from tests.benchmarks.stand import Stand, serving

PER_SECOND = 100
CONCURRENCY = 10
OVER_HTTP = "runwire over HTTP"
WARM = 50


def tables(stand: Stand, rounds: int, *, short: bool) -> Iterator[Comparison]:
    """Measure it; in short form, fewer triggers."""
    runs = PER_SECOND * (2 if short else 5)
    worker.announce(stand, SERVER_CORES)

    def measure(trigger: Callable[[int], Coroutine[object, object, None]]) -> Figures:
        # The worker has core 0, as the peers' one process has.
        with worker.working(stand, CONCURRENCY, SERVER_CORES):
            asyncio.run(trigger(WARM))
            worker.finished(stand, "stamp", WARM, 30)
            asyncio.run(trigger(runs))
            _, took = worker.finished(stand, "stamp", runs, 30)
        return queues.percentiles(took)

    def over_http() -> Figures:
        with serving(stand, on=REST) as server:
            return measure(lambda count: _over_http(server, count))

    peers = {
        name: lambda name=name: queues.start(stand, name, PER_SECOND, runs, CONCURRENCY)
        for name in queues.SCRIPTS
    }
    yield in_turn(
        f"trigger → first line of the task, {PER_SECOND}/s, an idle worker, milliseconds",
        {
            OURS: lambda: measure(lambda count: _by_engine(stand, count)),
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


async def _by_engine(stand: Stand, count: int) -> None:
    async with open_engine(EngineSettings(database_url=stand.dsn), sweeping=False) as engine:

        async def one() -> None:
            new = NewRun(task="stamp", payload=str(time.monotonic_ns()))
            await engine.runs.trigger(stand.environment_id, new)

        await steadily(one, PER_SECOND, count)


async def _over_http(stand: Stand, count: int) -> None:
    async with AsyncRunwire(api_url=stand.url, access_token=stand.key) as runwire:

        async def one() -> None:
            await runwire.tasks.trigger("stamp", time.monotonic_ns())

        await steadily(one, PER_SECOND, count)
