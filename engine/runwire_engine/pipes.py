"""The pipes of one attempt that nobody reads: its end waits for them, then cuts them off.

Nobody reading means that the function neither iterates over the pipe nor waits for it. What the
pipe writes belongs to the run nevertheless, so that the attempt has not ended before it has.
"""

import asyncio
import logging
import threading
import time
from typing import Final

from runwire._context import OpenPipe, OpenSyncPipe

logger = logging.getLogger("runwire.worker")

# As Trigger.dev's worker.
WAIT: Final = 60.0


class Pipes:
    """What goes on beside the function; noted from any thread, finished where the function ran."""

    def __init__(self, run_id: str, *, wait: float = WAIT) -> None:
        self._run_id = run_id
        self._wait = wait
        self._lock = threading.Lock()
        self._open: list[OpenPipe] = []
        self._open_blocking: list[OpenSyncPipe] = []

    def add(self, pipe: OpenPipe) -> None:
        with self._lock:
            # Those that are over are let go here, so that a run with very many holds few.
            self._open = [*(one for one in self._open if one.is_open), pipe]

    def add_blocking(self, pipe: OpenSyncPipe) -> None:
        with self._lock:
            self._open_blocking = [*(one for one in self._open_blocking if one.is_open), pipe]

    async def finish(self) -> None:
        """Wait until all is written, for a bounded time; raises what a source failed with."""
        pipes = self._take()
        if not pipes:
            return
        waiting = [asyncio.ensure_future(pipe.finish()) for pipe in pipes]
        try:
            _, late = await asyncio.wait(
                waiting, timeout=self._wait, return_when=asyncio.FIRST_EXCEPTION
            )
        finally:
            for pipe, each in zip(pipes, waiting, strict=True):
                pipe.abort()
                each.cancel()
            await asyncio.wait(waiting)
        for each in waiting:
            if not each.cancelled():
                each.result()
        if late:
            self._warn(len(late))

    def finish_blocking(self) -> None:
        """The same for a `def` task, in its thread; looks at the clock after every chunk."""
        with self._lock:
            pipes, self._open_blocking = self._open_blocking, []
        ends_at = time.monotonic() + self._wait
        late = sum(not pipe.finish_blocking(lambda: time.monotonic() > ends_at) for pipe in pipes)
        if late:
            self._warn(late)

    def abort(self) -> None:
        """Write no more: the attempt has failed, or is to stop."""
        for pipe in self._take():
            pipe.abort()

    def _take(self) -> list[OpenPipe]:
        with self._lock:
            taken, self._open = self._open, []
        return [pipe for pipe in taken if pipe.is_open]

    def _warn(self, count: int) -> None:
        logger.warning(
            "run %s returned, but %d of its pipes still wrote after %.0f s; they are cut off",
            self._run_id,
            count,
            self._wait,
        )
