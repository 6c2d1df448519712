"""Leases, and what becomes of the runs of a worker that is gone."""

import anyio
import orjson
import pytest

from runwire.errors import FencedError
from runwire_engine.claims import ClaimedRun
from runwire_engine.engine import Engine
from runwire_engine.outcomes import Completed
from runwire_engine.streams import Append
from runwire_engine.wanted_runs import NewRun
from runwire_engine.workers import Swept
from tests.support.engines import (
    ALL_TASKS,
    assert_dense,
    claimed,
    query,
    statuses,
    there,
    triggered,
)

pytestmark = pytest.mark.anyio


async def kill(engine: Engine, worker_id: str) -> None:
    """Let a lease run out."""
    await query(
        engine.database,
        "update runwire.workers set expires_at = now() - interval '1 ms' where id = %s",
        worker_id,
    )


async def held_by(
    engine: Engine, env: int, worker_id: str, new: NewRun | None = None
) -> ClaimedRun:
    await engine.workers.register(env, worker_id)
    return await claimed(engine, env, new, worker_id)


async def test_a_heartbeat_renews_the_lease(engine: Engine, env: int) -> None:
    await kill(engine, "w1")
    assert await engine.workers.heartbeat("w1")
    assert (await engine.workers.sweep()).dead_workers == 0
    assert not await engine.workers.heartbeat("nobody")


async def test_a_dead_workers_run_goes_to_another_with_one_attempt_more(
    engine: Engine, env: int
) -> None:
    run = await held_by(engine, env, "dead")
    await kill(engine, "dead")
    assert await engine.workers.sweep() == Swept(dead_workers=1, lost=1)
    waiting = await there(engine, env, run.id)
    assert (waiting.status, waiting.attempt, waiting.worker_id) == ("QUEUED", 1, None)
    assert waiting.sort_at == run.sort_at  # it has waited once already
    (again,) = await engine.claims.claim(env, "w1", ALL_TASKS, 1)
    assert (again.id, again.execution, again.attempt) == (run.id, 2, 2)
    assert await assert_dense(engine, env, run.id) == [
        "created",
        "executing",
        "queued",
        "executing",
    ]


async def test_a_worker_that_was_counted_as_dead_can_do_nothing_more(
    engine: Engine, env: int
) -> None:
    run = await held_by(engine, env, "zombie")
    await kill(engine, "zombie")
    await engine.workers.sweep()
    await triggered(engine, env)
    assert not await engine.workers.heartbeat("zombie")
    assert await engine.claims.claim(env, "zombie", ALL_TASKS, 10) == []
    with pytest.raises(FencedError):
        await engine.outcomes.finish(env, Completed(run.id, run.execution, "1"))
    await engine.workers.register(env, "zombie")
    assert not await engine.workers.heartbeat("zombie")


async def test_a_run_without_an_attempt_left_crashes_with_its_worker(
    engine: Engine, env: int
) -> None:
    new = NewRun("plain", max_attempts=1, idempotency_key="k")
    run = await held_by(engine, env, "dead", new)
    await engine.streams.append(
        env, Append(run.id, "log", ('"x"',), execution=run.execution, attempt=1)
    )
    await kill(engine, "dead")
    await engine.workers.sweep()
    after = await there(engine, env, run.id)
    assert (after.status, orjson.loads(after.error or "")["code"]) == ("CRASHED", "WORKER_LOST")
    (stream,) = await engine.streams.streams_of(env, run.id)
    assert stream.eof_reason == "crashed"
    assert (await engine.runs.trigger(env, new)).id != run.id


async def test_a_poisonous_run_crashes_after_its_attempts(engine: Engine, env: int) -> None:
    run_id = await triggered(engine, env, NewRun("plain", max_attempts=2))
    for worker_id in ("a", "b"):
        await engine.workers.register(env, worker_id)
        assert len(await engine.claims.claim(env, worker_id, ALL_TASKS, 1)) == 1
        await kill(engine, worker_id)
        await engine.workers.sweep()
    assert (await there(engine, env, run_id)).status == "CRASHED"


async def test_a_canceled_run_of_a_dead_worker_is_canceled(engine: Engine, env: int) -> None:
    run = await held_by(engine, env, "dead")
    await engine.runs.cancel(env, run.id)
    await kill(engine, "dead")
    await engine.workers.sweep()
    assert (await there(engine, env, run.id)).status == "CANCELED"


