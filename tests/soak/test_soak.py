"""Many idle sockets and a steady load for long: memory, tasks, descriptors and connections stay.

    RUNWIRE_SOAK_SECONDS=1800 RUNWIRE_SOAK_SOCKETS=1000     as `make soak` does (8 s, 100 sockets)

The slope of the hub's memory is a least-squares line through what it held once a second, after a
quarter of the time to warm up. A short run shows only that nothing leaks fast.
"""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

import anyio
import orjson
import psycopg
import pytest
from anyio.abc import TaskStatus

from runwire import AsyncRunwire
from runwire_engine.environments import Environments
from tests.support.parts import SPANS, own_postgres, worker_on
from tests.support.postgres import opened_database
from tests.support.processes import Process, free_port, running, until
from tests.support.sockets import open_socket

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

SECONDS: Final = float(os.environ.get("RUNWIRE_SOAK_SECONDS", "8"))
SOCKETS: Final = int(os.environ.get("RUNWIRE_SOAK_SOCKETS", "100"))
RUNS_PER_SECOND: Final = float(os.environ.get("RUNWIRE_SOAK_RATE", "5"))
WARM_UP: Final = SECONDS / 4
# In a short run the caches are still filling: then the bound only catches what grows without end.
MIB: Final = 1024 * 1024
BOUND: Final = MIB / 600 if SECONDS >= 1200 else MIB / 2  # bytes a second
SECRET: Final = "a secret of the tests, forty bytes long.."
PROGRAMS: Final = "tests/faults/programs"


@dataclass(frozen=True)
class Held:
    """What the hub held at a time."""

    at: float
    tasks: int
    descriptors: int
    memory: int
    objects: int
    connections: int


@dataclass
class Soak:
    """The server under test, and what it was seen to hold."""

    server: Process
    dsn: str
    seen: list[Held] = field(default_factory=list[Held])

    async def look(self, at: float) -> Held:
        told = self._told()
        self.server.send(signal.SIGUSR1)
        await until(lambda: len(self._told()) > len(told))
        held = orjson.loads(self._told()[-1].removeprefix("HOLDS "))
        return Held(at, connections=await self._connections(), **held)

    def _told(self) -> list[str]:
        return [line for line in self.server.output().split("\n")[:-1] if line.startswith("HOLDS ")]

    async def _connections(self) -> int:
        async with await psycopg.AsyncConnection.connect(self.dsn) as connection:
            cursor = await connection.execute(
                "select count(*) from pg_stat_activity"
                " where backend_type = 'client backend' and pid <> pg_backend_pid()"
            )
            row = await cursor.fetchone()
        assert row is not None
        return int(row[0])


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line that lies closest to the points."""
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    over = sum((x - middle_x) * (y - middle_y) for x, y in points)
    return over / sum((x - middle_x) ** 2 for x, _ in points)


async def idle(url: str, key: str, number: int, *, task_status: TaskStatus[None]) -> None:
    """Follow a tag that nothing ever carries, and answer pings."""
    async with open_socket(url, key) as socket:
        await socket.subscribe("idle", {"tags": [f"idle:{number}"]})
        await socket.until("live")
        task_status.started()
        while True:
            await socket.connection.recv()


async def load(url: str, key: str) -> None:
    """Trigger streaming runs at a steady rate, each followed by somebody who comes and goes."""
    async with AsyncRunwire(api_url=url, access_token=key) as client:
        async with anyio.create_task_group() as followers:
            number = 0
            while True:
                kind = ("quick", "streaming", "telling")[number % 3]
                payload = {"number": number, "chunks": 10}
                handle = await client.tasks.trigger(kind, payload, tags=["soak"])
                followers.start_soon(follow, client, handle.id)
                number += 1
                await anyio.sleep(1 / RUNS_PER_SECOND)


async def follow(client: AsyncRunwire, run_id: str) -> None:
    async for _ in client.runs.subscribe_to_run(run_id).with_streams():
        pass


@pytest.mark.timeout(SECONDS + 120 + SOCKETS / 10)
async def test_nothing_grows_under_a_steady_load_and_all_of_it_is_given_back() -> None:
    async with own_postgres() as postgres, AsyncExitStack() as stack:
        async with opened_database(postgres.dsn, max_size=1) as database:
            environments = Environments(database)
            key = await environments.create_key(await environments.ensure("dev"), "tests")
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        given = {
            **SPANS,
            "RUNWIRE_DATABASE_URL": postgres.dsn,
            "RUNWIRE_SECRET": SECRET,
            "RUNWIRE_PORT": str(port),
        }
        command = ("python", "-m", "tests.soak.server")
        server = await stack.enter_async_context(running(*command, environment=given))
        await server.until_ready(f"{url}/readyz")
        await stack.enter_async_context(worker_on(postgres.dsn, f"{PROGRAMS}/mixed_tasks.py"))
        soak = Soak(server, postgres.dsn)
        # A first request and a first socket, so that what is made once is made.
        async with open_socket(url, key):
            pass
        base = await soak.look(0.0)
        await _under_load(soak, url, key)
        after = await _until_given_back(soak, base)
        _tell(soak.seen, base, after)
        warm = [held for held in soak.seen if held.at >= WARM_UP]
        memory = slope([(held.at, held.memory) for held in warm])
        assert memory < BOUND, f"{memory * 600 / MIB:.2f} MiB in 10 minutes"
        # Pools open what they need, up to their size, and keep it.
        assert after.connections <= max(held.connections for held in warm)
        assert max(held.tasks for held in warm[-5:]) < base.tasks + 12 * SOCKETS + 1_000


async def _under_load(soak: Soak, url: str, key: str) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(SOCKETS):
            # One by one: a thousand handshakes at once is another test.
            await tasks.start(idle, url, key, number)
        tasks.start_soon(load, url, key)
        began = anyio.current_time()
        while (at := anyio.current_time() - began) < SECONDS:
            soak.seen.append(await soak.look(at))
            await anyio.sleep(max(1.0, SECONDS / 600))
        tasks.cancel_scope.cancel()


async def _until_given_back(soak: Soak, base: Held) -> Held:
    """Wait until tasks and descriptors are where they were before the load."""
    with anyio.move_on_after(30):
        while True:
            after = await soak.look(SECONDS)
            # The pools' connections stay.
            pooled = after.connections - base.connections
            has_given_back = (
                after.tasks <= base.tasks + pooled + 5
                and after.descriptors <= base.descriptors + max(pooled, 0) + 20
            )
            if has_given_back:
                return after
            await anyio.sleep(0.5)
    raise AssertionError(f"before: {base}; after: {await soak.look(SECONDS)}")


def _tell(seen: Sequence[Held], base: Held, after: Held) -> None:
    step = max(1, len(seen) // 30)
    for held in (base, *seen[::step], after):
        sys.stdout.write(
            f"{held.at:7.1f} s  {held.memory / MIB:7.1f} MiB  {held.tasks:5} tasks"
            f"  {held.descriptors:5} descriptors  {held.objects:8} objects"
            f"  {held.connections:3} connections\n"
        )
    warm = [held for held in seen if held.at >= WARM_UP]
    per_10_minutes = slope([(held.at, held.memory) for held in warm]) * 600 / MIB
    sys.stdout.write(f"slope of memory: {per_10_minutes:+.2f} MiB in 10 minutes\n")
