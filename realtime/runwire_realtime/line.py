"""A socket whose bytes are handed over at once, without waiting. [core]

Whoever owns the socket says when it is free: nothing else is due to it, and it takes what it is
given. Only then may others write to it, past its outbox.
"""

from collections.abc import Callable


class Line:
    """What of such a socket those have to know who write the same to many."""

    __slots__ = ("is_free", "write", "written_at")

    def __init__(self, write: Callable[[bytes], object]) -> None:
        # Takes a whole frame of the carrier.
        self.write = write
        self.is_free = False
        self.written_at = 0.0
