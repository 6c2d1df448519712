"""No connection is left, in the pool or in Postgres: requests hear it in time, sockets stay."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import anyio
import psycopg
import pytest

from runwire_engine.database import Database
from tests.support.engines import query
from tests.support.parts import own_postgres
from tests.support.processes import until_async
from tests.support.sockets import open_socket
from tests.support.stage import Stage, open_stage
from tests.support.watching import watched_traffic

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

Record = Callable[[str, object], None]


@asynccontextmanager
async def all_connections_of(database: Database, count: int) -> AsyncGenerator[None]:
    async with AsyncExitStack() as stack:
        for _ in range(count):
            await stack.enter_async_context(database.session())
        yield


async def test_a_request_waits_for_a_connection_and_is_refused_in_time(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_stage(database_url, pool_size=2) as stage, stage.server.client() as http:
        database = stage.engine.database
        run_id = await stage.trigger("t")
        async with open_socket(stage.url, stage.key) as socket:
            await socket.subscribe("a", {"run": run_id})
            await socket.until("live")
            answers: list[int] = []

            async def ask() -> None:
                answers.append((await http.get(f"/api/v3/runs/{run_id}")).status_code)

            async with anyio.create_task_group() as tasks:
                async with all_connections_of(database, 2):
                    tasks.start_soon(ask)
                    await anyio.sleep(0.3)  # whoever waits less than the deadline is served
                    assert answers == []
            assert answers == [200]
            monkeypatch.setattr(database, "_wait_seconds", 0.3)
            async with all_connections_of(database, 2):
                refused = await http.get(f"/api/v3/runs/{run_id}")
                assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
                assert int(refused.headers["retry-after"]) >= 1
            await stage.engine.runs.cancel(stage.env, run_id)
            assert (await socket.until("done"))[-1]["sub"] == "a"


@asynccontextmanager
async def hoarder(dsn: str) -> AsyncGenerator[int]:
    """A stranger that takes every connection there is, and those that become free."""
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        taken: list[psycopg.AsyncConnection[Any]] = []

        async def take() -> None:
            with suppress(psycopg.OperationalError):
                while True:
                    connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
                    taken.append(await stack.enter_async_context(connection))

        await take()

        async def take_on() -> None:
            while True:
                await take()
                await anyio.sleep(0.01)  # nothing announces a free connection

        tasks.start_soon(take_on)
        yield len(taken)
        tasks.cancel_scope.cancel()


async def test_a_postgres_without_connections_closes_no_socket_and_loses_nothing(
    record_property: Record,
) -> None:
    async with own_postgres({"max_connections": "40"}) as postgres:
        async with open_stage(postgres.dsn) as stage, watched_traffic(stage) as traffic:
            async with hoarder(postgres.dsn):
                dropped = await _drop_ours(stage)
                assert dropped > 5
                began = time.monotonic()
                await anyio.sleep(3)  # long enough to be told
            freed = time.monotonic()

            async def is_ready() -> bool:
                async with stage.server.client() as http:
                    return (await http.get("/readyz")).status_code == 200

            await until_async(is_ready)
            await traffic.until_flowing()
            record_property("without_connections", round(freed - began, 2))
            record_property("flows_after", round(time.monotonic() - freed, 2))
            assert traffic.observer.close_code is None


async def _drop_ours(stage: Stage) -> int:
    """Terminate every session of the server; the stranger takes their place."""
    rows = await query(
        stage.engine.database,
        "select count(pg_terminate_backend(pid)) as n from pg_stat_activity"
        " where application_name like 'runwire%%' and pid <> pg_backend_pid()",
    )
    return int(rows[0]["n"])
