"""History ends by days: closed, detached, dropped; then the runs go."""

import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier, Literal
from pydantic import ValidationError

from runwire_engine.database import Database
from runwire_engine.engine import Engine, open_engine
from runwire_engine.errors import TransitionRefusedError
from runwire_engine.retention import Retention
from runwire_engine.run_metadata import MetadataWrite
from runwire_engine.settings import EngineSettings
from runwire_engine.states import RunStatus
from runwire_engine.wanted_runs import NewRun
from tests.support.engines import query, triggered
from tests.support.factories import make_event, make_run, make_stream
from tests.support.postgres import opened_database

pytestmark = pytest.mark.anyio

OLD: Final = date(2020, 2, 28)
WEEK, MONTH = timedelta(days=7), timedelta(days=30)


@pytest.fixture
def retention(database: Database) -> Retention:
    return Retention(database, history=WEEK, runs=MONTH)


async def make_days(database: Database, first: date = OLD, last: date = OLD) -> None:
    await query(database, "select runwire.make_partitions_v2(%s, %s)", first, last)


async def make_old(
    database: Database,
    env: int,
    day: date = OLD,
    *,
    status: RunStatus = RunStatus.COMPLETED,
    tags: Sequence[str] = (),
) -> str:
    """Make a run of a day long ago, with an event and a stream."""
    async with database.transaction() as tx:
        connection = tx.connection
        run_id = await make_run(
            connection, env, status=status, created_at=f"{day} 12:00 UTC", tags=tags
        )
        await make_event(connection, env, run_id, 1)
        await make_stream(connection, env, run_id, "log", ['"a"', '"b"'])
    return run_id


async def partitions(database: Database, day: date = OLD) -> list[str]:
    rows = await query(
        database,
        "select relname::text from pg_class where relnamespace = 'runwire'::regnamespace"
        " and relkind = 'r' and relname like %s order by 1",
        f"%_{day:%Y%m%d}",
    )
    return [row["relname"] for row in rows]


async def closed(database: Database) -> list[dict[str, Any]]:
    return await query(database, "select * from runwire.closed_days order by bucket")


async def count(database: Database, table: str) -> int:
    [row] = await query(database, f"select count(*)::integer as n from runwire.{table}")
    return int(row["n"])


@asynccontextmanager
async def connected(dsn: str) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        yield connection


async def set_date(dsn: str, now: str) -> None:
    """Have it be another time for everybody who connects from here on."""
    name = str(conninfo_to_dict(dsn)["dbname"])
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as admin:
        await admin.execute(
            SQL("alter database {} set runwire.now = {}").format(Identifier(name), Literal(now))
        )


# Days


async def test_a_day_whose_runs_are_over_and_old_is_dropped_and_younger_ones_stay(
    database: Database, env: int, retention: Retention
) -> None:
    await make_days(database)
    run_id = await make_old(database, env)
    [newest] = await query(database, "select max(txid::text::bigint) from runwire.run_events")
    await retention.once()

    assert await partitions(database) == []
    [day] = await closed(database)
    assert (day["bucket"], int(day["last_txid"])) == (OLD, newest["max"])
    assert day["dropped_at"] is not None
    today = "select to_regclass('runwire.run_events_' || to_char(now() at time zone 'UTC', %s)) t"
    assert (await query(database, today, "YYYYMMDD"))[0]["t"] is not None
    assert (
        await query(database, "select revision from runwire.run_events where run_id = %s", run_id)
        == []
    )


async def test_old_days_are_found_by_whatever_plan(database: Database, env: int) -> None:
    await make_days(database)
    await make_old(database, env)
    async with database.transaction() as tx:
        # Now every table's name is looked at before it is known to be a partition's.
        for way in (b"nestloop", b"mergejoin", b"indexscan", b"indexonlyscan", b"bitmapscan"):
            await tx.connection.execute(b"set local enable_" + way + b" = off")
        assert await tx.all("retention.old_days", {"history": WEEK}) == [{"day": OLD}]


@pytest.mark.parametrize("status", [RunStatus.WAITING, RunStatus.EXECUTING, RunStatus.DELAYED])
async def test_a_run_that_is_not_over_keeps_its_day(
    database: Database, env: int, retention: Retention, status: RunStatus
) -> None:
    await make_days(database)
    await make_old(database, env)
    run_id = await make_old(database, env, status=status)
    await retention.once()
    await retention.once()
    assert len(await partitions(database)) == 2

    ended = "clock_timestamp() - interval '6 days'"
    canceled = "update runwire.runs set status = 'CANCELED', worker_id = null, finished_at = {}"
    if status is RunStatus.WAITING:
        canceled = canceled.replace("CANCELED", "FAILED")
    await query(database, f"{canceled.format(ended)} where id = %s", run_id)
    await retention.once()
    assert len(await partitions(database)) == 2, "it ended too recently"

    aged = "update runwire.runs set finished_at = clock_timestamp() - interval '8 days'"
    await query(database, f"{aged} where id = %s", run_id)
    await retention.once()
    assert await partitions(database) == []


