"""What an executing run offers to the code in it: metadata, streams, child runs.

Implements `runwire._context.Runtime`. Everything may be called from the task loop, from another
loop or from a thread; what has to be stored goes to the engine's loop, in order, through one writer
for each stream and each document. Once `drain` has begun, nothing more is taken.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar, cast

import orjson

from runwire import _metadata
from runwire._context import (
    AttemptInfo,
    BatchInfo,
    Context,
    MetadataTarget,
    QueueInfo,
    RunInfo,
    TaskInfo,
    Triggered,
    TriggeredBatch,
)
from runwire.errors import FencedError, NotInRunError
from runwire.requests import BatchItem, TriggerOptions
from runwire.wire import JsonObject
from runwire_engine.bridge import Bridge, arrival, pending_promise
from runwire_engine.children import Children
from runwire_engine.claims import ClaimedRun
from runwire_engine.engine import Engine
from runwire_engine.errors import RunFinalError
from runwire_engine.metadata_writer import MetadataWriter
from runwire_engine.patience import patiently
from runwire_engine.run_metadata import MetadataWrite
from runwire_engine.run_row import RunRow
from runwire_engine.stream_writer import StreamWriter
from runwire_engine.streams import Append

T = TypeVar("T")


@dataclass(frozen=True)
class Surroundings:
    """What every run of one worker is given."""

    engine: Engine
    environment_id: int
    environment: str
    # The engine's loop.
    bridge: Bridge
    children: Children


class RunRuntime:
    """One attempt's way to the outside."""

    def __init__(
        self, run: ClaimedRun, around: Surroundings, fenced: Callable[[FencedError], None]
    ) -> None:
        """Take whom to tell (on the engine's loop) that another execution holds the run."""
        self._run = run
        self._around = around
        self._fenced = fenced
        self._lock = threading.Lock()
        self._ctx: Context | None = None
        # As this attempt sees it; None until it is first looked at.
        self._document: JsonObject | None = None
        self._documents: dict[str, MetadataWriter] = {}
        self._streams: dict[tuple[str, str], StreamWriter] = {}
        # What every further call raises.
        self._closed: Exception | None = None

    @property
    def ctx(self) -> Context:
        if self._ctx is None:
            self._ctx = _context(self._run, self._around.environment)
        return self._ctx

    def locals(self) -> Mapping[str, object]:
        return {}

    # Metadata ----------------------------------------------------------------------------------

    def metadata_current(self) -> JsonObject:
        with self._lock:
            # A copy: what the caller does to it must not show up in the next one.
            return cast(JsonObject, orjson.loads(orjson.dumps(self._metadata())))

    def metadata_apply(self, target: MetadataTarget, operation: JsonObject) -> None:
        run_id = self._target(target)
        operation = _metadata.validate(operation)
        with self._lock:
            self._check_open()
            changed = None
            if run_id == self._run.id:
                changed = _metadata.apply(self._metadata(), [operation])
            # Under the lock, so that the order of flushes is the order seen here.
            self._writer_of(run_id).add(operation)
            self._document = changed if changed is not None else self._document

    async def metadata_flush(self) -> None:
        for flushed in self._flushes():
            await arrival(flushed)

    def metadata_flush_blocking(self) -> None:
        for flushed in self._flushes():
            flushed.result()

    # Streams -----------------------------------------------------------------------------------

    async def stream_append(self, target: str, key: str, bodies: Sequence[str]) -> int:
        writer, receipt = self._stream(target, key), _receipt()
        while (room := writer.offer(bodies, receipt)) is not None:
            await arrival(room)
        return await arrival(receipt)

    async def stream_write(self, target: str, key: str, body: str) -> None:
        writer = self._stream(target, key)
        while (room := writer.offer((body,))) is not None:
            await arrival(room)

    async def stream_end(self, target: str, key: str) -> None:
        await arrival(self._stream(target, key).end())

    def stream_append_blocking(self, target: str, key: str, bodies: Sequence[str]) -> int:
        writer, receipt = self._stream(target, key), _receipt()
        while (room := writer.offer(bodies, receipt)) is not None:
            room.result()
        return receipt.result()

    def stream_write_blocking(self, target: str, key: str, body: str) -> None:
        writer = self._stream(target, key)
        while (room := writer.offer((body,))) is not None:
            room.result()

    def stream_end_blocking(self, target: str, key: str) -> None:
        self._stream(target, key).end().result()

    # Children and tags -------------------------------------------------------------------------

    async def trigger(
        self, task: str, payload: str | None, options: TriggerOptions, request_key: str
    ) -> Triggered:
        return await arrival(self._triggering(task, payload, options, request_key))

    def trigger_blocking(
        self, task: str, payload: str | None, options: TriggerOptions, request_key: str
    ) -> Triggered:
        return self._triggering(task, payload, options, request_key).result()

    async def trigger_batch(
        self, items: Sequence[BatchItem], idempotency_key: str | None
    ) -> TriggeredBatch:
        return await arrival(self._triggering_batch(items, idempotency_key))

    def trigger_batch_blocking(
        self, items: Sequence[BatchItem], idempotency_key: str | None
    ) -> TriggeredBatch:
        return self._triggering_batch(items, idempotency_key).result()

    async def add_tags(self, tags: Sequence[str]) -> None:
        await arrival(self._tagging(tags))

    def add_tags_blocking(self, tags: Sequence[str]) -> None:
        self._tagging(tags).result()

    # The end -----------------------------------------------------------------------------------

    @property
    def clean(self) -> bool:
        """Whether nothing was ever written, so that there is nothing to drain."""
        return not self._documents and not self._streams

    def close(self, reason: Exception) -> None:
        """Take nothing more: every further call raises this."""
        with self._lock:
            self._closed = self._closed or reason

    def abort(self, reason: FencedError) -> None:
        """Take nothing more and drop what waits."""
        self.close(reason)
        for stream in tuple(self._streams.values()):
            stream.fail(reason)
        for document in tuple(self._documents.values()):
            document.fail(reason)

    async def drain(self) -> None:
        """Commit all that was written, and end the run's own streams; on the engine's loop.

        Raises what a write failed with.
        """
        self.close(NotInRunError(f"this attempt at {self._run.id} is over"))
        promises: list[Future[int] | Future[None] | None] = []
        for (run_id, _), stream in self._streams.items():
            promises.append(stream.finish(end=run_id == self._run.id))
        promises += [document.flush() for document in self._documents.values()]
        for promise in promises:
            if promise is not None:
                await asyncio.wrap_future(cast("Future[object]", promise))

    # -------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    def _target(self, target: str) -> str:
        match target:
            case "self":
                return self._run.id
            case "parent":
                return self._run.parent_id or self._run.id
            case "root":
                return self._run.root_id or self._run.id
            case _:
                return target

    def _metadata(self) -> JsonObject:
        document = self._document
        if document is None:
            document = cast(JsonObject, orjson.loads(self._run.metadata or "{}"))
            self._document = document
        return document

    def _writer_of(self, run_id: str) -> MetadataWriter:
        writer = self._documents.get(run_id)
        if writer is None:

            async def send(operations: Sequence[JsonObject]) -> int:
                return await self._apply(run_id, operations)

            writer = self._documents[run_id] = MetadataWriter(self._around.bridge, send)
        return writer

    def _flushes(self) -> list["Future[None]"]:
        with self._lock:
            self._check_open()
            writers = list(self._documents.values())
        return [flushed for writer in writers if (flushed := writer.flush()) is not None]

    async def _apply(self, run_id: str, operations: Sequence[JsonObject]) -> int:
        own = run_id == self._run.id
        write = MetadataWrite(
            run_id,
            tuple(operations),
            execution=self._run.execution,
            writer=None if own else self._run.id,
        )
        try:
            answer = await self._around.engine.metadata.apply(self._around.environment_id, write)
        except FencedError as error:
            self._fenced(error)
            raise
        return answer.bytes

    def _stream(self, target: str, key: str) -> StreamWriter:
        run_id = self._target(target)
        writer = self._streams.get((run_id, key))
        if writer is not None and self._closed is None:
            return writer
        with self._lock:
            self._check_open()
            return self._streams.setdefault((run_id, key), self._new_stream(run_id, key))

    def _new_stream(self, run_id: str, key: str) -> StreamWriter:
        run, own = self._run, run_id == self._run.id

        async def send(bodies: tuple[str, ...], end: bool) -> int:
            append = Append(
                run_id,
                key,
                bodies,
                execution=run.execution,
                attempt=run.attempt if own else None,
                writer=None if own else run.id,
                end=end,
            )
            try:
                answer = await self._around.engine.streams.append(
                    self._around.environment_id, append
                )
            except FencedError as error:
                self._fenced(error)
                raise
            except RunFinalError as error:
                # Another run, and it is over: for the task the same as when its own is.
                raise FencedError(str(error), run_id=error.run_id) from error
            return answer.next_seq

        return StreamWriter(self._around.bridge, send)

    def _triggering(
        self, task: str, payload: str | None, options: TriggerOptions, request_key: str
    ) -> "Future[Triggered]":
        children, run = self._around.children, self._run
        return self._call(lambda: children.trigger(run, task, payload, options, request_key))

    def _triggering_batch(
        self, items: Sequence[BatchItem], idempotency_key: str | None
    ) -> "Future[TriggeredBatch]":
        children, run = self._around.children, self._run
        return self._call(lambda: children.trigger_batch(run, items, idempotency_key))

    def _tagging(self, tags: Sequence[str]) -> "Future[RunRow]":
        runs, run = self._around.engine.runs, self._run
        environment_id = self._around.environment_id

        def add() -> Awaitable[RunRow]:
            return runs.add_tags(environment_id, run.id, tags, execution=run.execution)

        return self._call(lambda: patiently(add))

    def _call(self, work: Callable[[], Awaitable[T]]) -> "Future[T]":
        """Do on the engine's loop what this execution may do only while it holds the run."""
        self._check_open()

        async def fenced() -> T:
            try:
                return await work()
            except FencedError as error:
                self._fenced(error)
                raise

        return self._around.bridge.call(fenced)


def _receipt() -> "Future[int]":
    return pending_promise()


def _context(run: ClaimedRun, environment: str) -> Context:
    return Context(
        run=RunInfo(
            id=run.id,
            tags=run.tags,
            is_test=run.is_test,
            created_at=run.created_at,
            started_at=run.started_at or run.created_at,
            parent_id=run.parent_id,
            root_id=run.root_id,
            depth=run.depth,
            idempotency_key=run.idempotency_key,
            version=run.version,
            max_duration=run.max_duration,
        ),
        attempt=AttemptInfo(run.attempt, run.execution, run.claimed_at or run.updated_at),
        task=TaskInfo(run.task),
        queue=QueueInfo(run.queue, run.concurrency_key or None),
        batch=None if run.batch_id is None else BatchInfo(run.batch_id),
        environment=environment,
    )
