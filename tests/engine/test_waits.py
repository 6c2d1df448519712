"""Entering WAITING and going on, against the facts that are waited for."""

from collections.abc import Sequence
from dataclasses import replace

import anyio
import pytest

from runwire.errors import FencedError
from runwire_engine.claims import ClaimedRun
from runwire_engine.engine import Engine
from runwire_engine.journal import Step
from runwire_engine.outcomes import Completed
from runwire_engine.waits import Entered, Entry, Waits
from runwire_engine.wanted_runs import NewRun, Parent
from tests.support.engines import (
    ALL_TASKS,
    assert_dense,
    claimed,
    query,
    there,
    triggered,
    until_status,
)

pytestmark = pytest.mark.anyio


def waiting_for(parent: ClaimedRun, *steps: Step, worker_id: str = "w1") -> Entry:
    places = [step.place for step in steps]
    return Entry(parent.id, parent.execution, parent.generation, worker_id, steps, places)


async def family(engine: Engine, env: int) -> tuple[ClaimedRun, ClaimedRun, Step]:
    """Return an executing parent, its executing child, and the step that waits for it."""
    parent = await claimed(engine, env)
    new = NewRun("plain", parent=Parent(parent.id, parent.execution), awaited=True)
    child = await claimed(engine, env, new)
    return parent, child, Step("main", 0, "run", "plain", (child.id,))


async def finish(engine: Engine, env: int, run: ClaimedRun) -> None:
    await engine.outcomes.finish(env, Completed(run.id, run.execution, "1"))


async def enter(engine: Engine, env: int, entry: Entry, answers: list[Entered]) -> None:
    answers.append(await engine.waits.enter(env, entry))


async def test_no_fact_is_missed_however_it_meets_the_entering(engine: Engine, env: int) -> None:
    for _ in range(15):
        parent, child, step = await family(engine, env)
        answers: list[Entered] = []

        async with anyio.create_task_group() as group:
            group.start_soon(enter, engine, env, waiting_for(parent, step), answers)
            group.start_soon(finish, engine, env, child)
        if answers[0].is_parked:
            await until_status(engine, env, parent.id, "QUEUED")
            assert await engine.claims.claim(env, "w1", ALL_TASKS, 1)
        else:
            assert answers[0].over == {("main", 0)}
            assert (await there(engine, env, parent.id)).status == "EXECUTING"


async def test_the_sweep_wakes_whom_a_dead_process_left(engine: Engine, env: int) -> None:
    parent, child, step = await family(engine, env)
    assert (await engine.waits.enter(env, waiting_for(parent, step))).is_parked
    # As by a process that dies between the two transactions, or that knows nothing of waits.
    await query(
        engine.database,
        "update runwire.runs set status = 'COMPLETED', worker_id = null, finished_at = now()"
        " where id = %s",
        child.id,
    )
    assert (await there(engine, env, parent.id)).status == "WAITING"
    await Waits(engine.database, engine.bell).sweep()
    resumed = await there(engine, env, parent.id)
    assert (resumed.status, resumed.attempt) == ("QUEUED", 1)
    assert await query(engine.database, "select 1 from runwire.wakes") == []


async def test_the_worker_where_code_waits_comes_first_for_a_second(
    engine: Engine, env: int
) -> None:
    await engine.workers.register(env, "w2")
    parent, child, step = await family(engine, env)
    await engine.waits.enter(env, waiting_for(parent, step))
    await finish(engine, env, child)
    await until_status(engine, env, parent.id, "QUEUED")
    assert await engine.claims.claim(env, "w2", ALL_TASKS, 1) == []
    await query(engine.database, "update runwire.runs set queued_at = now() - interval '2 s'")
    (taken,) = await engine.claims.claim(env, "w2", ALL_TASKS, 1)
    assert (taken.id, taken.attempt, taken.execution) == (parent.id, 1, 2)
    assert taken.lineage == parent.lineage == 1


async def test_a_worker_that_is_gone_keeps_nobody_from_claiming(engine: Engine, env: int) -> None:
    await engine.workers.register(env, "w2")
    parent, _, step = await family(engine, env)
    await engine.waits.enter(env, waiting_for(parent, step))
    await query(engine.database, "update runwire.workers set stopped_at = now() where id = 'w1'")
    await engine.waits.resume(env, parent.id)
    (taken,) = await engine.claims.claim(env, "w2", ALL_TASKS, 1)
    assert taken.id == parent.id


async def test_a_wait_is_dense_in_revisions_and_told(engine: Engine, env: int) -> None:
    parent, child, step = await family(engine, env)
    await engine.waits.enter(env, waiting_for(parent, step))
    await finish(engine, env, child)
    await until_status(engine, env, parent.id, "QUEUED")
    (taken,) = await engine.claims.claim(env, "w1", ALL_TASKS, 1)
    await finish(engine, env, taken)
    kinds = await assert_dense(engine, env, parent.id)
    assert kinds == ["created", "executing", "waiting", "queued", "executing", "final"]
    for table in ("waits", "checkpoints", "wait_targets", "wakes"):
        assert await query(engine.database, f"select 1 from runwire.{table}") == []


async def test_a_run_that_shall_be_canceled_does_not_begin_to_wait(
    engine: Engine, env: int
) -> None:
    parent, _, step = await family(engine, env)
    await engine.runs.cancel(env, parent.id)
    entered = await engine.waits.enter(env, waiting_for(parent, step))
    assert not entered.is_parked and not entered.over
    assert (await there(engine, env, parent.id)).status == "EXECUTING"


async def test_an_execution_that_lost_its_run_cannot_begin_to_wait(
    engine: Engine, env: int
) -> None:
    parent, _, step = await family(engine, env)
    stale = replace(waiting_for(parent, step), execution=parent.execution - 1)
    with pytest.raises(FencedError):
        await engine.waits.enter(env, stale)


async def test_entering_twice_is_entering_once(engine: Engine, env: int) -> None:
    parent, _, step = await family(engine, env)
    for _ in range(2):
        assert (await engine.waits.enter(env, waiting_for(parent, step))).is_parked
    waiting = await there(engine, env, parent.id)
    assert (waiting.status, waiting.waited, waiting.revision) == ("WAITING", 1, 3)


async def test_somebody_elses_run_is_waited_for_as_well(engine: Engine, env: int) -> None:
    parent = await claimed(engine, env)
    other = await claimed(engine, env, NewRun("other"))
    step = Step("main", 0, "run", "other", (other.id,), (other.id,))
    assert (await engine.waits.enter(env, waiting_for(parent, step))).is_parked
    await finish(engine, env, other)
    await until_status(engine, env, parent.id, "QUEUED")


async def test_times_come_in_order_and_wake_only_who_is_due(engine: Engine, env: int) -> None:
    ids: Sequence[str] = [await triggered(engine, env) for _ in range(2)]
    runs = {run.id: run for run in await engine.claims.claim(env, "w1", ALL_TASKS, 5)}
    for run_id, seconds in zip(ids, (0.0, 60.0), strict=True):
        step = Step("main", 0, "time", "a time", due_in=seconds)
        await engine.waits.enter(env, waiting_for(runs[run_id], step))
    next_due = await engine.waits.wake_due(env)
    assert next_due is not None and 50 < next_due <= 60
    # The first was due before it could wait.
    assert (await there(engine, env, ids[0])).status == "EXECUTING"
    await query(engine.database, "update runwire.waits set due_at = now()")
    await query(
        engine.database, "update runwire.runs set wake_at = now() where wake_at is not null"
    )
    await engine.waits.wake_due(env)
    assert (await there(engine, env, ids[1])).status == "QUEUED"
