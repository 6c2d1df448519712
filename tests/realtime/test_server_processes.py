"""`runwire server --processes N`: real processes on one port, killed and stopped."""

import os
import signal
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from runwire.wire import CloseCode
from runwire_engine.environments import Environments
from tests.support.parts import SPANS
from tests.support.postgres import TestServer, opened_database
from tests.support.processes import Process, free_port, running, until, until_async
from tests.support.server import SECRET
from tests.support.sockets import Socket, open_socket

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

SOCKETS = 24


def children(parent: Process) -> set[int]:
    """Return the processes that a process has started."""
    text = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text()
    return {int(pid) for pid in text.split()}


@asynccontextmanager
async def two_servers(dsn: str, port: int) -> AsyncGenerator[Process]:
    environment = {
        **SPANS,
        "RUNWIRE_DATABASE_URL": dsn,
        "RUNWIRE_SECRET": SECRET,
        "RUNWIRE_DRAIN": "1",
    }
    command = ("runwire", "server", "--port", str(port), "--processes", "2")
    async with running(*command, environment=environment) as server:
        yield server


async def test_servers_share_a_port_are_started_again_and_stop_together(
    postgres: TestServer,
) -> None:
    dsn = postgres.create_database()
    async with opened_database(dsn, max_size=1) as database:
        environments = Environments(database)
        key = await environments.create_key(await environments.ensure("dev"), "tests")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with two_servers(dsn, port) as server:
        await server.until_line("2 processes")
        # All of them are up before the first one answers.
        await until_async(lambda: is_ready(url))
        before = children(server)
        assert len(before) == 2
        async with AsyncExitStack() as stack:
            sockets = [
                await stack.enter_async_context(open_socket(url, key)) for _ in range(SOCKETS)
            ]
            victim = min(before)
            os.kill(victim, signal.SIGKILL)
            await server.until_line("starting it again")
            # Its sockets break, and whoever comes back is served, by the other one if need be.
            lost = [each for each in sockets if await is_lost(each)]
            assert 0 < len(lost) < SOCKETS
            async with open_socket(url, key) as again:
                await again.send({"type": "ping"})
                await again.until("pong")
            await until(lambda: len(children(server)) == 2)
            assert victim not in children(server)
            server.terminate()
            kept = [each for each in sockets if each not in lost]
            codes = Counter([await each.closed() for each in kept])
        assert set(codes) == {CloseCode.GOING_AWAY}
        assert await server.wait() == 0
    postgres.drop_database(dsn)


async def is_ready(url: str) -> bool:
    """Say whether a server answers that it is ready."""
    async with httpx.AsyncClient(trust_env=False) as http:
        try:
            return (await http.get(f"{url}/readyz")).status_code == 200
        except httpx.TransportError:
            return False


async def is_lost(socket: Socket) -> bool:
    """Say whether a socket is broken: one that is not answers."""
    if socket.connection.close_code is not None:
        return True
    try:
        await socket.send({"type": "ping"})
        await socket.until("pong")
    except Exception:
        return True
    return False


async def test_what_keeps_a_server_from_starting_is_told_once() -> None:
    environment = {
        "RUNWIRE_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "RUNWIRE_SECRET": SECRET,
    }
    command = ("runwire", "server", "--port", str(free_port()), "--processes", "2")
    async with running(*command, environment=environment) as server:
        assert await server.wait() == 1
        assert len(server.output().strip().splitlines()) == 1


async def test_none_is_no_number_of_processes() -> None:
    async with running("runwire", "server", "--processes", "0") as server:
        assert await server.wait() == 2
        assert "--processes" in server.output()


async def test_servers_end_with_the_process_that_keeps_them(postgres: TestServer) -> None:
    dsn = postgres.create_database()
    async with two_servers(dsn, free_port()) as server:
        await server.until_line("2 processes")
        pids = children(server)
        server.kill()
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    postgres.drop_database(dsn)
