"""Transactions, and what their failures are called."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import psycopg
import pytest
from anyio.abc import SocketAttribute, SocketStream
from psycopg.conninfo import make_conninfo

from runwire_engine import statements
from runwire_engine.database import Database, Transaction
from runwire_engine.embedded import EmbeddedPostgres
from runwire_engine.errors import (
    CommitUnknownError,
    DatabaseUnavailableError,
    DataRefusedError,
    EngineError,
    StatementError,
    StatementTimeoutError,
    TransitionRefusedError,
)
from tests.support.faultproxy import fault_proxy
from tests.support.postgres import opened_database
from tests.support.processes import until_async

pytestmark = pytest.mark.anyio

CANARY = "canary-7f3a"
STATEMENTS = {
    "make": "create table marker (id integer primary key, note text check (note <> 'bad'))",
    "put": "insert into marker (id, note) values (%(id)s, %(note)s)",
    "change": "update marker set note = %(note)s where id = %(id)s",
    "count": "select count(*)::integer as count from marker",
    "cast": "select %(note)s::integer",
    "sleep": "select pg_sleep(30)",
    "nap": "select pg_sleep(0.02)",
    "pid": "select pg_backend_pid() as pid",
    "waiting": "select count(*)::integer as count from pg_locks where not granted",
    "refuse_transition": "do $$ begin raise 'run % is final', 'x' using errcode = 'RW002'; end $$",
    "missing": "select * from nowhere_at_all",
}


@pytest.fixture(autouse=True)
def named_statements(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Statements of the tests' own, under the file name `test`."""
    original = statements.statement

    def lookup(name: str) -> str:
        file, _, key = name.partition(".")
        return STATEMENTS[key] if file == "test" else original(name)

    monkeypatch.setattr("runwire_engine.database.statement", lookup)
    yield


async def count(database: Database) -> int:
    row = await database.one("test.count")
    assert row is not None
    return int(row["count"])


async def test_a_block_that_ends_commits_and_one_that_raises_does_not(database: Database) -> None:
    await database.run("test.make")
    async with database.transaction() as tx:
        await tx.run("test.put", {"id": 1, "note": ""})
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as tx:
            await tx.run("test.put", {"id": 2, "note": ""})
            raise ZeroDivisionError

    assert await count(database) == 1


@pytest.mark.faults
@pytest.mark.parametrize("after", [True, False])
async def test_a_commit_without_an_answer_is_unknown(database_url: str, after: bool) -> None:
    async with fault_proxy(database_url) as proxy:
        async with opened_database(proxy.dsn(database_url)) as database:
            await database.run("test.make")
            proxy.cut_next_commit(after=after)
            with pytest.raises(CommitUnknownError):
                async with database.transaction() as tx:
                    await tx.run("test.put", {"id": 1, "note": ""})

            assert proxy.commits_cut == 1
            assert await count(database) == (1 if after else 0)  # and the pool has recovered


@pytest.mark.faults
async def test_a_connection_lost_before_commit_has_changed_nothing(database_url: str) -> None:
    async with fault_proxy(database_url) as proxy:
        async with opened_database(proxy.dsn(database_url)) as database:
            await database.run("test.make")
            with pytest.raises(DatabaseUnavailableError) as caught:
                async with database.transaction() as tx:
                    await tx.run("test.put", {"id": 1, "note": ""})
                    proxy.cut()
                    await tx.run("test.put", {"id": 2, "note": ""})

            assert not isinstance(caught.value, CommitUnknownError)
            assert await count(database) == 0


@pytest.mark.faults
async def test_a_write_in_autocommit_without_an_answer_is_unknown(database_url: str) -> None:
    async with fault_proxy(database_url) as proxy:
        async with opened_database(proxy.dsn(database_url)) as database:
            await database.run("test.make")
            proxy.to_client.cut_after = 0
            with pytest.raises(CommitUnknownError):
                await database.run("test.put", {"id": 1, "note": ""})


async def test_a_deadlock_is_tried_again_and_nobody_notices(database: Database) -> None:
    await database.run("test.make")
    for number in (1, 2):
        await database.run("test.put", {"id": number, "note": ""})
    both_hold_one = [anyio.Event(), anyio.Event()]
    tries: list[int] = []

    async def change(first: int, second: int) -> None:
        async def work(tx: Transaction) -> None:
            tries.append(first)
            await tx.run("test.change", {"id": first, "note": f"by {first}"})
            both_hold_one[first - 1].set()
            await both_hold_one[second - 1].wait()
            await tx.run("test.change", {"id": second, "note": f"by {first}"})

        await database.retrying(work)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(change, 1, 2)
            tasks.start_soon(change, 2, 1)

    # One of the two was the deadlock's victim; again, if it was back before the other had gone on.
    assert len(tries) >= 3


