"""Names the task that blocks the task loop, with its stack.

An `async def` task that computes or calls a blocking function without `await` stops every other
`async def` task of its worker. It loses no lease, since heartbeats live on the worker's own loop,
from where this looks at the task loop.
"""

import asyncio
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterable

import anyio

logger = logging.getLogger("runwire.watchdog")

BLOCKED_AFTER = 1.0
_CHECK_EVERY = 0.25
_MAX_NAMED = 5
_MAX_STACK = 8 * 1024


class Watchdog:
    """Watches one loop from another one."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        thread: int,
        executing: Callable[[], Iterable[str]],
        *,
        blocked_after: float = BLOCKED_AFTER,
    ) -> None:
        """Watch a loop and its thread; `executing` names the runs that are on it."""
        self._loop = loop
        self._thread = thread
        self._executing = executing
        self._blocked_after = blocked_after
        self._asked_at: float | None = None
        self._told = False

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            await anyio.sleep(min(_CHECK_EVERY, self._blocked_after / 4))
            self._look(time.monotonic())

    def _look(self, now: float) -> None:
        if self._asked_at is None:
            self._ask(now)
        elif now - self._asked_at >= self._blocked_after and not self._told:
            self._told = True
            self._tell(now - self._asked_at)

    def _ask(self, now: float) -> None:
        self._asked_at = now
        try:
            self._loop.call_soon_threadsafe(self._answered)
        except RuntimeError:  # the loop is closed: nothing is left to watch
            self._asked_at = None

    def _answered(self) -> None:
        """Run on the watched loop: it is not blocked."""
        asked_at, self._asked_at = self._asked_at, None
        if self._told and asked_at is not None:
            logger.warning("the task loop goes on after %.1f s", time.monotonic() - asked_at)
        self._told = False

    def _tell(self, blocked: float) -> None:
        logger.warning(
            "the task loop has been blocked for %.1f s by %s; async tasks must await, or be `def`"
            " tasks, which run in threads\n%s",
            blocked,
            self._suspects(),
            _stack(self._thread),
        )

    def _suspects(self) -> str:
        running = _running(self._loop)
        executing = list(self._executing())
        if running in executing:
            return f"run {running}"
        named = ", ".join(executing[:_MAX_NAMED]) or "no run"
        more = len(executing) - _MAX_NAMED
        return f"one of the runs {named}" + (f" and {more} more" if more > 0 else "")


def _running(loop: asyncio.AbstractEventLoop) -> str | None:
    """Return the name of the loop's current asyncio task: the executor names tasks by their run."""
    try:
        current = asyncio.current_task(loop)
    except RuntimeError:
        return None
    return None if current is None else current.get_name()


def _stack(thread: int) -> str:
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]
    if frame is None:
        return "(its thread has ended)"
    return "".join(traceback.format_stack(frame))[-_MAX_STACK:]