async def test_nothing_can_be_written_to_a_closed_day(
    database: Database, env: int, engine: Engine, retention: Retention
) -> None:
    """What was known to be missing when it was closed is all there is to miss."""
    await make_days(database)
    run_id = await make_old(database, env)
    await query(
        database, "update runwire.runs set finished_at = now() - interval '10 minutes'"
    )  # metadata may still change
    strict = Retention(database, history=timedelta(minutes=5), runs=MONTH)
    await strict.close_days()
    assert len(await partitions(database)) == 2
    write = MetadataWrite(run_id, [{"type": "set", "key": "late", "value": 1}])
    with pytest.raises(TransitionRefusedError, match="closed"):
        await engine.metadata.apply(env, write)
    assert await count(database, "run_events") == 1
    with pytest.raises(TransitionRefusedError, match="closed"):
        await make_old(database, env)
    await strict.drop_days()
    await make_days(database)
    assert await partitions(database) == [], "a closed day is not made again"


async def test_a_run_that_an_open_transaction_adds_to_the_day_keeps_it(
    database: Database, database_url: str, env: int, retention: Retention
) -> None:
    await make_days(database)
    async with connected(database_url) as other:
        run_id = await make_run(other, env, status=RunStatus.QUEUED, created_at=f"{OLD} 12:00 UTC")
        await make_event(other, env, run_id, 1)
        await retention.once()
        assert len(await partitions(database)) == 2
        await other.commit()
    await retention.once()
    assert len(await partitions(database)) == 2
    assert await closed(database) == []


@pytest.mark.parametrize("when", ["closed", "half detached", "detached", "one dropped"])
async def test_a_pass_goes_on_where_another_process_died(
    database: Database, database_url: str, env: int, retention: Retention, when: str
) -> None:
    days = [OLD, OLD + timedelta(days=1)]
    await make_days(database, *days)
    for day in days:
        await make_old(database, env, day)
    await retention.close_days()
    leaf = f"run_events_{OLD:%Y%m%d}"
    match when:
        case "half detached":
            await _half_detach(database, database_url, leaf)
        case "detached" | "one dropped":
            async with database.session() as session:
                await session.run_on("retention.detach", parent="run_events", leaf=leaf)
                if when == "one dropped":
                    await session.run_on("retention.drop", leaf=leaf)
        case _:
            pass
    await Retention(database, history=WEEK, runs=MONTH).once()
    assert [await partitions(database, day) for day in days] == [[], []]
    assert all(day["dropped_at"] is not None for day in await closed(database))


async def _half_detach(database: Database, dsn: str, leaf: str) -> None:
    """Have a detach end between its two transactions, as when its process is killed."""
    async with connected(dsn) as reader:
        await reader.execute("select from runwire.run_events limit 1")
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
            await other.execute("set lock_timeout = '100ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                await other.execute(
                    f"alter table runwire.run_events detach partition runwire.{leaf}"
                    " concurrently".encode()
                )
    pending = "select inhrelid from pg_inherits where inhdetachpending"
    assert len(await query(database, pending)) == 1


async def test_while_a_partition_is_half_detached_days_can_be_made_and_written(
    database: Database, database_url: str, engine: Engine, env: int, retention: Retention
) -> None:
    await make_days(database)
    await make_old(database, env)
    await retention.close_days()
    await _half_detach(database, database_url, f"run_events_{OLD:%Y%m%d}")
    await make_days(database, date(2030, 1, 1), date(2030, 1, 1))
    assert len(await partitions(database, date(2030, 1, 1))) == 2
    await triggered(engine, env)


