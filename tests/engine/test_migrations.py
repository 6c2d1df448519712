"""Migrations: applied once, in order, refused when code and database do not fit."""

from collections.abc import AsyncGenerator, Generator
from datetime import timedelta
from pathlib import Path

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

from runwire_engine.embedded import EmbeddedPostgres
from runwire_engine.errors import (
    DatabaseUnavailableError,
    EngineError,
    MigrationRefusedError,
)
from runwire_engine.migrations import (
    Migration,
    known_migrations,
    migrate,
    misfit,
    refuse_unfit_server,
)
from runwire_engine.retention import Retention
from runwire_engine.statements import statement
from tests.support.engines import query
from tests.support.postgres import TestServer, opened_database

pytestmark = pytest.mark.anyio


@pytest.fixture
def empty_url(postgres: TestServer) -> Generator[str]:
    dsn = postgres.create_database("template1")
    yield dsn
    postgres.drop_database(dsn)


@pytest.fixture
async def standby_url(tmp_path: Path, anyio_backend: str) -> AsyncGenerator[str]:
    """A server in recovery that never leaves it."""
    embedded = EmbeddedPostgres(tmp_path)
    await embedded.start()
    await embedded.stop()
    (embedded.cluster / "standby.signal").touch()
    await embedded.start()
    yield embedded.dsn
    await embedded.stop()


async def rows(dsn: str, sql: str) -> list[tuple[object, ...]]:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute(sql.encode())
        return await cursor.fetchall()


def file(version: int, name: str, sql: str) -> Migration:
    return Migration(version, name, sql)


def with_files(*more: Migration) -> list[Migration]:
    return [*known_migrations(), *more]


def test_files_are_numbered_without_a_hole() -> None:
    versions = [migration.version for migration in known_migrations()]
    assert versions == list(range(1, len(versions) + 1))


async def test_a_new_database_gets_every_file_and_the_next_run_none(empty_url: str) -> None:
    names = [migration.name for migration in known_migrations()]

    assert await migrate(empty_url) == names
    assert await migrate(empty_url) == []
    assert await rows(empty_url, "select name from runwire.migrations order by version") == [
        (name,) for name in names
    ]


async def test_an_ordinary_role_that_owns_its_database_is_enough(
    postgres: TestServer, empty_url: str
) -> None:
    """Whoever runs an external Postgres gives no superuser away."""
    name = str(conninfo_to_dict(empty_url)["dbname"])
    role = f"{name}_owner"
    async with await psycopg.AsyncConnection.connect(empty_url, autocommit=True) as admin:
        await admin.execute(SQL("create role {} login").format(Identifier(role)))
        await admin.execute(
            SQL("alter database {} owner to {}").format(Identifier(name), Identifier(role))
        )
        ordinary = make_conninfo(empty_url, user=role)
        try:
            assert await migrate(ordinary) != []
            for text in ("select runwire.epoch_v1()", statement("changes.place")):
                assert len(await rows(ordinary, text)) == 1
            await _retain(ordinary)
        finally:
            await admin.execute(SQL("drop owned by {} cascade").format(Identifier(role)))
            await admin.execute(
                SQL("alter database {} owner to current_user").format(Identifier(name))
            )
            await admin.execute(SQL("drop role {}").format(Identifier(role)))


async def _retain(dsn: str) -> None:
    """End the history of a day, which takes the rights of its owner."""
    async with opened_database(dsn) as database:
        await query(database, "select runwire.make_partitions_v2('2020-01-01', '2020-01-01')")
        retention = Retention(database, history=timedelta(days=7), runs=timedelta(days=30))
        await retention.once()
        ended = await query(
            database, "select bucket from runwire.closed_days where dropped_at < now()"
        )
        assert len(ended) == 1


async def test_processes_that_migrate_at_once_take_turns(empty_url: str) -> None:
    applied: list[str] = []

    async def run() -> None:
        applied.extend(await migrate(empty_url))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(run)

    assert sorted(applied) == sorted(migration.name for migration in known_migrations())


async def test_an_added_file_is_applied_alone(database_url: str) -> None:
    added = file(9001, "added", "create table runwire.added ()")
    assert await migrate(database_url, with_files(added)) == ["added"]


