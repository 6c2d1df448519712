"""Frames that no client sends: each ends its own socket, at once, and costs the server nothing."""

import os
import struct
import time
import zlib
from pathlib import Path

import anyio
import orjson
import pytest

from runwire.wire import MAX_CLIENT_FRAME_BYTES
from tests.support.parts import server_on
from tests.support.processes import free_port
from tests.support.raw_socket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    PING,
    TEXT,
    RawSocket,
    frame,
    raw_socket,
)
from tests.support.server import SECRET, TestRealtime
from tests.support.sockets import open_socket

pytestmark = pytest.mark.anyio

RSV1 = 0x40
BAD_FRAMES: dict[str, tuple[bytes, int]] = {
    "unmasked": (frame(b"{}", masked=False), 1002),
    "a reserved bit": (frame(b"{}", first=FIN | RSV1), 1002),
    "bytes that are no UTF-8": (frame(b"\xff\xfe"), 1007),
    "an opcode that is none": (frame(b"{}", 0xB), 1002),
    "a length of 2^62": (frame(b"x" * 100, claims=1 << 62), 1009),
    "a length beyond 2^63": (frame(b"x" * 100, claims=(1 << 63) + 1), 1009),
    "a long ping": (frame(b"p" * 126, PING), 1002),
    "a ping in parts": (frame(b"p", PING, first=0), 1002),
    "a continuation of nothing": (frame(b"{}", CONTINUATION), 1002),
    "text within a message": (frame(b"{", first=0) + frame(b"}"), 1002),
    "a close with a code that nobody sends": (frame(struct.pack("!H", 1005), CLOSE), 1002),
    "a close of one byte": (frame(b"\x03", CLOSE), 1002),
}


@pytest.mark.parametrize(
    ("sent", "code"), BAD_FRAMES.values(), ids=[name.replace(" ", "-") for name in BAD_FRAMES]
)
async def test_a_broken_frame_ends_its_socket_with_the_right_code(
    shared: TestRealtime, sent: bytes, code: int
) -> None:
    async with open_socket(shared.url, shared.key) as other:
        async with raw_socket(shared.url) as socket:
            await socket.send(sent)
            assert await socket.close_code() == code
        await other.send({"type": "ping"})
        assert (await other.next())["type"] == "pong"


async def test_fragments_without_end_are_cut_off_at_the_limit(shared: TestRealtime) -> None:
    async with raw_socket(shared.url) as socket:
        await socket.send(frame(b'{"type":"', first=0))
        with anyio.fail_after(60):
            try:
                for _ in range(200):
                    await socket.send(frame(b"x" * 1024, CONTINUATION, first=0))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass
        assert await socket.close_code() in (1009, None)


async def test_a_message_may_come_in_fragments_and_a_ping_between_them(
    shared: TestRealtime,
) -> None:
    message = orjson.dumps({"type": "auth", "token": shared.key})
    async with raw_socket(shared.url) as socket:
        await socket.send(frame(message[:5], first=0) + frame(b"p", PING))
        await socket.send(frame(message[5:20], CONTINUATION, first=0))
        await socket.send(frame(message[20:], CONTINUATION))
        assert b'"ready"' in (await socket.next() or b"")


def rss(pid: int) -> int:
    """Return what memory a process has, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def deflated(megabytes: int) -> bytes:
    """Return so many zeros, as permessage-deflate would send them."""
    packer = zlib.compressobj(9, wbits=-15)
    packed = b"".join(packer.compress(b"\0" * 1024 * 1024) for _ in range(megabytes))
    return packed + packer.flush(zlib.Z_SYNC_FLUSH)[:-4]


async def test_a_bomb_of_zeros_is_refused_before_it_unfolds(database_url: str) -> None:
    port = free_port()
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
    async with server_on(database_url, port, SECRET) as server:
        url = f"http://127.0.0.1:{port}"
        async with open_socket(url):
            pass
        for size in (60, 512):
            bomb = deflated(size)
            before = rss(server.pid)
            async with raw_socket(url, offer) as socket:
                began = time.monotonic()
                try:
                    await socket.send(frame(bomb, BINARY, first=FIN | RSV1))
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    pass  # it was closed while we were sending
                assert await socket.close_code() in (1002, 1009, None)
                # 0.1 s on a machine that is not busy with other tests.
                assert time.monotonic() - began < 10
            assert rss(server.pid) - before < 5_000_000
            async with open_socket(url):
                pass


def padded(size: int) -> bytes:
    head = b'{"type":"ping","x":"'
    return head + b"x" * (size - len(head) - 2) + b'"}'


MESSAGES: dict[str, tuple[bytes, int, str | int]] = {
    "64 KiB": (padded(MAX_CLIENT_FRAME_BYTES), TEXT, "pong"),
    "64 KiB and one": (padded(MAX_CLIENT_FRAME_BYTES + 1), TEXT, 1009),
    "a depth of 30 000": (
        b'{"type":"ping","x":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        TEXT,
        4400,
    ),
    "an integer of 5 000 digits": (b'{"type":"ping","x":' + b"9" * 5_000 + b"}", TEXT, 4400),
    "1e400": (b'{"type":"ping","x":1e400}', TEXT, 4400),
    "a key twice": (b'{"type":"fly","type":"ping"}', TEXT, "pong"),
    "binary": (b'{"type":"ping"}', BINARY, 4400),
    "nothing": (b"", TEXT, 4400),
    "NaN": (b'{"type":"ping","x":NaN}', TEXT, 4400),
}


@pytest.mark.parametrize(
    ("message", "opcode", "expected"),
    MESSAGES.values(),
    ids=[name.replace(" ", "-") for name in MESSAGES],
)
async def test_a_strange_message_is_answered_or_ends_its_socket(
    shared: TestRealtime, message: bytes, opcode: int, expected: str | int
) -> None:
    async with raw_socket(shared.url) as socket:
        await authenticate(socket, shared.key)
        await socket.send(frame(message, opcode))
        if isinstance(expected, int):
            assert await socket.close_code() == expected
        else:
            assert f'"{expected}"'.encode() in (await socket.next() or b"")


async def authenticate(socket: RawSocket, token: str) -> None:
    await socket.send(frame(orjson.dumps({"type": "auth", "token": token})))
    assert b'"ready"' in (await socket.next() or b"")
