"""A bare client of the realtime protocol, message by message."""

from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from runwire.wire import PROTOCOL, SOCKET_PATH, Json, JsonObject

WAIT = 60.0


class Socket:
    """One connection; keeps every message it has received."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.messages: list[JsonObject] = []
        self._unread: deque[JsonObject] = deque()

    async def send(self, message: JsonObject | str | bytes) -> None:
        frame = orjson.dumps(message).decode() if isinstance(message, dict) else message
        await self.connection.send(frame)

    async def authenticate(self, token: str) -> JsonObject:
        """Show a credential and return the answer."""
        await self.send({"type": "auth", "token": token})
        return await self.next()

    async def subscribe(self, sub: str, to: JsonObject, **options: Json) -> None:
        await self.send({"type": "subscribe", "sub": sub, "to": to, **options})

    async def next(self) -> JsonObject:
        """Return the next message."""
        with anyio.fail_after(WAIT):
            while not self._unread:
                frame: list[JsonObject] = orjson.loads(await self.connection.recv())
                assert frame, "an empty frame"
                self.messages += frame
                self._unread.extend(frame)
        return self._unread.popleft()

    async def until(self, *types: str, **fields: Json) -> list[JsonObject]:
        """Return what comes, up to and with the first message of a type, with these fields."""
        seen: list[JsonObject] = []
        while True:
            message = await self.next()
            seen.append(message)
            if message["type"] in types and fields.items() <= message.items():
                return seen

    async def closed(self) -> int | None:
        """Wait for the server to close, and return the code."""
        with anyio.fail_after(WAIT):
            try:
                while True:
                    await self.next()
            except ConnectionClosed:
                return self.connection.close_code


@asynccontextmanager
async def open_socket(url: str, token: str | None = None, **options: Any) -> AsyncGenerator[Socket]:
    """Connect, with our protocol offered unless others are, and authenticate with a token."""
    options.setdefault("subprotocols", [Subprotocol(PROTOCOL)])
    address = url.replace("http", "ws", 1) + SOCKET_PATH
    async with connect(address, max_size=None, **options) as connection:
        socket = Socket(connection)
        if token is not None:
            answer = await socket.authenticate(token)
            assert answer["type"] == "ready", answer
        yield socket


def of_type(messages: list[JsonObject], type: str) -> list[JsonObject]:
    return [message for message in messages if message["type"] == type]


def chunks_of(messages: list[JsonObject], stream: str) -> list[Json]:
    """Return the chunks of a stream, having checked that none is missing or double."""
    chunks: list[Json] = []
    begin: int | None = None
    for message in messages:
        if message["type"] == "chunks" and message["stream"] == stream:
            seq: int = message["seq"]
            begin = seq if begin is None else begin
            assert seq == begin + len(chunks)
            chunks += message["data"]
    return chunks


async def until_true(fact: Callable[[], bool]) -> None:
    """Wait until something is so."""
    with anyio.fail_after(WAIT):
        while not fact():
            await anyio.sleep(0.005)
