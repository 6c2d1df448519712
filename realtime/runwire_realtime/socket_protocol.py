"""uvicorn's websocket protocol for the handshake; once it is over, the socket is handed over.

It puts itself into the scope's extensions. Whoever accepts the websocket may take the socket from
there: the endpoint returns then, and no task, queue or request stays behind for it. What is not
taken, as it was refused, ends for sure: a transport that is closed waits until what it holds has
been taken, which may be never.
"""

from functools import cache
from math import ceil
from typing import cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from runwire_realtime.connection import TICK
from runwire_realtime.direct_connection import EXTENSION
from runwire_realtime.owned_socket import FAREWELL_SECONDS, Keepalive, OwnedSocket


class SocketProtocol(WebSocketsSansIOProtocol):
    """One websocket, until it is handed over."""

    # Something came before the handshake was over, for which a client has to wait.
    _was_rushed = False
    _is_handed_over = False

    def data_received(self, data: bytes) -> None:
        self._was_rushed = self.handshake_initiated
        super().data_received(data)

    def hand_over(self) -> OwnedSocket | None:
        """Give the accepted socket away; None: it is gone, or will be."""
        if self._was_rushed or self.disconnected or self.transport.is_closing():
            return None
        self._is_handed_over = True
        self.stop_keepalive()
        # Else uvicorn closes the transport when the endpoint returns.
        self.close_timer = self.loop.call_later(0, _nothing)
        self.connections.discard(self)
        # It and its parser hold each other: freed at once, not when the collector comes.
        self.conn.parser.close()
        return OwnedSocket(
            self.transport,
            _keepalive(self.config.ws_ping_interval, self.config.ws_ping_timeout),
            self.config.ws_max_size,
            cast(set[OwnedSocket], self.connections),
        )

    async def run_asgi(self) -> None:
        extensions = cast(dict[str, object], self.scope.setdefault("extensions", {}))
        extensions[EXTENSION] = self
        try:
            await super().run_asgi()
        finally:
            # Else both would hold each other until the collector comes.
            del extensions[EXTENSION]
            if not self._is_handed_over:
                self.loop.call_later(FAREWELL_SECONDS, self.transport.abort)


@cache
def _keepalive(interval: float | None, timeout: float | None) -> Keepalive:
    return Keepalive(ceil((interval or 0) / TICK), ceil((timeout or 0) / TICK))


def _nothing() -> None:
    """Do nothing: the timer only has to be there."""
