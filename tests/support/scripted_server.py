"""A websocket server that says what a test tells it to: for what a real one does only by accident.

It speaks `runwire.v1` about one run, `run_a`, with one stream, `log`, out of a ledger of its own.
"""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import anyio
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from runwire.wire import PROTOCOL, JsonObject

TOKEN = "good"


def run(revision: int, status: str = "EXECUTING", **fields: Any) -> JsonObject:
    return {
        "id": "run_a",
        "taskIdentifier": "t",
        "status": status,
        "revision": revision,
        "createdAt": "2026-11-23T20:00:00.000Z",
        "updatedAt": "2026-11-23T20:00:00.000Z",
        **fields,
    }


@dataclass
class ScriptedServer:
    chunks: list[object] = field(default_factory=list[object])
    revision: int = 1
    is_final: bool = False
    # Close every socket with this code after so many chunks were sent on it; None: never.
    cut_after: int | None = None
    cut_code: int = 4001
    # Answer the handshake with this status instead of opening a socket.
    refuse_with: HTTPStatus | None = None
    close_auth_with: int | None = None
    # Seconds between its signs of life; None: it gives none, and says that it does.
    heartbeat: float | None = None
    tokens: set[str] = field(default_factory=lambda: {TOKEN})
    # What happened, for the test to look at.
    opened: int = 0
    subscribed: list[JsonObject] = field(default_factory=list[JsonObject])
    unsubscribed: int = 0
    sockets: set[ServerConnection] = field(default_factory=set[ServerConnection])
    port: int = 0
    changed: anyio.Condition = field(default_factory=anyio.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def write(self, *chunks: object) -> None:
        async with self.changed:
            self.chunks += chunks
            self.changed.notify_all()

    async def finish(self) -> None:
        async with self.changed:
            self.is_final = True
            self.revision += 1
            self.changed.notify_all()

    async def until(self, holds: Any) -> None:
        """Wait for a fact about this server."""
        async with self.changed:
            while not holds():
                await self.changed.wait()

    def refuse(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.refuse_with is None:
            return None
        return connection.respond(self.refuse_with, "no\n")

    async def serve(self, socket: ServerConnection) -> None:
        self.opened += 1
        self.sockets.add(socket)
        try:
            await self._talk(socket)
        except ConnectionClosed:
            pass
        finally:
            self.sockets.discard(socket)
            async with self.changed:
                self.changed.notify_all()

    async def _talk(self, socket: ServerConnection) -> None:
        token = json.loads(await socket.recv())["token"]
        if self.close_auth_with is not None or token not in self.tokens:
            await socket.close(self.close_auth_with or 4401, "the token is not known here")
            return
        heartbeat = self.heartbeat or 15.0
        await _send(
            socket, {"type": "ready", "protocol": PROTOCOL, "epoch": "e1", "heartbeat": heartbeat}
        )
        async with anyio.create_task_group() as tasks:
            if self.heartbeat is not None:
                tasks.start_soon(_beat, socket, self.heartbeat)
            async for frame in socket:
                message = json.loads(frame)
                if message["type"] == "subscribe":
                    tasks.start_soon(self._follow, socket, message)
                elif message["type"] == "unsubscribe":
                    self.unsubscribed += 1
                    async with self.changed:
                        self.changed.notify_all()
            tasks.cancel_scope.cancel()

    async def _follow(self, socket: ServerConnection, subscribe: JsonObject) -> None:
        try:
            await self._stream(socket, subscribe)
        except ConnectionClosed:
            return

    def _first(self, start: int | str) -> int:
        if isinstance(start, str):
            return 0 if start == "start" else len(self.chunks)
        return start if start >= 0 else max(0, len(self.chunks) + start)

    async def _stream(self, socket: ServerConnection, subscribe: JsonObject) -> None:
        async with self.changed:
            self.subscribed.append(subscribe)
            self.changed.notify_all()
        sub, streams = subscribe["sub"], subscribe.get("streams", {})
        if subscribe["to"].get("run") != "run_a":
            gone = {"type": "error", "sub": sub, "code": "not_found", "message": "no such run"}
            await _send(socket, gone)
            return
        told = self.revision
        state = run(told, "COMPLETED" if self.is_final else "EXECUTING")
        await _send(
            socket,
            {"type": "snapshot", "sub": sub, "runs": [state], "cursor": f"c{told}", "more": False},
            {"type": "live", "sub": sub},
        )
        asked = streams.get("log", streams.get("*"))
        sent = self._first(asked["from"]) if asked is not None else 0
        first = sent
        while True:
            while asked is not None and sent < len(self.chunks):
                if self.cut_after is not None and sent - first >= self.cut_after:
                    await socket.close(self.cut_code)
                    return
                await _send(socket, chunk(sent, self.chunks[sent]))
                sent += 1
            if self.is_final:
                break
            async with self.changed:
                if sent >= len(self.chunks) and not self.is_final:
                    await self.changed.wait()
        ends: list[JsonObject] = [{"type": "run", "run": run(self.revision, "COMPLETED")}]
        if asked is not None:
            end = {"type": "eof", "run": "run_a", "stream": "log", "reason": "completed"}
            ends.append({**end, "next": len(self.chunks)})
        await _send(socket, *ends, {"type": "done", "sub": sub})


def chunk(seq: int, value: object) -> JsonObject:
    return {
        "type": "chunks",
        "run": "run_a",
        "stream": "log",
        "seq": seq,
        "data": [value],
        "attempt": 1,
    }


async def _beat(socket: ServerConnection, seconds: float) -> None:
    try:
        while True:
            await anyio.sleep(seconds)
            await _send(socket, {"type": "hb", "t": "2026-11-23T20:00:00.000Z"})
    except ConnectionClosed:
        return


async def _send(socket: ServerConnection, *messages: JsonObject) -> None:
    await socket.send(json.dumps(messages))


@asynccontextmanager
async def scripted_server(state: ScriptedServer | None = None) -> AsyncGenerator[ScriptedServer]:
    """Run a server; given the state of an earlier one, on its port and with its ledger."""
    state = state or ScriptedServer()
    server: Server = await serve(
        state.serve,
        "127.0.0.1",
        state.port,
        subprotocols=[Subprotocol(PROTOCOL)],
        process_request=state.refuse,
        compression=None,
    )
    state.port = next(iter(server.sockets)).getsockname()[1]
    try:
        yield state
    finally:
        server.close()
        await server.wait_closed()
