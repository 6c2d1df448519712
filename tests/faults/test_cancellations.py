"""A server is killed while it cancels the children of a run: another one goes on.

RUNWIRE_CANCEL_CHILDREN makes it larger (1 200).
"""

import os

import anyio
import pytest

from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.engine import open_engine
from runwire_engine.outcomes import Canceled
from runwire_engine.settings import EngineSettings
from runwire_engine.wanted_runs import NewRun, Parent
from tests.support.engines import claimed, query
from tests.support.processes import running

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

CHILDREN = int(os.environ.get("RUNWIRE_CANCEL_CHILDREN", "1200"))
SWEEP = ("python", "tests/faults/programs/sweep.py")
PATIENCE = 60 + CHILDREN / 100


@pytest.mark.timeout(300)
async def test_children_are_canceled_once_each_whoever_is_killed_at_it(
    database_url: str, env: int
) -> None:
    settings = EngineSettings(database_url=database_url)
    async with open_engine(settings, sweeping=False) as engine:
        await engine.catalogue.announce(env, [TaskAnnouncement("plain", "task/plain")])
        await engine.workers.register(env, "w1")
        parent = await claimed(engine, env)
        new = NewRun("plain", parent=Parent(parent.id, parent.execution))
        for _ in range(CHILDREN // 400):
            await engine.runs.trigger_many(env, [new] * 400)
        engine.cancellations.close()
        await engine.outcomes.finish(env, Canceled(parent.id, parent.execution))
        database = engine.database

        async def counted(status: str) -> int:
            rows = await query(
                database,
                "select 1 from runwire.runs where parent_id = %s and status = %s",
                parent.id,
                status,
            )
            return len(rows)

        async def is_held_up() -> bool:
            return bool(await query(database, "select 1 from pg_locks where not granted"))

        environment = {"RUNWIRE_DATABASE_URL": database_url, "RUNWIRE_SWEEP": "0.05"}
        async with running(*SWEEP, environment=environment) as server:
            # Whoever comes to the youngest child stays there.
            async with database.transaction() as tx:
                await tx.connection.execute(
                    b"select 1 from runwire.runs where parent_id = %s"
                    b" order by ctid desc limit 1 for update",
                    [parent.id],
                )
                with anyio.fail_after(PATIENCE):
                    while not await is_held_up():
                        await anyio.sleep(0.01)
                server.kill()
                assert 0 < await counted("CANCELED") < CHILDREN
        async with running(*SWEEP, environment=environment):
            with anyio.fail_after(PATIENCE):
                while await counted("CANCELED") < CHILDREN:
                    await anyio.sleep(0.02)
                while await query(database, "select 1 from runwire.cancellations"):
                    await anyio.sleep(0.02)
        revisions = await query(
            database, "select distinct revision from runwire.runs where parent_id = %s", parent.id
        )
        assert [row["revision"] for row in revisions] == [2]
