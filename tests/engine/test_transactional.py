"""Triggering inside a transaction of an application's own, on whatever connection that is."""

from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack
from typing import Any, cast

import anyio
import anyio.to_thread
import orjson
import psycopg
import pytest
from psycopg import AsyncConnection, ClientCursor, Connection
from psycopg.rows import class_row, dict_row, namedtuple_row, tuple_row
from psycopg.types.datetime import TimestamptzLoader
from psycopg.types.string import StrDumper

from runwire import (
    ConfigurationError,
    InvalidValueError,
    NotFoundError,
    NotInTransactionError,
    batch,
    metadata,
    sync,
    task,
    tasks,
)
from runwire._options import TriggerKeywords, trigger_options
from runwire.batch import BatchItem
from runwire.tasks import RunHandle
from runwire_engine.engine import Engine
from runwire_engine.new_runs import new_run
from runwire_engine.runs import RunQuery
from runwire_engine.states import RunStatus
from runwire_engine.wanted_runs import NewRun, TriggerResult
from tests.support.engines import ALL_TASKS, assert_dense, query, there
from tests.support.working import Bench, opened_bench

pytestmark = pytest.mark.anyio

EVERYTHING: TriggerKeywords = {
    "tags": ["a", "b"],
    "metadata": {"step": 1},
    "delay": "1h",
    "ttl": "2h",
    "idempotency_key": "everything",
    "queue": "elsewhere",
    "concurrency_key": "k",
    "max_attempts": 7,
    "max_duration": 60,
    "priority": 5,
    "test": True,
}


@pytest.fixture
def connection(database_url: str) -> Generator[Connection[tuple[Any, ...]]]:
    """An application's connection, with a table of its own."""
    with psycopg.connect(database_url) as opened:
        opened.execute("create table orders (id integer primary key)")
        opened.commit()
        yield opened


async def runs(engine: Engine, env: int) -> list[str]:
    return [run.id for run in (await engine.runs.list(env, RunQuery(size=100))).runs]


async def test_a_run_exists_only_if_its_transaction_commits(
    engine: Engine, env: int, connection: Connection[Any]
) -> None:
    connection.execute("insert into orders values (1)")
    kept = sync.tasks.trigger("plain", {"order": 1}, connection=connection)
    assert (kept.task_identifier, kept.is_cached) == ("plain", False)
    assert await runs(engine, env) == []
    connection.commit()
    assert await runs(engine, env) == [kept.id]

    connection.execute("insert into orders values (2)")
    sync.tasks.trigger("plain", {"order": 2}, connection=connection)
    connection.rollback()
    assert await runs(engine, env) == [kept.id]
    assert await assert_dense(engine, env, kept.id) == ["created"]
    assert (await there(engine, env, kept.id)).payload == '{"order":1}'


async def test_a_connection_of_asyncio_does_the_same(
    engine: Engine, env: int, database_url: str
) -> None:
    async with await AsyncConnection.connect(database_url) as connection:
        kept = await tasks.trigger("plain", 1, connection=connection)
        assert await runs(engine, env) == []
        await connection.commit()
        await tasks.trigger("plain", 2, connection=connection)
        await connection.rollback()
        assert await runs(engine, env) == [kept.id]


async def test_a_savepoint_that_is_rolled_back_takes_its_runs_with_it(
    engine: Engine, env: int, connection: Connection[Any]
) -> None:
    with connection.transaction():
        before = sync.tasks.trigger("plain", connection=connection)
        with pytest.raises(ZeroDivisionError), connection.transaction():
            sync.tasks.trigger("plain", connection=connection, idempotency_key="k")
            raise ZeroDivisionError
        after = sync.tasks.trigger("plain", connection=connection, idempotency_key="k")
        assert not after.is_cached
    assert set(await runs(engine, env)) == {before.id, after.id}
    assert await runs_of_events(engine) == {before.id, after.id}


async def runs_of_events(engine: Engine) -> set[str]:
    rows = await query(engine.database, "select run_id from runwire.run_events")
    return {row["run_id"] for row in rows}


