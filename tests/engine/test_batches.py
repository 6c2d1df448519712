"""Batches: announced, filled, sealed, and what has become of them."""

from datetime import timedelta

import anyio
import pytest

from runwire_engine.batches import BatchProgress, BatchRow
from runwire_engine.engine import Engine, open_engine
from runwire_engine.errors import BatchNotFoundError, DataRefusedError, UnknownTaskError
from runwire_engine.outcomes import Completed, Failed
from runwire_engine.runs import RunQuery
from runwire_engine.settings import EngineSettings
from runwire_engine.wanted_runs import NewRun, Parent
from tests.support.engines import ALL_TASKS, claimed, query, there, triggered
from tests.support.faultproxy import fault_proxy

pytestmark = pytest.mark.anyio


def items(batch: BatchRow, *indexes: int) -> list[tuple[int, NewRun]]:
    return [(index, NewRun("plain", str(index), batch=(batch.id, index))) for index in indexes]


async def reread(engine: Engine, batch: BatchRow) -> BatchRow:
    found = await engine.batches.retrieve(batch.environment_id, batch.id)
    assert found is not None
    return found


async def test_the_last_promised_item_seals_a_batch(engine: Engine, env: int) -> None:
    batch = await engine.batches.create(env, 3)
    assert (batch.status, batch.sealed, batch.run_ids, batch.is_cached) == (
        "PENDING",
        False,
        (),
        False,
    )
    first = await engine.batches.add_items(env, batch.id, items(batch, 2, 0))
    assert first == BatchProgress(2, 0, sealed=False, enqueued=2, expected=3)
    second = await engine.batches.add_items(env, batch.id, items(batch, 1))
    assert second == BatchProgress(1, 0, sealed=True, enqueued=3, expected=3)
    after = await reread(engine, batch)
    assert (after.status, after.sealed) == ("PROCESSING", True)
    runs = await engine.runs.retrieve_many(env, after.run_ids)
    assert [run.payload for run in runs] == ["0", "1", "2"]
    assert {run.batch_id for run in runs} == {batch.id}


async def test_items_that_are_sent_again_are_told_apart_by_their_index(
    engine: Engine, env: int
) -> None:
    batch = await engine.batches.create(env, 2)
    await engine.batches.add_items(env, batch.id, items(batch, 0))
    again = await engine.batches.add_items(env, batch.id, items(batch, 0, 1, 1))
    assert again == BatchProgress(1, 2, sealed=True, enqueued=2, expected=2)
    third = await engine.batches.add_items(env, batch.id, items(batch, 0, 1))
    assert third == BatchProgress(0, 2, sealed=True, enqueued=2, expected=2)
    assert len((await engine.runs.list(env, _all())).runs) == 2


async def test_items_that_come_at_once_over_many_connections_are_each_in_once(
    engine: Engine, env: int
) -> None:
    batch = await engine.batches.create(env, 20)
    async with anyio.create_task_group() as tasks:
        for start in range(0, 20, 4):
            for _ in range(2):
                tasks.start_soon(
                    engine.batches.add_items, env, batch.id, items(batch, *range(start, start + 4))
                )
    after = await reread(engine, batch)
    assert after.sealed and len(set(after.run_ids)) == 20
    assert len((await engine.runs.list(env, _all())).runs) == 20


async def test_a_refused_item_keeps_its_whole_call_out(engine: Engine, env: int) -> None:
    batch = await engine.batches.create(env, 2)
    with pytest.raises(UnknownTaskError):
        await engine.batches.add_items(env, batch.id, [*items(batch, 0), (1, NewRun("nobody"))])
    with pytest.raises(DataRefusedError, match="item 2"):
        await engine.batches.add_items(env, batch.id, items(batch, 0, 2))
    with pytest.raises(BatchNotFoundError):
        await engine.batches.add_items(env, "batch_unknown1", items(batch, 0))
    assert (await reread(engine, batch)).run_ids == ()
    assert await engine.batches.retrieve(env, "batch_unknown1") is None


async def test_an_idempotency_hit_puts_an_older_run_into_the_batch(
    engine: Engine, env: int
) -> None:
    older = await triggered(engine, env, NewRun("plain", idempotency_key="k"))
    batch = await engine.batches.create(env, 2)
    keyed = NewRun("plain", idempotency_key="k", batch=(batch.id, 1))
    progress = await engine.batches.add_items(env, batch.id, [*items(batch, 0), (1, keyed)])
    assert progress.sealed
    assert (await reread(engine, batch)).run_ids[1] == older
    assert (await there(engine, env, older)).batch_id is None