async def test_many_sweepers_at_once_drop_each_day_once(
    database: Database, env: int, engine: Engine, database_url: str
) -> None:
    days = [OLD + timedelta(days=n) for n in range(5)]
    await make_days(database, days[0], days[-1])
    for day in days:
        await make_old(database, env, day)
    async with opened_database(database_url, max_size=4) as other:
        sweepers = [
            Retention(each, history=WEEK, runs=MONTH)
            for each in itertools.chain.from_iterable([(database, other)] * 3)
        ]
        with anyio.fail_after(30):
            while any(day["dropped_at"] is None for day in await closed(database)) or not (
                len(await closed(database)) == len(days)
            ):
                async with anyio.create_task_group() as tasks:
                    for sweeper in sweepers:
                        tasks.start_soon(sweeper.once)
                await triggered(engine, env)
    assert [await partitions(database, day) for day in days] == [[]] * len(days)


async def test_a_reader_in_the_way_only_delays_the_drop(
    database: Database, database_url: str, env: int, retention: Retention
) -> None:
    """While it is waited for, others read and write as if nothing was."""
    await make_days(database)
    run_id = await make_old(database, env)
    async with connected(database_url) as reader:
        cursor = await reader.execute("select count(*) from runwire.run_events")
        assert await cursor.fetchone() == (1,)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(retention.once)
            with anyio.fail_after(60):
                while not await _waits(database):
                    await anyio.sleep(0.01)
            with anyio.fail_after(30):
                await query(database, "select from runwire.run_events limit 1")
                await make_days(database, date(2030, 1, 1), date(2030, 1, 1))
        # What was open goes on seeing what it saw.
        cursor = await reader.execute("select count(*) from runwire.run_events")
        assert await cursor.fetchone() in {(1,), (0,)}
        assert run_id
    await retention.once()
    assert await partitions(database) == []


async def _waits(database: Database) -> bool:
    rows = await query(
        database,
        "select pid from pg_stat_activity where wait_event_type = 'Lock' and query like %s"
        " and datname = current_database() and pid <> pg_backend_pid()",
        "%detach partition%concurrently",
    )
    return bool(rows)


def test_runs_are_kept_at_least_as_long_as_their_history() -> None:
    with pytest.raises(ValidationError, match="less than"):
        EngineSettings(database_url="x", retention=7200, run_retention=3600)


# Partitions ahead


async def test_a_missing_day_is_made_by_the_first_write_whoever_comes_first(
    database_url: str, env: int, engine: Engine
) -> None:
    """At midnight, with nobody having made partitions ahead, and everybody triggering at once."""
    midnight = "2031-05-05 00:00:00.5+00"
    await set_date(database_url, midnight)
    made: list[str] = []

    async def trigger(other: Engine) -> None:
        made.append(await triggered(other, env, NewRun("plain")))

    settings = EngineSettings(database_url=database_url)
    async with (
        open_engine(settings, sweeping=False) as first,
        open_engine(settings, sweeping=False) as second,
        anyio.create_task_group() as tasks,
    ):
        for each in (first, second) * 10:
            tasks.start_soon(trigger, each)
    rows = await query(engine.database, "select distinct bucket from runwire.runs")
    assert len(set(made)) == 20
    assert [row["bucket"] for row in rows] == [date(2031, 5, 5)]


async def test_making_a_partition_waits_for_no_reader_and_blocks_none(
    database: Database, database_url: str
) -> None:
    async with connected(database_url) as reader:
        await reader.execute("select from runwire.run_events limit 1")
        with anyio.fail_after(30):
            await make_days(database, date(2030, 1, 1), date(2030, 1, 1))
    assert len(await partitions(database, date(2030, 1, 1))) == 2


async def test_a_partition_is_made_like_those_of_before(database: Database) -> None:
    """Defaults, checks, keys and indexes are those of the log."""
    await make_days(database)
    shape = """
        select table_name, array_agg(what order by what) as shape from (
            select right(table_name, 8) as day, left(table_name, -9) as table_name,
                   concat_ws(' ', column_name, data_type, column_default, is_nullable) as what
              from information_schema.columns
             where table_schema = 'runwire' and table_name like any(array[%s, %s])
            union all
            select right(relname, 8), left(relname, -9),
                   replace(pg_get_indexdef(i.indexrelid), right(relname, 8), '')
              from pg_index i join pg_class c on c.oid = i.indrelid
              join pg_inherits h on h.inhrelid = i.indexrelid
             where relname like any(array[%s, %s])
            union all
            select right(relname, 8), left(relname, -9), pg_get_constraintdef(k.oid)
              from pg_constraint k join pg_class c on c.oid = k.conrelid
             where relname like any(array[%s, %s])) as parts
         group by table_name, day order by table_name
    """
    old = await query(database, shape, *[f"run_events_{OLD:%Y%m%d}", "-"] * 3)
    await query(database, "select runwire.make_partitions_v1('2019-01-01', '2019-01-01')")
    first = await query(database, shape, *["run_events_20190101", "-"] * 3)
    assert old == first
    assert len(old[0]["shape"]) >= 13