async def test_every_option_does_what_it_does_at_any_other_trigger(
    engine: Engine, env: int, connection: Connection[Any]
) -> None:
    inside = sync.tasks.trigger("plain", [1], connection=connection, **EVERYTHING)
    connection.commit()
    other = trigger_options({**EVERYTHING, "idempotency_key": "another"})
    outside = await engine.runs.trigger(env, new_run("plain", "[1]", other))
    first, second = [(await there(engine, env, id))._asdict() for id in (inside.id, outside.id)]
    different = {name for name, value in first.items() if value != second[name]}
    times = {"created_at", "updated_at", "delayed_until", "expires_at", "sort_at"}
    assert different == {"id", "idempotency_key", *times}
    assert first["expires_at"] - first["created_at"] == second["expires_at"] - second["created_at"]
    assert first["sort_at"] - first["created_at"] == second["sort_at"] - second["created_at"]
    again = sync.tasks.trigger("plain", [2], connection=connection, **EVERYTHING)
    assert again == RunHandle(inside.id, "plain", is_cached=True, public_access_token=None)


def two_items() -> Generator[BatchItem]:
    yield {"task": "plain", "payload": "plain"}
    yield {"task": "other", "payload": "other"}


async def test_a_batch_is_part_of_the_transaction_whole(
    engine: Engine, env: int, connection: Connection[Any]
) -> None:
    dropped = sync.tasks.batch_trigger(
        "plain", [{"payload": 1}, {"options": {"tags": "x"}}], connection=connection
    )
    connection.rollback()
    kept = sync.batch.trigger(two_items(), connection=connection, idempotency_key="k")
    connection.commit()
    again = sync.batch.trigger([{"task": "plain"}], connection=connection, idempotency_key="k")
    assert again.is_cached and again.id == kept.id
    assert await engine.batches.retrieve(env, dropped.id) is None
    held = await engine.batches.retrieve(env, kept.id)
    assert held is not None and held.sealed and held.run_count == 2
    payloads = [run.payload for run in await engine.runs.retrieve_many(env, held.run_ids)]
    assert payloads == ['"plain"', '"other"']


async def test_a_batch_by_task_in_a_transaction_has_its_runs(
    engine: Engine, env: int, connection: Connection[Any]
) -> None:
    @task(id="plain")
    def plain(payload: int) -> int:
        return payload

    first, again = [
        sync.batch.trigger_by_task(
            ({"task": plain, "payload": 1}, {"task": plain, "payload": 2}),
            connection=connection,
            idempotency_key="k",
        )
        for _ in range(2)
    ]
    connection.commit()
    assert [run.id for run in first.runs] == [run.id for run in again.runs]
    assert again.is_cached and not first.is_cached
    payloads = [(await there(engine, env, run.id)).payload for run in first.runs]
    assert payloads == ["1", "2"]
    with pytest.raises(InvalidValueError, match="2 runs and not 1"):
        sync.batch.trigger_by_task(
            ({"task": plain, "payload": 1},), connection=connection, idempotency_key="k"
        )


# Whatever the connection is ---------------------------------------------------------------------


class OwnRow:
    def __init__(self, **columns: object) -> None:
        raise AssertionError("the rows of a trigger are nobody's business")


class Shouting(StrDumper):
    def dump(self, obj: str) -> Any:
        return super().dump(obj.upper())


class Naive(TimestamptzLoader):
    def load(self, data: Any) -> Any:
        return super().load(data).replace(tzinfo=None)


def plain_rows(connection: Connection[Any], stack: ExitStack) -> None:
    connection.row_factory = tuple_row


def dict_rows(connection: Connection[Any], stack: ExitStack) -> None:
    connection.row_factory = dict_row


def named_rows(connection: Connection[Any], stack: ExitStack) -> None:
    connection.row_factory = namedtuple_row


def own_rows(connection: Connection[Any], stack: ExitStack) -> None:
    connection.row_factory = class_row(OwnRow)


def client_cursor(connection: Connection[Any], stack: ExitStack) -> None:
    connection.cursor_factory = ClientCursor


