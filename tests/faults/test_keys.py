"""One idempotency key, asked for by many processes and by both doors at once: one run."""

from contextlib import AsyncExitStack

import anyio
import psycopg
import pytest

from runwire import AsyncRunwire
from tests.faults.programs.trigger_key import GATE
from tests.support.processes import running, until_async
from tests.support.server import running_realtime
from tests.support.tasks import announce

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

PROCESSES = 3
CONNECTIONS = 10
CALLS = 20
PROGRAM = "tests.faults.programs.trigger_key"


async def test_fifty_triggers_of_several_processes_with_one_key_make_one_run(
    database_url: str,
) -> None:
    found: list[tuple[str, str]] = []
    environment = {"RUNWIRE_DATABASE_URL": database_url, "RUNWIRE_ENVIRONMENT": "dev"}
    async with (
        running_realtime(database_url) as server,
        AsyncRunwire(api_url=server.url, access_token=server.key) as client,
        await psycopg.AsyncConnection.connect(database_url) as gate,
        AsyncExitStack() as stack,
    ):
        await announce(server.services, "plain")
        await gate.execute("select pg_advisory_xact_lock(%s)", (GATE,))
        command = ("python", "-m", PROGRAM, str(CONNECTIONS))
        started = [
            await stack.enter_async_context(running(*command, environment=environment))
            for _ in range(PROCESSES)
        ]

        async def all_wait() -> bool:
            cursor = await gate.execute(
                "select count(*) from pg_locks where locktype = 'advisory' and not granted"
            )
            row = await cursor.fetchone()
            return row is not None and row[0] == PROCESSES * CONNECTIONS

        async def by_http() -> None:
            handle = await client.tasks.trigger("plain", idempotency_key="one key")
            found.append((handle.id, str(handle.is_cached)))

        await until_async(all_wait)
        async with anyio.create_task_group() as calls:
            for _ in range(CALLS):
                calls.start_soon(by_http)
            await gate.commit()
        for process in started:
            assert await process.wait() == 0, process.output()
            found += [(line.split()[0], line.split()[1]) for line in process.output().splitlines()]
    assert len(found) == PROCESSES * CONNECTIONS + CALLS
    assert len({run_id for run_id, _ in found}) == 1
    assert [is_cached for _, is_cached in found].count("False") == 1
