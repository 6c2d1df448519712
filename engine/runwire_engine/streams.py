"""Streams of runs: appending chunks, and reading them.

Appends of a process are committed in groups. One transaction holds the runs still (the fence),
takes the streams' locks (under which seq is given out), stores all chunks with one statement and
records the flush in runwire.writers. Runs are locked before streams, each in order, by everybody.
Flushes of streams that are known are begun one behind the other (`known_appends.py`).

A stream whose lock somebody holds for over 200 ms gets a lane of its own, a second flusher, so that
the others do not wait with it; its order is kept, since only the main flush hands items to lanes.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial

import anyio
from anyio.abc import TaskGroup

from runwire_engine.appending import Appending, marks_of, names_of, recorded
from runwire_engine.bells import ChunkRow as ChunkRow
from runwire_engine.database import Database, Row
from runwire_engine.doorbell import Doorbell
from runwire_engine.errors import EngineError, LockHeldError
from runwire_engine.flusher import RETRY_FOR, Flusher
from runwire_engine.known_appends import KnownAppends, Placed, moved
from runwire_engine.placement import MAX_STREAM_BYTES, Outcome, StreamName
from runwire_engine.placement import Append as Append
from runwire_engine.placement import AppendAnswer as AppendAnswer
from runwire_engine.placement import AttemptMark as AttemptMark
from runwire_engine.waits import Waits
from runwire_engine.writers import Writer

logger = logging.getLogger("runwire.streams")

PAGE_BYTES = 512 * 1024
PAGE_CHUNKS = 2_000


@dataclass(frozen=True, slots=True)
class StreamRow:
    """Where a stream stands."""

    id: int
    run_id: str
    key: str
    bucket: date
    next_seq: int
    bytes: int
    execution: int
    attempts: tuple[AttemptMark, ...]
    # The execution whose writer said end, unless a later one has written since.
    ended_execution: int | None
    # Set once nothing will ever follow: the run's final status, in lower case.
    eof_reason: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StreamPage:
    """Chunks in order; `stream` is None when nobody has written to that key."""

    stream: StreamRow | None
    chunks: list[ChunkRow]


@dataclass(eq=False, slots=True)
class _Item:
    environment_id: int
    append: Append
    # The promise of the lane the item was handed to, so that a repeated flush does not do it twice.
    lane: "asyncio.Future[AppendAnswer] | None" = None
    outcome: Outcome | None = None

    @property
    def name(self) -> tuple[int, str, str]:
        return self.environment_id, self.append.run_id, self.append.key

    @property
    def answer(self) -> "AppendAnswer | asyncio.Future[AppendAnswer] | Exception":
        answer = self.lane or self.outcome
        assert answer is not None, "an item was not flushed"
        return answer


class Streams:
    """Appends to streams and reads them. `run` belongs into a task group, for appends."""

    def __init__(
        self,
        database: Database,
        bell: Doorbell,
        *,
        stream_limit: int = MAX_STREAM_BYTES,
        retry_for: float = RETRY_FOR,
        waits: Waits | None = None,
    ) -> None:
        """Take who wakes runs that wait for input; without, the sweep does it."""
        self._waits = waits
        self._database = database
        self._bell = bell
        self._limit = stream_limit
        self._known = KnownAppends(database, bell, stream_limit=stream_limit, retry_for=retry_for)
        self._flusher: Flusher[_Item, Placed] = Flusher(
            "chunks",
            numbered=self._flush,
            begin=self._begin,
            alike=_environment,
            size=_weight,
            retry_for=retry_for,
        )
        self._lanes: dict[tuple[int, str, str], Flusher[_Item, AppendAnswer]] = {}
        self._tasks: TaskGroup | None = None

    async def run(self) -> None:
        """Flush appends until `close`, and everything handed in before it."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = self._known.tasks = tasks
                await self._flusher.run()
                for lane in self._lanes.values():
                    lane.close()
        finally:
            self._known.close()

    def close(self) -> None:
        """Take no more appends."""
        self._flusher.close()

    async def drain(self) -> None:
        """Wait until every append handed in so far is stored or refused."""
        await self._flusher.drain()
        for lane in tuple(self._lanes.values()):
            await lane.drain()

    async def append(self, environment_id: int, append: Append) -> AppendAnswer:
        """Store chunks and return where they stand, once committed.

        Raises FencedError, RunNotFoundError, RunFinalError, StreamFullError, InvalidValueError;
        DatabaseUnavailableError once Postgres has stayed away for 30 s.
        """
        answer = await self._flusher.submit(_Item(environment_id, append))
        return answer if isinstance(answer, AppendAnswer) else await answer

    async def put(self, environment_id: int, append: Append) -> "asyncio.Future[Placed]":
        """Queue an append in order, waiting only for room; `settled` awaits what it returns."""
        return await self._flusher.put(_Item(environment_id, append))

    @staticmethod
    async def settled(
        promise: "asyncio.Future[Placed]",
    ) -> AppendAnswer:
        """Return the answer to an append that was `put`, or raise why it was refused."""
        answer = await promise
        return answer if isinstance(answer, AppendAnswer) else await answer

    async def append_many(
        self, environment_id: int, appends: Sequence[Append]
    ) -> list[AppendAnswer | Exception]:
        """Store several appends, in order, and return an answer or an error for each."""
        promises = [await self.put(environment_id, append) for append in appends]
        return [await _outcome(promise) for promise in promises]

    async def read(
        self,
        environment_id: int,
        run_id: str,
        key: str,
        from_seq: int = 0,
        limit_bytes: int = PAGE_BYTES,
        limit_chunks: int = PAGE_CHUNKS,
    ) -> StreamPage:
        """Return a page of chunks from a position, or with -N of the last N chunks."""
        heads = await self.heads(environment_id, [(run_id, key)])
        if not heads:
            return StreamPage(None, [])
        head = heads[0]
        start = from_seq if from_seq >= 0 else max(0, head.next_seq + from_seq)
        rows = await self._database.all(
            "streams.chunks",
            {
                "bucket": head.bucket,
                "stream_id": head.id,
                "from_seq": start,
                "limit_chunks": limit_chunks,
                "limit_bytes": limit_bytes,
            },
        )
        return StreamPage(head, [ChunkRow(**row) for row in rows])

    async def heads(self, environment_id: int, names: Sequence[StreamName]) -> list[StreamRow]:
        """Return where streams stand; those nobody has written to are left out."""
        rows = await self._database.all(
            "streams.heads", {"environment_id": environment_id, **names_of(names)}
        )
        return [_stream_row(row) for row in rows]

    async def streams_of(self, environment_id: int, run_id: str) -> list[StreamRow]:
        """Return every stream of a run, oldest first."""
        rows = await self._database.all(
            "streams.of_run", {"environment_id": environment_id, "run_id": run_id}
        )
        return [_stream_row(row) for row in rows]

    def _begin(
        self, number: int, items: Sequence[_Item]
    ) -> "asyncio.Future[Sequence[Placed] | None] | None":
        """Begin a flush by what is remembered, in one round trip, if all is as remembered."""
        if self._lanes:
            return None
        return self._known.begin(number, items[0].environment_id, [item.append for item in items])

    async def _flush(self, number: int, items: Sequence[_Item]) -> Sequence[Placed | Exception]:
        """Flush items of one environment the longer way, in two round trips."""
        repeated = self._known.writer.repeats(number)
        self._close_idle_lanes()
        await self._hand_to_lanes(items)
        if free := _without_lane(items):
            await self._flush_main(number, free, repeated)
        return [item.answer for item in items]

    async def _flush_main(self, number: int, items: Sequence[_Item], repeated: bool) -> None:
        """Flush items, all but those that turn out to need a lane."""
        # Before anything is stored: what is has its answer at once.
        await self._be_ready()
        writer, environment_id = self._known.writer, items[0].environment_id
        answer = await writer.answer_of(environment_id, number) if repeated else None
        if answer is not None:
            _settle(items, recorded(answer))
        else:
            await self._store_free(number, items, repeated)
        self._known.stored(environment_id, number)

    async def _store_free(self, number: int, items: Sequence[_Item], repeated: bool) -> None:
        writer = self._known.writer
        try:
            await self._store(writer, number, items, repeated=repeated, hasten=True)
        except LockHeldError:
            if writer.unsure == number:
                # What holds it may be that try of these very items, which can commit yet.
                raise
            await self._open_lanes(items[0].environment_id, items)
            free = _without_lane(items)
            await self._store(writer, number, free, repeated=repeated, hasten=False)

    async def _be_ready(self) -> None:
        """Connect for those that are known now; without, all go the longer way."""
        try:
            await self._known.connect()
        except EngineError as error:
            logger.warning("appends take longer: %s", error)

    async def _flush_lane(
        self, writer: Writer, number: int, items: Sequence[_Item]
    ) -> Sequence[Outcome]:
        repeated = writer.repeats(number)
        environment_id = items[0].environment_id
        answer = await writer.answer_of(environment_id, number) if repeated else None
        if answer is not None:
            return recorded(answer)
        await self._store(writer, number, items, repeated=repeated, hasten=False)
        return [item.outcome or RuntimeError("not flushed") for item in items]

    async def _store(
        self,
        writer: Writer,
        number: int,
        items: Sequence[_Item],
        *,
        repeated: bool,
        hasten: bool,
    ) -> None:
        if not items:
            return
        environment_id = items[0].environment_id
        appends = [item.append for item in items]
        memory = self._known.memory(environment_id)
        appending = Appending(
            self._database, environment_id, writer, number, self._limit, repeated=repeated
        )
        outcomes = await appending.store(appends, memory, hasten=hasten)
        _settle(items, outcomes)
        self._ring(environment_id, appending)
        memory.keep(appending.runs, appending.touched)

    def _ring(self, environment_id: int, appending: Appending) -> None:
        """Tell what moved, now that the commit is acknowledged."""
        streams = moved([stream for stream in appending.touched if stream.changed])
        if streams or appending.fresh:
            self._bell.ring_feed(environment_id, {run_id for run_id, _ in appending.fresh}, streams)
        if appending.awaiting and self._waits is not None:
            self._waits.ended(environment_id, appending.awaiting)

    async def _open_lanes(self, environment_id: int, items: Sequence[_Item]) -> None:
        appending = Appending(self._database, environment_id, self._known.writer, 0, self._limit)
        stuck = await appending.stuck([item.append for item in items])
        for item in items:
            if (item.append.run_id, item.append.key) in stuck:
                self._open_lane(item.name)
        await self._hand_to_lanes(items)

    def _open_lane(self, name: tuple[int, str, str]) -> None:
        if name in self._lanes or self._tasks is None:
            return
        logger.warning("stream %r of %s is locked by somebody; it goes alone", name[2], name[1])
        writer = Writer(self._database, "chunks")
        lane: Flusher[_Item, AppendAnswer] = Flusher(
            "chunk lane", numbered=partial(self._flush_lane, writer), size=_weight
        )
        self._lanes[name] = lane
        self._tasks.start_soon(lane.run)

    async def _hand_to_lanes(self, items: Sequence[_Item]) -> None:
        """Give items to the lanes of their streams."""
        for item in items:
            lane = self._lanes.get(item.name)
            if lane is not None and item.lane is None:
                item.lane = await lane.put(item)

    def _close_idle_lanes(self) -> None:
        for name in [name for name, lane in self._lanes.items() if lane.idle]:
            self._lanes.pop(name).close()


def _settle(items: Sequence[_Item], outcomes: Sequence[Outcome]) -> None:
    for item, outcome in zip(items, outcomes, strict=True):
        item.outcome = outcome


def _without_lane(items: Sequence[_Item]) -> list[_Item]:
    return [item for item in items if item.lane is None]


def _environment(item: _Item) -> int:
    return item.environment_id


def _weight(item: _Item) -> int:
    # A chunk costs its bytes and about a hundred for its row.
    return item.append.size + 100 * len(item.append.bodies)


async def _outcome(promise: "asyncio.Future[Placed]") -> Outcome:
    try:
        return await Streams.settled(promise)
    except Exception as error:
        return error


def _stream_row(row: Row) -> StreamRow:
    fields: Row = {**row, "attempts": marks_of(row["attempts"])}
    return StreamRow(**fields)
