"""Protocol clients on sockets of their own, each with what it keeps from socket to socket.

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

from runwire.wire import PROTOCOL, SILENCE, SOCKET_PATH
from tests.support.protocol_client import ProtocolClient

# What a server that dies or refuses looks like.
_LOST = (OSError, EOFError, TimeoutError, WebSocketException)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


@dataclass(eq=False)
class Watcher:
    """One client and its socket."""

    client: ProtocolClient
    key: str
    choose: Callable[[], int]
    # The port of the open socket, None between two.
    at: int | None = None
    connections: int = 0
    # When it was last told `live`, by anyio's clock.
    live_at: float | None = None
    # The codes that sockets ended with.
    codes: list[int | None] = field(default_factory=list[int | None])
    _connection: ClientConnection | None = None

    @property
    def is_done(self) -> bool:
        return self.client.is_over

    async def run(self) -> None:
        """Follow until the run is done."""
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
        async with connect(
            url,
            subprotocols=[Subprotocol(PROTOCOL)],
            additional_headers={"authorization": f"Bearer {self.key}"},
            compression=None,
            proxy=None,
            open_timeout=5,
            close_timeout=1,
            ping_interval=None,
        ) as connection:
            self._connection = connection
            self.connections += 1
            for request in self.client.requests():
                await connection.send(orjson.dumps(request).decode())
            while not self.is_done:
                with anyio.fail_after(SILENCE):
                    frame = orjson.loads(await connection.recv())
                for answer in self.client.receive(frame):
                    await connection.send(orjson.dumps(answer).decode())
                if any(message["type"] == "live" for message in frame):
                    self.live_at = anyio.current_time()
