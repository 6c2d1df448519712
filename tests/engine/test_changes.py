"""The tail of run events and the resume of feeds, against a real Postgres."""

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import anyio
import pytest

from runwire_engine.changes import EventRow, Tail, epoch
from runwire_engine.database import Database, Row, Transaction
from runwire_engine.following import Following
from runwire_engine.statements import statement
from tests.support.run_rows import insert_run

pytestmark = pytest.mark.anyio

_EVENT = """
with changed as (
    update runwire.runs set revision = revision + 1, updated_at = now()
     where environment_id = %(env)s and id = any(%(ids)s::text[])
    returning *
)
insert into runwire.run_events (bucket, environment_id, run_id, revision, type, delta, task, tags,
                                batch_id)
select bucket, environment_id, id, revision, 'test', '{}', task, tags, batch_id from changed
"""


async def move(tx: Transaction, env: int, *run_ids: str) -> None:
    """Write one more event of each run."""
    await tx.connection.execute(_EVENT, {"env": env, "ids": sorted(run_ids)})


async def moved(database: Database, env: int, *run_ids: str) -> None:
    async with database.transaction() as tx:
        await move(tx, env, *run_ids)


def keys(events: Sequence[EventRow]) -> list[tuple[str, int]]:
    return [(event.run_id, event.revision) for event in events]


async def test_the_tail_starts_at_now_and_returns_each_event_once(
    database: Database, env: int
) -> None:
    run_id = await insert_run(database, env, tags=("a", "b"))
    await moved(database, env, run_id)
    tail = Tail(database)
    await tail.start()
    assert (await tail.read()).events == []
    await moved(database, env, run_id)
    await moved(database, env, run_id)
    changes = await tail.read()
    assert keys(changes.events) == [(run_id, 3), (run_id, 4)]
    assert changes.events[0].tags == ("a", "b")
    assert changes.events[0].environment_id == env
    assert (await tail.read()).events == []


async def test_an_open_transaction_holds_nothing_up_and_comes_when_it_commits(
    database: Database, env: int
) -> None:
    slow, quick = await insert_run(database, env), await insert_run(database, env)
    tail = Tail(database)
    await tail.start()
    async with database.transaction() as tx:
        await move(tx, env, slow)
        await moved(database, env, quick)
        assert keys((await tail.read()).events) == [(quick, 2)]
        await moved(database, env, quick)
        assert keys((await tail.read()).events) == [(quick, 3)]
    assert keys((await tail.read()).events) == [(slow, 2)]
    assert (await tail.read()).events == []


async def test_eight_writers_with_rollbacks_and_a_long_transaction_lose_and_double_nothing(
    database: Database, env: int
) -> None:
    runs = [await insert_run(database, env) for _ in range(12)]
    tail = Tail(database)
    await tail.start()
    seen: list[EventRow] = []
    writing = 8

    async def write(seed: int) -> None:
        nonlocal writing
        chance = random.Random(seed)
        for _ in range(40):
            try:
                async with database.transaction() as tx:
                    await move(tx, env, *chance.sample(runs, chance.randint(1, 3)))
                    # Sleeping before the commit is the point: the order of commits is not that of
                    # the numbers.
                    await anyio.sleep(chance.uniform(0, 0.004))
                    if chance.random() < 0.1:
                        raise InterruptedError
            except InterruptedError:
                pass
        writing -= 1

    async def follow() -> None:
        while writing:
            changes = await tail.read()
            assert keys(changes.events) == sorted(keys(changes.events))
            seen.extend(changes.events)

    with anyio.fail_after(30):
        async with database.transaction() as foreign:
            await foreign.connection.execute("select pg_current_xact_id()")
            async with anyio.create_task_group() as tasks:
                for seed in range(8):
                    tasks.start_soon(write, seed)
                tasks.start_soon(follow)
            seen.extend((await tail.read()).events)
    seen.extend((await tail.read()).events)

    stored = await database_rows(database, "select run_id, revision from runwire.run_events")
    assert sorted(keys(seen)) == sorted((row["run_id"], row["revision"]) for row in stored)
    for run_id in runs:
        revisions = [event.revision for event in seen if event.run_id == run_id]
        assert all(after == before + 1 for before, after in pairwise(revisions)), run_id


