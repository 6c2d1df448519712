"""A proxy that breaks the connection in every way a network can.

    async with fault_proxy(("127.0.0.1", port)) as proxy:     # or the path of a unix socket
        client connects to ("127.0.0.1", proxy.port)
        proxy.to_client.cut_after = 100                        # each connection dies at byte 100
        proxy.stall()                                          # sockets open, nothing flows

The two lanes, `to_server` and `to_client`, are set apart; settings hold for open and for new
connections from the next byte on. For Postgres, `proxy.dsn(dsn)` leads through the proxy, and
`cut_next_commit` loses the answer of a COMMIT, or the COMMIT itself.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream, TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.postgres_messages import BackendReader, FrontendReader

Target = tuple[str, int] | Path
_READ_BYTES: Final = 65536
# Pieces in flight per lane: a delay must not bound the bandwidth, and memory stays bounded.
_IN_FLIGHT: Final = 1000


@dataclass
class Lane:
    """What happens to bytes going one way."""

    # The connection is cut when exactly this many of its bytes have passed.
    cut_after: int | None = None
    # Only the first connection that gets there.
    cuts_once: bool = False
    # Bytes leave in writes of at most this size.
    slice_bytes: int | None = None
    # Every byte comes this many seconds late.
    delay: float = 0.0
    bytes_per_second: float | None = None
    # How many bytes passed, over all connections.
    passed: int = 0


class _Upstream(ByteStream):
    """A connection to the server.

    By asyncio's own streams: a unix socket of anyio 4 fails the loop (InvalidStateError) when it is
    cancelled in the moment it becomes readable, and cutting is all we do.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.raw_socket: socket.socket = writer.get_extra_info("socket")

    async def receive(self, max_bytes: int = _READ_BYTES) -> bytes:
        try:
            data = await self._reader.read(max_bytes)
        except OSError as error:
            raise anyio.BrokenResourceError from error
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        try:
            self._writer.write(item)
            await self._writer.drain()
        except OSError as error:
            raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        self._writer.write_eof()

    async def aclose(self) -> None:
        self._writer.transport.abort()


class _Peeked(ByteStream):
    """A stream of which the beginning was read already."""

    def __init__(self, stream: ByteStream, head: bytes) -> None:
        self._stream = stream
        self._head = head
        self.is_upgrade = b"upgrade: websocket" in head.lower()

    async def receive(self, max_bytes: int = _READ_BYTES) -> bytes:
        head, self._head = self._head, b""
        return head or await self._stream.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        await self._stream.send(item)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


@dataclass(eq=False)
class _Link:
    """One client connection and its counterpart."""

    client: SocketStream
    server: _Upstream
    scope: anyio.CancelScope
    from_client: FrontendReader = field(default_factory=FrontendReader)
    from_server: BackendReader = field(default_factory=BackendReader)


