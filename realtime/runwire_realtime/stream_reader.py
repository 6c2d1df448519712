"""One stream as one connection reads it: a position, and the next message from there. [core]"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from runwire.wire import EofReason, GapReason, StreamRequest, StreamStart
from runwire_engine.followed import Chunk
from runwire_realtime import messages
from runwire_realtime.cohort import Cohort
from runwire_realtime.limits import HubLimits
from runwire_realtime.outbox import Outbox
from runwire_realtime.stream_topic import StreamTopic, of_one_writer
from runwire_realtime.subscription import is_relative
from runwire_realtime.wants import Wants

if TYPE_CHECKING:
    from runwire_realtime.run_reader import RunReader


class StreamReader:
    """Reads a stream for all subscriptions of a connection that asked for it."""

    # One for each connection, and many of them: no dict beside it.
    __slots__ = (
        "_announced",
        "_as_text",
        "_asked",
        "_cohort",
        "_ended",
        "_holds_slot",
        "_is_reading",
        "_limits",
        "_next",
        "_outbox",
        "_page",
        "_tells_place",
        "_text",
        "_text_settled",
        "_text_used",
        "_wants",
        "is_over",
        "is_queued",
        "run",
        "subs",
        "topic",
    )

    def __init__(
        self, topic: StreamTopic, run: "RunReader", outbox: Outbox, wants: Wants, limits: HubLimits
    ) -> None:
        self.topic = topic
        self.run = run
        self.is_queued = False
        # The seq to be written next, while it stands for itself.
        self._next: int | None = None
        self._cohort: Cohort | None = None
        # `eof` was written.
        self.is_over = False
        # Who reads: the subscriptions' names, for gaps.
        self.subs: set[str] = set()
        self._outbox = outbox
        self._wants = wants
        self._limits = limits
        self._asked: list[tuple[StreamStart, bool]] = []
        self._as_text = True
        # The text so far was sent, or cannot be.
        self._text_settled = False
        self._is_reading = False
        self._holds_slot = False
        self._page: deque[Chunk] = deque()
        # The text so far as a message, and the seq after it; to be called once it was used or not.
        self._text: tuple[bytes, int] | None = None
        self._text_used: Callable[[], None] | None = None
        # From this mark on, other executions are announced.
        self._announced = 0
        self._ended: int | None = None
        self._tells_place = False

    @property
    def next(self) -> int | None:
        """The seq to be written next; None until it is known where the stream stands."""
        return self._next if self._cohort is None else self._cohort.next

    def _move_to(self, place: int) -> None:
        self.fall_out(place)
        self._next = place

    def _fall_in(self) -> None:
        """Go on with all the others that have got everything, where the socket allows it."""
        if self._cohort is None and self._outbox.line is not None and self._is_in_step:
            self._cohort = self.topic.fall_in(self, self._outbox.line)

    def fall_out(self, place: int) -> None:
        """Go on alone, from a place."""
        if self._cohort is not None:
            self.topic.fall_out(self, self._cohort)
            self._cohort, self._next = None, place

    @property
    def _is_in_step(self) -> bool:
        """Whether nothing is due but chunks that are still to be written."""
        topic = self.topic
        is_there = self._next == topic.end and self._announced >= len(topic.marks)
        is_busy = self._tells_place or self._is_reading or self.wants_text or self.is_over
        return is_there and not self._has_ended and not is_busy

    @property
    def _has_ended(self) -> bool:
        """Whether there is an end that was not told yet."""
        topic = self.topic
        return topic.eof_reason is not None or topic.ended_execution not in (None, self._ended)

    def ask(self, sub: str, request: StreamRequest, *, is_lenient: bool, is_new: bool) -> None:
        """Add a subscription that reads from its own place: the lowest counts.

        `is_lenient`: a place beyond the end stands for the end. `is_new`: the stream appeared after
        it was asked for, so that all of it is news.
        """
        self.subs.add(sub)
        self._as_text = self._as_text and request.form == "text"
        if self._text is not None and not self.wants_text:
            self._drop_page()
        self._asked.append((request.start, is_lenient))
        if self.topic.is_known or self.topic.eof_reason is not None:
            self.open(is_new=is_new)

    def leave(self, sub: str) -> None:
        self.subs.discard(sub)

    def open(self, *, is_new: bool) -> None:
        """Decide where to begin, now that it is known where the stream stands."""
        asked, self._asked = self._asked, []
        for start, is_lenient in asked:
            place = 0 if is_new and is_relative(start) else self._place(start, is_lenient)
            if self.next is None or place < self.next:
                self._go_to(place)
            elif place == self.next:
                # Whoever comes in here has not heard whose chunks begin here.
                self._announced = min(self._announced, self._marks_before(place))
            # Only the server knows where a relative place is: to resume there, it must be told.
            tells_place = is_relative(start) and self.next == place
            self._tells_place = self._tells_place or tells_place
        self.mark()

    def _place(self, start: StreamStart, is_lenient: bool) -> int:
        head = self.topic.head
        match start:
            case "start":
                return 0
            case "latest":
                return head
            case int() if start < 0:
                return max(0, head + start)
            case int() if start <= head:
                return start
            case _ if is_lenient:
                return head
            case _:
                self._gap(GapReason.AHEAD, 0)
                return 0

    def _go_to(self, place: int) -> None:
        self._move_to(place)
        self.is_over = self._tells_place = False
        self._ended = None
        self._text_settled = place != 0
        self._announced = self._marks_before(place)
        self._drop_page()

    def _marks_before(self, place: int) -> int:
        """Return how many executions need no announcement: the first, and those of before."""
        return max(1, sum(mark.from_seq < place for mark in self.topic.marks))

    def _gap(self, reason: GapReason, next_seq: int) -> None:
        for sub in sorted(self.subs):
            self.say_gap(sub, reason, next_seq)

    def say_gap(self, sub: str, reason: GapReason, next_seq: int) -> None:
        """Tell a subscription that its position does not hold, and where it goes on."""
        self._outbox.say(
            messages.stream_gap(sub, reason, self.topic.run_id, self.topic.key, next_seq)
        )

    def mark(self) -> None:
        """Note that there may be news of the stream."""
        if self._cohort is not None:
            self.fall_out(self._cohort.next)
        self._outbox.mark(self)

    def close(self) -> None:
        """Read no more."""
        self.is_over = True
        if self._cohort is not None:
            self.fall_out(self._cohort.next)
        self.topic.readers.discard(self)
        self.topic.apart.discard(self)
        for wanted in (self._wants.pages, self._wants.texts):
            if self in wanted:
                del wanted[self]
                self._is_reading = False
        self._drop_page()

    @property
    def has_more(self) -> bool:
        topic = self.topic
        # What is known to exist and not in the ring yet is told of when it is.
        is_behind = self.next is not None and self.next < topic.end
        return is_behind or self._has_ended or self._announced < len(topic.marks)

    @property
    def is_underway(self) -> bool:
        return self.next is not None and not self._tells_place

    def produce(self, budget: int) -> bytes | None:
        """Return the next message of this stream, if there is one."""
        if self.is_over or self.next is None:
            return None
        message = self._produced(self.next, budget)
        self._fall_in()
        return message

    def _produced(self, seq: int, budget: int) -> bytes | None:
        said = self._place_told() or self._attempt()
        if seq < self.topic.head:
            return said or self._chunks(seq, budget)
        return said or self._end() or self._eof()

    def _place_told(self) -> bytes | None:
        """Return a message without chunks, for a client that could not know where it begins."""
        if not self._tells_place or self.next is None:
            return None
        self._tells_place = False
        head, tail = messages.chunks_around(self.topic.run_id, self.topic.key, None, None)
        return messages.chunks(head, self.next, tail, ())

    def _attempt(self) -> bytes | None:
        marks = self.topic.marks
        if self._announced >= len(marks) or marks[self._announced].from_seq != self.next:
            return None
        mark = marks[self._announced]
        self._announced += 1
        return messages.attempt(self.topic.run_id, self.topic.key, mark.attempt, mark.from_seq)

    def _chunks(self, seq: int, budget: int) -> bytes | None:
        if self.wants_text:
            return self._text_so_far(seq, budget)
        available = self._available(seq, budget)
        if not available:
            return None
        by_one = of_one_writer(self._until_mark(available))
        self._advance(by_one[-1].seq + 1)
        return self.topic.message(by_one)

    @property
    def wants_text(self) -> bool:
        """Whether all the text so far is to come as one piece."""
        return self._as_text and not self._text_settled

    @property
    def text_before(self) -> int:
        """Up to where that reaches: not beyond what is known, nor into another execution's."""
        marks, end = self.topic.marks, self.topic.end
        return min(end, marks[self._announced].from_seq) if self._announced < len(marks) else end

    def _text_so_far(self, seq: int, budget: int) -> bytes | None:
        if self._text is not None:
            (message, next_seq), self._text = self._text, None
            self._text_settled = True
            self._advance(next_seq)
            self._drop_text()
            return message
        if not self.topic.has(seq):
            if seq < self.topic.first:
                self._read(self._wants.text)
            # Else the feed is about to read it into the ring, for everybody.
            return None
        self._text_settled = True
        chunks = self._until_mark(self.topic.chunks_from(seq, self._limits.text_bytes))
        strings = list(takewhile(_is_string, chunks))
        if not strings:
            return self._chunks(seq, budget)
        next_seq = strings[-1].seq + 1
        self._advance(next_seq)
        value = b"".join(chunk.body[1:-1] for chunk in strings)
        return messages.text(self.topic.run_id, self.topic.key, next_seq, value)

    def text_read(self, text: tuple[bytes, int] | None, used: Callable[[], None]) -> None:
        """Take the text so far: a message, and the seq after it. None: there is no such text.

        `used` is called once it is not held any more.
        """
        self._is_reading = False
        if self.is_over or self.next != 0 or not self.wants_text or text is None:
            self._text_settled = self._text_settled or text is None
            used()
            self._drop_page()
        else:
            self._text, self._text_used = text, used
        self._outbox.mark(self)

    def _drop_text(self) -> None:
        self._text = None
        used, self._text_used = self._text_used, None
        if used is not None:
            used()

    def _available(self, seq: int, budget: int) -> list[Chunk]:
        if self._page:
            return _within(self._page, budget)
        if self.topic.has(seq):
            return self.topic.chunks_from(seq, budget)
        if seq < self.topic.first:
            self._read(self._wants.page)
        # Else the feed is about to read it into the ring, for everybody.
        return []

    def _until_mark(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        marks = self.topic.marks
        if self._announced >= len(marks):
            return list(chunks)
        before = [chunk for chunk in chunks if chunk.seq < marks[self._announced].from_seq]
        return before or list(chunks)

    def _advance(self, next_seq: int) -> None:
        self._move_to(next_seq)
        while self._page and self._page[0].seq < next_seq:
            self._page.popleft()
        if not self._page and not self._is_reading:
            self._release()

    def _end(self) -> bytes | None:
        topic = self.topic
        ended = topic.ended_execution
        if ended is None or ended == self._ended or not topic.marks or self.next is None:
            return None
        self._ended = ended
        return messages.end(topic.run_id, topic.key, topic.marks[-1].attempt, self.next)

    def _eof(self) -> bytes | None:
        topic = self.topic
        if topic.eof_reason is None or self.next is None:
            return None
        self.is_over = True
        self.run.stream_over()
        reason = EofReason(topic.eof_reason)
        return messages.eof(topic.run_id, topic.key, self.next, reason)

    def _read(self, want: Callable[["StreamReader"], None]) -> None:
        if self._is_reading:
            return
        if not self._holds_slot and not self._outbox.acquire(self):
            return
        self._holds_slot = self._is_reading = True
        want(self)

    def page_read(self, from_seq: int, chunks: Sequence[Chunk]) -> None:
        """Take a page of the log that begins at `from_seq`."""
        self._is_reading = False
        if self.is_over or from_seq != self.next:
            self._drop_page()
            self._outbox.mark(self)
            return
        if not chunks or chunks[0].seq > from_seq:
            # The log keeps chunks for a while only.
            place = chunks[0].seq if chunks else self.topic.first
            self._gap(GapReason.RETENTION, place)
            self._move_to(place)
            self._announced = self._marks_before(place)
            self._text_settled = True
        # No further than the ring: whose attempt comes after it is not known yet.
        end = self.topic.end
        self._page = deque(chunk for chunk in chunks if chunk.seq < end)
        if not self._page:
            self._release()
        self._outbox.mark(self)

    def page_failed(self) -> None:
        """Ask again: the log could not be read."""
        self._is_reading = False
        if self.is_over:
            self._drop_page()
        self._outbox.mark(self)

    def _drop_page(self) -> None:
        self._page.clear()
        self._drop_text()
        if not self._is_reading:
            self._release()

    def _release(self) -> None:
        if self._holds_slot:
            self._holds_slot = False
            self._outbox.release()


def _is_string(chunk: Chunk) -> bool:
    return chunk.body.startswith(b'"')


def _within(chunks: Sequence[Chunk] | deque[Chunk], budget: int) -> list[Chunk]:
    """Return at least one chunk, then as many as fit."""
    taken: list[Chunk] = []
    for chunk in chunks:
        budget -= len(chunk.body)
        if taken and budget < 0:
            break
        taken.append(chunk)
    return taken