async def test_a_failing_file_leaves_nothing_of_itself_and_keeps_the_ones_before(
    database_url: str,
) -> None:
    good = file(9001, "good", "create table runwire.good ()")
    bad = file(9002, "bad", "create table runwire.bad (); select 1 / 0")

    with pytest.raises(EngineError, match=r"migration 9002 \(bad\): DivisionByZero"):
        await migrate(database_url, with_files(good, bad))

    found = "select to_regclass('runwire.good') is not null, to_regclass('runwire.bad') is null"
    assert await rows(database_url, found) == [(True, True)]
    assert await migrate(database_url, with_files(good)) == []


async def test_an_edited_file_is_refused(database_url: str) -> None:
    edited = [
        Migration(known.version, known.name, known.sql + " -- edited")
        for known in known_migrations()
    ]
    with pytest.raises(MigrationRefusedError, match="never edited"):
        await migrate(database_url, edited)


async def test_a_database_newer_than_the_code_is_refused(database_url: str) -> None:
    await migrate(database_url, with_files(file(9001, "newer", "select 1")))

    with pytest.raises(MigrationRefusedError, match="install the newer version"):
        await migrate(database_url)


async def test_a_lock_on_a_table_is_not_waited_for_long(database_url: str) -> None:
    """Everybody else's statements would queue up behind the migration that waits."""
    blocked = file(
        9001, "blocked", "set local lock_timeout = '50ms'; alter table runwire.runs add more int"
    )
    async with await psycopg.AsyncConnection.connect(database_url) as reader:
        await reader.execute("select from runwire.runs")
        with pytest.raises(DatabaseUnavailableError, match="lock timeout"):
            await migrate(database_url, with_files(blocked))


async def test_partitions_reach_from_yesterday_to_a_week_ahead(database_url: str) -> None:
    days = "select (now() at time zone 'UTC')::date + d from generate_series(-1, 7) d"
    for table in ("run_events", "stream_chunks"):
        made = await rows(
            database_url,
            f"select to_date(right(inhrelid::regclass::text, 8), 'YYYYMMDD') from pg_inherits"
            f" where inhparent = 'runwire.{table}'::regclass order by 1",
        )
        assert made == await rows(database_url, days)


async def test_a_standby_is_refused(standby_url: str) -> None:
    with pytest.raises(MigrationRefusedError, match="standby"):
        await migrate(standby_url)


@pytest.mark.parametrize("version", [90624, 140012])
def test_an_old_server_is_refused(version: int) -> None:
    with pytest.raises(MigrationRefusedError, match="needs PostgreSQL 15 or newer"):
        refuse_unfit_server(version, is_standby=False)


@pytest.mark.parametrize("version", [150000, 180004])
def test_a_recent_server_is_accepted(version: int) -> None:
    refuse_unfit_server(version, is_standby=False)


async def test_a_server_that_is_away_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailableError, match="cannot connect"):
        await migrate(f"postgresql://somebody@/nowhere?host={tmp_path}", seconds=0.1)


def test_no_file_demands_more_than_it_brings() -> None:
    """Code that has a file also has what the file demands."""
    assert all(migration.needs <= migration.version for migration in known_migrations())


@pytest.mark.parametrize(
    ("ledger", "known", "expected"),
    [
        ({1: "schema"}, 1, None),
        ({1: "schema"}, 2, "lacks 1 migration"),
        ({}, 2, "lacks 2 migration"),
        ({1: "schema", 2: "more", 3: "even_more"}, 1, None),
        ({1: "schema", 2: "more", 3: "drop_needs_0002"}, 3, None),
        ({1: "schema", 2: "more", 3: "drop_needs_0002"}, 2, None),
        ({1: "schema", 2: "more", 3: "drop_needs_0002", 4: "later"}, 1, "has migration 2"),
    ],
)
def test_code_runs_on_what_it_knows_and_on_newer_unless_that_says_no(
    ledger: dict[int, str], known: int, expected: str | None
) -> None:
    problem = misfit(ledger, known)
    assert problem == expected if expected is None else problem and expected in problem