async def test_too_many_events_at_once_make_the_tail_jump(database: Database, env: int) -> None:
    runs = [await insert_run(database, env) for _ in range(4)]
    tail = Tail(database, limit=3)
    await tail.start()
    await moved(database, env, *runs[:3])
    assert len((await tail.read()).events) == 3
    await moved(database, env, *runs)
    changes = await tail.read()
    assert (changes.events, changes.jumped) == ([], True)
    await moved(database, env, runs[0])
    assert keys((await tail.read()).events) == [(runs[0], 3 + 1)]


async def test_a_position_survives_the_tail_that_made_it(database: Database, env: int) -> None:
    run_id = await insert_run(database, env)
    async with database.transaction() as tx:
        await move(tx, env, run_id)
        tail = Tail(database)
        position = await tail.start()
    await moved(database, env, run_id)
    touched = await Following(database).touched(env, position, 10)
    assert {id: each.first for id, each in touched.items()} == {run_id: 2}
    position = await Tail(database).start()
    assert await Following(database).touched(env, position, 10) == {}


async def test_a_feed_resumes_with_what_it_follows_and_nothing_else(
    database: Database, env: int
) -> None:
    both = await insert_run(database, env, tags=("a", "b"), task="t1")
    one = await insert_run(database, env, tags=("a",), task="t2", batch="batch_00000000")
    async with database.transaction() as tx:
        await tx.connection.execute(
            "insert into runwire.batch_items (environment_id, batch_id, index, run_id)"
            " values (%s, 'batch_00000000', 0, %s), (%s, 'batch_00000001', 0, %s)",
            (env, one, env, both),
        )
    position = await Tail(database).start()
    await moved(database, env, both, one)

    async def resumed(environment: int = env, **wanted: Any) -> set[str]:
        return set(await Following(database).touched(environment, position, 10, **wanted))

    assert await resumed() == {both, one}
    assert await resumed(env + 1) == set()
    assert await resumed(tags=("a",)) == {both, one}
    assert await resumed(tags=("a", "b")) == {both}
    assert await resumed(tasks=["t2"]) == {one}
    assert await resumed(batch_id="batch_00000000") == {one}
    assert await resumed(batch_id="batch_00000001") == {both}
    assert len(await Following(database).touched(env, position, 1)) == 1


async def test_a_shortened_cursor_returns_more_and_never_less(database: Database, env: int) -> None:
    run_id = await insert_run(database, env)
    async with database.transaction() as tx:
        await tx.connection.execute("select pg_current_xact_id()")
        await moved(database, env, run_id)
        position = await Tail(database).start()
        oldest = position.split(":")[0]
    await moved(database, env, run_id)
    following = Following(database)
    assert (await following.touched(env, position, 10))[run_id].first == 3
    shortened = await following.touched(env, f"{oldest}:{oldest}:", 10)
    assert shortened[run_id].first == 2


async def test_the_epoch_names_this_database_and_this_generation(database: Database) -> None:
    first = await epoch(database)
    assert first == await epoch(database)
    async with database.transaction() as tx:
        await tx.connection.execute("update runwire.generations set generation = gen_random_uuid()")
    assert await epoch(database) != first


async def test_many_old_events_in_many_partitions_are_never_read(
    database: Database, env: int
) -> None:
    async with database.transaction() as tx:
        await tx.connection.execute(
            "select runwire.make_partitions_v1(current_date - 30, current_date + 7)"
        )
        await tx.connection.execute(
            """
            insert into runwire.run_events (bucket, environment_id, run_id, revision, type, delta,
                                            task, txid)
            select current_date - (n %% 31), %s, 'run_old' || n, 1, 'test', '{}', 't', '3'::xid8
              from generate_series(1, 31000) as n
            """,
            (env,),
        )
    position = await Tail(database).start()
    async with database.transaction() as tx:
        await tx.connection.execute(statement("changes.settle"))
        cursor = await tx.connection.execute(
            "explain (analyze, buffers, summary) " + statement("changes.tail"),
            {"snapshot": position, "limit": 5001},
        )
        plan = "\n".join(row["QUERY PLAN"] for row in await cursor.fetchall())
    assert "Seq Scan" not in plan, plan
    assert "txid_idx" in plan
    # Two index probes in each of 38 partitions, of a page or two each.
    buffers = int(plan.partition("Buffers: shared hit=")[2].split()[0])
    assert buffers < 38 * 2 * 4, plan


async def database_rows(database: Database, query: str) -> list[Row]:
    async with database.transaction() as tx:
        return await (await tx.connection.execute(query.encode())).fetchall()
