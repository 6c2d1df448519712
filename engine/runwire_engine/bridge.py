"""Hands work to one event loop from any other thread.

A worker has two loops and many threads. What crosses between them crosses here: a burst of posts
costs one wake-up of the loop, since waking a sleeping loop is what is expensive (a system call and
a change of threads, some 50 us).
"""

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeAlias, TypeVar

logger = logging.getLogger("runwire.worker")

T = TypeVar("T")
Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class Bridge:
    """Runs functions and coroutines on the loop that made it; may be called from anywhere."""

    def __init__(self, start: Callable[[Work], object]) -> None:
        """Take what starts a coroutine on this loop: `start_soon` of its task group."""
        self.loop = asyncio.get_running_loop()
        self._start = start
        # Not the poster's: what runs here must not see the run that asked for it.
        self._variables = contextvars.copy_context()
        self._posted: deque[Callable[[], object]] = deque()
        # True from the first post of a burst until the loop has woken for it.
        self._waking = False
        self._closed = False

    def post(self, work: Callable[[], object]) -> None:
        """Run a function on the loop soon, in the order posted; once the loop is closed, never."""
        self._posted.append(work)
        if self._waking:
            return
        self._waking = True
        try:
            self.loop.call_soon_threadsafe(self._run_posted, context=self._variables)
        except RuntimeError:
            self._posted.clear()
            self._waking = False

    def start(self, work: Work) -> None:
        """Start a coroutine, from the loop itself; an error of it is logged and ends only it."""
        if not self._closed:
            self._start(partial(_guarded, work))

    def call(self, work: Callable[[], Awaitable[T]]) -> "Future[T]":
        """Start a coroutine on the loop and return the promise of its result.

        Whoever stops waiting does not stop it: what it writes, it writes whole.
        """
        promise = pending_promise(work)

        async def keep() -> None:
            try:
                promise.set_result(await work())
            except Exception as error:
                promise.set_exception(error)
            except BaseException:
                promise.set_exception(_stopped())
                raise

        def start() -> None:
            if self._closed:
                promise.set_exception(_stopped())
            else:
                self._start(keep)

        if self.loop.is_closed():
            promise.set_exception(_stopped())
        else:
            self.post(start)
        return promise

    def close(self) -> None:
        """Start nothing more."""
        self._closed = True

    def _run_posted(self) -> None:
        self._waking = False
        for _ in range(len(self._posted)):
            work = self._posted.popleft()
            try:
                work()
            except Exception:
                logger.exception("work handed to a loop failed")


async def _guarded(work: Work) -> None:
    try:
        await work()
    except Exception:
        logger.exception("work handed to a loop failed")


def pending_promise(_of: Callable[[], Awaitable[T]] | None = None) -> "Future[T]":
    """Return a promise that whoever waits for it cannot cancel."""
    promise: Future[T] = Future()
    promise.set_running_or_notify_cancel()
    return promise


async def arrival(promise: "Future[T]") -> T:
    """Wait on any loop for a promise kept on another thread."""
    return await asyncio.wrap_future(promise)


def _stopped() -> RuntimeError:
    return RuntimeError("the worker has stopped")
