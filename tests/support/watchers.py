"""Clients by hand, from the protocol, each with the positions it keeps from socket to socket.

A Watcher follows one run and a stream of it in mode `every`, to the end, over however many sockets
and servers that takes; `choose` says where it goes next. What it saw is a ClientLog.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from runwire.wire import PROTOCOL, SOCKET_PATH, JsonObject
from tests.support.history import ClientLog

# What a server that dies or refuses looks like.
_LOST = (OSError, EOFError, TimeoutError, WebSocketException)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


class LostPlaceError(Exception):
    """A message does not continue what this client has."""


@dataclass(eq=False)
class Watcher:
    """One client and what it holds."""

    run_id: str
    stream: str
    key: str
    choose: Callable[[], int]
    log: ClientLog
    # The port of the open socket, None between two.
    at: int | None = None
    connections: int = 0
    # When it was last told `live`, by anyio's clock.
    live_at: float | None = None
    is_done: bool = False
    # The codes that sockets ended with.
    codes: list[int | None] = field(default_factory=list[int | None])
    _epoch: str = ""
    _revision: int = 0
    _status: str = ""
    _next: int = 0
    _connection: ClientConnection | None = None

    async def run(self) -> None:
        """Follow until the run is done."""
        self.log.follows(self.run_id, self.stream)
        tries = 0
        while not self.is_done:
            before = self.live_at
            self.at = self.choose()
            try:
                await self._follow(f"ws://127.0.0.1:{self.at}{SOCKET_PATH}")
            except _LOST:
                pass
            finally:
                self.at = None
            if self._connection is not None:
                self.codes.append(self._connection.close_code)
                self._connection = None
            tries = 0 if self.live_at != before else tries + 1
            if not self.is_done:
                await anyio.sleep(random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**tries)))

    def drop(self) -> None:
        """Cut the connection, as a network would."""
        if self._connection is not None:
            self._connection.transport.abort()

    async def _follow(self, url: str) -> None:
        headers = {"authorization": f"Bearer {self.key}"}
        async with connect(
            url,
            subprotocols=[Subprotocol(PROTOCOL)],
            additional_headers=headers,
            compression=None,
            proxy=None,
            open_timeout=5,
            close_timeout=1,
            ping_interval=None,
        ) as connection:
            self._connection = connection
            self.connections += 1
            await connection.send(orjson.dumps(self._request()).decode())
            while not self.is_done:
                with anyio.fail_after(2.5 * 15):  # as the protocol says of heartbeats
                    frame = await connection.recv()
                for message in orjson.loads(frame):
                    if not self._receive(message):
                        refetch = {"type": "refetch", "run": self.run_id}
                        await connection.send(orjson.dumps(refetch).decode())

    def _request(self) -> JsonObject:
        request: JsonObject = {
            "type": "subscribe",
            "sub": "s",
            "to": {"run": self.run_id},
            "mode": "every",
            "streams": {self.stream: {"from": self._next}},
        }
        if self._revision:
            request["cursor"] = f"r1.{self._epoch}.{self._revision}"
        return request

    def _receive(self, message: JsonObject) -> bool:
        """Take a message; False for a patch that does not apply."""
        match message["type"]:
            case "ready":
                self._epoch = message["epoch"]
            case "snapshot":
                for run in message["runs"]:
                    self._saw(run["revision"], run["status"])
            case "run":
                self._saw(message["run"]["revision"], message["run"]["status"])
            case "patch":
                if message["from"] != self._revision < message["revision"]:
                    return False
                self._saw(message["revision"], message["set"].get("status", self._status))
            case "chunks":
                self._read(message["seq"], message["data"])
            case "gap":
                self.log.saw_gap(self.run_id)
            case "live":
                self.live_at = anyio.current_time()
            case "done":
                self.is_done = True
            case "error":
                raise LostPlaceError(message)
            case _:
                pass
        return True

    def _saw(self, revision: int, status: str) -> None:
        if revision > self._revision:
            self._revision, self._status = revision, status
            self.log.saw_run(self.run_id, revision, status)

    def _read(self, seq: int, data: list[object]) -> None:
        if data and seq > self._next:
            raise LostPlaceError(f"{self.run_id}: chunk {seq} came, {self._next} was next")
        for place, chunk in enumerate(data, seq):
            if place == self._next:
                self.log.saw_chunk(self.run_id, self.stream, place, chunk)
                self._next += 1
