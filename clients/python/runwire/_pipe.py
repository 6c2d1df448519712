"""A source on its way into a stream: chunk by chunk, in order, as fast as the stream takes it.

Whoever iterates over a pipe drives it: a chunk is written when it is taken, before it is handed
out. A pipe of a run that nobody has begun to read drives itself, so that a plain
`streams.pipe(key, source)` is enough; the worker waits for it at the end of the attempt. What it
wrote is kept for a reader that comes later, up to a bound at which it waits for one.
"""

import asyncio
import weakref
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
)
from contextlib import suppress
from typing import Final, Generic, Protocol, TypeVar

from runwire.errors import InvalidValueError

T = TypeVar("T")

# Chunks that a pipe keeps for a reader that may come: as many as a stream of a run buffers.
MAX_KEPT: Final = 1000


class Sink(Protocol):
    """Where chunks (JSON text) are written, in order."""

    async def write(self, body: str) -> None:
        """Write one chunk; waits while there is no room."""
        ...

    async def end(self) -> None:
        """Say that no more comes, once all is stored."""
        ...

    async def flush(self) -> None:
        """Wait until all is on its way: it was left before its end."""
        ...


class Nowhere:
    """Outside of a run, `metadata.stream` writes nothing."""

    async def write(self, body: str) -> None:
        pass

    async def end(self) -> None:
        pass

    async def flush(self) -> None:
        pass


class _Flow(Generic[T]):
    """Takes chunks from the source, writes them, and hands them out; one at a time takes them."""

    def __init__(
        self, source: AsyncIterable[T] | Iterable[T], sink: Sink, encode: Callable[[T], str]
    ) -> None:
        self._steps = _written(source, sink, encode)
        self._kept: deque[T] = deque()
        self._keeps = True
        self._has_reader = False
        self._is_completing = False
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Set when somebody reads, or when nobody will.
        self._decided = asyncio.Event()
        # Set once there is nothing left to do.
        self.is_over = False

    def begin_soon(self) -> None:
        """Begin by itself unless somebody begins to read first."""
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._begin, self._loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if not (self._has_reader or self._is_completing or self.is_over):
            self._task = loop.create_task(self._drive())
            # Whoever waits hears of an error; where nobody does any more, it was aborted.
            self._task.add_done_callback(look_at)

    async def _drive(self) -> None:
        while not self._has_reader:
            if self._keeps and len(self._kept) >= MAX_KEPT:
                self._decided.clear()
                await self._decided.wait()
                continue
            try:
                chunk = await anext(self._steps)
            except StopAsyncIteration:
                self.is_over = True
                return
            if self._keeps:
                self._kept.append(chunk)

    def take(self) -> None:
        """Note that somebody reads: from now on the reader drives."""
        self._has_reader = True
        self._decided.set()

    async def read(self) -> AsyncGenerator[T]:
        while True:
            while self._kept:
                yield self._kept.popleft()
            if self._task is None:
                break
            task, self._task = self._task, None
            await task
        async for chunk in self._steps:
            yield chunk
        self.is_over = True

    def keep_nothing(self) -> None:
        """Note that nobody will read what was not taken yet."""
        self._keeps = False
        self._kept.clear()
        self._decided.set()

    async def complete(self) -> None:
        """Write the rest."""
        self._is_completing = True
        self.keep_nothing()
        task, self._task = self._task, None
        if task is not None:
            await task
        async for _ in self._steps:
            pass
        self.is_over = True

    def forget(self) -> None:
        """Keep nothing from now on; called on any thread, when the pipe itself is gone."""
        if self._loop is not None and self.is_open:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self.keep_nothing)

    # For whoever ends the attempt ----------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether it has to be waited for; one that is read goes only as far as its reader."""
        return not (self.is_over or self._has_reader)

    async def finish(self) -> None:
        if self.is_open:
            await self.complete()

    def abort(self) -> None:
        self.is_over = True
        if self._task is not None:
            self._task.cancel()


class Pipe(Generic[T]):
    """What is piped, to be read once. A chunk is written before it is handed out."""

    def __init__(
        self,
        source: AsyncIterable[T] | Iterable[T],
        sink: Sink,
        encode: Callable[[T], str],
        opened: "Callable[[_Flow[T]], None] | None" = None,
    ) -> None:
        """Take whom to tell that it goes on by itself; nobody: it is driven by its reader alone."""
        self._flow = _Flow(source, sink, encode)
        self._iterator: AsyncIterator[T] | None = None
        if opened is not None:
            opened(self._flow)
            self._flow.begin_soon()
            # Once this is gone, nobody can come to read.
            weakref.finalize(self, self._flow.forget).atexit = False

    def __aiter__(self) -> AsyncIterator[T]:
        if self._iterator is None:
            self._flow.take()
            self._iterator = self._flow.read()
        return self._iterator

    async def wait_until_complete(self) -> None:
        """Write the rest, and wait until all of it is stored."""
        await self._flow.complete()


def look_at(task: "asyncio.Task[None]") -> None:
    """Take note of how a task ended, so that asyncio does not complain that nobody did."""
    if not task.cancelled():
        task.exception()


async def _written(
    source: AsyncIterable[T] | Iterable[T], sink: Sink, encode: Callable[[T], str]
) -> AsyncGenerator[T]:
    try:
        async for chunk in asynchronous(source):
            await sink.write(encode(chunk))
            yield chunk
    except (Exception, GeneratorExit):
        # Broken, or left: what was handed out is written, and the stream has no end of its own.
        with suppress(Exception):
            await sink.flush()
        raise
    await sink.end()


async def asynchronous(source: AsyncIterable[T] | Iterable[T]) -> AsyncIterator[T]:
    """Yield what a source yields, sync or async."""
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    elif isinstance(source, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        for item in source:
            yield item
    else:
        raise InvalidValueError(
            f"a {type(source).__name__} is not iterable, so that it cannot be piped", code="source"
        )


class SyncPipe(Generic[T]):
    """What is piped by a `def` task, to be read once. At the end of the attempt the worker writes
    what nobody has read."""

    def __init__(
        self,
        source: Iterable[T],
        write: Callable[[str], object],
        end: Callable[[], object],
        encode: Callable[[T], str],
    ) -> None:
        self._iterator = self._run(source, write, end, encode)
        self._is_over = False
        self._has_reader = False

    def __iter__(self) -> Iterator[T]:
        self._has_reader = True
        return self._iterator

    def wait_until_complete(self) -> None:
        """Write the rest, and wait until all of it is stored."""
        for _ in self._iterator:
            pass

    def _run(
        self,
        source: Iterable[T],
        write: Callable[[str], object],
        end: Callable[[], object],
        encode: Callable[[T], str],
    ) -> Iterator[T]:
        for chunk in source:
            write(encode(chunk))
            yield chunk
        end()
        self._is_over = True

    # For whoever ends the attempt ----------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return not (self._is_over or self._has_reader)

    def finish_blocking(self, is_late: Callable[[], bool]) -> bool:
        """Write the rest, unless it takes too long; say whether all is written."""
        if not self.is_open:
            return True
        for _ in self._iterator:
            if is_late():
                return False
        return True
