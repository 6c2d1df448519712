"""Debounced triggers on a real database: one run, pushed back, whoever triggers and how often."""

from dataclasses import replace
from datetime import timedelta

import anyio
import pytest

from runwire_engine.debounces import hold_keys, shown_payload
from runwire_engine.debouncing import Debounce
from runwire_engine.engine import Engine, open_engine
from runwire_engine.outcomes import Failed
from runwire_engine.settings import EngineSettings
from runwire_engine.wanted_runs import NewRun, TriggerResult
from tests.support.engines import ALL_TASKS, assert_dense, query, there
from tests.support.faultproxy import fault_proxy

pytestmark = pytest.mark.anyio


def new(
    payload: str = "1",
    *,
    key: str = "k",
    delay: float = 60.0,
    trailing: bool = False,
    max_delay: float | None = None,
) -> NewRun:
    return NewRun("plain", payload, debounce=Debounce(key, delay, trailing, max_delay))


async def count(engine: Engine) -> int:
    return int((await query(engine.database, "select count(*) as n from runwire.runs"))[0]["n"])


async def test_a_further_trigger_pushes_the_run_back_and_leads_to_it(
    engine: Engine, env: int
) -> None:
    first = await engine.runs.trigger(env, replace(new("1"), ttl=30, priority=5))
    before = await there(engine, env, first.id)
    second = await engine.runs.trigger(env, new("2", delay=90))
    run = await there(engine, env, first.id)
    assert (first.is_cached, second) == (False, TriggerResult(first.id, is_cached=True))
    assert await count(engine) == 1
    assert (run.status, run.payload) == ("DELAYED", "1")
    assert run.delayed_until is not None and before.delayed_until is not None
    assert timedelta(seconds=29) < run.delayed_until - before.delayed_until < timedelta(seconds=60)
    assert run.sort_at == run.delayed_until - timedelta(seconds=5)
    assert run.expires_at == run.delayed_until + timedelta(seconds=30)
    assert await assert_dense(engine, env, first.id) == ["created", "delayed"]


async def test_a_shorter_delay_never_pulls_the_run_forward(engine: Engine, env: int) -> None:
    first = await engine.runs.trigger(env, new(delay=600))
    before = await there(engine, env, first.id)
    assert (await engine.runs.trigger(env, new(delay=1))).id == first.id
    assert (await there(engine, env, first.id)).delayed_until == before.delayed_until


async def test_trailing_takes_what_the_last_trigger_says_and_keeps_what_it_does_not(
    engine: Engine, env: int
) -> None:
    first = await engine.runs.trigger(
        env,
        replace(new("1"), tags=("a", "b"), metadata='{"n":1}', max_attempts=2, max_duration=5),
    )
    await engine.runs.trigger(
        env,
        replace(new('{"x":2}', trailing=True), tags=("b", "c"), metadata='{"n":2}', max_attempts=4),
    )
    run = await there(engine, env, first.id)
    assert (run.payload, run.tags, run.metadata) == ('{"x":2}', ("b", "c"), '{"n":2}')
    assert (run.max_attempts, run.max_duration) == (4, 5.0)
    tagged = await query(engine.database, "select tag from runwire.run_tags order by 1")
    assert [row["tag"] for row in tagged] == ["b", "c"]
    event = (await engine.runs.events(env, first.id))[-1]
    assert event.type == "delayed" and sorted(event.tags) == ["a", "b", "c"]
    for part in (
        '"payload":{"x":2}',
        '"tags":["b","c"]',
        '"metadata":{"n":2}',
        '"maxAttempts":4',
    ):
        assert part in event.delta


async def test_beyond_max_delay_the_run_is_left_and_the_next_one_begins(
    engine: Engine, env: int
) -> None:
    first = await engine.runs.trigger(env, new(max_delay=100))
    await query(
        engine.database, "update runwire.runs set created_at = created_at - interval '50 s'"
    )
    before = await there(engine, env, first.id)
    second = await engine.runs.trigger(env, new(max_delay=100))
    assert second.id != first.id and not second.is_cached
    assert (await there(engine, env, first.id)).delayed_until == before.delayed_until
    assert (await engine.runs.trigger(env, new(max_delay=100))).id == second.id


async def test_once_the_run_is_queued_the_key_leads_to_a_new_one(engine: Engine, env: int) -> None:
    first = await engine.runs.trigger(env, new())
    await query(engine.database, "update runwire.runs set delayed_until = now()")
    await engine.claims.promote_due(env)
    second = await engine.runs.trigger(env, new())
    assert second.id != first.id
    # The back-off of a retry is no wait for triggers.
    (run,) = await engine.claims.claim(env, "w1", ALL_TASKS, 10)
    await engine.outcomes.finish(env, Failed(run.id, run.execution, "{}", 60))
    await query(engine.database, "update runwire.debounce_keys set run_id = %s", first.id)
    assert (await engine.runs.trigger(env, new())).id not in (first.id, second.id)


async def test_keys_tasks_and_environments_are_apart(engine: Engine, env: int) -> None:
    ids = {
        (await engine.runs.trigger(env, each)).id
        for each in (
            new(),
            new(key="other"),
            NewRun("other", debounce=Debounce("k", 60)),
        )
    }
    assert len(ids) == 3


async def test_fifty_triggers_at_once_make_one_run(
    engine: Engine, database_url: str, env: int
) -> None:
    ids: set[str] = set()
    settings = EngineSettings(database_url=database_url, pool_size=5)
    async with open_engine(settings, sweeping=False) as other:

        async def trigger(engine: Engine, at: int) -> None:
            if at % 5 == 0:
                answers = await engine.runs.trigger_many(env, [new(str(at)), new(str(at))])
            else:
                answers = [await engine.runs.trigger(env, new(str(at)))]
            ids.update(each.id for each in answers if isinstance(each, TriggerResult))

        async with anyio.create_task_group() as tasks:
            for at in range(50):
                tasks.start_soon(trigger, other if at % 2 else engine, at)
    assert len(ids) == 1 and await count(engine) == 1


