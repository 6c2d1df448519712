"""A Postgres that crashes gives the ids of forgotten transactions again; nobody may miss those."""

import os
import signal
import tempfile

import anyio
import psycopg
import pytest

from runwire_engine.embedded import EmbeddedPostgres
from runwire_engine.errors import EngineError
from runwire_engine.migrations import migrate
from runwire_engine.wanted_runs import NewRun
from tests.support.processes import until
from tests.support.server import TestRealtime, running_realtime
from tests.support.sockets import open_socket

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

BURNED = 2_000
# Until it shows something.
ROUNDS = 20


async def test_what_happens_after_a_crash_is_told_though_its_transaction_ids_were_used() -> None:
    with tempfile.TemporaryDirectory(prefix="runwire-postgres-") as folder:
        # Nothing but a synchronous commit makes the ids durable.
        postgres = EmbeddedPostgres(folder, settings={"wal_writer_delay": "10s"})
        await postgres.start()
        try:
            await migrate(postgres.dsn)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(postgres.supervise)
                async with running_realtime(postgres.dsn) as realtime:
                    # A synchronous commit of somebody in between makes the ids durable: again.
                    for _ in range(ROUNDS):
                        if await _crash_and_cancel(postgres, await realtime.tenant("t")):
                            break
                    else:
                        pytest.fail("no transaction id was given again: this shows nothing")
                tasks.cancel_scope.cancel()
        finally:
            await postgres.stop()


async def _crash_and_cancel(postgres: EmbeddedPostgres, server: TestRealtime) -> bool:
    """Let a followed run end after a crash; return whether ids were given again."""
    engine, env = server.services.engine, server.environment_id
    run_id = (await engine.runs.trigger(env, NewRun("t", tags=("sea",)))).id
    async with open_socket(server.url, server.key) as socket:
        await socket.subscribe("run", {"run": run_id})
        await socket.until("live")
        await socket.subscribe("tag", {"tags": ["sea"]})
        await socket.until("live")
        seen = await anyio.to_thread.run_sync(_burn, postgres.dsn)
        realtime = server.services.realtime
        await until(lambda: int(realtime.statistics().position.split(":")[1]) > seen)
        assert postgres.process_id is not None
        os.kill(postgres.process_id, signal.SIGKILL)
        await _cancel(server, run_id)
        next_id = await anyio.to_thread.run_sync(_next_id, postgres.dsn)
        await socket.until("done")
    return next_id < seen


def _burn(dsn: str) -> int:
    """Use up transaction ids in a way that a crash forgets, and return the last."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("set synchronous_commit = off")
        last = 0
        for _ in range(BURNED):
            row = connection.execute("select pg_current_xact_id()::text").fetchone()
            assert row is not None
            last = int(row[0])
        return last


def _next_id(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute("select pg_snapshot_xmax(pg_current_snapshot())::text").fetchone()
        assert row is not None
        return int(row[0])


async def _cancel(server: TestRealtime, run_id: str) -> None:
    """Cancel a run, as soon as Postgres is back."""
    with anyio.fail_after(30):
        while True:
            try:
                await server.services.engine.runs.cancel(server.environment_id, run_id)
                return
            except EngineError:
                await anyio.sleep(0.05)
