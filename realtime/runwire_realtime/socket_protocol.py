"""uvicorn's websocket protocol, but what was given up ends, whatever its peer does.

A transport that is closed waits until what it holds has been taken. A peer that takes nothing, or
is gone without a word, would keep the connection, its buffers and its descriptor until the kernel
gives up, a quarter of an hour later. And one that floods would have each of its frames parsed until
it has noticed that it was closed.
"""

from typing import Final

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from runwire.wire import CloseCode

# For a close frame to leave, and its answer to come, on a slow link.
_FAREWELL_SECONDS: Final = 5.0
_GONE: Final = 1006


class SocketProtocol(WebSocketsSansIOProtocol):
    """One websocket."""

    # It was closed for sending too much: what still comes is not looked at.
    is_deaf = False

    def data_received(self, data: bytes) -> None:
        if not self.is_deaf:
            super().data_received(data)

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.close":
            self.is_deaf = message.get("code") == CloseCode.RATE_LIMITED

    async def run_asgi(self) -> None:
        try:
            await super().run_asgi()
        finally:
            self.loop.call_later(_FAREWELL_SECONDS, self.transport.abort)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        # Else the application would learn of it when it sends the next time.
        self.queue.put_nowait({"type": "websocket.disconnect", "code": _GONE})
        self.transport.abort()
