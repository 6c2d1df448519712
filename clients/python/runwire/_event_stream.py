"""Reads server-sent events out of the bytes of a response. [core]"""

from collections.abc import Iterator
from typing import Final

from runwire.wire import MAX_MESSAGE_BYTES

# As for a websocket's frame: one message alone, and some room.
MAX_EVENT: Final = 2 * MAX_MESSAGE_BYTES


class TooLongError(Exception):
    """An event is longer than any that a server sends."""


class EventReader:
    """Takes bytes as they come; a line may be cut anywhere, and end with LF, CR LF or CR."""

    def __init__(self) -> None:
        self._rest = bytearray()
        # Where the search for a line's end goes on.
        self._searched = 0
        self._data: list[bytes] = []
        self._size = 0
        # The LF of a CR LF that was cut in two is not another line.
        self._skips_newline = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the data of each event that is complete. Raises TooLongError."""
        self._rest += data
        for line in self._lines():
            if line:
                self._take(line)
            elif self._data:
                whole = b"\n".join(self._data)
                self._data, self._size = [], 0
                yield whole
        if self._size + len(self._rest) > MAX_EVENT:
            raise TooLongError

    def _lines(self) -> Iterator[bytes]:
        while True:
            if self._skips_newline and self._rest:
                if self._rest.startswith(b"\n"):
                    del self._rest[:1]
                self._skips_newline = False
            end = self._end_of_line()
            if end is None:
                return
            line = bytes(self._rest[:end])
            self._skips_newline = self._rest.startswith(b"\r", end)
            del self._rest[: end + 1]
            self._searched = 0
            yield line

    def _end_of_line(self) -> int | None:
        ends = [self._rest.find(mark, self._searched) for mark in (b"\n", b"\r")]
        found = [end for end in ends if end >= 0]
        if not found:
            self._searched = len(self._rest)
            return None
        return min(found)

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)
