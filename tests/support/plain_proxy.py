"""An HTTP proxy of the kind that lets no websocket pass, in front of one server.

    async with plain_proxy(("127.0.0.1", port)) as proxy:
        a browser opens http://127.0.0.1:{proxy.port}
        proxy.cut()                    # whatever is being answered breaks off

What asks for an upgrade is answered 400; the rest is passed as it comes, byte by byte.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream

Address = tuple[str, int]
_END_OF_HEAD: Final = b"\r\n\r\n"
_MAX_HEAD: Final = 64 * 1024
_REFUSAL: Final = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class PlainProxy:
    """Passes HTTP; the first request of a connection decides what it is for."""

    def __init__(self, target: Address, port: int) -> None:
        self.target = target
        self.port = port
        # How many websockets were refused.
        self.refused = 0
        # How many requests for events were passed.
        self.event_streams = 0
        self._links: set[anyio.CancelScope] = set()

    def cut(self) -> None:
        """Break off every connection."""
        for link in list(self._links):
            link.cancel()

    async def serve(self, client: SocketStream) -> None:
        """Serve one connection to its end."""
        link = anyio.CancelScope()
        self._links.add(link)
        try:
            with link:
                await self._serve(client)
        except (OSError, anyio.BrokenResourceError, anyio.EndOfStream):
            pass  # one side is gone
        finally:
            self._links.discard(link)
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(client)

    async def _serve(self, client: SocketStream) -> None:
        head = b""
        while _END_OF_HEAD not in head and len(head) < _MAX_HEAD:
            head += await client.receive()
        if b"upgrade: websocket" in head.lower():
            self.refused += 1
            await client.send(_REFUSAL)
            return
        server = await anyio.connect_tcp(*self.target)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._pass, client, server, tasks.cancel_scope, head)
                tasks.start_soon(self._pass, server, client, tasks.cancel_scope)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(server)

    async def _pass(
        self, source: ByteStream, sink: ByteStream, link: anyio.CancelScope, data: bytes = b""
    ) -> None:
        try:
            while True:
                # A connection carries many requests, one after the other.
                self.event_streams += data.startswith(b"POST /realtime/v1/events ")
                if data:
                    await sink.send(data)
                data = await source.receive()
        except (OSError, anyio.BrokenResourceError, anyio.EndOfStream):
            link.cancel()


@asynccontextmanager
async def plain_proxy(target: Address) -> AsyncGenerator[PlainProxy]:
    """Serve a proxy on a free loopback port."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    proxy = PlainProxy(target, listener.extra(SocketAttribute.local_port))
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, proxy.serve)
        try:
            yield proxy
        finally:
            tasks.cancel_scope.cancel()