def autocommit(connection: Connection[Any], stack: ExitStack) -> None:
    connection.autocommit = True
    stack.enter_context(connection.transaction())


def piped(connection: Connection[Any], stack: ExitStack) -> None:
    stack.enter_context(connection.pipeline())
    connection.execute("insert into orders values (7)")


def piped_autocommit(connection: Connection[Any], stack: ExitStack) -> None:
    connection.autocommit = True
    stack.enter_context(connection.pipeline())
    stack.enter_context(connection.transaction())
    connection.execute("insert into orders values (7)")


def own_search_path(connection: Connection[Any], stack: ExitStack) -> None:
    connection.execute("create schema own")
    connection.execute("create table own.runs (id text)")
    connection.execute("set search_path to own")


def own_settings(connection: Connection[Any], stack: ExitStack) -> None:
    connection.execute("set timezone to 'America/New_York'")
    connection.execute("set datestyle to 'German, DMY'")
    connection.execute("set client_encoding to 'LATIN1'")


def own_adapters(connection: Connection[Any], stack: ExitStack) -> None:
    connection.adapters.register_dumper(str, Shouting)
    connection.adapters.register_loader("timestamptz", Naive)


def stricter(connection: Connection[Any], stack: ExitStack) -> None:
    connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE


@pytest.mark.parametrize(
    "prepare",
    [
        plain_rows,
        dict_rows,
        named_rows,
        own_rows,
        client_cursor,
        autocommit,
        piped,
        piped_autocommit,
        own_search_path,
        own_settings,
        own_adapters,
        stricter,
    ],
)
async def test_the_connection_may_be_of_any_kind(
    engine: Engine, env: int, connection: Connection[Any], prepare: Any
) -> None:
    with ExitStack() as stack:
        prepare(connection, stack)
        options: TriggerKeywords = {"idempotency_key": "k", "tags": ["größe"], "metadata": {"a": 1}}
        first = sync.tasks.trigger("plain", {"n": 1}, connection=connection, **options)
        second = sync.tasks.trigger("plain", {"n": 2}, connection=connection, **options)
        assert (first.is_cached, second.is_cached, second.id) == (False, True, first.id)
        assert await runs(engine, env) == []
    connection.commit()
    run = await there(engine, env, first.id)
    assert (run.payload, run.tags, run.metadata) == ('{"n":1}', ("größe",), '{"a":1}')
    assert run.status == "QUEUED" and run.queued_at == run.created_at


@pytest.mark.parametrize("is_piped", [False, True])
async def test_asyncio_in_pipeline_mode_and_autocommit(
    engine: Engine, env: int, database_url: str, is_piped: bool
) -> None:
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        async with connection.transaction():
            if is_piped:
                async with connection.pipeline():
                    await connection.execute("select 1")
                    handle = await tasks.trigger("plain", connection=connection)
            else:
                handle = await tasks.trigger("plain", connection=connection)
            assert await runs(engine, env) == []
        assert await runs(engine, env) == [handle.id]


async def test_without_a_transaction_nothing_is_triggered(
    engine: Engine, env: int, connection: Connection[Any], database_url: str
) -> None:
    connection.autocommit = True
    with pytest.raises(NotInTransactionError, match=r"connection\.transaction"):
        sync.tasks.trigger("plain", connection=connection)
    with pytest.raises(NotInTransactionError), connection.pipeline():
        sync.tasks.trigger("plain", connection=connection)
    async with await AsyncConnection.connect(database_url, autocommit=True) as other:
        with pytest.raises(NotInTransactionError):
            await tasks.batch_trigger("plain", [{}], connection=other)
    connection.autocommit = False
    with pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute("select * from nothing")
    with pytest.raises(NotInTransactionError, match="roll it back"):
        sync.tasks.trigger("plain", connection=connection)
    connection.rollback()
    connection.close()
    with pytest.raises(NotInTransactionError, match="closed"):
        sync.tasks.trigger("plain", connection=connection)
    assert await runs(engine, env) == []