async def test_many_sweepers_at_once_sweep_each_run_once(engine: Engine, env: int) -> None:
    ids = [await triggered(engine, env) for _ in range(30)]
    for number in range(6):
        await engine.workers.register(env, f"dead{number}")
        await engine.claims.claim(env, f"dead{number}", ALL_TASKS, 5)
        await kill(engine, f"dead{number}")
    swept: list[Swept] = []

    async def sweep() -> None:
        swept.append(await engine.workers.sweep())

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(sweep)
    assert sum(each.lost for each in swept) == 30
    for run_id in ids:
        assert await assert_dense(engine, env, run_id) == ["created", "executing", "queued"]


async def test_no_run_is_left_behind_by_claims_that_race_the_sweep(
    engine: Engine, env: int
) -> None:
    for number in range(20):
        run_id = await triggered(engine, env)
        worker_id = f"racer{number}"
        await engine.workers.register(env, worker_id)

        async def claim(worker_id: str = worker_id) -> None:
            await engine.claims.claim(env, worker_id, ALL_TASKS, 1)

        async def bury(worker_id: str = worker_id) -> None:
            await kill(engine, worker_id)
            await engine.workers.sweep()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(claim)
            tasks.start_soon(bury)
        await engine.workers.sweep()
        assert await statuses(engine, env, [run_id]) == ["QUEUED"]
        await engine.runs.cancel(env, run_id)


async def test_a_worker_is_not_buried_in_the_middle_of_a_claim(engine: Engine, env: int) -> None:
    run_id = await triggered(engine, env)
    async with engine.database.transaction() as tx:
        taken = await tx.all(
            "claims.take",
            {
                "environment_id": env,
                "worker_id": "w1",
                "tasks": ["plain"],
                "max_attempts": [3],
                "ids": [run_id],
                "queues": [],
                "keys": [],
                "had_turns": [],
                "slots": 0,
                "reach": 0,
            },
        )
        assert [row["id"] for row in taken] == [run_id]
        await kill(engine, "w1")
        assert (await engine.workers.sweep()).dead_workers == 0
    assert await engine.workers.sweep() == Swept(dead_workers=1, lost=1)


async def test_a_stopping_worker_gives_its_runs_back_uncounted(engine: Engine, env: int) -> None:
    run = await held_by(engine, env, "stopping")
    assert await engine.workers.stop("stopping") == 1
    after = await there(engine, env, run.id)
    assert (after.status, after.attempt, after.execution) == ("QUEUED", 0, 1)
    assert (await assert_dense(engine, env, run.id))[-1] == "released"
    assert await engine.workers.stop("stopping") == 0


async def test_a_cancellation_nobody_answers_is_forced(engine: Engine, env: int) -> None:
    run = await claimed(engine, env)
    await engine.runs.cancel(env, run.id)
    assert await engine.workers.cancel_requests("w1") == [run.id]
    assert (await engine.workers.sweep()).canceled == 0
    await query(
        engine.database,
        "update runwire.runs set cancel_requested_at = now() - interval '36 s'",
    )
    assert (await engine.workers.sweep()).canceled == 1
    assert (await there(engine, env, run.id)).status == "CANCELED"
    assert await engine.workers.held("w1") == {}


async def test_a_run_whose_ttl_passed_expires_unless_it_has_started(
    engine: Engine, env: int
) -> None:
    started = await claimed(engine, env, NewRun("plain", ttl=100))
    (row,) = await query(engine.database, "select expires_at from runwire.runs")
    assert row["expires_at"] is None, "it expires no more"
    waiting = await triggered(engine, env, NewRun("plain", ttl=0.001))
    patient = await triggered(engine, env, NewRun("plain", ttl=100))
    await query(engine.database, "select pg_sleep(0.01)")  # longer than the ttl
    assert (await engine.workers.sweep()).expired == 1
    assert await statuses(engine, env, [started.id, waiting, patient]) == [
        "EXECUTING",
        "EXPIRED",
        "QUEUED",
    ]
    run = await there(engine, env, waiting)
    assert run.expired_at == run.finished_at is not None
    changed = orjson.loads((await engine.runs.events(env, waiting))[-1].delta)["set"]
    assert changed.keys() == {"status", "expiredAt", "finishedAt"}


async def test_a_sweep_does_a_bounded_amount_and_says_that_there_is_more(
    engine: Engine, env: int
) -> None:
    await engine.runs.trigger_many(env, [NewRun("plain", ttl=0.001) for _ in range(600)])
    await query(engine.database, "select pg_sleep(0.01)")  # longer than the ttl
    first, second = await engine.workers.sweep(), await engine.workers.sweep()
    assert (first.expired, first.full) == (500, True)
    assert (second.expired, second.full) == (100, False)
