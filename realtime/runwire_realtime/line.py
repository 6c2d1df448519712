"""A socket whose bytes are handed over at once, without waiting. [core]

Whoever owns the socket says when it is free: nothing else is due to it, and it takes what it is
given. Only then may others write to it, past its outbox.
"""

from collections.abc import Callable
from typing import Final

# A descriptor that nothing can be written to.
NOWHERE: Final = -1


class Line:
    """What of such a socket those have to know who write the same to many."""

    __slots__ = ("descriptor", "is_free", "write", "written_at")

    def __init__(self, write: Callable[[bytes], object], descriptor: int = NOWHERE) -> None:
        # Takes a whole frame of the carrier, or what the descriptor did not take of it.
        self.write = write
        # Where the bytes of a frame may go as they are, while it is free.
        self.descriptor = descriptor
        self.is_free = False
        self.written_at = 0.0
