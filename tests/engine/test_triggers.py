"""Triggering runs: what they become, and which keys lead to which run."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import anyio
import orjson
import pytest

from runwire.errors import FencedError
from runwire_engine.doorbell import Doorbell
from runwire_engine.engine import Engine, open_engine
from runwire_engine.errors import DataRefusedError, TokenUsedError, UnknownTaskError
from runwire_engine.listener import Listener
from runwire_engine.outcomes import Canceled, Completed, Failed, Outcome
from runwire_engine.settings import EngineSettings
from runwire_engine.wanted_runs import NewRun, Parent, TriggerResult
from tests.support.engines import assert_dense, claimed, query, there, triggered
from tests.support.faultproxy import fault_proxy

pytestmark = pytest.mark.anyio

LATER = datetime(2099, 1, 1, tzinfo=UTC)


async def test_a_run_is_queued_with_everything_that_was_given(engine: Engine, env: int) -> None:
    run_id = await triggered(
        engine,
        env,
        NewRun(
            "plain",
            '{"b": 1,  "a": 2}',
            tags=("user:1", "x", "user:1"),
            metadata='{"step":1}',
            ttl=60,
            max_attempts=7,
            priority=5,
            is_test=True,
        ),
    )
    run = await there(engine, env, run_id)
    assert (run.status, run.revision, run.execution, run.attempt) == ("QUEUED", 1, 0, 0)
    assert (run.payload, run.metadata) == ('{"b": 1,  "a": 2}', '{"step":1}')
    assert (run.tags, run.queue, run.max_attempts, run.is_test) == (
        ("user:1", "x"),
        "task/plain",
        7,
        True,
    )
    assert run.sort_at == run.created_at - timedelta(seconds=5)
    assert run.expires_at == run.created_at + timedelta(seconds=60)
    (event,) = await engine.runs.events(env, run_id)
    assert (event.type, event.tags) == ("created", ("user:1", "x"))
    began = orjson.loads(event.delta)["set"]
    assert began.pop("queuedAt").endswith("Z")
    assert began == {"status": "QUEUED", "tags": ["user:1", "x"], "metadata": {"step": 1}}
    tags = await query(
        engine.database, "select tag from runwire.run_tags where run_id = %s", run_id
    )
    assert sorted(row["tag"] for row in tags) == ["user:1", "x"]


async def test_a_delay_makes_a_run_wait_and_counts_its_ttl_from_then(
    engine: Engine, env: int
) -> None:
    run = await there(engine, env, await triggered(engine, env, NewRun("plain", delay=60, ttl=10)))
    assert (run.status, run.queued_at) == ("DELAYED", None)
    assert run.delayed_until == run.created_at + timedelta(seconds=60)
    assert run.expires_at == run.created_at + timedelta(seconds=70)


async def test_a_time_that_has_passed_is_no_delay(engine: Engine, env: int) -> None:
    past = datetime.now(UTC) - timedelta(hours=1)
    run = await there(engine, env, await triggered(engine, env, NewRun("plain", delay_until=past)))
    assert (run.status, run.delayed_until) == ("QUEUED", None)


async def test_an_unknown_task_is_refused_alone(engine: Engine, env: int) -> None:
    good, bad = await engine.runs.trigger_many(env, [NewRun("plain"), NewRun("nobody")])
    assert isinstance(good, TriggerResult)
    assert isinstance(bad, UnknownTaskError) and bad.task == "nobody"
    with pytest.raises(UnknownTaskError):
        await engine.runs.trigger(env, NewRun("nobody"))


async def test_text_that_postgres_cannot_hold_refuses_only_its_own_run(
    engine: Engine, env: int
) -> None:
    refused: list[Exception] = []

    async def bad(payload: str) -> None:
        with pytest.raises(DataRefusedError) as caught:
            await engine.runs.trigger(env, NewRun("plain", payload))
        refused.append(caught.value)

    async with anyio.create_task_group() as tasks:
        for payload in ('"\x00"', '"\ud800"'):
            tasks.start_soon(bad, payload)
        for _ in range(10):
            tasks.start_soon(triggered, engine, env, NewRun("plain", "1"))
    assert len(refused) == 2
    assert (await query(engine.database, "select count(*) as n from runwire.runs"))[0]["n"] == 10


async def test_concurrent_triggers_are_all_made(engine: Engine, env: int) -> None:
    ids: set[str] = set()

    async def one() -> None:
        ids.add(await triggered(engine, env))

    async with anyio.create_task_group() as tasks:
        for _ in range(200):
            tasks.start_soon(one)
    assert len(await engine.runs.retrieve_many(env, list(ids))) == 200


async def test_missing_partitions_are_made(engine: Engine, env: int) -> None:
    for row in await query(
        engine.database,
        "select inhrelid::regclass::text as name from pg_inherits"
        " where inhparent in ('runwire.run_events'::regclass, 'runwire.stream_chunks'::regclass)",
    ):
        await query(engine.database, f"drop table {row['name']}")
    assert await assert_dense(engine, env, await triggered(engine, env)) == ["created"]


# Bells -----------------------------------------------------------------------------------------


def work_rung(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Keep what the doorbell is told of work, instead of ringing it."""
    rung: list[set[str]] = []

    def keep(bell: Doorbell, environment_id: int, queues: Iterable[str]) -> None:
        rung.append(set(queues))

    monkeypatch.setattr(Doorbell, "ring_work", keep)
    return rung


