"""Reading, canceling, replaying and tagging runs."""

from datetime import timedelta

import anyio
import orjson
import pytest

from runwire_engine.engine import Engine
from runwire_engine.errors import (
    DataRefusedError,
    NotDelayedError,
    RunFinalError,
    RunNotFoundError,
)
from runwire_engine.outcomes import Failed
from runwire_engine.wanted_runs import NewRun
from tests.support.engines import (
    ALL_TASKS,
    assert_dense,
    claimed,
    completed,
    query,
    statuses,
    there,
    triggered,
)

pytestmark = pytest.mark.anyio

UNKNOWN = "run_00000000unknown"


async def test_runs_are_read_in_the_order_asked_for_and_only_in_their_environment(
    engine: Engine, env: int
) -> None:
    first, second = await triggered(engine, env), await triggered(engine, env)
    runs = await engine.runs.retrieve_many(env, [second, UNKNOWN, first, second])
    assert [run.id for run in runs] == [second, first]
    assert await engine.runs.retrieve(env + 1, first) is None


async def test_a_waiting_run_is_canceled_at_once(engine: Engine, env: int) -> None:
    for new in (NewRun("plain"), NewRun("plain", delay=60), NewRun("limited")):
        run_id = await triggered(engine, env, new)
        canceled = await engine.runs.cancel(env, run_id)
        assert (canceled.status, canceled.finished_at is not None) == ("CANCELED", True)
        assert await engine.runs.cancel(env, run_id) == canceled
        assert await assert_dense(engine, env, run_id) == ["created", "final"]
    assert await engine.claims.claim(env, "w1", ALL_TASKS, 10) == []


async def test_an_executing_run_is_asked_to_stop_once(engine: Engine, env: int) -> None:
    run = await claimed(engine, env)
    asked = await engine.runs.cancel(env, run.id)
    assert (asked.status, asked.cancel_requested_at is not None) == ("EXECUTING", True)
    assert await engine.runs.cancel(env, run.id) == asked
    assert await assert_dense(engine, env, run.id) == ["created", "executing", "canceling"]
    changed = orjson.loads((await engine.runs.events(env, run.id))[-1].delta)["set"]
    assert changed.keys() == {"status", "cancelRequestedAt", "error"}


async def test_a_retry_that_waits_is_canceled_at_once_and_its_error_goes(
    engine: Engine, env: int
) -> None:
    run = await claimed(engine, env)
    await engine.outcomes.finish(env, Failed(run.id, run.execution, "{}", retry_in=60))
    canceled = await engine.runs.cancel(env, run.id)
    assert (canceled.status, canceled.error) == ("CANCELED", None)


async def test_canceling_what_is_over_changes_nothing(engine: Engine, env: int) -> None:
    run = await completed(engine, env)
    assert await engine.runs.cancel(env, run.id) == run
    with pytest.raises(RunNotFoundError):
        await engine.runs.cancel(env, UNKNOWN)


async def test_a_cancellation_racing_a_claim_ends_in_either_order(engine: Engine, env: int) -> None:
    ids = [await triggered(engine, env) for _ in range(40)]
    async with anyio.create_task_group() as tasks:
        for run_id in ids:
            tasks.start_soon(engine.runs.cancel, env, run_id)
        for _ in range(8):
            tasks.start_soon(engine.claims.claim, env, "w1", ALL_TASKS, 5)
    for run in await engine.runs.retrieve_many(env, ids):
        assert run.status == "CANCELED" or run.cancel_requested_at is not None
        await assert_dense(engine, env, run.id)


