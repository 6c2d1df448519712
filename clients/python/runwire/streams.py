"""Streams: ordered chunks that a run writes and anybody who may see the run reads as they come.

    await streams.append("log", "half way")                       # in a task
    async for chunk in streams.pipe("openai", completion): ...    # captured, and yours to read
    async for chunk in streams.read(run_id, "openai"): ...        # anywhere

A chunk is any JSON value; pydantic objects are written by their fields. Without a key the
stream is "default". `target` is "self", "parent", "root" or the id of a run; outside of a run it is
an id, and the call goes over HTTP. Blocking twins: `streams.sync`, for `def` tasks and scripts.
"""

import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Generic, TypeVar, cast
from urllib.parse import quote

import orjson

from runwire import _context, _default
from runwire._client import Client
from runwire._following import DEADLINE, Blocking, Chunks
from runwire._items import Request
from runwire._portal import Portal
from runwire._progress import Progress
from runwire._settings import AccessToken
from runwire.durations import Duration, seconds
from runwire.errors import ConflictError, FencedError, NotInRunError
from runwire.values import encode
from runwire.wire import MAX_CHUNK_BYTES, Json, StreamStart

__all__ = [
    "DEFAULT_KEY",
    "Pipe",
    "Streams",
    "SyncPipe",
    "SyncStreams",
    "append",
    "pipe",
    "read",
    "sync",
]

T = TypeVar("T")
DEFAULT_KEY = "default"
# Chunks of one HTTP request at most, when a pipe writes from outside of a run.
MAX_APPENDED = 1000