async def test_statements_that_failed_together_leave_their_connection_sound(
    database_url: str,
) -> None:
    async with opened_database(database_url, max_size=1) as database:
        await database.run("test.make")
        for number in range(12):  # psycopg prepares what it has sent five times
            with pytest.raises(DataRefusedError):
                async with database.transaction() as tx:
                    await tx.together(
                        ("test.put", {"id": number, "note": "bad"}), ("test.count", None)
                    )
            with pytest.raises(DataRefusedError):
                async with database.transaction() as tx:
                    await tx.last("test.put", {"id": number, "note": "bad"})
            async with database.transaction() as tx:
                await tx.together(("test.put", {"id": number, "note": ""}), ("test.count", None))
        assert await count(database) == 12


async def test_what_postgres_cannot_hold_is_refused_as_data(database: Database) -> None:
    await database.run("test.make")
    for note in ("nul \0", "lone \ud800", "bad"):
        with pytest.raises(DataRefusedError):
            await database.run("test.put", {"id": 1, "note": note})
        with pytest.raises(DataRefusedError):
            async with database.transaction() as tx:
                await tx.many("test.put", [{"id": 1, "note": note}])

    await database.run("test.put", {"id": 1, "note": "good"})  # the connections are sound


async def test_the_guards_of_the_schema_have_their_own_error(database: Database) -> None:
    with pytest.raises(TransitionRefusedError, match="run x is final"):
        await database.run("test.refuse_transition")


async def test_a_failed_statement_is_named_with_its_state(database: Database) -> None:
    with pytest.raises(StatementError, match=r"test\.missing: relation") as caught:
        await database.run("test.missing")

    assert caught.value.sqlstate == "42P01"
    assert not caught.value.repeatable


