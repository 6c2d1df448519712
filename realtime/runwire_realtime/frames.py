"""Frames: JSON arrays joined from messages, the same bytes for all who get the same. [core]"""

from collections.abc import Sequence
from typing import Final

# Connections that keep up get the same frame within one turn of the loop; a few are enough.
_KEPT: Final = 16
_KEPT_BYTES: Final = 64 * 1024


class Frame:
    """One array of messages, as bytes and, for carriers that want it, as text."""

    __slots__ = ("_text", "data")

    def __init__(self, messages: Sequence[bytes]) -> None:
        self.data = b"[" + b",".join(messages) + b"]"
        self._text: str | None = None

    @property
    def text(self) -> str:
        if self._text is None:
            self._text = self.data.decode()
        return self._text


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
