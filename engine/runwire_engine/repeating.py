"""What a process does again and again until it is closed: the sweep, the ticks."""

from abc import ABC, abstractmethod

import anyio


class Repeating(ABC):
    """Does a step again and again, as soon as it says; `run` belongs into a task group."""

    def __init__(self) -> None:
        self._closing = anyio.Event()
        # Not at a step, and none will follow.
        self.idle = True

    @abstractmethod
    async def _step(self) -> float:
        """Do it once, raising nothing; return the seconds until the next time."""

    async def run(self) -> None:
        """Go on until `close`."""
        self.idle = False
        try:
            while not self._closing.is_set():
                seconds = await self._step()
                with anyio.move_on_after(seconds):
                    await self._closing.wait()
        finally:
            self.idle = True

    def close(self) -> None:
        """Have `run` return after the step it is at."""
        self._closing.set()
