"""A connection that writes to its socket directly, where the server below us hands it out.

No task waits to write: whoever has something due stands in the list of `delivery`, which writes a
frame to each in turn. What the socket does not take at once its transport keeps, and says so: until
it has been taken nothing more is written, so that what is held for a slow socket is one frame above
the transport's own limit.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import anyio
from starlette.types import Scope

from runwire.wire import CloseCode
from runwire_realtime.connection import TICK, Authenticate, Closing, Connection, Receive
from runwire_realtime.delivery import Delivery
from runwire_realtime.feed_loading import FeedLoading
from runwire_realtime.frames import Frames
from runwire_realtime.hub import Hub
from runwire_realtime.line import Line

# In the scope's extensions, where the server hands its socket out.
EXTENSION: Final = "runwire.socket"


class DirectSocket(Protocol):
    """A websocket that was accepted, whose frames somebody else makes."""

    # Called whenever `is_writable` may have changed.
    changed: Callable[[], None] | None

    @property
    def is_writable(self) -> bool:
        """Whether the socket is open and has taken what it was given."""
        ...

    @property
    def write_frame(self) -> Callable[[bytes], object]:
        """What takes a whole websocket frame."""
        ...


def socket_of(scope: Scope) -> DirectSocket | None:
    """Return the socket of a websocket's scope; None: the server keeps it to itself."""
    found: DirectSocket | None = scope.get("extensions", {}).get(EXTENSION)
    return found


class DirectConnection(Connection):
    """Writes to a socket whenever its turn comes."""

    def __init__(
        self,
        socket: DirectSocket,
        delivery: Delivery,
        hub: Hub,
        frames: Frames,
        loading: FeedLoading,
        authenticate: Authenticate,
        *,
        is_browser: bool = False,
    ) -> None:
        self._socket = socket
        self._delivery = delivery
        self._line = Line(socket.write_frame)
        super().__init__(hub, frames, loading, authenticate, is_browser=is_browser)
        self.outbox.line = self._line
        # For how many ticks something has waited for the socket. In ticks, so that a loop that was
        # held up does not blame the sockets.
        self._ticks_waiting = 0
        self._reading = anyio.CancelScope()

    async def serve(self, receive: Receive, *, token: str | None = None) -> Closing | None:
        """Serve to the end. Return why it is to be closed; None: the client is gone.

        `token` is what came with the request.
        """
        is_gone = False
        self._socket.changed = self._changed
        try:
            with self._reading:
                if token is not None:
                    await self.authenticate(token)
                await self._read(receive)
                is_gone = True
        finally:
            self._socket.changed = None
            self._line.is_free = False
            self._delivery.forget(self)
            self._closed()
        return None if is_gone else self.outbox.closing

    async def _read(self, receive: Receive) -> None:
        while (frame := await receive()) is not None:
            token = self.subscriber.receive(frame, self._delivery.now())
            if token is not None:
                await self.authenticate(token)
            # One message a turn: a burst of one client is not everybody's.
            await asyncio.sleep(0)

    def wake(self) -> None:
        self._line.is_free = False
        self._delivery.add(self)

    def cut_off(self, code: int, reason: str) -> None:
        self.outbox.close(code, reason)
        self._reading.cancel()

    def tick(self, now: float) -> None:
        if now >= self._due_at:
            self.subscriber.wrote(self._line.written_at)
            self.wake()
        if self._socket.is_writable or self.outbox.is_idle:
            self._ticks_waiting = 0
            return
        self._ticks_waiting += 1
        if (self._ticks_waiting - 1) * TICK >= self._limits.send_seconds:
            self.cut_off(CloseCode.SLOW, "the socket does not drain")

    def write(self, now: float) -> None:
        """Write one frame, if one is due and the socket takes it."""
        if not self._socket.is_writable:
            return  # it says when it does
        messages = self.outbox.frame() or self._due(now)
        if messages:
            self._socket.write_frame(self._frames.frame(messages).wire)
            self._wrote(now)
            # One frame a turn: what comes in meanwhile leaves with the next.
            if not self.outbox.is_idle or self.subscriber.is_restless:
                self._delivery.add(self)
                return
        elif self.outbox.closing is not None:
            self._reading.cancel()
            return
        self._line.is_free = self._socket.is_writable

    def _changed(self) -> None:
        self._line.is_free = False
        if self._socket.is_writable:
            self._delivery.add(self)
