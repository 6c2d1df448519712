"""The load generator: many raw websockets in one thread, counted without decoding every frame.

Every event carries one MARK, bytes that occur nowhere else in what either server sends (a single
byte would: as the length of a frame), so that counting marks counts events however they were
framed, joined or cut by the kernel. A timed event carries ~, the CLOCK_MONOTONIC nanoseconds when
it was handed to the writer, and another ~.
"""

import base64
import os
import re
import selectors
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

MARK = b"!@!"
STAMP = re.compile(rb"~(\d+)~")
_RECEIVE = 1 << 18
_PING = b"\x89\x04"


def text_frame(text: bytes) -> bytes:
    """Return a masked text frame, as a client must send it."""
    return _frame(0x81, text)


def _frame(first: int, data: bytes) -> bytes:
    mask = os.urandom(4)
    if len(data) < 126:
        head = struct.pack("!BB", first, 0x80 | len(data))
    else:
        head = struct.pack("!BBH", first, 0x80 | 126, len(data))
    repeated = mask * (len(data) // 4 + 1)
    return head + mask + bytes(a ^ b for a, b in zip(data, repeated, strict=False))


def open_socket(port: int, path: str, protocol: str | None) -> socket.socket:
    """Connect and upgrade; the server has answered 101 when this returns."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=30)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
    ]
    if protocol is not None:
        lines.append(f"Sec-WebSocket-Protocol: {protocol}")
    raw.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        # One byte at a time: what follows the head belongs to the first frame.
        byte = raw.recv(1)
        if not byte:
            raise ConnectionError(f"closed during the handshake: {answer!r}")
        answer += byte
    if b" 101 " not in answer.split(b"\r\n", 1)[0]:
        raise ConnectionError(answer.decode(errors="replace"))
    return raw


def await_text(raw: socket.socket, wanted: bytes, seconds: float = 30) -> None:
    """Read until the bytes `wanted` have come. Raises TimeoutError when they do not."""
    raw.settimeout(seconds)
    seen = b""
    while wanted not in seen:
        data = raw.recv(_RECEIVE)
        if not data:
            raise ConnectionError(f"closed before {wanted!r}: {seen[-300:]!r}")
        seen = (seen + data)[-100_000:]


@dataclass
class Swarm:
    """Many sockets, and how many marks each has received."""

    sockets: list[socket.socket] = field(default_factory=list[socket.socket])
    counts: dict[int, int] = field(default_factory=dict[int, int])
    total: int = 0
    # The last bytes of each, where a mark may have begun.
    _tails: dict[int, bytes] = field(default_factory=dict[int, bytes])
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def add(self, raw: socket.socket) -> None:
        """Take over a socket that is ready to receive events."""
        raw.setblocking(False)
        self.sockets.append(raw)
        self.counts[raw.fileno()] = 0
        self._selector.register(raw, selectors.EVENT_READ)

    def receive(self, seconds: float) -> None:
        """Wait at most so long for data, and count what is there."""
        for key, _ in self._selector.select(seconds):
            raw = key.fileobj
            assert isinstance(raw, socket.socket)
            data = raw.recv(_RECEIVE)
            if not data:
                raise ConnectionError("the server closed a socket")
            self._answer_ping(raw, data)
            seam = self._tails.get(key.fd, b"") + data[: len(MARK) - 1]
            marks = data.count(MARK) + seam.count(MARK)
            self._tails[key.fd] = (seam if len(data) < len(MARK) else data)[1 - len(MARK) :]
            self.counts[key.fd] += marks
            self.total += marks

    @staticmethod
    def _answer_ping(raw: socket.socket, data: bytes) -> None:
        """Answer uvicorn's pings; bytes that only look like one get a pong that nobody minds."""
        at = data.find(_PING)
        if at >= 0:
            raw.send(_frame(0x8A, data[at + 2 : at + 6]))

    def receive_until(self, total: int, seconds: float) -> None:
        """Count until so many marks have come in all. Raises TimeoutError when they do not."""
        deadline = time.monotonic() + seconds
        while self.total < total:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.total} of {total} events after {seconds} s")
            self.receive(0.1)

    def close(self) -> None:
        self._selector.close()
        for raw in self.sockets:
            raw.close()


@dataclass
class Stopwatch:
    """Reads one socket and keeps the latency of each stamped event, in milliseconds."""

    raw: socket.socket
    latencies: list[float] = field(default_factory=list[float])

    def read(self, events: int, seconds: float) -> None:
        """Read until so many stamped events have come. Raises TimeoutError when they do not."""
        self.raw.settimeout(seconds)
        rest = b""
        while len(self.latencies) < events:
            data = self.raw.recv(_RECEIVE)
            now = time.monotonic_ns()
            if not data:
                raise ConnectionError("the server closed the socket")
            rest += data
            cut = 0
            for stamp in STAMP.finditer(rest):
                self.latencies.append((now - int(stamp[1])) / 1e6)
                cut = stamp.end()
            rest = rest[cut:][-200:]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` (0 to 1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
