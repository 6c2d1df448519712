"""Flushes placed by what is remembered, one begun behind the other.

Postgres executes them in order, each in a transaction of its own that proves what was remembered,
and that the flush it comes after is stored. So a flush need not wait for the one before it: where
that is refused everything behind it is, and leaves nothing. Who waits is told what became of each,
for certain: after an error, or with a connection lost, the writer's row is closed, behind which no
flush of it is stored any more, and says how far they were.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import anyio
import psycopg
from anyio.abc import TaskGroup
from psycopg.pq.abc import PGresult

from runwire_engine.bells import ChunkRow, StreamMoved
from runwire_engine.database import Database
from runwire_engine.direct_call import DirectCall
from runwire_engine.doorbell import Doorbell
from runwire_engine.driver_errors import translate
from runwire_engine.errors import CommitUnknownError, DatabaseUnavailableError, EngineError
from runwire_engine.memory import PIECE_END, Expected, StreamMemory
from runwire_engine.placement import Append, AppendAnswer, StreamState
from runwire_engine.writers import Writer

logger = logging.getLogger("runwire.streams")

# In a hurry, as everybody else's chunks wait behind these. Planned always by key: a table is small
# only at first.
_SETTINGS = " -c lock_timeout=200ms -c enable_seqscan=off"
# What a bell can carry as a hint is less than 8 000 bytes. Where a flush is larger its followers
# read the table anyway, all streams at once: a part of it would cost both sides for little.
_HINT_BYTES = 6_000
# Between two tries to find out how far a writer was, seconds.
_PAUSE = 0.2


# What a flusher of streams answers: where chunks stand, or the promise of who flushes them aside.
Placed: TypeAlias = AppendAnswer | asyncio.Future[AppendAnswer]


@dataclass(eq=False, slots=True)
class _Flush:
    """One that was begun, and the promise of its answers; None: nothing of it is stored."""

    number: int
    environment_id: int
    expected: Expected
    # What a bell says of it, and whether one does behind its commit.
    news: Sequence[StreamMoved]
    is_rung: bool
    call: "asyncio.Future[PGresult]"
    promise: "asyncio.Future[Sequence[Placed] | None]"

    @property
    def is_stored(self) -> bool | None:
        """Whether it is, or None where that is not known from its call."""
        if self.call.cancelled() or self.call.exception() is not None:
            return None
        return self.call.result().get_value(0, 0) == b"t"


class KnownAppends:
    """Begins flushes of streams that it knows. `tasks` outlives what is begun."""

    def __init__(
        self, database: Database, bell: Doorbell, *, stream_limit: int, retry_for: float
    ) -> None:
        # Who writes, also what goes the longer way: it follows in the same row.
        self.writer = Writer(database, "chunks")
        self.tasks: TaskGroup | None = None
        self._database = database
        self._bell = bell
        self._limit = stream_limit
        self._retry_for = retry_for
        self._call = DirectCall(
            database,
            "streams.append_lone",
            "streams.append_known",
            one_plan=True,
            settings=_SETTINGS,
        )
        self._memories: dict[int, StreamMemory] = {}
        # Of each environment, the last flush that is stored or begun.
        self._last: dict[int, int] = {}
        self._flushes: deque[_Flush] = deque()
        # Nothing is begun: it is to be found out what is stored, or all is over.
        self._is_halted = False

    def memory(self, environment_id: int) -> StreamMemory:
        """Return what is remembered of an environment."""
        return self._memories.setdefault(environment_id, StreamMemory())

    def stored(self, environment_id: int, number: int) -> None:
        """Note a flush that has gone the longer way: the next comes after it."""
        self._last[environment_id] = number

    async def connect(self) -> None:
        """Connect, for flushes to come. Raises EngineError."""
        await self._call.connect()

    def close(self) -> None:
        """Give up what is under way; it may happen yet."""
        self._is_halted = True
        self._call.close()
        for flush in self._flushes:
            flush.promise.cancel()

    def begin(
        self, number: int, environment_id: int, appends: Sequence[Append]
    ) -> "asyncio.Future[Sequence[Placed] | None] | None":
        """Begin a flush behind those under way, and return the promise of its answers.

        None: it cannot be begun now; it has to go the longer way, once those are answered.
        """
        after = self._last.get(environment_id)
        if after is None or self._is_halted or not self._call.is_connected:
            return None
        if self._flushes and self._database.is_pooled:
            return None  # a pooler may give each its own session
        memory = self.memory(environment_id)
        expected = memory.expect(appends, stream_limit=self._limit)
        if expected is None:
            return None
        news = moved(expected.after)
        bell = self._bell.behind_a_commit(environment_id, news)
        common = {
            "environment_id": environment_id,
            "writer_id": self.writer.id,
            "after": after,
            "number": number,
            "bell": bell,
            "in_session": not self._database.is_pooled,
        }
        try:
            if expected.is_lone:
                call = self._call.begin("streams.append_lone", {**common, **_lone(expected)})
            else:
                call = self._call.begin("streams.append_known", {**common, **_several(expected)})
        except CommitUnknownError as error:
            # As one that was sent and has got no answer.
            call = asyncio.get_running_loop().create_future()
            call.set_exception(error)
        except (psycopg.Error, UnicodeError):
            return None  # there it is found out which of them cannot be stored
        memory.keep({}, expected.after)
        self._last[environment_id] = number
        promise = asyncio.get_running_loop().create_future()
        flush = _Flush(number, environment_id, expected, news, bell is not None, call, promise)
        self._flushes.append(flush)
        call.add_done_callback(self._answered)
        return promise

    def _answered(self, _: "asyncio.Future[PGresult]") -> None:
        if self._is_halted:
            return
        while self._flushes and self._flushes[0].call.done():
            is_stored = self._flushes[0].is_stored
            if is_stored is None:
                self._is_halted = True
                assert self.tasks is not None
                self.tasks.start_soon(self._find_out)
                return
            self._settle(self._flushes.popleft(), is_stored=is_stored)

    def _settle(self, flush: _Flush, *, is_stored: bool) -> None:
        if is_stored and not flush.is_rung:
            self._bell.ring_feed(flush.environment_id, streams=flush.news)
        if not is_stored:
            self.memory(flush.environment_id).doubt(flush.expected)
            # Behind it nothing can be stored, until one has gone the longer way.
            self._last.pop(flush.environment_id, None)
        if not flush.promise.done():
            flush.promise.set_result(flush.expected.answers if is_stored else None)

    async def _find_out(self) -> None:
        """Find out what became of what is under way, behind an error."""
        await asyncio.wait([flush.call for flush in self._flushes])
        self._call.close()
        writer, self.writer = self.writer, Writer(self._database, "chunks")
        self._last.clear()
        flushes, self._flushes = self._flushes, deque()
        last: dict[int, int] = {}
        for flush in flushes:
            # The bell may be what failed.
            flush.is_rung = False
            self._note(flush.call.exception())
            self.memory(flush.environment_id).doubt(flush.expected)
            try:
                if flush.environment_id not in last:
                    last[flush.environment_id] = await self._closed(writer, flush.environment_id)
            except EngineError as error:
                flush.promise.set_exception(error)
            else:
                self._settle(flush, is_stored=flush.number <= last[flush.environment_id])
        self._is_halted = False

    async def _closed(self, writer: Writer, environment_id: int) -> int:
        """Close a writer, once the database is there, and return its last flush."""
        deadline = anyio.current_time() + self._retry_for
        while True:
            try:
                return await writer.close(environment_id)
            except DatabaseUnavailableError as error:
                if anyio.current_time() > deadline:
                    raise
                logger.warning("it is to be found out yet which chunks are stored: %s", error)
                await anyio.sleep(_PAUSE)

    def _note(self, error: BaseException | None) -> None:
        if isinstance(error, psycopg.Error):
            self._database.note(translate(error, "streams.append_known"))


def moved(streams: Sequence[StreamState]) -> list[StreamMoved]:
    """Return what a bell says of streams that a flush has written to."""
    room = _HINT_BYTES
    written = (stretch for stream in streams for stretch in stream.written)
    for append in (append for stretch in written for append in stretch.appends):
        room -= append.size
        if room < 0:
            break
    return [_moved(stream, carried=room >= 0) for stream in streams]


def _moved(stream: StreamState, *, carried: bool) -> StreamMoved:
    chunks: tuple[ChunkRow, ...] = ()
    if carried:
        chunks = tuple(chunk for stretch in stream.written for chunk in stretch.rows())
    return StreamMoved(stream.run_id, stream.key, stream.next_seq, chunks, stream.ended_now)


def _lone(expected: Expected) -> dict[str, object]:
    (run,), (before,), (after,) = expected.runs, expected.before, expected.after
    ((_, stretch),) = expected.pieces
    execution, attempt, writer = stretch.by
    return {
        "run_id": run.id,
        "run_status": run.status,
        "run_execution": run.execution,
        "stream_id": before.id,
        "stream_seq": before.next_seq,
        "stream_execution": before.execution,
        "stream_count": after.next_seq - before.next_seq,
        "stream_bytes": after.bytes - before.bytes,
        "stream_end": after.ended_execution,
        "bucket": before.bucket,
        "execution": execution,
        "attempt": attempt,
        "writer": writer,
        "bodies": expected.text,
    }


def _several(expected: Expected) -> dict[str, object]:
    runs, before, after = expected.runs, expected.before, expected.after
    pieces = expected.pieces
    return {
        "run_ids": _array([run.id for run in runs]),
        "run_statuses": _array([run.status for run in runs]),
        "run_executions": _array([run.execution for run in runs]),
        "stream_ids": _array([stream.id for stream in before]),
        "stream_seqs": _array([stream.next_seq for stream in before]),
        "stream_executions": _array([stream.execution for stream in before]),
        "stream_counts": _array(
            [b.next_seq - a.next_seq for a, b in zip(before, after, strict=True)]
        ),
        "stream_bytes": _array([b.bytes - a.bytes for a, b in zip(before, after, strict=True)]),
        "stream_ends": _array([stream.ended_execution for stream in after]),
        "piece_streams": _array([stream.id for stream, _ in pieces]),
        "piece_buckets": _array([stream.bucket for stream, _ in pieces]),
        "piece_seqs": _array([stretch.seq for _, stretch in pieces]),
        "piece_counts": _array([stretch.count for _, stretch in pieces]),
        "piece_executions": _array([stretch.by[0] for _, stretch in pieces]),
        "piece_attempts": _array([stretch.by[1] for _, stretch in pieces]),
        "piece_writers": PIECE_END.join([stretch.by[2] or "" for _, stretch in pieces]),
        "bodies": expected.text,
    }


def _array(values: Sequence[object]) -> str:
    """Return an array as Postgres reads it: of numbers, dates, ids or names, and None.

    Written by hand, since the driver takes 30 times as long for one of 50.
    """
    texts = ["null" if value is None else str(value) for value in values]
    return f"{{{','.join(texts)}}}"
