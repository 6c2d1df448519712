"""Writing a stream chunk by chunk, and merging sources into it.

async with streams.writer("answer") as writer:
    await writer.write("Once ")
    writer.merge(completion)
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Generic, Self, TypeAlias, TypeVar

import anyio

from runwire._pipe import asynchronous, look_at

T = TypeVar("T")

Write: TypeAlias = Callable[[T], Awaitable[None]]


class Writer(Generic[T]):
    """Writes one stream. Use it with `async with`, which waits for what is merged and then says
    that the stream has ended; an error inside leaves it without an end."""

    def __init__(
        self,
        write: "Write[T]",
        end: Callable[[], Awaitable[None]],
        left: Callable[[], Awaitable[None]],
    ) -> None:
        """Take what writes, what ends the stream, and what to do when it is left by an error."""
        self._write = write
        self._end = end
        self._left = left
        self._merging: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def write(self, chunk: T) -> None:
        """Write one chunk; waits while the stream's buffer is full."""
        if self._is_closed:
            raise RuntimeError("this writer was closed")
        await self._write(chunk)

    def merge(self, source: AsyncIterable[T] | Iterable[T]) -> None:
        """Write what a source yields, beside what else is written.

        It returns at once; leaving the `async with` waits for it, and raises what it raised. The
        chunks of one source keep their order.
        """
        if self._is_closed:
            raise RuntimeError("this writer was closed")
        self._merging.add(asyncio.get_running_loop().create_task(self._drain(source)))

    async def _drain(self, source: AsyncIterable[T] | Iterable[T]) -> None:
        async for chunk in asynchronous(source):
            await self._write(chunk)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                await self._merged()
        except BaseException:
            await self._leave()
            raise
        if error is not None:
            await self._leave()
            return
        self._is_closed = True
        await self._end()

    async def _merged(self) -> None:
        """Wait for all sources, those that were merged meanwhile too."""
        while self._merging:
            done, self._merging = await asyncio.wait(
                self._merging, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()

    async def _leave(self) -> None:
        self._is_closed = True
        for task in self._merging:
            task.cancel()
        if self._merging:
            await asyncio.wait(self._merging)
        with suppress(Exception):
            await self._left()


async def executed(execute: Callable[[Writer[T]], Awaitable[object]]) -> AsyncGenerator[T]:
    """Yield what a function writes to the writer that it is given."""
    # Nothing is buffered: whoever writes waits until the chunk is taken.
    send, receive = anyio.create_memory_object_stream[T](0)

    async def nothing() -> None:
        """The end of the generator is the end of the stream."""

    async def run() -> None:
        with send:
            async with Writer(send.send, nothing, nothing) as writer:
                await execute(writer)

    task = asyncio.get_running_loop().create_task(run())
    task.add_done_callback(look_at)
    try:
        with receive:
            async for chunk in receive:
                yield chunk
        await task
    finally:
        task.cancel()
        await asyncio.wait([task])


class SyncWriter(Generic[T]):
    """Writes one stream from blocking code. Use it with `with`, which says that it has ended."""

    def __init__(self, write: Callable[[T], object], end: Callable[[], object]) -> None:
        self._write = write
        self._end = end

    def write(self, chunk: T) -> None:
        """Write one chunk; waits while the stream's buffer is full."""
        self._write(chunk)

    def merge(self, source: Iterable[T]) -> None:
        """Write what a source yields, all of it before it returns."""
        for chunk in source:
            self._write(chunk)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._end()
