"""The embedded Postgres: made, locked, adopted, brought back."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import psycopg
import pytest

from runwire_engine.embedded import EmbeddedPostgres
from runwire_engine.errors import DataDirectoryLockedError, EmbeddedPostgresError
from tests.support.processes import until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def embedded(tmp_path: Path, anyio_backend: str) -> AsyncGenerator[EmbeddedPostgres]:
    postgres = EmbeddedPostgres(tmp_path / "data")
    await postgres.start()
    yield postgres
    await postgres.stop()
    assert not postgres.is_running()


async def query(dsn: str, sql: str) -> object:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute(sql.encode())
        row = await cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]


async def query_when_back(dsn: str, sql: str) -> object:
    """Ask again until Postgres answers; the test's timeout is the bound."""
    while True:
        try:
            return await query(dsn, sql)
        except psycopg.OperationalError:
            await anyio.sleep(0.05)  # nothing announces a socket that is back


async def test_it_is_durable_and_listens_on_a_private_socket_only(
    embedded: EmbeddedPostgres,
) -> None:
    for name, value in {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "listen_addresses": "",
        "data_checksums": "on",
        "server_encoding": "UTF8",
        "max_connections": "100",
    }.items():
        assert await query(embedded.dsn, f"show {name}") == value
    for path in (embedded.socket_directory, embedded.log_file):
        assert path.stat().st_mode & 0o077 == 0


async def test_another_process_can_connect_with_the_dsn(embedded: EmbeddedPostgres) -> None:
    program = "import psycopg, sys; psycopg.connect(sys.argv[1]).execute('select 1')"
    await anyio.run_process([sys.executable, "-c", program, embedded.dsn])


async def test_a_second_supervisor_is_refused(embedded: EmbeddedPostgres) -> None:
    second = EmbeddedPostgres(embedded.folder)
    with pytest.raises(DataDirectoryLockedError, match="in use by another"):
        await second.start()
    assert await query(embedded.dsn, "select 1") == 1


async def test_data_outlives_a_stop(tmp_path: Path) -> None:
    first = EmbeddedPostgres(tmp_path)
    await first.start()
    await query(first.dsn, "create table kept as select 42 as answer")
    await first.stop()
    assert not first.is_running()

    second = EmbeddedPostgres(tmp_path)
    await second.start()
    try:
        assert await query(second.dsn, "select answer from kept") == 42
    finally:
        await second.stop()


async def test_a_killed_postmaster_is_brought_back_with_every_acknowledged_commit(
    embedded: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "runwire.embedded")
    await query(embedded.dsn, "create table kept as select 42 as answer")
    pid = embedded.process_id
    assert pid is not None

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(embedded.supervise)
        os.kill(pid, signal.SIGKILL)
        with anyio.fail_after(60):
            await until(lambda: embedded.process_id != pid)
            assert await query_when_back(embedded.dsn, "select answer from kept") == 42
        tasks.cancel_scope.cancel()

    assert embedded.process_id != pid


async def test_the_postgres_of_a_killed_supervisor_is_adopted(tmp_path: Path) -> None:
    program = (
        "import anyio, sys, os, signal\n"
        "from runwire_engine.embedded import EmbeddedPostgres\n"
        "async def main():\n"
        "    await EmbeddedPostgres(sys.argv[1]).start()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "anyio.run(main)\n"
    )
    killed = await anyio.run_process(
        [sys.executable, "-c", program, str(tmp_path)], check=False, stderr=subprocess.STDOUT
    )
    assert killed.returncode == -signal.SIGKILL, killed.stdout

    adopter = EmbeddedPostgres(tmp_path)
    orphan = adopter.process_id
    await adopter.start()
    try:
        assert adopter.process_id == orphan
        assert await query(adopter.dsn, "select 1") == 1
    finally:
        await adopter.stop()
    assert not adopter.is_running()


async def test_an_adopted_postgres_that_dies_is_brought_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "runwire.embedded")
    first = EmbeddedPostgres(tmp_path)
    await first.start()
    first.release()
    adopter = EmbeddedPostgres(tmp_path)
    await adopter.start()
    pid = adopter.process_id
    assert pid is not None

    async with anyio.create_task_group() as tasks:
        os.kill(pid, signal.SIGKILL)
        # Here the dead postmaster is a child of this process, which must reap it.
        await until(lambda: not first.is_running())
        tasks.start_soon(adopter.supervise)
        with anyio.fail_after(60):
            assert await query_when_back(adopter.dsn, "select 1") == 1
        tasks.cancel_scope.cancel()
    await adopter.stop()


async def test_a_folder_too_long_for_a_socket_gets_a_short_one(tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 20)
    postgres = EmbeddedPostgres(folder)
    await postgres.start()
    try:
        assert postgres.socket_directory != postgres.cluster
        assert postgres.socket_directory.stat().st_mode & 0o077 == 0
        assert await query(postgres.dsn, "select 1") == 1
        # Another process finds it without asking anybody.
        assert EmbeddedPostgres(folder).dsn == postgres.dsn
    finally:
        await postgres.stop()
        os.rmdir(postgres.socket_directory)


async def test_a_half_made_cluster_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "making-postgres-x" / "cluster").mkdir(parents=True)
    postgres = EmbeddedPostgres(tmp_path)
    await postgres.start()
    try:
        assert sorted(os.listdir(tmp_path)) == ["postgres", "postgres.lock", "postgres.log"]
    finally:
        await postgres.stop()


async def test_a_number_given_to_another_process_is_not_a_running_postgres(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "postmaster.pid").write_text(f"{os.getpid()}\n")

    assert not EmbeddedPostgres(tmp_path).is_running()


async def test_a_cluster_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("16\n")
    postgres = EmbeddedPostgres(tmp_path)

    with pytest.raises(EmbeddedPostgresError, match="made by PostgreSQL 16"):
        await postgres.start()


async def test_a_postgres_that_does_not_start_is_reported_with_its_log(tmp_path: Path) -> None:
    broken = EmbeddedPostgres(tmp_path, settings={"max_connections": "many"}, start_seconds=1)

    with pytest.raises(
        EmbeddedPostgresError, match='invalid value for parameter "max_connections"'
    ):
        await broken.start()

    repaired = EmbeddedPostgres(tmp_path)  # the lock was given back
    await repaired.start()
    await repaired.stop()


async def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedPostgresError, match="cannot be used: Not a directory"):
        await EmbeddedPostgres(tmp_path / "file" / "data").start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may not run Postgres itself")
async def test_as_root_the_way_to_a_private_folder_is_opened_and_no_more(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    postgres = EmbeddedPostgres(private / "data")
    await postgres.start()
    try:
        assert private.stat().st_mode & 0o777 == 0o701
        assert postgres.cluster.stat().st_uid != 0
        assert await query(postgres.dsn, "select 1") == 1
    finally:
        await postgres.stop()
