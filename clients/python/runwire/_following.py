"""What a subscription is to an application: something to iterate over, and to take up again."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Generic, Literal, Self, TypedDict, TypeVar
from weakref import WeakSet

from runwire._client import Client
from runwire._items import ChunkItem, CursorItem, EofItem, Item, Request, RunItem
from runwire._portal import Portal
from runwire._progress import Progress, Taken
from runwire._run import WIRE_NAMES, Run
from runwire._settings import AccessToken
from runwire._subscription import Subscription
from runwire.durations import Duration, seconds
from runwire.errors import InvalidValueError
from runwire.wire import Json, JsonObject, Mode, StreamStart

T = TypeVar("T")

# Seconds the server may stay away before UnreachableError: a restart fits in, a wrong address is
# told within a minute.
DEADLINE: Final = 60.0


@dataclass(frozen=True)
class Event:
    """News of a run or of one of its streams.

    `type` is "run" for a new state, which is in `run`; else it is the key of a stream, `chunk` what
    was written, and `run` the state known by then: revision 0 while none is, since the state of a
    run that is over comes after its streams.
    """

    type: str
    run: Run
    chunk: Json = None
    # Place in the stream, from 0 without holes; None for a run.
    seq: int | None = None
    # Which attempt wrote it; None for a run, or when somebody else wrote it.
    attempt: int | None = None
    # Who wrote it, when it was not the run itself.
    writer: str | None = None
    # The first chunk of another execution of the run, an attempt or one begun anew: what came
    # before may be written again.
    is_restart: bool = False
    # Why continuity with what came before could not be proven; None where it was.
    gap: str | None = None


class Following(Generic[T]):
    """A subscription. Iterate over it; leaving the loop ends it, and a new loop goes on.

    The iterator yields, ends when nothing more can come, or raises: ApiError by its kind when the
    server refuses, UnreachableError when it stays away longer than `deadline`. It reconnects and
    resumes by itself.
    """

    def __init__(
        self, connect: Callable[[], Client], request: Request, access_token: AccessToken | None
    ) -> None:
        self._connect = connect
        self._request = request
        self._access_token = access_token
        self._taken = Taken(request.progress)
        self._subscription: Subscription | None = None
        # Weak, so that leaving a loop drops its generator, whose end closes the subscription.
        self._running: WeakSet[AsyncGenerator[T]] = WeakSet()

    @property
    def state(self) -> str:
        """connecting, authenticating, syncing, live, stale, waiting, paused or closed."""
        return self._subscription.visible_state if self._subscription is not None else "connecting"

    @property
    def cursor(self) -> str:
        """How far this came, to be kept and given as `cursor=` in another process."""
        return self._taken.progress().text()

    def __aiter__(self) -> AsyncIterator[T]:
        return self.generator()

    def generator(self) -> AsyncGenerator[T]:
        """Return a new iterator, which goes on where the last one was left."""
        generator = self._iterate()
        self._running.add(generator)
        return generator

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the subscription now."""
        for generator in list(self._running):
            await generator.aclose()

    async def _iterate(self) -> AsyncGenerator[T]:
        request = replace(self._request, progress=self._taken.progress())
        socket = self._connect().socket(self._access_token, alone=request.needs_own_socket)
        async with aclosing(socket.follow(request)) as source:
            async for item, subscription in source:
                self._subscription = subscription
                if self._is_last(item):
                    return
                self._note(item)
                for value in self._values(item):
                    yield value

    def _note(self, item: Item) -> None:
        match item:
            case CursorItem(cursor):
                self._taken.cursor(cursor)
            case RunItem():
                self._taken.run(item.run, item.revision)
            case ChunkItem():
                self._taken.chunk(item.run, item.stream, item.seq)
            case EofItem():
                return

    def _is_last(self, item: Item) -> bool:
        return False

    def _values(self, item: Item) -> Iterable[T]:
        raise NotImplementedError


