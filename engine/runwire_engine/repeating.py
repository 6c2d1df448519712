"""What a process does again and again until it is closed, by the clock or when it is woken."""

from abc import ABC, abstractmethod
from typing import Final

import anyio

# What `_step` returns where nothing is to be done until `wake`.
WHEN_WOKEN: Final = float("inf")


class Repeating(ABC):
    """Does a step again and again, when it says or is woken; `run` belongs into a task group."""

    def __init__(self) -> None:
        self._closing = anyio.Event()
        # Somebody said that there is something to do, or `close` did.
        self._wanted = anyio.Event()
        # Not at a step, and none will follow.
        self.idle = True

    @abstractmethod
    async def _step(self) -> float:
        """Do it once, raising nothing; return the seconds until the next time at the latest."""

    async def run(self) -> None:
        """Go on until `close`."""
        self.idle = False
        try:
            while not self._closing.is_set():
                self._wanted = anyio.Event()
                seconds = await self._step()
                with anyio.move_on_after(seconds):
                    await self._wanted.wait()
        finally:
            self.idle = True

    def wake(self) -> None:
        """Have the next step done now, or right after the one that is being done."""
        self._wanted.set()

    def close(self) -> None:
        """Have `run` return after the step it is at."""
        self._closing.set()
        self._wanted.set()

    async def _pause(self, seconds: float) -> None:
        """Wait inside a step whatever wakes it, until `close`."""
        with anyio.move_on_after(seconds):
            await self._closing.wait()
