"""Runs the suite, and the side under test next to it."""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from runwire._websocket import dial
from runwire_realtime.direct_connection import handover_of
from runwire_realtime.owned_socket import OwnedSocket
from runwire_realtime.server import bind, port_of, serve
from tests.autobahn.cases import EXCLUDED
from tests.autobahn.installation import AUTOBAHN, INTERPRETER
from tests.autobahn.report import Report, read_report
from tests.support.processes import Process, free_port, running, until

AGENT: Final = "runwire"
_RUN: Final = (
    f"import site; site.addsitedir({str(AUTOBAHN / 'site')!r});"
    " from autobahntestsuite.wstest import run; run()"
)
_START_SECONDS: Final = 30.0


async def run_on_server(cases: Sequence[str], folder: Path) -> Report:
    """Let the suite's client loose on an echo behind our server's own configuration."""
    listener = bind("127.0.0.1", 0)
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, _echo, listener, stop)
        url = f"ws://127.0.0.1:{port_of(listener)}"
        settings = {"servers": [{"agent": AGENT, "url": url}], "options": {"failByDrop": False}}
        async with _wstest("fuzzingclient", settings, cases, folder) as suite:
            await suite.wait()
        stop.set()
    return read_report(folder, AGENT)


async def run_on_client(cases: Sequence[str], folder: Path) -> Report:
    """Connect to the suite's server as the Python client connects, and echo."""
    url = f"ws://127.0.0.1:{free_port()}"
    settings = {"url": url, "webport": 0, "options": {"failByDrop": False}}
    async with _wstest("fuzzingserver", settings, cases, folder) as suite:
        count = await _case_count(url, suite)
        for number in range(1, count + 1):
            await _echo_all(await dial(f"{url}/runCase?case={number}&agent={AGENT}"))
        await _echo_all(await dial(f"{url}/updateReports?agent={AGENT}"))
        await until((folder / "index.json").exists, _START_SECONDS)
    return read_report(folder, AGENT)


@asynccontextmanager
async def _wstest(
    mode: str, settings: dict[str, Any], cases: Sequence[str], folder: Path
) -> AsyncGenerator[Process]:
    specification = folder / "specification.json"
    given = {"outdir": str(folder), "cases": list(cases), "exclude-cases": list(EXCLUDED)}
    specification.write_text(json.dumps({**settings, **given, "exclude-agent-cases": {}}))
    command = (INTERPRETER.read_text().strip(), "-W", "ignore", "-c", _RUN)
    async with running(*command, "-m", mode, "-s", str(specification)) as process:
        yield process


class _Echo:
    """Owns a socket that was handed over, as connections of the hub do."""

    def __init__(self, socket: OwnedSocket) -> None:
        self._socket = socket

    def received(self, message: str | bytes) -> None:
        payload = message.encode() if isinstance(message, str) else message
        opcode = Opcode.TEXT if isinstance(message, str) else Opcode.BINARY
        self._socket.write_frame(Frame(opcode, payload).serialize(mask=False))

    def changed(self) -> None:
        """Write on all the same: the suite reads."""

    def gone(self) -> None:
        """Keep nothing."""


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Send every message back, as ASGI applications do."""
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    if (handover := handover_of(scope)) is not None and (socket := handover.hand_over()):
        socket.give_to(_Echo(socket))
        return
    while True:
        message = await receive()
        if message["type"] != "websocket.receive":
            return
        given = {key: message[key] for key in ("text", "bytes") if message.get(key) is not None}
        await send({"type": "websocket.send", **given})


async def _echo_all(connection: ClientConnection) -> None:
    """Send every message back until the other side is done."""
    try:
        async for message in connection:
            await connection.send(message)
    except ConnectionClosed:
        pass  # it is what most cases are about
    finally:
        await connection.close()


async def _case_count(url: str, suite: Process) -> int:
    with anyio.fail_after(_START_SECONDS):
        while True:
            try:
                connection = await dial(f"{url}/getCaseCount")
            except OSError:
                assert suite.exit_code is None, suite.output()
                await anyio.sleep(0.1)
                continue
            count = int(await connection.recv())
            await connection.close()
            return count
