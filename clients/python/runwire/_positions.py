"""How far the streams of one subscription have been handed out. [core]

Rule: a stream's chunks are handed out with seq exactly +1. What came before is dropped; one that
does not continue is a HoleError, unless the server said so (`gap`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import orjson

from runwire._items import ChunkItem, EofItem, Request
from runwire._stream_keys import is_reserved
from runwire.wire import Json, JsonObject, StreamStart

# Of a client's frame of 64 KiB; the rest is for a cursor, tags and names.
MAX_HELD_BYTES: Final = 40 * 1024


@dataclass
class Position:
    """How far one stream has been handed out."""

    next: int | None = None  # None: wherever the server begins
    # Another execution of the run writes from here on; its first chunk was not handed out yet.
    restart: int | None = None
    length: int = 0  # characters so far, of a stream read as text from its start
    gap: str | None = None
    is_over: bool = False
    # On this socket, the server has come to where we are.
    is_reached: bool = False
    # Before that, something came that belongs to another subscription's place.
    has_missed: bool = False

    def moved(self, next: int) -> bool:
        """Note what was handed out. Return whether another execution began with it."""
        self.next = next
        if self.restart is None or self.restart >= next:
            return False
        self.restart = None
        return True

    def go_on(self, reason: str, next: int | None) -> None:
        self.next, self.length, self.gap, self.restart = next, 0, reason, None


class HoleError(Exception):
    """A chunk came that is not the next one."""


class Positions:
    """The streams of all runs that one subscription follows."""

    def __init__(self, request: Request) -> None:
        self._asked = request.streams
        self._as_text = request.as_text
        self._is_feed = "run" not in request.to
        self._has_begun = request.progress.cursor is not None
        self._held: dict[tuple[str, str], Position] = {
            key: Position(next=next) for key, next in request.progress.positions()
        }

    def requests(self) -> JsonObject | None:
        """Return from where the server is to send each stream on a new socket."""
        if self._asked is None:
            return None
        for position in self._held.values():
            position.is_reached = position.has_missed = False
        starts: dict[str, StreamStart] = dict(self._asked)
        for key, next in self._lowest().items():
            # In a feed, a run that joined while we were away may need its streams whole.
            if not self._is_feed or self._start_of(key) != "start":
                starts[key] = next
        form = {"as": "text"} if self._as_text else {}
        return {key: {"from": start, **form} for key, start in starts.items()}

    def held(self) -> dict[str, dict[str, int]] | None:
        """Return where the application stands, by run and stream; None: nothing was begun.

        What is not named comes whole. Of a feed with more streams than fit into a frame, those that
        are over are left out first, and what comes again is dropped. Of a run whose streams are all
        read from places the client knows, `requests` says it all.
        """
        starts = (self._asked or {}).values()
        if not starts or not (self._is_feed or any(map(_is_relative, starts))):
            return None
        if not (self._has_begun or any(each.next is not None for each in self._held.values())):
            return None
        held: dict[str, dict[str, int]] = {}
        room = MAX_HELD_BYTES
        for (run, key), position in sorted(self._held.items(), key=lambda each: each[1].is_over):
            if position.next is None:
                continue
            room -= len(orjson.dumps(key)) + 20 + (0 if run in held else len(run) + 8)
            if room < 0:
                break
            held.setdefault(run, {})[key] = position.next
        return held

    def began(self) -> None:
        """Note that the server serves the subscription: what it tells from now on is news."""
        self._has_begun = True

    def _lowest(self) -> dict[str, int]:
        lowest: dict[str, int] = {}
        for (_, key), position in self._held.items():
            if position.next is not None:
                lowest[key] = min(position.next, lowest.get(key, position.next))
        return lowest

    def _start_of(self, key: str) -> StreamStart:
        asked: Mapping[str, StreamStart] = self._asked or {}
        return asked.get(key, asked.get("*", "start"))

    def wants(self, key: str) -> bool:
        if self._asked is None:
            return False
        # Another subscription of the socket may read a reserved one, by its name.
        return key in self._asked or ("*" in self._asked and not is_reserved(key))

    def is_early(self, run: str, key: str, seq: int, *, may_be: bool) -> bool:
        """Say whether this is not for us yet, but sent because others on the socket are further.

        Raises HoleError when chunks before `seq` are missing and that is no explanation.
        """
        position = self._of(run, key)
        if position.next is None or seq <= position.next:
            position.is_reached, position.has_missed = True, False
            return False
        if position.is_reached or not may_be:
            raise HoleError
        position.has_missed = True
        return True

    @property
    def have_missed(self) -> bool:
        """Whether the server never came to where we are in some stream."""
        return any(position.has_missed for position in self._held.values())

    def chunks(
        self,
        run: str,
        key: str,
        seq: int,
        data: list[Json],
        attempt: int | None,
        writer: str | None,
        document: JsonObject | None,
    ) -> Iterator[ChunkItem]:
        """Yield the chunks that were not handed out yet."""
        position = self._of(run, key)
        # Chunks without data say where a stream begins that was asked for by "latest" or -n.
        expected = position.next = seq if position.next is None else position.next
        for index, value in enumerate(data[max(0, expected - seq) :], max(seq, expected)):
            if isinstance(value, str):
                position.length += len(value)
            is_restart = position.moved(index + 1)
            gap, position.gap = position.gap, None
            yield ChunkItem(run, key, index, value, attempt, writer, is_restart, gap, document)

    def text(
        self, run: str, key: str, up_to: int, value: str, document: JsonObject | None
    ) -> Iterator[ChunkItem]:
        """Yield what is new of the text so far, as one chunk that ends before `up_to`."""
        position = self._of(run, key)
        if up_to <= (position.next or 0):
            return
        rest, position.length = value[position.length :], len(value)
        is_restart = position.moved(up_to)
        gap, position.gap = position.gap, None
        yield ChunkItem(run, key, up_to - 1, rest, None, None, is_restart, gap, document)

    def attempt(self, run: str, key: str, from_seq: int) -> None:
        """Mark the chunk `from_seq` as the first of another execution, where it comes next.

        Elsewhere it was said to others on the socket: the server says it again when it is here.
        Where nothing can have been handed out before, there is nothing to start over.
        """
        position = self._of(run, key)
        is_here = position.next == from_seq or (position.next is None and position.gap is not None)
        if is_here and from_seq > 0:
            position.restart = from_seq

    def eof(self, run: str, key: str, next: int, reason: str) -> Iterator[EofItem]:
        """Yield the end of a stream, once."""
        position = self._of(run, key)
        if position.is_over:
            return
        position.is_over, position.next = True, next
        yield EofItem(run, key, next, reason)

    def go_on(self, run: str, key: str, reason: str, next: int | None) -> None:
        """Go on elsewhere; the next chunk is marked."""
        self._of(run, key).go_on(reason, next)

    def go_on_anywhere(self, reason: str) -> None:
        """Take every stream from wherever the server goes on; the next chunks are marked."""
        self._has_begun = False
        for position in self._held.values():
            position.go_on(reason, None)

    def restart(self, reason: str) -> None:
        """Begin every stream again where the application began; the first chunks are marked."""
        self._has_begun = False
        for run, key in list(self._held):
            del self._held[run, key]
            self._of(run, key).gap = reason

    def _of(self, run: str, key: str) -> Position:
        position = self._held.get((run, key))
        if position is None:
            start = self._start_of(key)
            first = 0 if start == "start" else start if isinstance(start, int) else -1
            position = self._held[run, key] = Position(next=first if first >= 0 else None)
        return position


def _is_relative(start: StreamStart) -> bool:
    """Say whether only the server knows where this is."""
    return start == "latest" or (isinstance(start, int) and start < 0)