async def test_items_of_a_batch_are_debounced_among_themselves_and_stand_in_it(
    engine: Engine, env: int
) -> None:
    first = await engine.runs.trigger(env, new("0"))
    batch = await engine.batches.create(env, 4)
    items = [
        (0, replace(new("1", trailing=True), batch=(batch.id, 0))),
        (1, replace(new("2", trailing=True, key="fresh"), batch=(batch.id, 1))),
        (2, replace(new("3", trailing=True, key="fresh"), batch=(batch.id, 2))),
        (3, replace(new("4", key="fresh"), batch=(batch.id, 3))),
    ]
    await engine.batches.add_items(env, batch.id, items)
    found = await engine.batches.retrieve(env, batch.id)
    assert found is not None and found.sealed
    held, *fresh = found.run_ids
    assert held == first.id and len(set(fresh)) == 1 and await count(engine) == 2
    assert (await there(engine, env, first.id)).payload == "1"
    assert (await there(engine, env, fresh[0])).payload == "3"


async def test_idempotency_beats_debounce(engine: Engine, env: int) -> None:
    first = await engine.runs.trigger(env, replace(new("1"), idempotency_key="same"))
    before = await there(engine, env, first.id)
    again = await engine.runs.trigger(env, replace(new("2", trailing=True), idempotency_key="same"))
    assert again == TriggerResult(first.id, is_cached=True)
    assert await there(engine, env, first.id) == before


async def test_an_idempotency_key_of_a_debounced_trigger_leads_to_its_run(
    engine: Engine, env: int
) -> None:
    first = await engine.runs.trigger(env, new("1"))
    keyed = replace(new("2"), idempotency_key="mine")
    answers = await engine.runs.trigger_many(env, [keyed, keyed])
    assert answers == [TriggerResult(first.id, is_cached=True)] * 2
    await query(engine.database, "update runwire.runs set delayed_until = now()")
    await engine.claims.promote_due(env)
    assert (await engine.runs.trigger(env, keyed)).id == first.id
    # As with every key: a run that fails gives it back.
    (run,) = await engine.claims.claim(env, "w1", ALL_TASKS, 10)
    await engine.outcomes.finish(env, Failed(run.id, run.execution, "{}"))
    assert (await engine.runs.trigger(env, keyed)).id != first.id


async def test_a_repeated_call_is_answered_with_the_run_it_led_to(engine: Engine, env: int) -> None:
    first = await engine.runs.trigger(env, new("1"))
    called = replace(new("2"), request_key="call")
    assert (await engine.runs.trigger(env, called)).id == first.id
    assert (await engine.runs.trigger(env, called)).id == first.id
    assert await assert_dense(engine, env, first.id) == ["created", "delayed"]


@pytest.mark.parametrize("after", [True, False])
async def test_a_lost_answer_to_commit_makes_no_second_run(
    database_url: str, engine: Engine, env: int, after: bool
) -> None:
    async with fault_proxy(database_url) as proxy:
        settings = EngineSettings(database_url=proxy.dsn(database_url))
        async with open_engine(settings, sweeping=False) as behind:
            proxy.cut_next_commit(after=after)
            first = await behind.runs.trigger(env, new("1"))
            proxy.cut_next_commit(after=after)
            answers = await behind.runs.trigger_many(env, [new("2"), new("3", trailing=True)])
    assert {each.id for each in answers if isinstance(each, TriggerResult)} == {first.id}
    assert await count(engine) == 1
    assert (await there(engine, env, first.id)).payload == "3"
    await assert_dense(engine, env, first.id)


async def test_an_open_transaction_holds_up_only_triggers_with_its_key(
    engine: Engine, env: int
) -> None:
    first = await engine.runs.trigger(env, new("1"))
    answers: list[TriggerResult] = []

    async def same() -> None:
        keyed = replace(new("2", trailing=True), idempotency_key="mine")
        answers.append(await engine.runs.trigger(env, keyed))

    async with anyio.create_task_group() as group:
        async with engine.database.transaction() as tx:
            assert await hold_keys(tx, env, [("plain", "k")], waits=False)
            group.start_soon(same)
            for _ in range(3):
                await engine.runs.trigger(env, new("3", key="other"))
            assert not answers
    assert answers == [TriggerResult(first.id, is_cached=True)]
    assert (await there(engine, env, first.id)).payload == "2"


async def test_the_sweep_deletes_keys_whose_run_was_due_long_ago(engine: Engine, env: int) -> None:
    await engine.runs.trigger(env, new(key="old"))
    await engine.runs.trigger(env, new(key="new"))
    await query(
        engine.database,
        "update runwire.debounce_keys set expires_at = now() - interval '2 h' where key = 'old'",
    )
    await engine.sweep.tidy()
    rows = await query(engine.database, "select key from runwire.debounce_keys")
    assert [row["key"] for row in rows] == ["new"]


@pytest.mark.parametrize(
    ("payload", "kind", "shown"),
    [
        (None, "application/json", "null"),
        ('{"a":1}', "application/json", '{"a":1}'),
        ("hello", "text/plain", '"hello"'),
        ('{"json":[1],"meta":{}}', "application/super+json", "[1]"),
        (f'"{"x" * 9000}"', "application/json", '{"$large":{"bytes":9002}}'),
    ],
)
def test_an_event_tells_a_payload_as_readers_see_it(
    payload: str | None, kind: str, shown: str
) -> None:
    assert shown_payload(payload, kind) == shown