async def test_a_lone_trigger_rings_in_the_session_that_has_committed_it(
    engine: Engine, env: int, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Doorbell, "ring_work")
    monkeypatch.delattr(Doorbell, "ring_feed")
    with anyio.fail_after(30):
        async with Listener(database_url, environment_id=env) as bells:
            assert (await anext(bells)).scan
            run_id = await triggered(engine, env, NewRun("plain", tags=("user:1",)))
            heard = await anext(bells)
    assert heard.work == {"task/plain"} and heard.lone_run == run_id
    assert heard.runs_moved and not heard.scan


@pytest.mark.parametrize("new", [NewRun("plain", delay=60.0), NewRun("limited")])
async def test_a_lone_trigger_names_no_run_that_is_not_ready_or_goes_through_a_group(
    engine: Engine, env: int, database_url: str, new: NewRun
) -> None:
    with anyio.fail_after(30):
        async with Listener(database_url, environment_id=env) as bells:
            assert (await anext(bells)).scan
            await triggered(engine, env, new)
            heard = await anext(bells)
    assert heard.work and heard.lone_run is None


async def test_while_notify_fails_a_lone_trigger_leaves_its_bell_to_the_doorbell(
    engine: Engine, env: int, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Doorbell, "takes_notify", False)
    rung = work_rung(monkeypatch)
    await triggered(engine, env)
    assert rung == [{"task/plain"}]


