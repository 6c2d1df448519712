"""uvicorn's websocket protocol, but frames are written to it directly, and what was given up ends.

It puts itself into the scope's extensions: once the socket is accepted, whole frames, the same
bytes for many sockets, go to its transport without a task, a queue or a state machine in between.

A transport that is closed waits until what it holds has been taken. A peer that takes nothing, or
is gone without a word, would keep the connection, its buffers and its descriptor until the kernel
gives up, a quarter of an hour later. And one that floods would have each of its frames parsed until
it has noticed that it was closed.
"""

from asyncio.transports import BaseTransport
from collections.abc import Callable
from typing import Final, cast

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from runwire.wire import CloseCode
from runwire_realtime.direct_connection import EXTENSION

# For a close frame to leave, and its answer to come, on a slow link.
_FAREWELL_SECONDS: Final = 5.0
_GONE: Final = 1006


class SocketProtocol(WebSocketsSansIOProtocol):
    """One websocket."""

    # It was closed for sending too much: what still comes is not looked at.
    is_deaf = False
    # What was given has not been taken yet.
    is_full = False
    # Of whoever writes frames: called whenever `is_writable` may have changed.
    changed: Callable[[], None] | None = None

    @property
    def is_writable(self) -> bool:
        """Whether a frame may be written: after a close frame none may."""
        is_over = self.close_sent or self.disconnected or self.transport.is_closing()
        return not self.is_full and not is_over

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        # The transport's own, as it is called for each socket and frame.
        self.write_frame = self.transport.write

    def _tell(self) -> None:
        if self.changed is not None:
            self.changed()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.is_full = True
        self._tell()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.is_full = False
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._tell()

    def shutdown(self) -> None:
        super().shutdown()
        self._tell()

    def handle_close(self, event: Frame) -> None:
        super().handle_close(event)
        self._tell()

    def handle_parser_exception(self) -> None:
        super().handle_parser_exception()
        self._tell()

    def data_received(self, data: bytes) -> None:
        if not self.is_deaf:
            super().data_received(data)

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.accept":
            # The handshake is over; the scope has what is still asked for.
            del self.request, self.response
        if message["type"] == "websocket.close":
            self.is_deaf = message.get("code") == CloseCode.RATE_LIMITED
            self._tell()

    async def run_asgi(self) -> None:
        extensions = cast(dict[str, object], self.scope.setdefault("extensions", {}))
        extensions[EXTENSION] = self
        try:
            await super().run_asgi()
        finally:
            self.loop.call_later(_FAREWELL_SECONDS, self.transport.abort)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        # Else the application would learn of it when it sends the next time.
        self.queue.put_nowait({"type": "websocket.disconnect", "code": _GONE})
        self.transport.abort()
        self._tell()
