"""A connection that writes to its socket directly, where the server below us hands it out.

No task waits for it, neither to read nor to write: whoever has something due stands in the lists of
`delivery`, which takes a message from each and writes a frame to each in turn. What the socket does
not take at once its transport keeps, and says so: until it has been taken nothing more is written,
so that what is held for a slow socket is one frame above the transport's own limit.
"""

import logging
from collections.abc import Callable
from typing import Final, Protocol

from starlette.types import Scope

from runwire.wire import CloseCode
from runwire_realtime.connection import TICK, Authenticate, Connection
from runwire_realtime.delivery import Delivery
from runwire_realtime.feed_loading import FeedLoading
from runwire_realtime.frames import Frames
from runwire_realtime.hub import Hub
from runwire_realtime.line import NOWHERE, Line
from runwire_realtime.owned_socket import OwnedSocket
from runwire_realtime.subscriber import Phase

logger = logging.getLogger("runwire.realtime")

# In the scope's extensions, where the server hands its socket out.
EXTENSION: Final = "runwire.socket"


class Handover(Protocol):
    """What stands in a websocket's scope."""

    def hand_over(self) -> OwnedSocket | None:
        """Give the accepted socket away; None: it is gone, or will be."""
        ...


def handover_of(scope: Scope) -> Handover | None:
    """Return who hands out a websocket's socket; None: the server keeps it to itself."""
    found: Handover | None = scope.get("extensions", {}).get(EXTENSION)
    return found


class DirectConnection(Connection):
    """Reads and writes whenever its turn comes."""

    # Many of them: no dict beside it.
    __slots__ = (
        "_delivery",
        "_ended",
        "_is_verifying",
        "_line",
        "_socket",
        "_ticks_waiting",
        "_token",
        "_unread",
    )

    def __init__(
        self,
        socket: OwnedSocket,
        delivery: Delivery,
        hub: Hub,
        frames: Frames,
        loading: FeedLoading,
        authenticate: Authenticate,
        ended: Callable[["DirectConnection"], None],
        *,
        token: str | None = None,
        is_browser: bool = False,
    ) -> None:
        """Serve from now on, until `ended` is called. `token` is what came with the request."""
        self._socket = socket
        self._delivery = delivery
        self._line = Line(socket.write_frame, socket.descriptor)
        super().__init__(hub, frames, loading, authenticate, is_browser=is_browser)
        self.outbox.line = self._line
        # For how many ticks something has waited for the socket. In ticks, so that a loop that was
        # held up does not blame the sockets.
        self._ticks_waiting = 0
        self._ended = ended
        # What was read and not looked at yet. While there is any nothing more is read.
        self._unread: list[str | bytes] = []
        # A credential that is to be looked at before anything else, or is being looked at.
        self._token = token
        self._is_verifying = False
        socket.give_to(self)
        self._delivery.read_from(self)

    # What comes

    def received(self, message: str | bytes) -> None:
        """Keep a message for its turn."""
        self._unread.append(message)
        self._socket.pause_reading()
        if not self._is_verifying:
            self._delivery.read_from(self)

    def read(self, now: float) -> str | None:
        """Take one message. Return a token when one is to be verified before the next."""
        token, self._token = self._token, None
        if token is None and self._unread:
            token = self.subscriber.receive(self._unread.pop(0), now)
        if token is not None:
            self._is_verifying = True
        else:
            self._read_on()
        return token

    async def verify(self, token: str) -> None:
        """Look at a credential, and go on."""
        try:
            await self.authenticate(token)
        except Exception:
            logger.exception("a credential could not be looked at; its connection is closed")
            self.cut_off(CloseCode.OVERLOADED, "the credential cannot be checked now")
        finally:
            self._is_verifying = False
        self._read_on()

    def _read_on(self) -> None:
        if self._unread:
            self._delivery.read_from(self)
        else:
            self._socket.resume_reading()

    # What goes

    def wake(self) -> None:
        self._line.is_free = False
        self._delivery.add(self)

    def write(self, now: float) -> None:
        """Write one frame, if one is due and the socket takes it."""
        if not self._socket.is_writable:
            return  # it says when it does
        self.subscriber.wrote(self._line.written_at)
        messages = self._next_frame(now)
        if messages:
            self._socket.write_frame(self._frames.frame(messages).wire)
            self._wrote(now)
            # One frame a turn: what comes in meanwhile leaves with the next.
            if not self.outbox.is_idle or self.subscriber.is_restless:
                self._delivery.add(self)
                return
        elif self.outbox.closing is not None:
            self._hang_up()
            return
        self._line.is_free = self._socket.is_writable

    def tick(self, now: float) -> None:
        if self.subscriber.phase is Phase.CLOSED:
            return
        self._socket.beat()
        if now >= self._due_at and self._is_due(now):
            self.wake()
        if self.outbox.is_idle or self._socket.is_writable:
            self._ticks_waiting = 0
            return
        self._ticks_waiting += 1
        if (self._ticks_waiting - 1) * TICK >= self._limits.send_seconds:
            self.cut_off(CloseCode.SLOW, "the socket does not drain")

    def _is_due(self, now: float) -> bool:
        """Say whether anything is due yet, after what others have written past the outbox."""
        self.subscriber.wrote(self._line.written_at)
        self._due_at = self.subscriber.next_tick()
        return now >= self._due_at

    def changed(self) -> None:
        """Note that the socket has taken what it was given, or has not."""
        self._line.is_free = False
        if self._socket.is_writable:
            self._delivery.add(self)

    # Its end

    def cut_off(self, code: int, reason: str) -> None:
        self.outbox.close(code, reason)
        self._hang_up()

    def _hang_up(self) -> None:
        """Follow nothing more, and close the socket."""
        assert self.outbox.closing is not None
        code, reason = self.outbox.closing
        self._leave()
        self._socket.close(code, reason)

    def gone(self) -> None:
        """Note that the socket is closed, or lost."""
        self._leave()
        self._ended(self)

    def _leave(self) -> None:
        self._line.is_free, self._line.descriptor = False, NOWHERE
        self._unread.clear()
        self._token = None
        self._closed()
        self._delivery.forget(self)