class Updates(Following[Run]):
    """Yields the states of one or many runs."""

    def with_streams(self, *keys: str, start: StreamStart = "start") -> "Events":
        """Return the same subscription with the runs' streams: those named, or every one.

        `start`: "start", "latest", the next seq, or -n for the last n chunks.
        """
        streams = dict.fromkeys(keys or ("*",), start)
        request = replace(self._request, streams=streams)
        return Events(self._connect, request, self._access_token)

    def _values(self, item: Item) -> Iterable[Run]:
        return (Run.of(item.document, item.gap),) if isinstance(item, RunItem) else ()


class Events(Following[Event]):
    """Yields the states of runs and the chunks of their streams."""

    def __init__(
        self, connect: Callable[[], Client], request: Request, access_token: AccessToken | None
    ) -> None:
        super().__init__(connect, request, access_token)
        self._runs: dict[str, Run] = {}

    def _values(self, item: Item) -> Iterable[Event]:
        match item:
            case RunItem():
                run = self._runs[item.run] = Run.of(item.document, item.gap)
                yield Event("run", run, gap=item.gap)
            case ChunkItem():
                yield Event(
                    item.stream,
                    self._run_of(item),
                    item.value,
                    item.seq,
                    item.attempt,
                    item.writer,
                    item.is_restart,
                    item.gap,
                )
            case _:
                return

    def _run_of(self, item: ChunkItem) -> Run:
        known = self._runs.get(item.run)
        if known is None and item.document is not None:
            known = self._runs[item.run] = Run.of(item.document)
        return known or _unknown(item.run)


def _unknown(run: str) -> Run:
    """Stand for a run whose state has not come yet: revision 0."""
    began = datetime.fromtimestamp(0, UTC)
    return Run(run, "", "EXECUTING", 0, began, began)


@dataclass(frozen=True)
class Chunk(Generic[T]):
    """A value of a stream, and where it stands in it."""

    value: T
    # Place in the stream, from 0 without holes.
    seq: int
    # Which attempt wrote it; None when somebody else wrote it.
    attempt: int | None
    # Who wrote it, when it was not the run itself.
    writer: str | None
    # The first chunk of another execution of the run, an attempt or one begun anew: what came
    # before may be written again.
    is_restart: bool
    # Why continuity with what came before could not be proven; None where it was.
    gap: str | None


class Chunks(Following[T]):
    """Yields the values of one stream, as they were written, those of earlier attempts too.

    `is_restart` says of the last value that another execution of the run began with it; `chunks()`
    yields each with its place and attempt, `collect()` waits for the end and returns all of them.
    """

    def __init__(
        self,
        connect: Callable[[], Client],
        request: Request,
        access_token: AccessToken | None,
        key: str,
        parse: Callable[[Json], T] | None = None,
        timeout: float | None = None,
    ) -> None:
        super().__init__(connect, request, access_token)
        self._key = key
        self._parse = parse
        self._timeout = timeout
        # The seq of the chunk after the last one yielded; None before the first.
        self.next_seq: int | None = None
        # Which attempt wrote the last one.
        self.attempt: int | None = None
        # Who wrote it, when it was not the run itself.
        self.writer: str | None = None
        # Whether the last one is the first of another execution of the run.
        self.is_restart = False
        # Why continuity could not be proven before the last one; None where it was.
        self.gap: str | None = None

    async def chunks(self) -> AsyncGenerator[Chunk[T]]:
        """Yield the values with their place, attempt and writer."""
        async with aclosing(self.generator()) as values:
            async for value in values:
                yield self._chunk(value)

    async def collect(self, *, attempts: Literal["all", "last"] = "last") -> list[T]:
        """Wait for the end of the stream and return its values.

        "last": without those that an execution wrote which was followed by another one. What others
        wrote into the stream counts in any case.
        """
        kept: list[Chunk[T]] = []
        async for chunk in self.chunks():
            if chunk.is_restart and attempts == "last":
                kept = [one for one in kept if one.writer is not None]
            kept.append(chunk)
        return [chunk.value for chunk in kept]

    def _chunk(self, value: T) -> Chunk[T]:
        seq = -1 if self.next_seq is None else self.next_seq - 1
        return Chunk(value, seq, self.attempt, self.writer, self.is_restart, self.gap)

    async def _iterate(self) -> AsyncGenerator[T]:
        async with aclosing(super()._iterate()) as values:
            while True:
                try:
                    async with asyncio.timeout(self._timeout):
                        value = await anext(values)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise TimeoutError(
                        f"nothing came of stream {self._key!r} for {self._timeout} s"
                    ) from None
                yield value

    def _is_last(self, item: Item) -> bool:
        return isinstance(item, EofItem) and item.stream == self._key

    def _values(self, item: Item) -> Iterable[T]:
        if isinstance(item, ChunkItem):
            self.next_seq, self.attempt, self.writer = item.seq + 1, item.attempt, item.writer
            self.is_restart, self.gap = item.is_restart, item.gap
            yield item.value if self._parse is None else self._parse(item.value)


