"""Short ways through the engine, for tests whose subject comes after them."""

from collections.abc import Sequence
from typing import Any

import anyio

from runwire_engine.claims import ClaimedRun
from runwire_engine.database import Database
from runwire_engine.engine import Engine
from runwire_engine.outcomes import Completed
from runwire_engine.run_row import RunRow
from runwire_engine.wanted_runs import NewRun

ALL_TASKS = {"plain": 3, "other": 3, "limited": 3}


async def query(database: Database, text: str, *parameters: object) -> list[dict[str, Any]]:
    """Run SQL of a test and return its rows."""
    async with database.transaction() as tx:
        cursor = await tx.connection.execute(text.encode(), parameters)
        return await cursor.fetchall() if cursor.description else []


async def triggered(engine: Engine, env: int, new: NewRun | None = None) -> str:
    """Trigger a run and return its id."""
    return (await engine.runs.trigger(env, new or NewRun("plain"))).id


async def claimed(
    engine: Engine, env: int, new: NewRun | None = None, worker_id: str = "w1"
) -> ClaimedRun:
    """Trigger a run and claim it; it must be the only ready one."""
    run_id = await triggered(engine, env, new)
    runs = await engine.claims.claim(env, worker_id, ALL_TASKS, 10)
    assert [run.id for run in runs] == [run_id]
    return runs[0]


async def completed(engine: Engine, env: int, new: NewRun | None = None) -> RunRow:
    """Trigger, claim and complete a run."""
    run = await claimed(engine, env, new)
    await engine.outcomes.finish(env, Completed(run.id, run.execution, '"done"'))
    return await there(engine, env, run.id)


async def there(engine: Engine, env: int, run_id: str) -> RunRow:
    """Return a run that must exist."""
    run = await engine.runs.retrieve(env, run_id)
    assert run is not None
    return run


async def until_status(engine: Engine, env: int, run_id: str, status: str) -> None:
    """Wait until somebody else has brought a run to a status."""
    with anyio.fail_after(60):
        while (await there(engine, env, run_id)).status != status:
            await anyio.sleep(0.02)


async def statuses(engine: Engine, env: int, ids: Sequence[str]) -> list[str]:
    """Return the statuses of runs, in order."""
    return [run.status for run in await engine.runs.retrieve_many(env, ids)]


async def assert_dense(engine: Engine, env: int, run_id: str) -> list[str]:
    """Check that a run's events are its revisions, one each, and return their types."""
    events = await engine.runs.events(env, run_id)
    run = await there(engine, env, run_id)
    assert [event.revision for event in events] == list(range(1, run.revision + 1))
    return [event.type for event in events]