async def test_a_bell_that_fails_behind_its_commit_costs_and_doubles_no_run(
    engine: Engine, env: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than a NOTIFY can be, with what the bell says besides.
    long = "q" * 7_990
    await query(engine.database, f"update runwire.tasks set queue = '{long}' where id = 'plain'")
    rung = work_rung(monkeypatch)
    run_id = await triggered(engine, env, NewRun("plain", request_key="r"))
    assert rung == [{long}]
    assert await assert_dense(engine, env, run_id) == ["created"]
    assert await triggered(engine, env, NewRun("plain", request_key="r")) == run_id


# Idempotency keys ------------------------------------------------------------------------------


async def test_fifty_connections_with_one_idempotency_key_make_one_run(
    engine: Engine, env: int
) -> None:
    results: list[TriggerResult | Exception] = []

    async def one() -> None:
        results.extend(await engine.runs.trigger_many(env, [NewRun("plain", idempotency_key="k")]))

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(one)
    answers = [result for result in results if isinstance(result, TriggerResult)]
    assert len(answers) == 50
    assert len({answer.id for answer in answers}) == 1
    assert sum(not answer.is_cached for answer in answers) == 1


async def test_one_key_several_times_in_one_transaction_makes_one_run(
    engine: Engine, env: int
) -> None:
    new = NewRun("plain", idempotency_key="k")
    first, second, other = await engine.runs.trigger_many(
        env, [new, new, NewRun("other", idempotency_key="k")]
    )
    assert isinstance(first, TriggerResult) and not first.is_cached
    assert second == TriggerResult(first.id, is_cached=True)
    assert isinstance(other, TriggerResult) and not other.is_cached  # keys belong to a task


@pytest.mark.parametrize(("kind", "kept"), [(Completed, True), (Canceled, True), (Failed, False)])
async def test_a_failed_run_frees_its_idempotency_key(
    engine: Engine, env: int, kind: type[Outcome], kept: bool
) -> None:
    new = NewRun("plain", idempotency_key="k")
    run = await claimed(engine, env, new)
    outcomes: dict[type[Outcome], Outcome] = {
        Completed: Completed(run.id, run.execution, "1"),
        Canceled: Canceled(run.id, run.execution),
        Failed: Failed(run.id, run.execution, "{}"),
    }
    await engine.outcomes.finish(env, outcomes[kind])
    again = await engine.runs.trigger(env, new)
    assert (again.id == run.id, again.is_cached) == (kept, kept)


async def test_an_expired_idempotency_key_leads_to_a_new_run(engine: Engine, env: int) -> None:
    new = NewRun("plain", idempotency_key="k", idempotency_ttl=0.001)
    first = await engine.runs.trigger(env, new)
    await query(
        engine.database, "update runwire.idempotency_keys set expires_at = now() - interval '1 s'"
    )
    second = await engine.runs.trigger(env, new)
    assert second.id != first.id and not second.is_cached


# Request keys and one-time tokens --------------------------------------------------------------


async def test_a_repeated_call_gets_the_first_answer(engine: Engine, env: int) -> None:
    new = NewRun("plain", request_key="call-1")
    first = await engine.runs.trigger(env, new)
    assert await engine.runs.trigger(env, new) == first
    assert not first.is_cached


async def test_a_repeated_call_that_led_to_an_earlier_run_says_so_again(
    engine: Engine, env: int
) -> None:
    first = await engine.runs.trigger(env, NewRun("plain", idempotency_key="k"))
    new = NewRun("plain", idempotency_key="k", request_key="call-2")
    assert await engine.runs.trigger(env, new) == TriggerResult(first.id, is_cached=True)
    assert await engine.runs.trigger(env, new) == TriggerResult(first.id, is_cached=True)


async def test_one_call_that_arrives_many_times_at_once_makes_one_run(
    engine: Engine, env: int
) -> None:
    results: list[TriggerResult | Exception] = []

    async def one() -> None:
        results.extend(await engine.runs.trigger_many(env, [NewRun("plain", request_key="c")]))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(one)
        tasks.start_soon(engine.runs.trigger, env, NewRun("plain", request_key="c"))
    assert len({result.id for result in results if isinstance(result, TriggerResult)}) == 1
    assert all(isinstance(result, TriggerResult) and not result.is_cached for result in results)


async def test_a_one_time_token_triggers_once_however_often_the_call_is_repeated(
    engine: Engine, env: int
) -> None:
    new = NewRun("plain", request_key="call", one_time_jti=("jti", LATER))
    first = await engine.runs.trigger(env, new)
    assert await engine.runs.trigger(env, new) == first
    with pytest.raises(TokenUsedError):
        await engine.runs.trigger(
            env, NewRun("plain", request_key="another", one_time_jti=("jti", LATER))
        )
    # The refused call left nothing behind: with a good token it may come again.
    again = NewRun("plain", request_key="another", one_time_jti=("jti-2", LATER))
    assert (await engine.runs.trigger(env, again)).id != first.id


async def test_a_token_used_twice_in_one_transaction_pays_for_one_run(
    engine: Engine, env: int
) -> None:
    new = NewRun("plain", one_time_jti=("jti", LATER))
    results = await engine.runs.trigger_many(env, [new, new])
    assert [type(result) for result in results] == [TriggerResult, TokenUsedError]


# Parents, queues, lost answers -----------------------------------------------------------------


async def test_a_child_knows_its_parent_and_root(engine: Engine, env: int) -> None:
    parent = await claimed(engine, env)
    child = await claimed(engine, env, NewRun("plain", parent=Parent(parent.id, parent.execution)))
    grandchild = await there(
        engine,
        env,
        await triggered(engine, env, NewRun("other", parent=Parent(child.id, child.execution))),
    )
    assert (child.parent_id, child.root_id, child.depth) == (parent.id, parent.id, 1)
    assert (grandchild.parent_id, grandchild.root_id, grandchild.depth) == (child.id, parent.id, 2)


async def test_an_execution_that_lost_its_run_triggers_nothing(engine: Engine, env: int) -> None:
    parent = await claimed(engine, env)
    with pytest.raises(FencedError):
        await engine.runs.trigger(env, NewRun("plain", parent=Parent(parent.id, 99)))
    await engine.outcomes.finish(env, Completed(parent.id, parent.execution, "1"))
    with pytest.raises(FencedError):
        await engine.runs.trigger(env, NewRun("plain", parent=Parent(parent.id, parent.execution)))


async def test_a_concurrency_key_gets_a_group_with_the_limit_of_its_queue(
    engine: Engine, env: int
) -> None:
    await triggered(engine, env, NewRun("limited", concurrency_key="a"))
    rows = await query(
        engine.database,
        "select concurrency_key, concurrency_limit from runwire.queue_groups order by 1",
    )
    assert [tuple(row.values()) for row in rows] == [("", 2), ("a", 2)]


async def test_a_limit_given_with_a_trigger_also_holds_for_runs_that_wait_already(
    engine: Engine, env: int
) -> None:
    waiting = await triggered(engine, env, NewRun("plain", concurrency_key="a"))
    assert not (await there(engine, env, waiting)).limited
    await triggered(
        engine, env, NewRun("plain", queue="task/plain", concurrency_limit=1, concurrency_key="b")
    )
    assert (await there(engine, env, waiting)).limited
    runs = await engine.claims.claim(env, "w1", {"plain": 1}, 10)
    assert sorted(run.concurrency_key for run in runs) == ["a", "b"]


@pytest.mark.parametrize("after", [True, False])
async def test_a_lost_answer_to_commit_neither_loses_nor_doubles_a_run(
    database_url: str, engine: Engine, env: int, after: bool
) -> None:
    async with fault_proxy(database_url) as proxy:
        settings = EngineSettings(database_url=proxy.dsn(database_url))
        async with open_engine(settings, sweeping=False) as behind:
            await triggered(behind, env)
            proxy.cut_next_commit(after=after)
            one = NewRun("plain", one_time_jti=("jti", LATER))
            first = await behind.runs.trigger(env, one)
            proxy.cut_next_commit(after=after)
            await triggered(behind, env)
            proxy.cut_next_commit(after=after)
            two = await behind.runs.trigger_many(
                env, [NewRun("plain"), NewRun("plain", idempotency_key="k", request_key="r")]
            )
    assert proxy.commits_cut == 3
    assert not first.is_cached
    assert all(isinstance(answer, TriggerResult) and not answer.is_cached for answer in two)
    rows = await query(engine.database, "select count(*) as n from runwire.runs")
    assert rows[0]["n"] == 5
