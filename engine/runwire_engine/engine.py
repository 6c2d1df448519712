"""The engine's parts, composed: open it, use them, and what was handed in is stored at the end."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import anyio

from runwire_engine.alarms import Alarms
from runwire_engine.batches import Batches
from runwire_engine.cancellations import Cancellations
from runwire_engine.catalogue import Catalogue
from runwire_engine.claims import Claims
from runwire_engine.database import Database
from runwire_engine.direct_call import DirectCalls
from runwire_engine.doorbell import Doorbell
from runwire_engine.outcomes import Outcomes
from runwire_engine.queues import Queues
from runwire_engine.retention import Retention
from runwire_engine.run_metadata import RunMetadata
from runwire_engine.runs import Runs
from runwire_engine.schedules import Schedules
from runwire_engine.settings import EngineSettings
from runwire_engine.streams import Streams
from runwire_engine.sweep import Sweep
from runwire_engine.ticks import Ticks
from runwire_engine.waitpoints import Waitpoints
from runwire_engine.waits import Waits
from runwire_engine.workers import Workers

# What every run needs.
_HOT: Final = (
    ("triggers.lone",),
    ("triggers.insert",),
    ("claims.take", "claims.take_lone", "outcomes.complete", "outcomes.record"),
)
# How long the end waits for what was handed in; and for the last bells, which only save a poll.
_DRAIN_SECONDS: Final = 5.0
_LAST_BELLS_SECONDS: Final = 0.2
# The sweep ends by itself between two statements: psycopg is alarmed by one that is cut off.
_LAST_SWEEP_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Engine:
    settings: EngineSettings
    database: Database
    bell: Doorbell
    runs: Runs
    batches: Batches
    catalogue: Catalogue
    queues: Queues
    streams: Streams
    metadata: RunMetadata
    claims: Claims
    outcomes: Outcomes
    workers: Workers
    waits: Waits
    waitpoints: Waitpoints
    cancellations: Cancellations
    sweep: Sweep
    schedules: Schedules
    ticks: Ticks


@asynccontextmanager
async def open_engine(
    settings: EngineSettings, *, sweeping: bool = True, ticking: bool = False
) -> AsyncGenerator[Engine]:
    """Connect and run the flushers, the doorbell and the sweep, for the length of a block.

    `ticking`: makes the runs of schedules, too; servers do.
    Raises DatabaseUnavailableError when Postgres does not answer.
    """
    database = Database(settings.database_url, max_size=settings.pool_size)
    hot = DirectCalls(database, *_HOT)
    await database.open()
    try:
        engine = _compose(settings, database, hot)
        flushers = (engine.runs, engine.streams, engine.metadata, engine.outcomes)
        # The sweep and the ticks end by themselves, between two statements.
        passes = anyio.CancelScope(shield=True)

        async def make_passes() -> None:
            with passes:
                async with anyio.create_task_group() as loops:
                    loops.start_soon(engine.waits.run)
                    loops.start_soon(engine.cancellations.run)
                    if sweeping:
                        loops.start_soon(engine.sweep.run)
                    if ticking:
                        loops.start_soon(engine.ticks.run)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.bell.run)
            tasks.start_soon(make_passes)
            for flusher in flushers:
                tasks.start_soon(flusher.run)
            try:
                yield engine
            finally:
                engine.sweep.close()
                engine.waits.close()
                engine.cancellations.close()
                engine.ticks.close()
                await _wind_down(engine)
                passes.cancel()
                tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            hot.close()
            await database.close()


async def _wind_down(engine: Engine) -> None:
    """Store what was handed in, even when cancelled, and ring for it; neither for ever."""
    with anyio.move_on_after(_DRAIN_SECONDS, shield=True):
        for flusher in (engine.runs, engine.streams, engine.metadata, engine.outcomes):
            flusher.close()
            await flusher.drain()
    with anyio.move_on_after(_LAST_BELLS_SECONDS, shield=True):
        while not engine.bell.idle:  # noqa: ASYNC110 -- once in a process, for milliseconds
            await anyio.sleep(0.005)
    with anyio.move_on_after(_LAST_SWEEP_SECONDS, shield=True):
        loops = (engine.sweep, engine.waits, engine.cancellations, engine.ticks)
        while not all(loop.idle for loop in loops):  # noqa: ASYNC110 -- as above
            await anyio.sleep(0.005)


def _compose(settings: EngineSettings, database: Database, hot: DirectCalls) -> Engine:
    bell = Doorbell(settings.listen_dsn)
    claims = Claims(database, bell, hot)
    batches = Batches(database, bell)
    waits = Waits(database, bell)
    waitpoints = Waitpoints(database, waits)
    cancellations = Cancellations(database, bell, waits)
    workers = Workers(
        database,
        bell,
        claims,
        lease=settings.lease,
        cancel_grace=settings.cancel_grace,
        waits=waits,
        canceled=cancellations.wake,
    )
    retention = Retention(
        database,
        history=timedelta(seconds=settings.retention),
        runs=timedelta(seconds=settings.run_retention),
    )
    return Engine(
        settings=settings,
        database=database,
        bell=bell,
        runs=Runs(database, bell, cancellations, hot),
        batches=batches,
        catalogue=Catalogue(database, bell),
        queues=Queues(database, bell),
        streams=Streams(database, bell, waits=waits),
        metadata=RunMetadata(database, bell),
        claims=claims,
        outcomes=Outcomes(database, bell, waits, cancellations.wake, hot),
        workers=workers,
        waits=waits,
        waitpoints=waitpoints,
        cancellations=cancellations,
        sweep=Sweep(
            database,
            workers,
            batches,
            waits,
            waitpoints,
            cancellations,
            retention,
            Alarms(database, horizon_seconds=settings.horizon_alarm),
            interval=settings.sweep,
        ),
        schedules=Schedules(database),
        ticks=Ticks(database, bell, poll=settings.poll),
    )
