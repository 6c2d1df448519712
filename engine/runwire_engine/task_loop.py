"""The asyncio tasks of `async def` runs, on the loop that made it.

Not a task group: the code of a run expects to be cancelled once, as asyncio does it, and may await
in its `finally` (anyio would cancel those awaits again); and one that ignores its cancellation must
not keep the worker from stopping. So the end is: cancel all, wait a little, leave the rest behind.
"""

import asyncio
import logging

from runwire_engine.branches import forking
from runwire_engine.bridge import Bridge, Work

logger = logging.getLogger("runwire.worker")

_UNWIND_WITHIN = 1.0


class TaskLoop:
    """Starts coroutines from any thread and owns their tasks."""

    def __init__(self) -> None:
        self.bridge = Bridge(self._start)
        # So that what a run starts is known as its.
        self._factory = self.bridge.loop.get_task_factory()
        self.bridge.loop.set_task_factory(forking(self._factory))
        self._tasks: set[asyncio.Task[None]] = set()

    def _start(self, work: Work) -> None:
        task = self.bridge.loop.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> int:
        """Cancel what is left and return how many tasks did not end."""
        self.bridge.close()
        self.bridge.loop.set_task_factory(self._factory)
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=_UNWIND_WITHIN)
        if self._tasks:
            logger.warning("%d tasks ignored that the worker stops", len(self._tasks))
        return len(self._tasks)
