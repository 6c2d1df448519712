"""Readers of one stream that stand at the same place, on sockets that keep up. [core]

They share one position, and what comes next is one frame for all of them: to bring it to a socket
costs one write and nothing else. Whoever is not free when a frame is due leaves, with the position
from before, and is served by its outbox until it has caught up.
"""

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Final

from runwire_realtime.limits import HubLimits
from runwire_realtime.line import Line

if TYPE_CHECKING:
    from runwire_realtime.stream_reader import StreamReader
    from runwire_realtime.stream_topic import StreamTopic

# Makes a frame of messages.
Framing = Callable[[Sequence[bytes]], bytes]
# Brings a frame to each of the sockets that are free; returns the others.
Send = Callable[[bytes, Iterable[Line]], AbstractSet[Line]]

# A turn of the loop writes to so many sockets, about 3 ms; others have theirs in between.
MEMBERS: Final = 500


class Cohort:
    """One position, and whose it is."""

    __slots__ = ("_marks", "members", "next", "topic")

    def __init__(self, topic: "StreamTopic") -> None:
        self.topic = topic
        # The seq to be written next.
        self.next = topic.end
        self.members: dict[StreamReader, Line] = {}
        self._marks = len(topic.marks)

    @property
    def has_room(self) -> bool:
        """Whether a reader that has got everything may come in."""
        topic = self.topic
        is_there = self.next == topic.end and self._marks == len(topic.marks)
        return is_there and len(self.members) < MEMBERS

    def push(self, framing: Framing, limits: HubLimits, send: Send) -> bool:
        """Send what is new, as one frame. Return whether there is more."""
        topic, before = self.topic, self.next
        if before == topic.end:
            return False
        if not topic.has(before) or len(topic.marks) != self._marks:
            # What comes next is not the same for all, or has to be read.
            self._leave_behind(list(self.members), before)
            return False
        parts, self.next = topic.stretch(before, limits.frame_bytes, limits.turn_bytes)
        late = send(framing(parts), self.members.values())
        if late:
            readers = [reader for reader, line in self.members.items() if line in late]
            self._leave_behind(readers, before)
        return self.next < topic.end

    def _leave_behind(self, readers: Sequence["StreamReader"], place: int) -> None:
        for reader in readers:
            reader.fall_out(place)
            reader.mark()
