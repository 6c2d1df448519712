"""Frames: JSON arrays joined from messages, the same bytes for all who get the same. [core]"""

from collections.abc import Sequence
from typing import Final

# Connections that keep up get the same frame within one turn of the loop; a few are enough.
_KEPT: Final = 16
_KEPT_BYTES: Final = 64 * 1024
# The first byte of a websocket frame: the last of its message, which is text.
_WHOLE_TEXT: Final = 0x81


class Frame:
    """One array of messages, as bytes and, for carriers that want it, in another form."""

    __slots__ = ("_text", "_wire", "data")

    def __init__(self, messages: Sequence[bytes]) -> None:
        self.data = b"[" + b",".join(messages) + b"]"
        self._text: str | None = None
        self._wire: bytes | None = None

    @property
    def text(self) -> str:
        if self._text is None:
            self._text = self.data.decode()
        return self._text

    @property
    def wire(self) -> bytes:
        """The websocket's own frame around it: whole, of text, not masked."""
        if self._wire is None:
            self._wire = _head(len(self.data)) + self.data
        return self._wire


def _head(size: int) -> bytes:
    if size < 126:
        return bytes((_WHOLE_TEXT, size))
    if size < 1 << 16:
        return bytes((_WHOLE_TEXT, 126)) + size.to_bytes(2)
    return bytes((_WHOLE_TEXT, 127)) + size.to_bytes(8)


class Frames:
    """Joins messages into frames, and remembers the last ones."""

    def __init__(self) -> None:
        self._kept: dict[tuple[bytes, ...], Frame] = {}

    def frame(self, messages: Sequence[bytes]) -> Frame:
        """Return the frame of these messages."""
        key = tuple(messages)
        frame = self._kept.get(key)
        if frame is None:
            frame = Frame(messages)
            if len(frame.data) <= _KEPT_BYTES:
                if len(self._kept) >= _KEPT:
                    self._kept.clear()
                self._kept[key] = frame
        return frame
