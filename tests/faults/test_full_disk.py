"""The disk of Postgres is full: writes fail and say why, everything else lives, and it recovers."""

import logging
import os
import subprocess
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

from runwire_engine.embedded import EmbeddedPostgres
from runwire_engine.errors import DiskFullError, EmbeddedPostgresError, ReadOnlyError
from runwire_engine.placement import Append
from runwire_engine.streams import Streams
from tests.support.engines import query
from tests.support.parts import supervised
from tests.support.processes import until, until_async
from tests.support.sockets import chunks_of, open_socket
from tests.support.stage import Stage, open_stage
from tests.support.watching import watched_traffic

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

Record = Callable[[str, object], None]
_MIB = 1024 * 1024
# As Postgres says it when a table cannot grow.
_PLANT = """
create function no_room() returns trigger language plpgsql as $$
begin
    raise 'could not extend file: No space left on device' using errcode = '53100';
end $$;
create trigger no_room before insert on runwire.stream_chunks
    for each statement execute function no_room()
"""

_READ_ONLY = SQL("alter database {} set default_transaction_read_only = on")
_WRITABLE = SQL("alter database {} reset default_transaction_read_only")


async def readiness(stage: Stage) -> dict[str, Any]:
    async with stage.server.client() as http:
        said: dict[str, Any] = (await http.get("/readyz")).json()
        return said


async def test_a_chunk_that_finds_no_room_fails_with_the_reason_and_the_rest_goes_on(
    database_url: str,
) -> None:
    async with open_stage(database_url) as stage, anyio.create_task_group() as tasks:
        run_id = await stage.trigger("t")
        execution = await stage.start(run_id)
        await stage.append(run_id, execution, "before")
        async with open_socket(stage.url, stage.key) as socket:
            await socket.subscribe("a", {"run": run_id}, streams={"*": {}})
            await socket.until("live")
            await query(stage.engine.database, _PLANT)
            # A flusher of little patience: the server's tries for 30 s.
            database, bell = stage.engine.database, stage.engine.bell
            streams = Streams(database, bell, retry_for=0.2)
            tasks.start_soon(streams.run)
            append = Append(run_id, "text", ('"lost"',), execution, execution)
            with pytest.raises(DiskFullError):
                await streams.append(stage.env, append)
            said = await readiness(stage)
            assert not said["ready"] and "no disk space left" in said["reasons"][0]
            # The hub and the rest of the engine live: this is told, and can be read.
            await stage.set_metadata(run_id, execution, n=1)
            assert (await socket.until("patch"))[-1]["metadata"]
            async with stage.server.client() as http:
                assert (await http.get(f"/api/v3/runs/{run_id}")).status_code == 200
            # One that is patient finds room in the end.
            tasks.start_soon(stage.append, run_id, execution, "after")
            await anyio.sleep(0.2)  # some tries
            await query(database, "drop trigger no_room on runwire.stream_chunks")
            await stage.append(run_id, execution, "last")
            await stage.complete(run_id, execution)
            messages = await socket.until("done")
            assert chunks_of(messages, "text")[-2:] == ["after", "last"]
        streams.close()


async def test_a_database_set_to_read_only_is_told_and_can_be_read(database_url: str) -> None:
    async with open_stage(database_url) as stage:
        run_id = await stage.trigger("t")
        name = Identifier(str(conninfo_to_dict(database_url)["dbname"]))
        # As a managed service does it: every session begins anew.
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as admin:
            await admin.execute(_READ_ONLY.format(name))
            await admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )

            async def is_told() -> bool:
                said = await readiness(stage)
                return bool(said["reasons"] == ["the database is read-only"])

            await until_async(is_told)
            with pytest.raises(ReadOnlyError):
                await stage.engine.runs.cancel(stage.env, run_id)
            async with open_socket(stage.url, stage.key) as socket:
                await socket.subscribe("a", {"run": run_id})
                await socket.until("live")
                await admin.execute(_WRITABLE.format(name))
                await admin.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid()"
                )

                async def is_ready() -> bool:
                    return bool((await readiness(stage))["ready"])

                await until_async(is_ready)
                await stage.engine.runs.cancel(stage.env, run_id)
                await socket.until("done")


