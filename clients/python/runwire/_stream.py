"""A stream with a key and a type, defined once and shared by who writes and who reads it."""

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, get_args, overload

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from runwire._following import DEADLINE, BlockingChunks, Chunks
from runwire._pipe import Pipe, SyncPipe
from runwire._problems import problems
from runwire._settings import AccessToken
from runwire._stream_keys import refusal_of
from runwire._writer import SyncWriter, Writer
from runwire.durations import Duration
from runwire.errors import InvalidValueError, TaskError
from runwire.values import encode
from runwire.wire import MAX_CHUNK_BYTES, Json, StreamStart

if TYPE_CHECKING:
    from runwire.streams import Streams, SyncStreams

T = TypeVar("T")


class Typed(Generic[T]):
    """A key and the type of its values, read by pydantic.

    The type is an argument or stands in brackets: `define("k", str)`, `define[str]("k")`.
    """

    def __init__(self, id: str, type: type[T] | None = None) -> None:
        self.id = id
        self._type: Any = type
        self._adapter: TypeAdapter[Any] | None = None
        if type is not None:
            self._adapter = _adapter(type, id)

    def __repr__(self) -> str:
        return f"<{self.__class__.__name__.lower()} {self.id}>"

    @property
    def adapter(self) -> TypeAdapter[Any]:
        """What validates and dumps the values. Raises TaskError for a type that has no schema."""
        if self._adapter is None:
            # What stands in the brackets is known only once __init__ has returned.
            given = get_args(getattr(self, "__orig_class__", None))
            self._adapter = _adapter(given[0] if given else Any, self.id)
        return self._adapter

    def dump(self, value: object) -> str:
        """Return a value as JSON text. Raises InvalidValueError (code "chunk_invalid", …)."""
        adapter = self.adapter
        plain = adapter.dump_python(self._valid(value), mode="json", by_alias=True)
        return encode(plain, what=f"a chunk of {self.id!r}", limit=MAX_CHUNK_BYTES)

    def parse(self, value: Json) -> T:
        """Return a stored chunk as a value. Raises InvalidValueError, code "chunk_invalid"."""
        return cast(T, self._valid(value))

    def _valid(self, value: object) -> Any:
        try:
            return self.adapter.validate_python(value)
        except ValidationError as error:
            raise InvalidValueError(
                f"a chunk does not fit stream {self.id!r}: {problems(error)}", code="chunk_invalid"
            ) from error


class Stream(Typed[T]):
    """A stream of values of one type; the same calls as `runwire.streams`, without the key.

    What is written is validated, and what is read is parsed again: both raise InvalidValueError
    with the code "chunk_invalid" where it does not fit.
    """

    def __init__(self, id: str, type: type[T] | None = None) -> None:
        refusal = refusal_of(id)
        if refusal is not None:
            raise refusal
        super().__init__(id, type)

    @property
    def sync(self) -> "SyncStream[T]":
        """The blocking twins, for `def` tasks and scripts."""
        return SyncStream(self)

    async def append(self, chunk: T, *, target: str = "self") -> int:
        """Write one value; return the seq after it, once it is stored."""
        return await _streams().append(self, chunk, target=target)

    def pipe(self, source: AsyncIterable[T] | Iterable[T], *, target: str = "self") -> Pipe[T]:
        """Write what a source yields; iterate over the result to have it as well."""
        return _streams().pipe(self, source, target=target)

    @overload
    def writer(self, *, target: str = "self") -> Writer[T]: ...

    @overload
    def writer(
        self, execute: Callable[[Writer[T]], Awaitable[object]], *, target: str = "self"
    ) -> Pipe[T]: ...

    def writer(
        self,
        execute: Callable[[Writer[T]], Awaitable[object]] | None = None,
        *,
        target: str = "self",
    ) -> Writer[T] | Pipe[T]:
        """Return a writer for `async with`; or, given a function, a pipe of what it writes."""
        if execute is None:
            return _streams().writer(self, target=target)
        return _streams().writer(self, execute, target=target)

    def read(
        self,
        run_id: str,
        *,
        start: StreamStart = "start",
        timeout: Duration | None = None,
        deadline: Duration | None = DEADLINE,
        access_token: AccessToken | None = None,
        cursor: str | None = None,
    ) -> Chunks[T]:
        """Read the stream of a run to its end, as `streams.read` does."""
        return _streams().read(
            run_id,
            self,
            start=start,
            timeout=timeout,
            deadline=deadline,
            access_token=access_token,
            cursor=cursor,
        )


class SyncStream(Generic[T]):
    """The blocking twins of a stream's calls."""

    def __init__(self, stream: Stream[T]) -> None:
        self._stream = stream

    def append(self, chunk: T, *, target: str = "self") -> int:
        """Write one value, as `Stream.append` does."""
        return _sync_streams().append(self._stream, chunk, target=target)

    def pipe(self, source: Iterable[T], *, target: str = "self") -> SyncPipe[T]:
        """Write what a source yields, as `Stream.pipe` does."""
        return _sync_streams().pipe(self._stream, source, target=target)

    def writer(self, *, target: str = "self") -> SyncWriter[T]:
        """Return a writer for `with`."""
        return _sync_streams().writer(self._stream, target=target)

    def read(
        self,
        run_id: str,
        *,
        start: StreamStart = "start",
        timeout: Duration | None = None,
        deadline: Duration | None = DEADLINE,
        access_token: AccessToken | None = None,
        cursor: str | None = None,
    ) -> BlockingChunks[T]:
        """Read the stream of a run to its end, as `Stream.read` does."""
        return _sync_streams().read(
            run_id,
            self._stream,
            start=start,
            timeout=timeout,
            deadline=deadline,
            access_token=access_token,
            cursor=cursor,
        )


def _streams() -> "Streams":
    from runwire import streams

    return streams.default_streams


def _sync_streams() -> "SyncStreams":
    from runwire import streams

    return streams.sync


def _adapter(type: Any, id: str) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(type)
    except PydanticUserError as error:
        raise TaskError(f"stream {id!r} is defined with {type!r}: {error}") from error
