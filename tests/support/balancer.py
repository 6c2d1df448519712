"""A tiny TCP balancer: one address, and behind it whichever servers live.

    async with balancer(first_port, second_port) as front:
        clients connect to 127.0.0.1, front.port
        front.backends = [second_port]      # where connections go from now on
        front.cut()                         # those there are end

A new connection goes to the backends in turns; one that refuses is passed over. It knows nothing
else of them: a server that is stopping still gets connections until it refuses them.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Final

_READ_BYTES: Final = 65536


class Balancer:
    """Passes connections on to backends, which are loopback ports."""

    def __init__(self, backends: list[int]) -> None:
        self.backends = backends
        self.port = 0
        # How many connections each backend was given.
        self.given: dict[int, int] = {}
        self._turns = count()
        self._links: dict[asyncio.Task[None], int] = {}

    def cut(self, backend: int | None = None) -> None:
        """End the connections to one backend, or all."""
        for link, port in tuple(self._links.items()):
            if backend is None or port == backend:
                link.cancel()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection's bytes until either side ends."""
        task = asyncio.current_task()
        assert task is not None
        with contextlib.closing(writer):
            found = await self._connect()
            if found is None:
                return
            backend, upstream, downstream = found
            with contextlib.closing(downstream):
                self._links[task] = backend
                try:
                    await _both(_pass(reader, downstream), _pass(upstream, writer))
                except asyncio.CancelledError:
                    writer.transport.abort()
                finally:
                    del self._links[task]

    async def _connect(self) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter] | None:
        first = next(self._turns)
        for step in range(len(self.backends)):
            backend = self.backends[(first + step) % len(self.backends)]
            try:
                streams = await asyncio.open_connection("127.0.0.1", backend)
            except OSError:
                continue
            self.given[backend] = self.given.get(backend, 0) + 1
            return backend, *streams
        return None


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_READ_BYTES):
            writer.write(data)
            await writer.drain()


async def _both(*ways: Coroutine[Any, Any, None]) -> None:
    """Run both ways; when one ends, the connection does."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def balancer(*backends: int) -> AsyncGenerator[Balancer]:
    """Balance over loopback ports for the length of a block."""
    front = Balancer([*backends])
    server = await asyncio.start_server(front.serve, "127.0.0.1", 0)
    front.port = server.sockets[0].getsockname()[1]
    try:
        yield front
    finally:
        server.close()
        front.cut()
        await server.wait_closed()