async def test_no_error_or_log_quotes_a_value(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await database.run("test.make")
    await database.run("test.put", {"id": 1, "note": CANARY})
    failures: list[tuple[str, dict[str, object]]] = [
        ("test.put", {"id": 1, "note": CANARY}),  # its DETAIL quotes the key
        ("test.cast", {"note": CANARY}),  # its message quotes the value
        ("test.put", {"id": CANARY, "note": CANARY}),
        ("test.put", {"id": 2, "note": CANARY + "\0"}),
        ("test.put", {"id": 2, "note": CANARY + "\ud800"}),
    ]
    for name, parameters in failures:
        try:
            await database.run(name, parameters)
        except EngineError:
            logging.getLogger("test").exception("failed")
        else:
            raise AssertionError(f"{name} did not fail")

    assert caplog.text.count("Traceback") >= len(failures)
    assert CANARY not in caplog.text


async def test_no_error_or_log_quotes_the_password(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    away = Database(f"postgresql://somebody:{CANARY}@/nowhere?host={tmp_path}")
    try:
        await away.open(seconds=0.1)
    except DatabaseUnavailableError:
        logging.getLogger("test").exception("failed")

    assert "cannot connect to Postgres" in caplog.text
    assert CANARY not in caplog.text


async def test_an_unknown_database_is_reported_at_once(database_url: str) -> None:
    missing = Database(make_conninfo(database_url, dbname="nowhere"))
    with anyio.fail_after(60), pytest.raises(DatabaseUnavailableError, match="does not exist"):
        await missing.open()


async def test_a_postgres_that_starts_late_is_waited_for(database_url: str) -> None:
    async with fault_proxy(database_url) as proxy:
        proxy.refuses = True
        database = Database(proxy.dsn(database_url))

        async def let_in_later() -> None:
            await anyio.sleep(0.3)  # the wait itself is what is tested
            proxy.refuses = False

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(let_in_later)
            await database.open(seconds=60)
        await database.close()


async def test_a_pool_that_is_used_up_says_so(database_url: str) -> None:
    small = Database(database_url, max_size=1, wait_seconds=0.1)
    await small.open()
    async with small.transaction():
        with pytest.raises(DatabaseUnavailableError, match="became free"):
            await small.one("test.pid")
    assert await small.one("test.pid") is not None
    await small.close()


@pytest.mark.faults
async def test_a_cancelled_statement_gives_its_connection_back(database_url: str) -> None:
    async with opened_database(database_url, max_size=1) as database:
        for _ in range(3):
            with anyio.move_on_after(0.05) as scope:  # the time it takes does not matter
                async with database.transaction() as tx:
                    await tx.run("test.sleep")
            assert scope.cancelled_caught
            with anyio.move_on_after(0.05) as scope:
                await database.run("test.sleep")
            assert scope.cancelled_caught

        with anyio.fail_after(60):
            assert await database.one("test.pid") is not None


@pytest.mark.faults
async def test_no_cancellation_of_a_process_that_was_held_up_leaves_a_connection_unsound(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The driver then lets others go first also where it need not wait: as a pipeline begins.
    monkeypatch.setattr("psycopg.waiting.MAX_BUSY_TIME", 0.0)
    async with opened_database(database_url, max_size=1) as database:

        async def work() -> None:
            async with database.transaction(lazy=True) as tx:
                await tx.one("test.pid")
                await tx.last("test.pid")

        for turns in range(60):
            task = asyncio.ensure_future(work())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            async with database.transaction() as tx:
                assert len(await tx.all("test.pid")) == 1, turns


async def test_a_statement_that_got_no_answer_has_not_said_that_there_are_no_rows(
    database: Database,
) -> None:
    async with database.transaction() as tx:
        async with tx.connection.pipeline():
            with pytest.raises(StatementError, match=r"test\.pid got no answer"):
                await tx.all("test.pid")
            with pytest.raises(StatementError, match=r"test\.pid got no answer"):
                await tx.one("test.pid")
            with pytest.raises(StatementError, match=r"test\.pid got no answer"):
                await tx.run("test.pid")
        with pytest.raises(StatementError, match=r"test\.make returns no rows"):
            await tx.all("test.make")


async def test_connections_that_died_in_the_pool_are_not_handed_out(database_url: str) -> None:
    async with opened_database(database_url) as database:
        async with database.transaction(), database.transaction(), database.transaction():
            pass  # three connections are in the pool now
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as killer:
            await killer.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                " where application_name = 'runwire' and datname = current_database()"
            )
        for _ in range(5):
            assert await database.one("test.pid") is not None


@pytest.mark.faults
async def test_it_works_again_within_seconds_of_postgres_being_back(tmp_path: Path) -> None:
    """However long it was away: the pool's own pauses would have grown meanwhile."""
    postgres = EmbeddedPostgres(tmp_path)
    await postgres.start()
    database = Database(postgres.dsn, wait_seconds=0.2)
    await database.open()
    await postgres.stop()

    async def works() -> bool:
        try:
            return await database.one("test.pid") is not None
        except DatabaseUnavailableError:
            return False

    with anyio.move_on_after(2.5):  # long enough for the pauses to have grown
        await until_async(works, 10)
    await postgres.start()
    with anyio.fail_after(15):
        await until_async(works)
    await database.close()
    await postgres.stop()


async def test_sessions_are_bounded_in_utc_and_without_helpers(database_url: str) -> None:
    async with opened_database(database_url) as database, database.session() as session:
        for name, value in {
            "statement_timeout": "5s",
            "lock_timeout": "2s",
            "idle_in_transaction_session_timeout": "10s",
            "TimeZone": "UTC",
            "max_parallel_workers_per_gather": "0",
            **(
                {"transaction_timeout": "30s"}
                if session.connection.info.server_version >= 170_000
                else {}
            ),
        }.items():
            cursor = await session.connection.execute("select current_setting(%s) as v", (name,))
            row = await cursor.fetchone()
            assert row is not None and row["v"] == value


async def test_what_takes_too_long_is_cut_off_and_may_be_tried_again(database_url: str) -> None:
    impatient = Database(database_url, statement_timeout="100ms", transaction_timeout="400ms")
    await impatient.open()
    with pytest.raises(StatementTimeoutError):
        await impatient.one("test.sleep")
    async with impatient.session() as session:
        if session.connection.info.server_version >= 170_000:
            with pytest.raises(DatabaseUnavailableError):
                async with impatient.transaction() as tx:
                    for _ in range(100):
                        await tx.one("test.nap")
    assert await impatient.one("test.pid") is not None
    await impatient.close()


@asynccontextmanager
async def pooler(dsn: str) -> AsyncGenerator[str]:
    """Refuse start-up options as a transaction pooler does; else pass everything on."""
    text = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
    refusal = b"E" + (len(text) + 4).to_bytes(4, "big") + text

    async def serve(client: SocketStream) -> None:
        async with client:
            start = await client.receive()
            if b"options\0" in start:
                return await client.send(refusal)
            async with await anyio.connect_tcp("127.0.0.1", proxy.port) as server:
                await server.send(start)
                async with anyio.create_task_group() as lanes:
                    lanes.start_soon(copy, client, server, lanes.cancel_scope)
                    lanes.start_soon(copy, server, client, lanes.cancel_scope)

    async def copy(source: SocketStream, sink: SocketStream, scope: anyio.CancelScope) -> None:
        with suppress(anyio.BrokenResourceError):
            async for data in source:
                await sink.send(data)
        scope.cancel()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with fault_proxy(dsn) as proxy, listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield make_conninfo(proxy.dsn(dsn), port=str(listener.extra(SocketAttribute.local_port)))
        tasks.cancel_scope.cancel()


async def test_behind_a_transaction_pooler_it_asks_for_nothing_a_pooler_refuses(
    database_url: str,
) -> None:
    async with pooler(database_url) as dsn, opened_database(dsn, max_size=1) as database:
        for _ in range(10):
            await database.one("test.pid")
        async with database.session() as session:
            cursor = await session.connection.execute("select from pg_prepared_statements")
            assert cursor.rowcount == 0


def test_every_statement_file_can_be_read_and_names_each_statement_once() -> None:
    folder = Path(statements.__file__).parent / "sql"
    for path in folder.glob("*.sql"):
        names = [line for line in path.read_text().splitlines() if line.endswith(" --")]
        assert len(names) == len(set(names)), path.name
        for name in names:
            assert statements.statement(f"{path.stem}.{name.strip('- ')}").strip(), name
    assert os.listdir(folder / "migrations")
