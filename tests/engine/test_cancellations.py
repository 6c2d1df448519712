"""Canceling a run takes its children along, some at a time, whoever dies in between."""

from collections import Counter
from collections.abc import Sequence

import pytest

from runwire_engine.claims import ClaimedRun
from runwire_engine.engine import Engine, open_engine
from runwire_engine.journal import Step
from runwire_engine.outcomes import Canceled, Completed
from runwire_engine.settings import EngineSettings
from runwire_engine.waits import Entry
from runwire_engine.wanted_runs import NewRun, Parent, TriggerResult
from tests.support.engines import (
    ALL_TASKS,
    assert_dense,
    claimed,
    query,
    statuses,
    there,
    triggered,
    until_status,
)

pytestmark = pytest.mark.anyio


async def children(engine: Engine, env: int, parent: ClaimedRun, count: int) -> list[str]:
    new = NewRun("other", parent=Parent(parent.id, parent.execution))
    results = await engine.runs.trigger_many(env, [new] * count)
    return [result.id for result in results if isinstance(result, TriggerResult)]


async def wait(engine: Engine, env: int, parent: ClaimedRun, ids: Sequence[str]) -> None:
    """Have an executing run wait for runs, with its slot free."""
    step = Step("main", 0, "run", "other", tuple(ids))
    entry = Entry(parent.id, parent.execution, parent.generation, "w1", [step], [step.place])
    assert (await engine.waits.enter(env, entry)).is_parked


async def left(engine: Engine) -> int:
    (row,) = await query(engine.database, "select count(*) as n from runwire.cancellations")
    return int(row["n"])


async def all_canceled(engine: Engine, env: int, ids: Sequence[str]) -> bool:
    return set(await statuses(engine, env, ids)) == {"CANCELED"}


async def test_children_are_canceled_with_the_run_that_waits_for_them_and_theirs_too(
    engine: Engine, env: int
) -> None:
    parent = await claimed(engine, env)
    child = await claimed(
        engine, env, NewRun("plain", parent=Parent(parent.id, parent.execution), awaited=True)
    )
    grandchildren = await children(engine, env, child, 3)
    await wait(engine, env, child, grandchildren)
    await wait(engine, env, parent, [child.id])
    await engine.runs.cancel(env, parent.id)
    for run_id in (parent.id, child.id, *grandchildren):
        await until_status(engine, env, run_id, "CANCELED")
        assert (await assert_dense(engine, env, run_id))[-1] == "final"
    assert await left(engine) == 0


async def test_also_children_that_nobody_waits_for_wherever_they_are(
    engine: Engine, env: int
) -> None:
    parent = await claimed(engine, env)
    of_parent = Parent(parent.id, parent.execution)
    executing = await claimed(engine, env, NewRun("plain", parent=of_parent))
    done = await claimed(engine, env, NewRun("plain", parent=of_parent))
    await engine.outcomes.finish(env, Completed(done.id, done.execution, "1"))
    delayed = await triggered(engine, env, NewRun("plain", parent=of_parent, delay=60))
    (queued,) = await children(engine, env, parent, 1)
    stranger = await triggered(engine, env)
    await engine.outcomes.finish(env, Canceled(parent.id, parent.execution))
    for run_id in (delayed, queued):
        await until_status(engine, env, run_id, "CANCELED")
    asked = await there(engine, env, executing.id)
    assert asked.status == "EXECUTING" and asked.cancel_requested_at is not None
    assert await statuses(engine, env, [done.id, stranger]) == ["COMPLETED", "QUEUED"]


async def test_the_children_of_a_run_that_is_asked_to_end_follow_when_it_has(
    engine: Engine, env: int
) -> None:
    parent = await claimed(engine, env)
    ids = await children(engine, env, parent, 2)
    await engine.runs.cancel(env, parent.id)
    while await engine.cancellations.sweep():
        pass
    assert await statuses(engine, env, ids) == ["QUEUED", "QUEUED"]
    # Whatever it ended with.
    await engine.outcomes.finish(env, Completed(parent.id, parent.execution, "1"))
    for run_id in ids:
        await until_status(engine, env, run_id, "CANCELED")


async def test_a_run_that_ends_otherwise_leaves_its_children_alone(
    engine: Engine, env: int
) -> None:
    parent = await claimed(engine, env)
    ids = await children(engine, env, parent, 2)
    await engine.outcomes.finish(env, Completed(parent.id, parent.execution, "1"))
    assert await left(engine) == 0
    assert await statuses(engine, env, ids) == ["QUEUED", "QUEUED"]


async def test_canceling_a_run_without_children_leaves_nothing_to_do(
    engine: Engine, env: int
) -> None:
    engine.cancellations.close()
    alone = await triggered(engine, env)
    await engine.runs.cancel(env, alone)
    assert await left(engine) == 0


async def test_items_of_a_batch_are_children_like_others(engine: Engine, env: int) -> None:
    parent = await claimed(engine, env)
    of_parent = Parent(parent.id, parent.execution)
    batch = await engine.batches.create(env, 2, parent=of_parent)
    new = NewRun("other", parent=of_parent)
    await engine.batches.add_items(env, batch.id, [(0, new), (1, new)])
    await engine.outcomes.finish(env, Canceled(parent.id, parent.execution))
    stored = await engine.batches.retrieve(env, batch.id)
    assert stored is not None
    for run_id in stored.run_ids:
        await until_status(engine, env, run_id, "CANCELED")


async def test_many_children_are_canceled_some_at_a_time_by_whoever_goes_on(
    database_url: str, env: int, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runwire_engine.cancellations._CHILDREN_AT_ONCE", 4)
    parent = await claimed(engine, env)
    ids = await children(engine, env, parent, 10)
    engine.cancellations.close()  # the process that cancels is gone before it comes to them
    await wait(engine, env, parent, ids)
    await engine.runs.cancel(env, parent.id)
    assert Counter(await statuses(engine, env, ids)) == {"QUEUED": 10}
    for canceled in (4, 8, 10):
        assert await engine.cancellations.sweep()
        assert Counter(await statuses(engine, env, ids))["CANCELED"] == canceled
    assert not await engine.cancellations.sweep()
    for run_id in ids:
        assert await assert_dense(engine, env, run_id) == ["created", "final"]
    await engine.runs.cancel(env, parent.id)  # once more changes nothing
    assert await left(engine) == 0


async def test_the_sweep_cancels_what_a_dead_process_left(
    database_url: str, env: int, engine: Engine
) -> None:
    parent = await claimed(engine, env)
    ids = await children(engine, env, parent, 3)
    engine.cancellations.close()
    await engine.outcomes.finish(env, Canceled(parent.id, parent.execution))
    assert await left(engine) == 1
    async with open_engine(EngineSettings(database_url=database_url, sweep=0.05)):
        for run_id in ids:
            await until_status(engine, env, run_id, "CANCELED")


async def test_nothing_is_claimed_of_what_is_canceled(engine: Engine, env: int) -> None:
    parent = await claimed(engine, env)
    ids = await children(engine, env, parent, 20)
    await engine.outcomes.finish(env, Canceled(parent.id, parent.execution))
    for run_id in ids:
        await until_status(engine, env, run_id, "CANCELED")
    assert await engine.claims.claim(env, "w1", ALL_TASKS, 50) == []
