"""What waits to be written to one connection, bounded however slow it is. [core]

Two lanes. The control lane holds messages as they are (answers, errors, pages of a snapshot); it
is short by nature, and a connection that lets it grow is too slow to be served. The other lane
holds no messages at all: only which runs and streams have something new. What that is, is decided
when a frame is made: each source in turn says one message, from where it stands to now. So changes
of a run conflate in place, chunks are never queued, and nobody starves.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from runwire.wire import CloseCode
from runwire_realtime.limits import HubLimits
from runwire_realtime.line import Line


class Source(Protocol):
    """A run or a stream, as one connection follows it."""

    is_queued: bool

    @property
    def has_more(self) -> bool:
        """Whether it may have something to say after its last message."""
        ...

    @property
    def is_underway(self) -> bool:
        """Whether what it has to say only goes on from where the client knows it is."""
        ...

    def produce(self, budget: int) -> bytes | None:
        """Return the next message (or several, joined by commas), or None: nothing to say."""
        ...


class Outbox:
    """One connection's lanes; `wake` is called when there may be something to write."""

    # One for each connection, and many of them: no dict beside it.
    __slots__ = (
        "_carried",
        "_control",
        "_control_bytes",
        "_ending",
        "_limits",
        "_ready",
        "_slots",
        "_waiting",
        "_wake",
        "closing",
        "line",
    )

    def __init__(self, wake: Callable[[], None], limits: HubLimits) -> None:
        # Where frames are handed over at once, if they are.
        self.line: Line | None = None
        # Why the connection is to be closed, once that is decided.
        self.closing: tuple[int, str] | None = None
        # The same, for when there is nothing left to say.
        self._ending: tuple[int, str] | None = None
        self._wake = wake
        self._limits = limits
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._ready: deque[Source] = deque()
        # A message that did not fit into the frame before.
        self._carried: bytes | None = None
        # What sources have asked to be read for them and not used up yet.
        self._slots = limits.rows_held
        self._waiting: dict[Source, None] = {}

    def say(self, message: bytes) -> None:
        """Queue a message on the control lane."""
        self._control.append(message)
        self._control_bytes += len(message)
        if self._control_bytes > self._limits.control_bytes:
            self.close(CloseCode.SLOW, "the socket does not drain")
        self._wake()

    def mark(self, source: Source) -> None:
        """Note that a source may have something to say."""
        if not source.is_queued:
            source.is_queued = True
            self._ready.append(source)
        self._wake()

    def close(self, code: int, reason: str) -> None:
        """Close the connection after what is on the control lane; the first reason stands."""
        if self.closing is None:
            self.closing = (code, reason)
        self._wake()

    def end(self, code: int, reason: str) -> None:
        """Close the connection as soon as there is nothing left that could be said."""
        self._ending = self._ending or (code, reason)
        self._wake()

    @property
    def waiting_bytes(self) -> int:
        """How much waits to be put into frames as it is."""
        return self._control_bytes + len(self._carried or b"")

    @property
    def has_room(self) -> bool:
        """Whether another page of a snapshot may be queued."""
        return self.waiting_bytes < self._limits.page_room_bytes

    @property
    def is_drained(self) -> bool:
        """Whether everything that could be said has been put into frames."""
        return not self._control and not self._ready and self._carried is None

    @property
    def is_underway(self) -> bool:
        """Whether all that waits only goes on with what was told before."""
        return not self._control and all(source.is_underway for source in self._ready)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to say and nothing to be done."""
        return self.is_drained and self.closing is None and self._ending is None

    @property
    def free_slots(self) -> int:
        """How many sources may have something read for them now."""
        return self._slots

    def acquire(self, source: Source) -> bool:
        """Take one of the few places for what is read ahead; else be marked when one is free."""
        if self._slots == 0:
            self._waiting[source] = None
            return False
        self._slots -= 1
        return True

    def release(self) -> None:
        """Give a place back."""
        self._slots += 1
        self._offer_slot()

    def _offer_slot(self) -> None:
        if self._slots and self._waiting:
            source = next(iter(self._waiting))
            del self._waiting[source]
            self.mark(source)

    def frame(self, begun: Sequence[bytes] = ()) -> list[bytes]:
        """Return the messages of the next frame; empty when there is nothing to say now.

        `begun`: those it has already.
        """
        messages = list(begun)
        room = self._limits.frame_bytes - len(b"[]") - sum(len(each) + 1 for each in messages)
        message = self._next(room) if room > 0 else None
        while message is not None:
            if messages and len(message) > room:
                self._carried = message
                break
            messages.append(message)
            room -= len(message) + 1
            if room <= 0:
                break
            message = self._next(room)
        if not messages and self._ending is not None:
            self.close(*self._ending)
        return messages

    def _next(self, room: int) -> bytes | None:
        if self._carried is not None:
            message, self._carried = self._carried, None
            return message
        if self._control:
            message = self._control.popleft()
            self._control_bytes -= len(message)
            return message
        if self.closing is not None:
            return None
        return self._produced(min(room, self._limits.turn_bytes))

    def _produced(self, budget: int) -> bytes | None:
        while self._ready:
            source = self._ready.popleft()
            source.is_queued = False
            message = source.produce(budget)
            # Whoever was offered a place may not have needed it any more.
            self._offer_slot()
            if message is not None:
                # To the end of the queue: it may have more, and others have waited.
                if source.has_more and not source.is_queued:
                    source.is_queued = True
                    self._ready.append(source)
                return message
        return None