async def test_a_replay_is_a_new_run_like_the_old_one(engine: Engine, env: int) -> None:
    new = NewRun(
        "plain",
        '{"a":1}',
        queue="elsewhere",
        concurrency_key="c",
        tags=("t",),
        metadata='{"old":1}',
        priority=3,
        max_attempts=4,
        idempotency_key="k",
    )
    old = await completed(engine, env, new)
    result = await engine.runs.replay(env, old.id)
    run = await there(engine, env, result.id)
    assert run.id != old.id and not result.is_cached
    for name in ("task", "payload", "payload_type", "queue", "concurrency_key", "tags"):
        assert getattr(run, name) == getattr(old, name), name
    assert (run.priority, run.max_attempts, run.metadata) == (3, 4, None)
    assert (run.idempotency_key, run.batch_id, run.parent_id) == (None, None, None)
    other = await engine.runs.replay(env, old.id, payload='"p"', request_key="r")
    assert await engine.runs.replay(env, old.id, payload='"p"', request_key="r") == other
    assert (await there(engine, env, other.id)).payload == '"p"'
    with pytest.raises(RunNotFoundError):
        await engine.runs.replay(env, UNKNOWN)


async def test_added_tags_are_a_revision_for_the_feeds_of_all_tags(
    engine: Engine, env: int
) -> None:
    run_id = await triggered(engine, env, NewRun("plain", tags=("a",)))
    run = await engine.runs.add_tags(env, run_id, ["a", "b", "b"])
    assert (run.tags, run.revision) == (("a", "b"), 2)
    assert await engine.runs.add_tags(env, run_id, ["b"]) == run
    event = (await engine.runs.events(env, run_id))[-1]
    assert (event.type, event.tags) == ("tags", ("a", "b"))
    assert orjson.loads(event.delta) == {"set": {"tags": ["a", "b"]}}
    rows = await query(engine.database, "select tag from runwire.run_tags order by 1")
    assert [row["tag"] for row in rows] == ["a", "b"]


async def test_a_run_has_ten_tags_at_most_also_when_they_come_at_once(
    engine: Engine, env: int
) -> None:
    run_id = await triggered(engine, env)
    refused = 0

    async def add(tag: str) -> None:
        nonlocal refused
        try:
            await engine.runs.add_tags(env, run_id, [tag])
        except DataRefusedError:
            refused += 1

    async with anyio.create_task_group() as tasks:
        for number in range(15):
            tasks.start_soon(add, f"t{number}")
    assert refused == 5
    assert len((await there(engine, env, run_id)).tags) == 10


async def test_a_run_that_is_over_or_unknown_gets_no_tags(engine: Engine, env: int) -> None:
    run = await completed(engine, env)
    with pytest.raises(RunFinalError):
        await engine.runs.add_tags(env, run.id, ["late"])
    with pytest.raises(RunNotFoundError):
        await engine.runs.add_tags(env, UNKNOWN, ["t"])
    assert await statuses(engine, env, [run.id]) == ["COMPLETED"]


async def test_a_delayed_run_is_rescheduled_sooner_and_later(engine: Engine, env: int) -> None:
    run_id = await triggered(engine, env, NewRun("plain", delay=600, ttl=60, priority=3))
    before = await there(engine, env, run_id)
    assert before.delayed_until is not None
    later = await engine.runs.reschedule(env, run_id, before.delayed_until + timedelta(hours=1))
    assert later.delayed_until is not None
    assert later.delayed_until == before.delayed_until + timedelta(hours=1)
    assert later.expires_at == later.delayed_until + timedelta(seconds=60)
    assert later.sort_at == later.delayed_until - timedelta(seconds=3)
    sooner = await engine.runs.reschedule(env, run_id, 0)
    assert sooner.status == "DELAYED" and sooner.delayed_until == sooner.updated_at
    await engine.claims.promote_due(env)
    assert (await there(engine, env, run_id)).status == "QUEUED"
    assert await assert_dense(engine, env, run_id) == ["created", "delayed", "delayed", "queued"]


async def test_only_a_run_that_waits_for_its_first_time_is_rescheduled(
    engine: Engine, env: int
) -> None:
    with pytest.raises(RunNotFoundError):
        await engine.runs.reschedule(env, UNKNOWN, 1)
    run = await claimed(engine, env)
    await engine.outcomes.finish(env, Failed(run.id, run.execution, "{}", 60))
    assert (await there(engine, env, run.id)).status == "DELAYED"
    queued = await triggered(engine, env)
    for run_id in (run.id, queued):
        with pytest.raises(NotDelayedError, match="cannot be rescheduled"):
            await engine.runs.reschedule(env, run_id, 1)
