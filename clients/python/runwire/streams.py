"""Streams: ordered chunks that a run writes and anybody who may see the run reads as they come.

    tokens = streams.define("tokens", str)                        # once, for writers and readers
    await tokens.append("Once ")                                  # in a task
    async for token in tokens.read(run_id): ...                   # anywhere

    await streams.append("log", "half way")                       # the same without a definition
    async for chunk in streams.pipe("openai", completion): ...    # captured, and yours to read
    async for chunk in streams.read(run_id, "openai"): ...

A chunk is any JSON value; pydantic objects are written by their fields. Without a key the
stream is "default". `target` is "self", "parent", "root" or the id of a run; outside of a run it is
an id, and the call goes over HTTP. Blocking twins: `streams.sync`, for `def` tasks and scripts.
"""

import uuid
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any, TypeAlias, TypeGuard, TypeVar, overload
from urllib.parse import quote

import orjson

from runwire import _context, _default
from runwire._client import Client
from runwire._following import DEADLINE, BlockingChunks, Chunk, Chunks
from runwire._http_sink import HttpSink
from runwire._input import Input, InputReceived, InputResult, InputTimedOut
from runwire._items import Request
from runwire._pipe import Pipe, Sink, SyncPipe
from runwire._portal import Portal
from runwire._progress import Progress
from runwire._settings import AccessToken
from runwire._stream import Stream
from runwire._stream_keys import refusal_of
from runwire._writer import SyncWriter, Writer, executed
from runwire.durations import Duration, seconds
from runwire.errors import ConflictError, FencedError, NotInRunError
from runwire.values import encode
from runwire.wire import MAX_CHUNK_BYTES, Json, StreamStart

__all__ = [
    "DEFAULT_KEY",
    "Chunk",
    "Chunks",
    "Input",
    "InputReceived",
    "InputResult",
    "InputTimedOut",
    "Pipe",
    "Stream",
    "Streams",
    "SyncPipe",
    "SyncStreams",
    "SyncWriter",
    "Writer",
    "append",
    "define",
    "input",
    "pipe",
    "read",
    "sync",
    "writer",
]

T = TypeVar("T")
# A definition, or a plain key.
Named: TypeAlias = Stream[T] | str
Source: TypeAlias = AsyncIterable[T] | Iterable[T]
Execute: TypeAlias = Callable[[Writer[T]], Awaitable[object]]
DEFAULT_KEY = "default"
# `streams.define("tokens", str)`, or `streams.define[str]("tokens")`.
define = Stream
# `streams.input("approval", Approval)`: what is sent into a run while it executes.
input = Input