# Runs


async def test_runs_go_with_everything_of_theirs_once_they_are_old_enough(
    database: Database, env: int, engine: Engine, retention: Retention
) -> None:
    await make_days(database)
    run_id = await make_old(database, env, tags=["a", "b"])
    kept = await triggered(engine, env, NewRun("plain", tags=("a",), idempotency_key="k"))
    for text in (
        "insert into runwire.run_metadata values (%s, %s, '{}')",
        "insert into runwire.run_tags select %s, t, '2020-02-28 12:00Z', %s"
        " from unnest(array['a', 'b']) t",
        "insert into runwire.idempotency_keys values (%s, 'plain', 'old', %s, now(), now())",
        "insert into runwire.batch_items values (%s, 'batch_00000000', 0, %s)",
    ):
        await query(database, text, env, run_id)
    await query(
        database,
        "insert into runwire.batches values (%s, 'batch_00000000', 1, true, null, null, %s, now())",
        env,
        OLD,
    )
    younger = Retention(database, history=WEEK, runs=timedelta(days=365 * 100))
    assert not await younger.once()
    assert await count(database, "runs") == 2
    assert await count(database, "streams") == 1
    assert not await retention.once()
    for table, left in {
        "runs": 1,
        "run_tags": 1,
        "run_metadata": 0,
        "streams": 0,
        "idempotency_keys": 1,
        "batch_items": 0,
        "batches": 0,
    }.items():
        assert await count(database, table) == left, table
    assert [row["id"] for row in await query(database, "select id from runwire.runs")] == [kept]
    assert (await closed(database))[0]["emptied_at"] is not None


async def test_a_run_that_stands_in_a_younger_batch_stays_with_it(
    database: Database, env: int, retention: Retention
) -> None:
    await make_days(database)
    run_id = await make_old(database, env)
    await make_old(database, env)
    await query(database, "insert into runwire.batches values (%s, 'batch_00000000', 1, true)", env)
    item = "insert into runwire.batch_items values (%s, 'batch_00000000', 0, %s)"
    await query(database, item, env, run_id)
    await retention.once()
    assert [row["id"] for row in await query(database, "select id from runwire.runs")] == [run_id]
    assert (await closed(database))[0]["emptied_at"] is None
    await query(database, "update runwire.batches set created_at = '2020-03-01'")
    await retention.once()
    assert (await count(database, "runs"), await count(database, "batches")) == (0, 0)
    assert (await closed(database))[0]["emptied_at"] is not None


async def test_runs_are_deleted_a_few_hundred_at_once_by_everybody_together(
    database: Database, database_url: str, env: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_days(database)
    await make_old(database, env)
    await query(
        database,
        "insert into runwire.runs select (x.r).* from (select jsonb_populate_record(r,"
        " jsonb_build_object('id', 'run_' || lpad(n::text, 8, '0'))) as r"
        " from runwire.runs r, generate_series(1, 1700) n) as x",
    )
    async with opened_database(database_url, max_size=4) as other:
        sweepers = [Retention(each, history=WEEK, runs=MONTH) for each in (database, other)]
        monkeypatch.setattr("runwire_engine.retention._ROUNDS", 1)
        assert await sweepers[0].once(), "more is to be deleted at once"
        assert await count(database, "runs") == 1201
        with anyio.fail_after(30):
            while await count(database, "runs"):
                async with anyio.create_task_group() as tasks:
                    for sweeper in sweepers:
                        tasks.start_soon(sweeper.once)
    await sweepers[0].once()
    assert (await closed(database))[0]["emptied_at"] is not None


async def test_a_fake_date_ends_the_history_of_what_ran_today(
    database_url: str, env: int, engine: Engine
) -> None:
    """Through the engine alone: a run of today, looked at in eight days and in thirty-two."""
    run_id = await triggered(engine, env)
    await engine.runs.cancel(env, run_id)
    for days, left in ((6, (2, 1)), (9, (0, 1)), (32, (0, 0))):
        await set_date(database_url, f"{datetime.now(UTC).date() + timedelta(days=days)} 12:00Z")
        async with open_engine(EngineSettings(database_url=database_url), sweeping=False) as then:
            await then.sweep.tidy()
            await then.sweep.tidy()
            rows = await query(then.database, "select count(*)::int as n from runwire.run_events")
            assert (rows[0]["n"], await count(then.database, "runs")) == left, days
