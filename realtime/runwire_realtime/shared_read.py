"""One read for all who ask before it begins.

A thousand who come back at once ask the same of the database. None of them may be answered by a
read that began before it asked; those who asked while one was under way share the next.
"""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class SharedRead(Generic[T]):
    """Reads one thing, one read at a time."""

    def __init__(self, read: Callable[[], Awaitable[T]]) -> None:
        self._read = read
        self._turn = anyio.Lock()
        self._begun = 0
        # The newest answer, and which read it is of.
        self._answer: tuple[int, T] | None = None

    async def get(self) -> T:
        """Return what a read finds that begins from here on; raises what it raises."""
        before = self._begun
        async with self._turn:
            if self._answer is not None and self._answer[0] > before:
                return self._answer[1]
            self._begun += 1
            answer = await self._read()
            self._answer = self._begun, answer
            return answer