async def test_one_idempotency_key_leads_to_one_batch(engine: Engine, env: int) -> None:
    batches: list[BatchRow] = []

    async def create() -> None:
        batches.append(await engine.batches.create(env, 1, "k" * 2000))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(create)
    assert len({batch.id for batch in batches}) == 1
    assert sorted(batch.is_cached for batch in batches) == [False, *[True] * 9]


@pytest.mark.parametrize(("last", "status"), [(Completed, "COMPLETED"), (Failed, "PARTIAL_FAILED")])
async def test_the_status_of_a_batch_follows_from_its_runs(
    engine: Engine, env: int, last: type[Completed | Failed], status: str
) -> None:
    batch = await engine.batches.create(env, 2)
    await engine.batches.add_items(env, batch.id, items(batch, 0, 1))
    first, second = await engine.claims.claim(env, "w1", ALL_TASKS, 2)
    await engine.outcomes.finish(env, Completed(first.id, first.execution, "1"))
    assert (await reread(engine, batch)).status == "PROCESSING"
    await engine.outcomes.finish(env, last(second.id, second.execution, "{}"))
    assert (await reread(engine, batch)).status == status


async def test_a_batch_of_nothing_is_complete(engine: Engine, env: int) -> None:
    batch = await engine.batches.create(env, 0)
    assert (batch.sealed, batch.status) == (True, "COMPLETED")


async def test_a_batch_knows_its_parent(engine: Engine, env: int) -> None:
    parent = await claimed(engine, env)
    batch = await engine.batches.create(env, 1, None, Parent(parent.id, parent.execution))
    assert batch.parent_id == parent.id


@pytest.mark.parametrize("after", [True, False])
async def test_a_lost_answer_to_commit_neither_loses_nor_doubles_items(
    database_url: str, engine: Engine, env: int, after: bool
) -> None:
    async with fault_proxy(database_url) as proxy:
        settings = EngineSettings(database_url=proxy.dsn(database_url))
        async with open_engine(settings, sweeping=False) as behind:
            proxy.cut_next_commit(after=after)
            batch = await behind.batches.create(env, 3, "key")
            proxy.cut_next_commit(after=after)
            progress = await behind.batches.add_items(env, batch.id, items(batch, 0, 1, 2))
    assert not batch.is_cached
    assert progress == BatchProgress(3, 0, sealed=True, enqueued=3, expected=3)
    rows = await query(engine.database, "select count(*) as n from runwire.runs")
    assert rows[0]["n"] == 3


# Open batches, and what was refused -------------------------------------------------------------


async def test_a_batch_without_a_number_is_sealed_when_it_ends(engine: Engine, env: int) -> None:
    batch = await engine.batches.create(env, None)
    assert (batch.run_count, batch.sealed, batch.status) == (0, False, "PENDING")
    first = await engine.batches.add_items(env, batch.id, items(batch, 0, 1))
    assert not first.sealed and (await reread(engine, batch)).run_count == 2
    last = await engine.batches.add_items(env, batch.id, items(batch, 2), end="complete")
    assert (last.sealed, last.enqueued, last.expected) == (True, 3, 3)
    again = await engine.batches.add_items(env, batch.id, [], end="complete")
    assert again.sealed and again.accepted == 0
    after = await reread(engine, batch)
    assert (after.run_count, after.status, len(after.run_ids)) == (3, "PROCESSING", 3)


async def test_an_open_batch_takes_no_more_than_a_thousand(engine: Engine, env: int) -> None:
    batch = await engine.batches.create(env, None)
    with pytest.raises(DataRefusedError, match="at most 1000 items"):
        await engine.batches.add_items(env, batch.id, items(batch, 1000))


async def test_a_refused_item_is_noted_until_it_comes_after_all(engine: Engine, env: int) -> None:
    batch = await engine.batches.create(env, 2)
    bad = [(index, NewRun("nobody", batch=(batch.id, index))) for index in (0, 1)]
    with pytest.raises(UnknownTaskError):
        await engine.batches.add_items(env, batch.id, bad)
    noted = (await reread(engine, batch)).errors
    assert [(error.index, error.task, error.code) for error in noted] == [
        (0, "nobody", "not_found"),
        (1, "nobody", "not_found"),
    ]
    await engine.batches.add_items(env, batch.id, items(batch, 0))
    assert [error.index for error in (await reread(engine, batch)).errors] == [1]
    await engine.batches.add_items(env, batch.id, items(batch, 1))
    after = await reread(engine, batch)
    assert after.errors == () and after.sealed


