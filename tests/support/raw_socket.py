"""A websocket client that sends what no library would: frame by frame, byte by byte."""

import base64
import os
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import anyio
from anyio.abc import SocketStream

from runwire.wire import PROTOCOL, SOCKET_PATH

TEXT: Final = 0x1
BINARY: Final = 0x2
CONTINUATION: Final = 0x0
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA
FIN: Final = 0x80
WAIT: Final = 60.0


def frame(
    payload: bytes = b"",
    opcode: int = TEXT,
    *,
    first: int = FIN,
    masked: bool = True,
    claims: int | None = None,
) -> bytes:
    """Return a frame; `first` is what stands beside the opcode, `claims` the length it names."""
    length = len(payload) if claims is None else claims
    mask = 0x80 if masked else 0
    if length < 126:
        head = struct.pack("!BB", first | opcode, mask | length)
    elif length < 1 << 16:
        head = struct.pack("!BBH", first | opcode, mask | 126, length)
    else:
        head = struct.pack("!BBQ", first | opcode, mask | 127, length)
    # A mask of zeros leaves the payload as it is.
    return head + (b"\0\0\0\0" if masked else b"") + payload


class RawSocket:
    """An open websocket, as bytes."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self._received = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send(data)

    async def close_code(self) -> int | None:
        """Read until the close frame and return its code; None: there was none."""
        with anyio.fail_after(WAIT):
            while (found := await self.frame()) is not None:
                opcode, payload = found
                if opcode == CLOSE and len(payload) >= 2:
                    return int(struct.unpack("!H", payload[:2])[0])
        return None

    async def next(self) -> bytes | None:
        """Return the payload of the next text frame, answering pings; None: there is none."""
        with anyio.fail_after(WAIT):
            while (found := await self.frame()) is not None:
                opcode, payload = found
                if opcode == TEXT:
                    return payload
                if opcode == PING:
                    await self.send(frame(payload, PONG))
        return None

    async def frame(self) -> tuple[int, bytes] | None:
        """Return the opcode and the payload of the next frame; None: there is none."""
        head = await self._take(2)
        if head is None:
            return None
        length = head[1] & 0x7F
        if length >= 126:
            extended = await self._take(2 if length == 126 else 8)
            if extended is None:
                return None
            length = int.from_bytes(extended, "big")
        payload = await self._take(length)
        return None if payload is None else (head[0] & 0x0F, payload)

    async def _take(self, count: int) -> bytes | None:
        while len(self._received) < count:
            try:
                self._received += await self.stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return None
        taken, self._received = self._received[:count], self._received[count:]
        return taken


@asynccontextmanager
async def raw_socket(url: str, *headers: str) -> AsyncGenerator[RawSocket]:
    """Shake hands with our protocol offered."""
    host, _, port = url.removeprefix("http://").partition(":")
    async with await anyio.connect_tcp(host, int(port)) as stream:
        lines = (
            f"GET {SOCKET_PATH} HTTP/1.1",
            f"Host: {host}:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Protocol: {PROTOCOL}",
            *headers,
        )
        await stream.send("\r\n".join((*lines, "", "")).encode())
        answer = b""
        with anyio.fail_after(WAIT):
            while not answer.endswith(b"\r\n\r\n"):
                answer += await stream.receive(1)
        assert answer.startswith(b"HTTP/1.1 101"), answer
        assert b"permessage-deflate" not in answer.lower()
        yield RawSocket(stream)