class Streams:
    """Reads and writes streams over one client; inside a run, writes through the run."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect

    @overload
    async def append(self, stream: Stream[T], chunk: T, /, *, target: str = "self") -> int: ...

    @overload
    async def append(self, key: str, chunk: object, /, *, target: str = "self") -> int: ...

    @overload
    async def append(self, chunk: object, /, *, target: str = "self") -> int: ...

    async def append(self, key_or_chunk: Any, /, *chunk: Any, target: str = "self") -> int:
        """Write one chunk: `append(key, chunk)` or, to the default stream, `append(chunk)`.

        Return the seq after it, once it is stored. Raises FencedError when the run is over.
        """
        key, body = _keyed(key_or_chunk, chunk)
        runtime = _context.current()
        if runtime is not None:
            return await runtime.stream_append(target, key, [body])
        return await self.post(_run_id(target), key, [body])

    @overload
    def pipe(self, stream: Stream[T], source: Source[T], /, *, target: str = "self") -> Pipe[T]: ...

    @overload
    def pipe(self, key: str, source: Source[T], /, *, target: str = "self") -> Pipe[T]: ...

    @overload
    def pipe(self, source: Source[T], /, *, target: str = "self") -> Pipe[T]: ...

    def pipe(self, key_or_source: Any, /, *source: Any, target: str = "self") -> Pipe[Any]:
        """Write what a source yields: `pipe(key, source)` or `pipe(source)`.

        Iterate over the result to have it as well, or `await it.wait_until_complete()`. In a run
        it goes on by itself where neither is done, and the worker waits for it, up to a minute.
        """
        stream, chosen = _sourced(key_or_source, source)
        return self._pipe(stream, chosen, target)

    @overload
    def writer(self, stream: Stream[T], /, *, target: str = "self") -> Writer[T]: ...

    @overload
    def writer(self, key: str = DEFAULT_KEY, /, *, target: str = "self") -> Writer[Any]: ...

    @overload
    def writer(
        self, stream: Stream[T], execute: Execute[T], /, *, target: str = "self"
    ) -> Pipe[T]: ...

    @overload
    def writer(self, key: str, execute: Execute[Any], /, *, target: str = "self") -> Pipe[Any]: ...

    @overload
    def writer(self, execute: Execute[Any], /, *, target: str = "self") -> Pipe[Any]: ...

    def writer(
        self,
        key_or_execute: Any = DEFAULT_KEY,
        execute: Execute[Any] | None = None,
        /,
        *,
        target: str = "self",
    ) -> Writer[Any] | Pipe[Any]:
        """Write a stream chunk by chunk: `async with writer(key) as w: await w.write(chunk)`.

        Given an async function as well, return a pipe of what that writes to its `Writer`.
        """
        named, chosen = (
            (key_or_execute, execute)
            if _is_named(key_or_execute)
            else (DEFAULT_KEY, key_or_execute)
        )
        if chosen is not None:
            return self._pipe(named, executed(chosen), target)
        sink, encoded = self._sink(target, _key(named)), _encoder(named)

        async def write(chunk: Any) -> None:
            await sink.write(encoded(chunk))

        return Writer(write, sink.end, sink.flush)

    @overload
    def read(
        self,
        run_id: str,
        key: Stream[T],
        *,
        start: StreamStart = "start",
        timeout: Duration | None = None,
        deadline: Duration | None = DEADLINE,
        access_token: AccessToken | None = None,
        cursor: str | None = None,
    ) -> Chunks[T]: ...

    @overload
    def read(
        self,
        run_id: str,
        key: str = DEFAULT_KEY,
        *,
        start: StreamStart = "start",
        timeout: Duration | None = None,
        deadline: Duration | None = DEADLINE,
        access_token: AccessToken | None = None,
        cursor: str | None = None,
    ) -> Chunks[Json]: ...

    def read(
        self,
        run_id: str,
        key: Any = DEFAULT_KEY,
        *,
        start: StreamStart = "start",
        timeout: Duration | None = None,
        deadline: Duration | None = DEADLINE,
        access_token: AccessToken | None = None,
        cursor: str | None = None,
    ) -> Chunks[Any]:
        """Read a stream to its end: `async for chunk in streams.read(run_id, key)`.

        `start`: "start", "latest" (only what is written from now on), the seq of the first chunk
        wanted, or -n for the last n. It ends when nothing can follow, that is when the run is over;
        `timeout`: raise TimeoutError when nothing came for so long.
        """
        name = key.id if isinstance(key, Stream) else str(key)
        request = Request(
            to={"run": run_id},
            fields=frozenset({"id"}),
            streams={name: start},
            deadline=None if deadline is None else seconds(deadline),
            progress=Progress.parse(cursor),
            runs_wanted=False,
        )
        return Chunks(
            self._connect,
            request,
            access_token,
            name,
            parse=key.parse if isinstance(key, Stream) else None,
            timeout=None if timeout is None else seconds(timeout),
        )

    async def send(self, run_id: str, input: Input[T], value: T) -> None:
        """Send a value to an input stream of a run, as `Input.send` does."""
        body = input.dump(value)
        runtime = _context.current()
        if runtime is not None:
            await runtime.input_send(run_id, input.id, body)
        else:
            await self.post_input(run_id, input.id, body)

    async def post_input(self, run_id: str, key: str, body: str) -> None:
        """Send JSON text to an input stream of a run, over HTTP."""
        path = f"/realtime/v1/streams/{quote(run_id, safe='')}/input/{quote(key, safe='')}"
        try:
            await self._connect().http.post(
                path,
                content=b'{"data":' + body.encode() + b"}",
                headers={"x-part-id": str(uuid.uuid4())},
            )
        except ConflictError as error:
            raise FencedError(str(error), run_id=run_id) from error

    def _pipe(self, named: Named[Any], source: Source[Any], target: str) -> Pipe[Any]:
        runtime = _context.current()
        sink = self._sink(target, _key(named))
        opened = None if runtime is None else runtime.opened
        return Pipe(source, sink, _encoder(named), opened)

    def _sink(self, target: str, key: str) -> Sink:
        runtime = _context.current()
        return _RunSink(runtime, target, key) if runtime is not None else self.sink(target, key)

    def sink(self, target: str, key: str) -> HttpSink:
        """Return what writes to a run by id, over HTTP."""
        run_id = _run_id(target)

        async def post(bodies: list[str]) -> int:
            return await self.post(run_id, key, bodies)

        return HttpSink(post)

    async def post(self, run_id: str, key: str, bodies: list[str]) -> int:
        """Append chunks to a run by id, over HTTP."""
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


class _RunSink:
    """Writes through the executing run, which stores what is left over at its end."""

    def __init__(self, runtime: _context.Runtime, target: str, key: str) -> None:
        self._runtime, self._target, self._key = runtime, target, key

    async def write(self, body: str) -> None:
        await self._runtime.stream_write(self._target, self._key, body)

    async def end(self) -> None:
        await self._runtime.stream_end(self._target, self._key)

    async def flush(self) -> None:
        pass


class SyncStreams:
    """The blocking twins, for `def` tasks and scripts."""

    def __init__(self, portal: Callable[[], Portal], streams: Streams) -> None:
        self._portal = portal
        self._streams = streams

    @overload
    def append(self, stream: Stream[T], chunk: T, /, *, target: str = "self") -> int: ...

    @overload
    def append(self, key: str, chunk: object, /, *, target: str = "self") -> int: ...

    @overload
    def append(self, chunk: object, /, *, target: str = "self") -> int: ...

    def append(self, key_or_chunk: Any, /, *chunk: Any, target: str = "self") -> int:
        """Write one chunk, as `Streams.append` does."""
        key, body = _keyed(key_or_chunk, chunk)
        runtime = _context.current()
        if runtime is not None:
            return runtime.stream_append_blocking(target, key, [body])
        return self._portal().run(self._streams.post(_run_id(target), key, [body]))

    @overload
    def pipe(
        self, stream: Stream[T], source: Iterable[T], /, *, target: str = "self"
    ) -> SyncPipe[T]: ...

    @overload
    def pipe(self, key: str, source: Iterable[T], /, *, target: str = "self") -> SyncPipe[T]: ...

    @overload
    def pipe(self, source: Iterable[T], /, *, target: str = "self") -> SyncPipe[T]: ...

    def pipe(self, key_or_source: Any, /, *source: Any, target: str = "self") -> SyncPipe[Any]:
        """Write what a source yields, as `Streams.pipe` does.

        It is written as it is read; in a run the worker writes at the end what nobody has read.
        """
        named, chosen = _sourced(key_or_source, source)
        write, end = self._sink(target, _key(named))
        pipe = SyncPipe(chosen, write, end, _encoder(named))
        runtime = _context.current()
        if runtime is not None:
            runtime.opened_blocking(pipe)
        return pipe

    @overload
    def writer(self, stream: Stream[T], /, *, target: str = "self") -> SyncWriter[T]: ...

    @overload
    def writer(self, key: str = DEFAULT_KEY, /, *, target: str = "self") -> SyncWriter[Any]: ...

    def writer(self, key: Any = DEFAULT_KEY, /, *, target: str = "self") -> SyncWriter[Any]:
        """Write a stream chunk by chunk: `with writer(key) as w: w.write(chunk)`."""
        (write, end), encoded = self._sink(target, _key(key)), _encoder(key)
        return SyncWriter(lambda chunk: write(encoded(chunk)), end)

    @overload
    def read(
        self,
        run_id: str,
        key: Stream[T],
        *,
        start: StreamStart = "start",
        timeout: Duration | None = None,
        deadline: Duration | None = DEADLINE,
        access_token: AccessToken | None = None,
        cursor: str | None = None,
    ) -> BlockingChunks[T]: ...

    @overload
    def read(
        self,
        run_id: str,
        key: str = DEFAULT_KEY,
        *,
        start: StreamStart = "start",
        timeout: Duration | None = None,
        deadline: Duration | None = DEADLINE,
        access_token: AccessToken | None = None,
        cursor: str | None = None,
    ) -> BlockingChunks[Json]: ...

    def read(
        self,
        run_id: str,
        key: Any = DEFAULT_KEY,
        *,
        start: StreamStart = "start",
        timeout: Duration | None = None,
        deadline: Duration | None = DEADLINE,
        access_token: AccessToken | None = None,
        cursor: str | None = None,
    ) -> BlockingChunks[Any]:
        """Read a stream to its end, as `Streams.read` does."""
        chunks: Chunks[Any] = self._streams.read(
            run_id,
            key,
            start=start,
            timeout=timeout,
            deadline=deadline,
            access_token=access_token,
            cursor=cursor,
        )
        return BlockingChunks(self._portal(), chunks)

    def send(self, run_id: str, input: Input[T], value: T) -> None:
        """Send a value to an input stream of a run, as `Input.send` does."""
        body = input.dump(value)
        runtime = _context.current()
        if runtime is not None:
            runtime.input_send_blocking(run_id, input.id, body)
        else:
            self._portal().run(self._streams.post_input(run_id, input.id, body))

    def _sink(self, target: str, key: str) -> tuple[Callable[[str], object], Callable[[], object]]:
        runtime = _context.current()
        if runtime is not None:
            return (
                lambda body: runtime.stream_write_blocking(target, key, body),
                lambda: runtime.stream_end_blocking(target, key),
            )
        portal, sink = self._portal(), self._streams.sink(target, key)
        return lambda body: portal.run(sink.write(body)), lambda: portal.run(sink.end())


def _keyed(key_or_chunk: Any, chunk: tuple[Any, ...]) -> tuple[str, str]:
    if not chunk and not isinstance(key_or_chunk, Stream):
        return DEFAULT_KEY, _chunk(key_or_chunk)
    if len(chunk) == 1 and _is_named(key_or_chunk):
        return _key(key_or_chunk), _encoder(key_or_chunk)(chunk[0])
    raise TypeError("append takes a key and a chunk, or a chunk alone")


def _sourced(key_or_source: Any, source: tuple[Any, ...]) -> tuple[Named[Any], Any]:
    if _is_named(key_or_source) and len(source) == 1:
        return key_or_source, source[0]
    if not _is_named(key_or_source) and not source:
        return DEFAULT_KEY, key_or_source
    raise TypeError("pipe takes a key and a source, or a source alone")


def _is_named(value: Any) -> "TypeGuard[Stream[Any] | str]":
    return isinstance(value, (str, Stream))


def _key(named: Named[Any]) -> str:
    if isinstance(named, Stream):
        return named.id
    refusal = refusal_of(named)
    if refusal is not None:
        raise refusal
    return named


def _encoder(named: Named[Any]) -> Callable[[Any], str]:
    return named.dump if isinstance(named, Stream) else _chunk


def _chunk(chunk: object) -> str:
    return encode(chunk, what="chunk", limit=MAX_CHUNK_BYTES)


def _run_id(target: str) -> str:
    if target in ("self", "parent", "root"):
        raise NotInRunError(f"target {target!r} needs an executing run; give the id of a run")
    return target


def _default_portal() -> Portal:
    return _default.blocking().portal


def _default_blocking_client() -> Client:
    return _default.blocking().client


default_streams = Streams(_default.client)
append = default_streams.append
pipe = default_streams.pipe
writer = default_streams.writer
read = default_streams.read
sync = SyncStreams(_default_portal, Streams(_default_blocking_client))