class Streams:
    """Reads and writes streams over one client; inside a run, writes through the run."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect

    async def append(self, key_or_chunk: object, *chunk: object, target: str = "self") -> int:
        """Write one chunk: `append(key, chunk)` or, to the default stream, `append(chunk)`.

        Return the seq after it, once it is stored. Raises FencedError when the run is over.
        """
        key, body = _keyed(key_or_chunk, chunk)
        runtime = _context.current()
        if runtime is not None:
            return await runtime.stream_append(target, key, [body])
        return await self._post(_run_id(target), key, [body])

    def pipe(
        self,
        key_or_source: "str | AsyncIterable[T] | Iterable[T]",
        source: "AsyncIterable[T] | Iterable[T] | None" = None,
        *,
        target: str = "self",
    ) -> "Pipe[T]":
        """Write what a source yields: `pipe(key, source)` or `pipe(source)`.

        Iterate over the result to have it as well, or `await it.wait_until_complete()`.
        """
        key, chosen = _sourced(key_or_source, source)
        return Pipe(chosen, self._sink(target, key))

    def read(
        self,
        run_id: str,
        key: str = DEFAULT_KEY,
        *,
        start: StreamStart = "start",
        deadline: Duration | None = DEADLINE,
        access_token: AccessToken | None = None,
        cursor: str | None = None,
    ) -> Chunks:
        """Read a stream to its end: `async for chunk in streams.read(run_id, key)`.

        `start`: "start", "latest" (only what is written from now on), the seq of the first chunk
        wanted, or -n for the last n. It ends when nothing can follow, that is when the run is over.
        """
        request = Request(
            to={"run": run_id},
            fields=frozenset({"id"}),
            streams={key: start},
            deadline=None if deadline is None else seconds(deadline),
            progress=Progress.parse(cursor),
            runs_wanted=False,
        )
        return Chunks(self._connect, request, access_token, key)

    def _sink(self, target: str, key: str) -> "_Sink":
        runtime = _context.current()
        if runtime is not None:
            return _RunSink(runtime, target, key)
        return _HttpSink(self, _run_id(target), key)

    async def write_over_http(self, run_id: str, key: str, body: str) -> None:
        """Append one chunk to a run by id."""
        await self._post(run_id, key, [body])

    async def _post(self, run_id: str, key: str, bodies: list[str]) -> int:
        # The part's name makes the repeats of a request count once.
        try:
            response = await self._connect().http.post(
                f"/realtime/v1/streams/{quote(run_id, safe='')}/self/{quote(key, safe='')}/append",
                content="\n".join(bodies).encode(),
                content_type="application/x-ndjson",
                headers={"x-part-id": str(uuid.uuid4())},
            )
        except ConflictError as error:
            # As inside of a run: it is over.
            raise FencedError(str(error), run_id=run_id) from error
        next_seq: int = orjson.loads(response.content).get("next", 0)
        return next_seq


class _Sink:
    """Where a pipe writes."""

    async def write(self, body: str) -> None:
        raise NotImplementedError

    async def end(self) -> None:
        raise NotImplementedError


class _RunSink(_Sink):
    def __init__(self, runtime: _context.Runtime, target: str, key: str) -> None:
        self._runtime, self._target, self._key = runtime, target, key

    async def write(self, body: str) -> None:
        await self._runtime.stream_write(self._target, self._key, body)

    async def end(self) -> None:
        await self._runtime.stream_end(self._target, self._key)


class _HttpSink(_Sink):
    def __init__(self, streams: Streams, run_id: str, key: str) -> None:
        self._streams, self._run_id, self._key = streams, run_id, key

    async def write(self, body: str) -> None:
        await self._streams.write_over_http(self._run_id, self._key, body)

    async def end(self) -> None:
        """A stream written from outside ends with its run."""


class Nowhere(_Sink):
    """Outside of a run, `metadata.stream` writes nothing."""

    async def write(self, body: str) -> None:
        pass

    async def end(self) -> None:
        pass


class Pipe(Generic[T]):
    """What is piped, to be read once. A chunk is written before it is handed out."""

    def __init__(self, source: AsyncIterable[T] | Iterable[T], sink: _Sink) -> None:
        self._source = source
        self._sink = sink
        self._iterator: AsyncIterator[T] | None = None

    def __aiter__(self) -> AsyncIterator[T]:
        if self._iterator is None:
            self._iterator = self._run()
        return self._iterator

    async def wait_until_complete(self) -> None:
        """Write the rest, and wait until all of it is stored."""
        async for _ in self:
            pass

    async def _run(self) -> AsyncIterator[T]:
        async for chunk in _asynchronous(self._source):
            await self._sink.write(_chunk(chunk))
            yield chunk
        await self._sink.end()


class SyncPipe(Generic[T]):
    """What is piped by a `def` task, to be read once."""

    def __init__(
        self, source: Iterable[T], write: Callable[[str], object], end: Callable[[], object]
    ) -> None:
        self._iterator = self._run(source, write, end)

    def __iter__(self) -> Iterator[T]:
        return self._iterator

    def wait_until_complete(self) -> None:
        """Write the rest, and wait until all of it is stored."""
        for _ in self:
            pass

    @staticmethod
    def _run(
        source: Iterable[T], write: Callable[[str], object], end: Callable[[], object]
    ) -> Iterator[T]:
        for chunk in source:
            write(_chunk(chunk))
            yield chunk
        end()


class SyncStreams:
    """The blocking twins, for `def` tasks and scripts."""

    def __init__(self, portal: Callable[[], Portal], streams: Streams) -> None:
        self._portal = portal
        self._streams = streams

    def append(self, key_or_chunk: object, *chunk: object, target: str = "self") -> int:
        """Write one chunk, as `Streams.append` does."""
        key, body = _keyed(key_or_chunk, chunk)
        runtime = _context.current()
        if runtime is not None:
            return runtime.stream_append_blocking(target, key, [body])
        return self._portal().run(self._streams.append(key_or_chunk, *chunk, target=target))

    def pipe(
        self,
        key_or_source: "str | Iterable[T]",
        source: "Iterable[T] | None" = None,
        *,
        target: str = "self",
    ) -> SyncPipe[T]:
        """Write what a source yields, as `Streams.pipe` does."""
        key, chosen = _sourced(key_or_source, source)
        runtime = _context.current()
        items = cast("Iterable[T]", chosen)
        if runtime is not None:
            return SyncPipe(
                items,
                lambda body: runtime.stream_write_blocking(target, key, body),
                lambda: runtime.stream_end_blocking(target, key),
            )
        run_id, portal = _run_id(target), self._portal()
        return SyncPipe(
            items,
            lambda body: portal.run(self._streams.write_over_http(run_id, key, body)),
            lambda: None,
        )

    def read(
        self,
        run_id: str,
        key: str = DEFAULT_KEY,
        *,
        start: StreamStart = "start",
        deadline: Duration | None = DEADLINE,
        access_token: AccessToken | None = None,
        cursor: str | None = None,
    ) -> Blocking[Json]:
        """Read a stream to its end, as `Streams.read` does."""
        chunks = self._streams.read(
            run_id, key, start=start, deadline=deadline, access_token=access_token, cursor=cursor
        )
        return Blocking(self._portal(), chunks)


def _keyed(key_or_chunk: object, chunk: tuple[object, ...]) -> tuple[str, str]:
    match key_or_chunk, chunk:
        case _, ():
            return DEFAULT_KEY, _chunk(key_or_chunk)
        case str(), (value,):
            return key_or_chunk, _chunk(value)
        case _:
            raise TypeError("append takes a key and a chunk, or a chunk alone")


def _sourced(
    key_or_source: "str | AsyncIterable[T] | Iterable[T]",
    source: "AsyncIterable[T] | Iterable[T] | None",
) -> "tuple[str, AsyncIterable[T] | Iterable[T]]":
    if source is None:
        if isinstance(key_or_source, str):
            raise TypeError("pipe takes a key and a source, or a source alone")
        return DEFAULT_KEY, key_or_source
    if not isinstance(key_or_source, str):
        raise TypeError("pipe takes a key and a source, or a source alone")
    return key_or_source, source


def _chunk(chunk: object) -> str:
    return encode(chunk, what="chunk", limit=MAX_CHUNK_BYTES)


def _run_id(target: str) -> str:
    if target in ("self", "parent", "root"):
        raise NotInRunError(f"target {target!r} needs an executing run; give the id of a run")
    return target


async def _asynchronous(source: AsyncIterable[T] | Iterable[T]) -> AsyncIterator[T]:
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    else:
        for item in source:
            yield item


def _default_portal() -> Portal:
    return _default.blocking().portal


def _default_blocking_client() -> Client:
    return _default.blocking().client


_default_streams = Streams(_default.client)
append = _default_streams.append
pipe = _default_streams.pipe
read = _default_streams.read
sync = SyncStreams(_default_portal, Streams(_default_blocking_client))