async def test_what_is_no_connection_for_this_call_says_what_is(
    connection: Connection[Any], database_url: str
) -> None:
    wrong: Any = connection
    with pytest.raises(TypeError, match="blocking twins"):
        await tasks.trigger("plain", connection=wrong)
    wrong = object()
    with pytest.raises(TypeError, match="in Django"):
        sync.tasks.trigger("plain", connection=wrong)
    with pytest.raises(TypeError, match="in Django"):
        await batch.trigger([{"task": "plain"}], connection=wrong)


async def test_a_refused_trigger_leaves_the_transaction_as_it_was(
    engine: Engine, env: int, connection: Connection[Any]
) -> None:
    connection.execute("insert into orders values (1)")
    with pytest.raises(NotFoundError, match="nobody"):
        sync.tasks.trigger("nobody", connection=connection)
    with pytest.raises(InvalidValueError, match="limit of a queue"):
        sync.tasks.trigger(
            "plain", connection=connection, queue={"name": "q", "concurrency_limit": 1}
        )
    with pytest.raises(InvalidValueError, match="debounce is not offered"):
        sync.tasks.trigger("plain", connection=connection, debounce={"key": "k", "delay": 1})
    connection.commit()
    rows = await query(engine.database, "select count(*) as n from orders")
    assert rows[0]["n"] == 1 and await runs(engine, env) == []


async def test_a_task_is_looked_up_as_by_any_other_trigger(engine: Engine, env: int) -> None:
    names = ["plain"]
    usual = await engine.database.all("triggers.tasks", {"environment_id": env, "tasks": names})
    here = await engine.database.all("transactional.begin", {"environment": "dev", "tasks": names})
    assert {name: here[0][name] for name in usual[0] if name != "now"} == {
        name: value for name, value in usual[0].items() if name != "now"
    }