async def test_a_batch_that_is_given_up_is_sealed_and_frees_its_key(
    engine: Engine, env: int
) -> None:
    batch = await engine.batches.create(env, 3, "key")
    await engine.batches.add_items(env, batch.id, items(batch, 0))
    with pytest.raises(UnknownTaskError):
        await engine.batches.add_items(env, batch.id, [(1, NewRun("nobody"))])
    given_up = await engine.batches.add_items(env, batch.id, [], end="aborted")
    assert (given_up.sealed, given_up.expected) == (True, 1)
    (run,) = await engine.claims.claim(env, "w1", ALL_TASKS, 2)
    assert (await reread(engine, batch)).status == "PROCESSING"
    await engine.outcomes.finish(env, Completed(run.id, run.execution, "1"))
    assert (await reread(engine, batch)).status == "ABORTED"
    again = await engine.batches.create(env, 3, "key")
    assert again.id != batch.id and not again.is_cached


async def test_a_repeated_creation_gets_the_first_answer(engine: Engine, env: int) -> None:
    first = await engine.batches.create(env, 2, request_key="call")
    again = await engine.batches.create(env, 2, request_key="call")
    assert (again.id, again.is_cached) == (first.id, False)
    keyed = await engine.batches.create(env, 2, "key", request_key="call-2")
    for _ in range(2):
        cached = await engine.batches.create(env, 2, "key", request_key="call-3")
        assert (cached.id, cached.is_cached) == (keyed.id, True)
    assert keyed.id != first.id


async def test_one_creation_that_arrives_many_times_at_once_makes_one_batch(
    engine: Engine, env: int
) -> None:
    made: list[BatchRow] = []

    async def create() -> None:
        made.append(await engine.batches.create(env, 1, request_key="call"))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(create)
    assert len({batch.id for batch in made}) == 1
    assert not any(batch.is_cached for batch in made)


def _all() -> RunQuery:
    return RunQuery(size=100)


async def age(engine: Engine, batch: BatchRow, hours: float) -> None:
    """Have all that happened to a batch have happened so long ago."""
    for table, name in (("batches", "id"), ("runs", "batch_id")):
        await query(
            engine.database,
            f"update runwire.{table} set created_at = created_at - %s, updated_at = updated_at - %s"
            f" where {name} = %s",
            *(timedelta(hours=hours),) * 2,
            batch.id,
        )


async def test_a_batch_whose_client_is_gone_is_given_up_with_what_is_in(
    engine: Engine, env: int
) -> None:
    batch = await engine.batches.create(env, 3, idempotency_key="k")
    await engine.batches.add_items(env, batch.id, items(batch, 0, 2))
    await age(engine, batch, 0.9)
    await engine.sweep.tidy()
    assert (await reread(engine, batch)).status == "PENDING"
    await age(engine, batch, 0.2)
    await engine.sweep.tidy()
    given_up = await reread(engine, batch)
    assert (given_up.status, given_up.sealed, given_up.run_count) == ("PROCESSING", True, 2)
    assert [(error.index, error.code) for error in given_up.errors] == [(1, "BATCH_ABANDONED")]
    for run in await engine.claims.claim(env, "w1", ALL_TASKS, 10):
        await engine.outcomes.finish(env, Completed(run.id, run.execution, "1"))
    assert (await reread(engine, batch)).status == "ABORTED"
    assert not (await engine.batches.create(env, 3, idempotency_key="k")).is_cached


async def test_a_batch_is_not_given_up_while_items_come_or_its_run_may_go_on(
    engine: Engine, env: int
) -> None:
    parent = await claimed(engine, env, NewRun("other"))
    slow = await engine.batches.create(env, None)
    await age(engine, slow, 2)
    await engine.batches.add_items(env, slow.id, items(slow, 0))
    awaited = await engine.batches.create(env, 2, parent=Parent(parent.id, parent.execution))
    await age(engine, awaited, 2)
    await engine.sweep.tidy()
    assert [(await reread(engine, batch)).status for batch in (slow, awaited)] == ["PENDING"] * 2
    await engine.outcomes.finish(env, Completed(parent.id, parent.execution, "1"))
    await engine.sweep.tidy()
    assert (await reread(engine, awaited)).status == "ABORTED"