class SmallDisk:
    """A file system of its own, that can be filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave no byte, whatever is freed meanwhile."""
        with self._filler.open("ab", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"\0" * 4096)
            except OSError:
                return

    def free(self) -> None:
        self._filler.unlink()


@contextmanager
def small_disk(size: int) -> Generator[SmallDisk]:
    """Mount a file system in memory."""
    with tempfile.TemporaryDirectory(prefix="runwire-disk-") as place:
        os.chmod(place, 0o755)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "runwire", place]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("a small disk takes root and the right to mount")
        try:
            yield SmallDisk(Path(place))
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)


def small_postgres(folder: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres(folder / "data", settings={"max_wal_size": "64MB"})


async def test_a_disk_that_is_full_for_a_while_costs_nothing_that_was_acknowledged(
    record_property: Record,
) -> None:
    with small_disk(220 * _MIB) as disk:
        async with (
            supervised(small_postgres(disk.folder)) as postgres,
            open_stage(postgres.dsn) as stage,
        ):
            async with watched_traffic(stage) as traffic:
                disk.fill()
                await until(lambda: stage.engine.database.refuses_writes is not None)
                said = await readiness(stage)
                assert not said["ready"] and "no disk space left" in said["reasons"][0]
                await anyio.sleep(1)  # it stays full
                disk.free()
                await traffic.until_flowing()
                assert traffic.observer.close_code is None

                async def is_ready() -> bool:
                    return bool((await readiness(stage))["ready"])

                await until_async(is_ready)


async def test_a_postgres_that_dies_of_a_full_disk_is_not_started_over_and_over(
    record_property: Record, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(220 * _MIB) as disk:
        async with (
            supervised(small_postgres(disk.folder)) as postgres,
            open_stage(postgres.dsn) as stage,
        ):
            async with watched_traffic(stage) as traffic:
                with caplog.at_level(logging.WARNING, "runwire.embedded"):
                    starts = _starts(postgres)
                    disk.fill()
                    # Its log needs a new file, and there is no room for one.
                    await _exhaust_log(postgres)
                    await until(lambda: "is full" in caplog.text)
                    disk.fill()
                    await anyio.sleep(4)  # it stays full
                    record_property("starts_on_a_full_disk", _starts(postgres) - starts)
                    assert _starts(postgres) - starts < 6
                    assert caplog.text.count("is full") == 1
                    disk.free()
                    await traffic.until_flowing()
                assert traffic.observer.close_code is None


async def _exhaust_log(postgres: EmbeddedPostgres) -> None:
    with anyio.fail_after(30):
        while postgres.is_running():
            try:
                async with await psycopg.AsyncConnection.connect(
                    postgres.dsn, autocommit=True, connect_timeout=2
                ) as connection:
                    await connection.execute("select pg_logical_emit_message(false, 'x', 'x')")
                    await connection.execute("select pg_switch_wal()")
            except psycopg.Error:
                await anyio.sleep(0.05)  # it recovers, or dies of it


def _starts(postgres: EmbeddedPostgres) -> int:
    return postgres.log_file.read_text(errors="replace").count("starting PostgreSQL")


async def test_a_start_on_a_full_disk_says_so_at_once_and_works_once_there_is_room() -> None:
    with small_disk(160 * _MIB) as disk:
        postgres = EmbeddedPostgres(disk.folder / "data")
        await postgres.start()
        await postgres.stop()
        disk.fill()
        with anyio.fail_after(60), pytest.raises(EmbeddedPostgresError, match="is full"):
            await postgres.start()
        disk.free()
        await postgres.start()
        await postgres.stop()