async def test_a_database_or_environment_that_is_none_says_so(
    database_url: str, connection: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNWIRE_ENVIRONMENT", "elsewhere")
    with pytest.raises(ConfigurationError, match="'elsewhere'.*RUNWIRE_ENVIRONMENT"):
        sync.tasks.trigger("plain", connection=connection)
    connection.execute("drop schema runwire cascade")
    with pytest.raises(ConfigurationError, match="runwire migrate"):
        sync.tasks.trigger("plain", connection=connection)


async def test_an_environment_is_named_by_its_variable(
    engine: Engine, connection: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = await query(
        engine.database, "insert into runwire.environments (name) values ('staging') returning id"
    )
    staging = rows[0]["id"]
    await query(
        engine.database,
        "insert into runwire.tasks (environment_id, id, queue) values (%s, 'plain', 'task/plain')",
        staging,
    )
    monkeypatch.setenv("RUNWIRE_ENVIRONMENT", "staging")
    handle = sync.tasks.trigger("plain", connection=connection)
    connection.commit()
    assert await runs(engine, staging) == [handle.id]


async def test_partitions_that_nobody_made_are_made(
    engine: Engine, env: int, connection: Connection[Any]
) -> None:
    for row in await query(
        engine.database,
        "select inhrelid::regclass::text as name from pg_inherits"
        " where inhparent in ('runwire.run_events'::regclass, 'runwire.stream_chunks'::regclass)",
    ):
        await query(engine.database, f"drop table {row['name']}")
    handle = sync.tasks.trigger("plain", connection=connection)
    connection.commit()
    assert await assert_dense(engine, env, handle.id) == ["created"]


# Beside others ----------------------------------------------------------------------------------


async def test_an_open_transaction_holds_up_only_triggers_with_its_key(
    engine: Engine, env: int, connection: Connection[Any]
) -> None:
    mine = sync.tasks.trigger(
        "limited", connection=connection, idempotency_key="k", concurrency_key="fresh"
    )
    hashed = trigger_options({"idempotency_key": "k"}).idempotency_key
    answers: list[TriggerResult] = []

    async def the_same() -> None:
        answers.append(await engine.runs.trigger(env, NewRun("limited", idempotency_key=hashed)))

    async with anyio.create_task_group() as others:
        others.start_soon(the_same)
        with anyio.fail_after(60):  # held up by it, they would wait for the commit below
            for key in ("fresh", "stale"):
                await engine.runs.trigger(
                    env, NewRun("limited", concurrency_key=key, idempotency_key=key)
                )
        assert answers == []
        connection.commit()
    assert answers == [TriggerResult(mine.id, is_cached=True)]
    claimed = await engine.claims.claim(env, "w1", ALL_TASKS, 10)
    assert sorted(run.concurrency_key for run in claimed) == ["fresh", "fresh", "stale"]


async def test_fifty_triggers_by_every_door_with_one_key_make_one_run(
    engine: Engine, env: int, database_url: str
) -> None:
    hashed = trigger_options({"idempotency_key": "k"}).idempotency_key
    found: list[tuple[str, bool]] = []

    async def by_engine() -> None:
        result = await engine.runs.trigger(env, NewRun("plain", idempotency_key=hashed))
        found.append((result.id, result.is_cached))

    async def by_asyncio() -> None:
        async with await AsyncConnection.connect(database_url) as connection:
            handle = await tasks.trigger("plain", connection=connection, idempotency_key="k")
            await connection.commit()
            found.append((handle.id, handle.is_cached))

    def by_thread() -> None:
        with psycopg.connect(database_url) as connection:
            handle = sync.tasks.trigger("plain", connection=connection, idempotency_key="k")
            connection.commit()
            found.append((handle.id, handle.is_cached))

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(by_engine)
        for _ in range(15):
            group.start_soon(by_asyncio)
            group.start_soon(anyio.to_thread.run_sync, by_thread)
    assert len(found) == 50 and len({id for id, _ in found}) == 1
    assert sum(not is_cached for _, is_cached in found) == 1
    assert len(await runs(engine, env)) == 1


# With a worker ----------------------------------------------------------------------------------


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        yield opened


async def test_the_run_starts_at_once_when_the_transaction_commits(
    bench: Bench, connection: Connection[Any]
) -> None:
    @task(id="transactional-echo")
    async def echo(payload: int) -> int:
        return payload

    # Nobody looks for work by itself in that time: only the bell can have told.
    async with bench.worker(echo, poll=60.0, sweep=60.0):
        for number in range(2):
            handle = echo.sync.trigger(number, connection=connection)
            assert await bench.engine.runs.retrieve(bench.env, handle.id) is None
            connection.commit()
            row = await bench.until(handle.id)
            assert (row.status, row.output) == ("COMPLETED", str(number))


async def test_inside_a_run_it_is_a_child_and_the_run_goes_on_writing_meanwhile(
    bench: Bench, database_url: str
) -> None:
    @task(id="transactional-child")
    async def child(payload: int) -> int:
        return payload

    @task(id="transactional-parent", retry={"max_attempts": 1})
    async def parent() -> str:
        async with await AsyncConnection.connect(database_url) as connection:
            handle = await child.trigger(1, connection=connection)
            metadata.set("step", "before the commit")
            await metadata.flush()
            await connection.commit()
        return handle.id

    async with bench.worker(parent, child):
        row = await bench.until(await bench.start(parent))
        assert row.status == RunStatus.COMPLETED, row.error
        made = await bench.until(parent.parse_output(orjson.loads(row.output or "")))
    assert (made.parent_id, made.root_id, made.depth) == (row.id, row.id, 1)


def test_without_what_talks_to_postgres_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise ImportError("No module named 'psycopg'")

    monkeypatch.setattr("runwire._transactional.import_module", missing)
    with pytest.raises(ConfigurationError, match=r"runwire\[server\]"):
        sync.tasks.trigger("plain", connection=cast(Any, object()))


def test_a_client_of_its_own_takes_no_connection(connection: Connection[Any]) -> None:
    with (
        sync.Runwire(api_url="http://127.0.0.1:1", access_token="t") as client,
        pytest.raises(ConfigurationError, match="over HTTP"),
    ):
        client.tasks.trigger("plain", connection=connection)
