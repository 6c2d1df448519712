"""State changes by 16 writers at once, with a hub that reads them, against plain inserts.

The change is the engine's own: a run is triggered (for tomorrow, so that no worker takes it), which
is a row of the run and one of its log, and the bell rings behind the commit. The peers insert rows
of the same bytes, one transaction each, over 16 connections of the same driver: without a hub, and
with a NOTIFY inside the transaction while the hub listens. A figure of ours may be above 1: what
the writers hand in at the same time is committed together.
"""

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, nullcontext
from functools import partial
from typing import TypeAlias

import anyio
from psycopg import AsyncConnection, sql

from runwire_engine.engine import open_engine
from runwire_engine.ids import new_run_id
from runwire_engine.settings import EngineSettings
from runwire_engine.wanted_runs import NewRun
from tests.benchmarks.comparison import OURS, Column, Comparison, Figures, Goal, in_turn
from tests.benchmarks.stand import Stand, serving

WRITERS = 16
SECONDS = 4.0
PLAIN = "plain inserts, no hub"
INSIDE = "plain inserts, NOTIFY inside"
Change: TypeAlias = Callable[[], Awaitable[object]]


def tables(stand: Stand, rounds: int, *, short: bool) -> Iterator[Comparison]:
    """Measure it; in short form, for a shorter time."""
    seconds = SECONDS / 4 if short else SECONDS
    template = stand.new_run()

    def ours() -> Figures:
        with serving(stand):
            return anyio.run(_triggered, stand, seconds)

    def inserted(*, with_hub: bool) -> Figures:
        with serving(stand) if with_hub else nullcontext():
            return anyio.run(partial(_inserted, stand, template, seconds, notifies=with_hub))

    yield in_turn(
        f"state changes, {WRITERS} writers at once",
        {
            OURS: ours,
            PLAIN: partial(inserted, with_hub=False),
            INSIDE: partial(inserted, with_hub=True),
        },
        rounds=rounds,
        columns=[Column("changes", "changes/s")],
        goals=[Goal("changes", 0.75, PLAIN)],
        command="python -m tests.benchmarks writers",
    )


async def _triggered(stand: Stand, seconds: float) -> Figures:
    async with open_engine(EngineSettings(database_url=stand.dsn), sweeping=False) as engine:
        new = NewRun(task="owner", payload=None, delay=86_400.0)
        change = partial(engine.runs.trigger, stand.environment_id, new)
        return await _counted([change] * WRITERS, seconds)


async def _inserted(stand: Stand, template: str, seconds: float, *, notifies: bool) -> Figures:
    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(
                await AsyncConnection.connect(stand.dsn, autocommit=True)
            )
            for _ in range(WRITERS)
        ]
        statement = await _insert(connections[0], notifies=notifies)

        known = {"environment_id": stand.environment_id, "template": template}

        async def change(connection: AsyncConnection[tuple[object, ...]]) -> None:
            await connection.execute(statement, {**known, "id": new_run_id()})

        return await _counted([partial(change, each) for each in connections], seconds)


async def _counted(changes: list[Change], seconds: float) -> Figures:
    """Let each writer make one change after the other, and count them."""
    made = 0
    ends = time.monotonic() + seconds

    async def write(change: Change) -> None:
        nonlocal made
        while time.monotonic() < ends:
            await change()
            made += 1

    async with anyio.create_task_group() as tasks:
        for change in changes:
            tasks.start_soon(write, change)
    return {"changes": made / seconds}


async def _insert(
    connection: AsyncConnection[tuple[object, ...]], *, notifies: bool
) -> sql.Composed:
    """Return a statement that inserts another run with its event, both as those of a template."""
    run = await _columns(connection, "runs", {"id"})
    event = await _columns(connection, "run_events", {"run_id", "txid"})
    return sql.SQL(
        "with run as (insert into runwire.runs (id, {run})"
        " select %(id)s, {run} from runwire.runs"
        " where environment_id = %(environment_id)s and id = %(template)s),"
        " event as (insert into runwire.run_events (run_id, {event})"
        " select %(id)s, {event} from runwire.run_events"
        " where environment_id = %(environment_id)s and run_id = %(template)s and revision = 1)"
        " select {bell}"
    ).format(
        run=run,
        event=event,
        bell=sql.SQL('pg_notify(\'runwire_feed\', \'{"v":1,"e":1,"r":1}\')' if notifies else "1"),
    )


async def _columns(
    connection: AsyncConnection[tuple[object, ...]], table: str, but: set[str]
) -> sql.Composed:
    cursor = await connection.execute(
        "select column_name::text from information_schema.columns where table_schema = 'runwire'"
        " and table_name = %s and is_generated = 'NEVER' and is_identity = 'NO'",
        [table],
    )
    names = [str(name) for (name,) in await cursor.fetchall()]
    return sql.SQL(", ").join([sql.Identifier(name) for name in names if name not in but])