class Blocking(Generic[T]):
    """A subscription for code without a loop: the same, to iterate over with `for`."""

    def __init__(self, portal: Portal, following: Following[T]) -> None:
        self._portal = portal
        self._following = following

    @property
    def state(self) -> str:
        return self._following.state

    @property
    def cursor(self) -> str:
        return self._following.cursor

    def __iter__(self) -> Iterator[T]:
        return self._portal.iterate(self._following.generator())


class BlockingChunks(Blocking[T]):
    """Yields the values of one stream."""

    def __init__(self, portal: Portal, following: Chunks[T]) -> None:
        super().__init__(portal, following)
        self._chunks = following

    def chunks(self) -> Iterator[Chunk[T]]:
        """Yield the values with their place, attempt and writer, as `Chunks.chunks` does."""
        return self._portal.iterate(self._chunks.chunks())

    def collect(self, *, attempts: Literal["all", "last"] = "last") -> list[T]:
        """Wait for the end and return the values, as `Chunks.collect` does."""
        return self._portal.run(self._chunks.collect(attempts=attempts))


class BlockingUpdates(Blocking[Run]):
    """Yields the states of one or many runs."""

    def __init__(self, portal: Portal, following: Updates) -> None:
        super().__init__(portal, following)
        self._updates = following

    def with_streams(self, *keys: str, start: StreamStart = "start") -> Blocking[Event]:
        """Return the same subscription with the runs' streams, as `Updates.with_streams` does."""
        return Blocking(self._portal, self._updates.with_streams(*keys, start=start))


class Asked(TypedDict, total=False):
    """The options of every subscription."""

    # "latest" may skip states that a newer one replaced; "every" gives each revision.
    mode: Mode
    # The fields of `Run` wanted; id, status, revision and the like always come.
    fields: Sequence[str]
    # How long the server may stay away before UnreachableError; None: for ever. Default: 60 s.
    deadline: Duration | None
    # Another token than the client's, or a callable that returns a fresh one.
    access_token: AccessToken
    # Where to go on: the `cursor` of an earlier subscription to the same; None: at the beginning.
    cursor: str | None


def request(to: JsonObject, asked: Asked, wait: Duration | None = None) -> Request:
    """Return what a subscription asks for. Raises TypeError for a name that is no option."""
    unknown = sorted(set(asked) - set(Asked.__annotations__))
    if unknown:
        raise TypeError(f"a subscription has no option {', '.join(unknown)}")
    deadline = asked.get("deadline", DEADLINE)
    return Request(
        to=to,
        mode=asked.get("mode", "latest"),
        fields=_wire_fields(asked.get("fields")),
        wait=None if wait is None else seconds(wait),
        deadline=None if deadline is None else seconds(deadline),
        progress=Progress.parse(asked.get("cursor")),
    )


def _wire_fields(fields: Sequence[str] | None) -> frozenset[str] | None:
    if fields is None:
        return None
    unknown = sorted(set(fields) - set(WIRE_NAMES))
    if unknown:
        raise InvalidValueError(f"a run has no field {', '.join(unknown)}", code="fields")
    return frozenset(WIRE_NAMES[name] for name in fields)
