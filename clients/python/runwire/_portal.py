"""A thread with an event loop, on which code without one runs coroutines."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any, TypeVar

from runwire.errors import ConfigurationError

T = TypeVar("T")


class Portal:
    """Starts its thread when first used; a daemon, so that a forgotten client ends no later than
    its process."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return its value; an interrupt cancels it."""
        try:
            loop = self._started()
        except BaseException:
            work.close()
            raise
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, source: AsyncGenerator[T]) -> Iterator[T]:
        """Yield what an async generator yields; leaving the loop closes it."""
        try:
            while True:
                values = self.run(_next(source))
                if not values:
                    return
                yield values[0]
        finally:
            self.run(source.aclose())

    def close(self) -> None:
        """Stop the loop and wait for the thread. Later calls raise ConfigurationError."""
        with self._starting:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._closed:
                raise ConfigurationError("this client was closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="runwire", daemon=True
                )
                self._thread.start()
            if threading.current_thread() is self._thread:
                raise ConfigurationError("a blocking call was made from the client's own loop")
            return self._loop


async def _next(source: AsyncGenerator[T]) -> tuple[T, ...]:
    try:
        return (await anext(source),)
    except StopAsyncIteration:
        return ()