class FaultProxy:
    """Passes bytes between clients and one server until told otherwise."""

    def __init__(self, target: Target, port: int) -> None:
        self.target = target
        self.port = port
        self.to_server = Lane()
        self.to_client = Lane()
        # How connections end when they are cut: with RST, or politely with FIN.
        self.resets = False
        # While true, new connections are closed at once.
        self.refuses = False
        # What becomes of websockets: "refused" with status 400, as by a proxy that knows HTTP only;
        # "swallowed", never answered.
        self.websockets: Literal["pass", "refused", "swallowed"] = "pass"
        # How many connections were ever accepted.
        self.accepted = 0
        self.websockets_stopped = 0
        # How many connections were cut because of what passed.
        self.cuts = 0
        # How many COMMITs lost their answer, or were lost themselves.
        self.commits_cut = 0
        self._cut_commit: str | None = None
        self._links: set[_Link] = set()
        self._open = anyio.Event()
        self._open.set()

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._links)

    def dsn(self, dsn: str) -> str:
        """Return a Postgres connection string that leads through this proxy."""
        return make_conninfo(
            dsn,
            host="127.0.0.1",
            port=self.port,
            sslmode="disable",  # the proxy reads along
            gssencmode="disable",
        )

    def cut(self) -> None:
        """Cut every open connection now, by RST or FIN as `resets` says."""
        for link in list(self._links):
            link.scope.cancel()

    def stall(self) -> None:
        """Stop every byte, both ways, and keep all sockets open: a half-open network."""
        if self._open.is_set():
            self._open = anyio.Event()

    def flow(self) -> None:
        """End a stall; what was held back is delivered."""
        self._open.set()

    def cut_next_commit(self, *, after: bool = True) -> None:
        """Cut the next connection that commits.

        With `after`, Postgres has committed and its answer is lost; else the COMMIT never reaches
        it. The client cannot tell the two apart.
        """
        self._cut_commit = "after" if after else "before"

    async def serve(self, client: SocketStream) -> None:
        """Carry one connection until an end closes it or it is cut."""
        self.accepted += 1
        try:
            await self._carry(client)
        finally:
            await self._close(client)

    async def _carry(self, client: SocketStream) -> None:
        if self.refuses:
            return
        source: ByteStream = client
        if self.websockets != "pass":
            source = _Peeked(client, await _head(client))
            if source.is_upgrade:
                await self._stop_websocket(client)
                return
        try:
            server = await _connect(self.target)
        except OSError:
            return
        with anyio.CancelScope() as scope:
            link = _Link(client, server, scope)
            self._links.add(link)
            try:
                async with anyio.create_task_group() as lanes:
                    self._start_lane(lanes, link, self.to_server, source, server)
                    self._start_lane(lanes, link, self.to_client, server, client)
            finally:
                self._links.discard(link)
                await self._close(server)

    async def _stop_websocket(self, client: SocketStream) -> None:
        self.websockets_stopped += 1
        if self.websockets == "refused":
            await _send(client, b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        else:
            # Until the client leaves.
            await _head(client)

    def _start_lane(
        self,
        tasks: TaskGroup,
        link: _Link,
        lane: Lane,
        source: ByteStream,
        sink: ByteStream,
    ) -> None:
        sender, receiver = anyio.create_memory_object_stream[tuple[float, bytes]](_IN_FLIGHT)
        tasks.start_soon(self._read, link, lane, source, sender)
        tasks.start_soon(self._write, link, lane, sink, receiver)

    async def _read(
        self,
        link: _Link,
        lane: Lane,
        source: ByteStream,
        queue: MemoryObjectSendStream[tuple[float, bytes]],
    ) -> None:
        async with queue:
            try:
                while True:
                    data = await source.receive(_READ_BYTES)
                    await queue.send((anyio.current_time() + lane.delay, data))
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

    async def _write(
        self,
        link: _Link,
        lane: Lane,
        sink: ByteStream,
        queue: MemoryObjectReceiveStream[tuple[float, bytes]],
    ) -> None:
        passed = 0
        async with queue:
            async for due, data in queue:
                await anyio.sleep_until(due)
                cuts_at_commit = self._look_for_commit(link, lane, data)
                for piece in _pieces(data, lane):
                    await self._open.wait()
                    left = len(piece) if lane.cut_after is None else lane.cut_after - passed
                    if cuts_at_commit or left <= 0:
                        self._cut_link(link, lane)
                        return
                    if not await _send(sink, piece[:left]):
                        link.scope.cancel()
                        return
                    passed += len(piece[:left])
                    lane.passed += len(piece[:left])
                    if lane.cut_after is not None and passed >= lane.cut_after:
                        self._cut_link(link, lane)
                        return
                    if lane.bytes_per_second:
                        await anyio.sleep(len(piece) / lane.bytes_per_second)
        # This side has ended, so the connection has; both sides learn it.
        link.scope.cancel()

    def _cut_link(self, link: _Link, lane: Lane) -> None:
        if lane.cuts_once:
            lane.cut_after = None
        self.cuts += 1
        link.scope.cancel()

    def _look_for_commit(self, link: _Link, lane: Lane, data: bytes) -> bool:
        """Read along, and say whether this data is the COMMIT, or its answer, to lose."""
        is_question = lane is self.to_server
        reader = link.from_client if is_question else link.from_server
        commits = reader.commits_in(data)
        if is_question:
            link.from_server.bare_bytes = link.from_client.bare_answers
            link.from_server.lone_writes = link.from_client.lone_writes
        if commits and self._cut_commit == ("before" if is_question else "after"):
            self._cut_commit = None
            self.commits_cut += 1
            return True
        return False

    async def _close(self, stream: SocketStream | _Upstream) -> None:
        if isinstance(stream, _Upstream):
            raw = stream.raw_socket
        else:
            raw = stream.extra(SocketAttribute.raw_socket)
        if self.resets and raw.fileno() >= 0:
            # Linger for zero seconds: the kernel sends RST and forgets what was not sent.
            with suppress(OSError):  # the other side was faster, and it is closed already
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with anyio.CancelScope(shield=True):
            await anyio.aclose_forcefully(stream)


@asynccontextmanager
async def fault_proxy(target: Target | str) -> AsyncGenerator[FaultProxy]:
    """Serve a proxy on a free loopback port. A string is the DSN of a Postgres."""
    address = postgres_address(target) if isinstance(target, str) else target
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    proxy = FaultProxy(address, listener.extra(SocketAttribute.local_port))
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, proxy.serve)
        try:
            yield proxy
        finally:
            tasks.cancel_scope.cancel()


def postgres_address(dsn: str) -> Target:
    """Return where the server of a connection string listens."""
    parts = conninfo_to_dict(dsn)
    host, port = unquote(str(parts.get("host", "127.0.0.1"))), int(str(parts.get("port", 5432)))
    return Path(host) / f".s.PGSQL.{port}" if host.startswith("/") else (host, port)


async def _connect(target: Target) -> _Upstream:
    if isinstance(target, Path):
        return _Upstream(*await asyncio.open_unix_connection(str(target)))
    return _Upstream(*await asyncio.open_connection(*target))


async def _head(stream: ByteStream) -> bytes:
    """Return what comes first; b"" when the other side leaves instead."""
    try:
        return await stream.receive(_READ_BYTES)
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return b""


def _pieces(data: bytes, lane: Lane) -> list[bytes]:
    size = lane.slice_bytes or len(data)
    return [data[start : start + size] for start in range(0, len(data), size)]


async def _send(sink: ByteStream, data: bytes) -> bool:
    try:
        await sink.send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return False
    return True
