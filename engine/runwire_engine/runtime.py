"""What an executing run offers to the code in it: metadata, streams, child runs.

Implements `runwire._context.Runtime`. Everything may be called from the task loop, from another
loop or from a thread; what has to be stored goes to the engine's loop, in order, through one writer
for each stream and each document. Once `drain` has begun, nothing more is taken.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol, TypeVar, cast

import orjson

from runwire import _metadata
from runwire._context import (
    AttemptInfo,
    BatchInfo,
    ChildResults,
    Context,
    CreatedToken,
    MetadataTarget,
    OpenPipe,
    OpenSyncPipe,
    QueueInfo,
    RunInfo,
    TaskInfo,
    TokenRequest,
    Triggered,
    TriggeredBatch,
    WaitResult,
)
from runwire._log_line import LogLevel
from runwire.errors import FencedError, NonDeterministicError, NotInRunError
from runwire.requests import BatchItem, TriggerOptions
from runwire.wire import JsonObject
from runwire_engine.bridge import arrival, pending_promise
from runwire_engine.claims import ClaimedRun
from runwire_engine.errors import RunFinalError, TooManyTagsError
from runwire_engine.input_calls import InputCalls
from runwire_engine.metadata_writer import MetadataWriter
from runwire_engine.patience import patiently
from runwire_engine.pipes import Pipes
from runwire_engine.run_log import RunLog
from runwire_engine.run_metadata import MetadataWrite
from runwire_engine.run_row import RunRow
from runwire_engine.steps import Steps, WaitHooks
from runwire_engine.stream_writer import StreamWriter
from runwire_engine.streams import Append
from runwire_engine.surroundings import Surroundings

logger = logging.getLogger("runwire.worker")

T = TypeVar("T")


class Holder(Protocol):
    """Who holds the attempt; told and asked on the engine's loop."""

    def fenced(self, error: FencedError) -> None:
        """Note that another execution holds the run."""
        ...

    def begin_parking(self) -> bool:
        """Prepare to give up the attempt's place; False when it is over or shall stop."""
        ...

    def cancel_parking(self) -> None: ...

    def park(self, due_in: float | None) -> None:
        """Free the place: the run is WAITING, in so many seconds for a time that comes."""
        ...


class RunRuntime:
    """One attempt's way to the outside."""

    def __init__(self, run: ClaimedRun, around: Surroundings, holder: Holder) -> None:
        self._run = run
        self._around = around
        self._holder = holder
        self._steps = Steps(around, self)
        self._lock = threading.Lock()
        # Who is told of waits, where hooks want that.
        self.wait_hooks: WaitHooks | None = None
        self._ctx: Context | None = None
        self._locals: dict[Any, object] | None = None
        # As this attempt sees it; None until it is first looked at.
        self._document: JsonObject | None = None
        self._documents: dict[str, MetadataWriter] = {}
        self._streams: dict[tuple[str, str], StreamWriter] = {}
        self._log = RunLog(around, self._steps, self)
        self._input = InputCalls(around, self._steps, self)
        # What goes on beside the function.
        self.pipes = Pipes(run.id)
        # What every further call raises.
        self._closed: Exception | None = None
        # Why this replay cannot but fail.
        self.divergence: NonDeterministicError | None = None

    @property
    def run(self) -> ClaimedRun:
        """The run, as it was last claimed for this attempt."""
        return self._run

    def begin_branches(self) -> None:
        """Have what is started in this context found again by a replay."""
        self._steps.branches.enter()

    async def load(self) -> None:
        """Read what earlier executions of the code have done, before it begins."""
        await self._steps.load()

    def resume(self, run: ClaimedRun) -> None:
        """Go on under the execution with which the run was claimed again; on the engine's loop."""
        self._run = run
        self._steps.resumed()

    @property
    def has_waits(self) -> bool:
        return self._steps.has_waits

    def look(self) -> None:
        """Look soon whether a wait is over."""
        self._steps.look()

    def apart(self, label: str) -> AbstractContextManager[None]:
        """Have what is in the block be a branch of its own, which a replay may leave out."""
        return self._steps.branches.apart(label)

    def begins_anew(self, label: str) -> bool:
        """Say whether such a block is to be done: in a replay, only if it was not over."""
        return not self._run.waited or not self._steps.branches.has_ended(label)

    def diverged(self, error: NonDeterministicError) -> None:
        self.divergence = error
        self.close(error)

    def fenced(self, error: FencedError) -> None:
        self._holder.fenced(error)

    def begin_parking(self) -> bool:
        return self._holder.begin_parking()

    def cancel_parking(self) -> None:
        self._holder.cancel_parking()

    def park(self, due_in: float | None) -> None:
        self._holder.park(due_in)

    @property
    def ctx(self) -> Context:
        if self._ctx is None:
            self._ctx = _context(self._run, self._around.environment)
        return self._ctx

    def locals(self) -> dict[Any, object]:
        if self._locals is None:
            self._locals = {}
        return self._locals

    # Metadata ----------------------------------------------------------------------------------

    def metadata_current(self) -> JsonObject:
        with self._lock:
            # A copy: what the caller does to it must not show up in the next one.
            return cast(JsonObject, orjson.loads(orjson.dumps(self._metadata())))

    def metadata_apply(self, target: MetadataTarget, operation: JsonObject) -> None:
        run_id = self._target(target)
        operation = _metadata.validate(operation)
        self.check_open()
        if not self._steps.admits(f"metadata/{run_id}"):
            return
        with self._lock:
            self.check_open()
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
        if not self._admits(target, key):
            return await arrival(self._next_seq(target, key))
        while (room := writer.offer(bodies, receipt)) is not None:
            await arrival(room)
        return await arrival(receipt)

    async def stream_write(self, target: str, key: str, body: str) -> None:
        writer = self._stream(target, key)
        if not self._admits(target, key):
            return
        while (room := writer.offer((body,))) is not None:
            await arrival(room)

    async def stream_end(self, target: str, key: str) -> None:
        writer = self._stream(target, key)
        if self._admits(target, key):
            await arrival(writer.end())

    def stream_append_blocking(self, target: str, key: str, bodies: Sequence[str]) -> int:
        writer, receipt = self._stream(target, key), _receipt()
        if not self._admits(target, key):
            return self._next_seq(target, key).result()
        while (room := writer.offer(bodies, receipt)) is not None:
            room.result()
        return receipt.result()

    def stream_write_blocking(self, target: str, key: str, body: str) -> None:
        writer = self._stream(target, key)
        if not self._admits(target, key):
            return
        while (room := writer.offer((body,))) is not None:
            room.result()

    def stream_end_blocking(self, target: str, key: str) -> None:
        writer = self._stream(target, key)
        if self._admits(target, key):
            writer.end().result()

    def opened(self, pipe: OpenPipe) -> None:
        self.check_open()
        self.pipes.add(pipe)

    def opened_blocking(self, pipe: OpenSyncPipe) -> None:
        self.check_open()
        self.pipes.add_blocking(pipe)

    # Input -------------------------------------------------------------------------------------

    async def input_take(self, key: str, timeout: float | None) -> str | None:
        return await self._input.take(key, timeout)

    def input_take_blocking(self, key: str, timeout: float | None) -> str | None:
        return self._input.take_blocking(key, timeout)

    async def input_wait(self, key: str, timeout: float | None, idle: float) -> str | None:
        return await self._input.wait(key, timeout, idle)

    def input_wait_blocking(self, key: str, timeout: float | None, idle: float) -> str | None:
        return self._input.wait_blocking(key, timeout, idle)

    async def input_peek(self, key: str) -> str | None:
        return await self._input.peek(key)

    def input_peek_blocking(self, key: str) -> str | None:
        return self._input.peek_blocking(key)

    async def input_send(self, run_id: str, key: str, body: str) -> None:
        await self._input.send(run_id, key, body)

    def input_send_blocking(self, run_id: str, key: str, body: str) -> None:
        self._input.send_blocking(run_id, key, body)

    # The log -----------------------------------------------------------------------------------

    def log(
        self,
        level: LogLevel,
        message: object,
        attributes: Mapping[str, object] | None = None,
        logger: str | None = None,
    ) -> None:
        self._log.write(level, message, attributes, logger)

    # Children, waits and tags --------------------------------------------------------------------

    async def trigger(
        self, task: str, payload: str | None, options: TriggerOptions, request_key: str
    ) -> Triggered:
        return await arrival(self._steps.trigger(task, payload, options, request_key))

    def trigger_blocking(
        self, task: str, payload: str | None, options: TriggerOptions, request_key: str
    ) -> Triggered:
        return self._steps.trigger(task, payload, options, request_key).result()

    async def trigger_batch(
        self, items: Sequence[BatchItem], idempotency_key: str | None, request_key: str
    ) -> TriggeredBatch:
        return await arrival(self._steps.trigger_batch(items, idempotency_key, request_key))

    def trigger_batch_blocking(
        self, items: Sequence[BatchItem], idempotency_key: str | None, request_key: str
    ) -> TriggeredBatch:
        return self._steps.trigger_batch(items, idempotency_key, request_key).result()

    async def trigger_and_wait(
        self, items: Sequence[BatchItem], *, batch: bool, idempotency_key: str | None = None
    ) -> ChildResults:
        return await self._steps.trigger_and_wait(items, batch, idempotency_key)

    def trigger_and_wait_blocking(
        self, items: Sequence[BatchItem], *, batch: bool, idempotency_key: str | None = None
    ) -> ChildResults:
        return self._steps.trigger_and_wait_blocking(items, batch, idempotency_key)

    async def wait_until(self, due: datetime | float) -> None:
        await self._steps.wait_until(due)

    def wait_until_blocking(self, due: datetime | float) -> None:
        self._steps.wait_until_blocking(due)

    async def create_token(self, request: TokenRequest) -> CreatedToken:
        return await arrival(self._steps.create_token(request))

    def create_token_blocking(self, request: TokenRequest) -> CreatedToken:
        return self._steps.create_token(request).result()

    async def wait_for_token(self, token_id: str) -> WaitResult:
        return await self._steps.wait_for_token(token_id)

    def wait_for_token_blocking(self, token_id: str) -> WaitResult:
        return self._steps.wait_for_token_blocking(token_id)

    async def complete_token(self, token_id: str, body: str | None) -> None:
        await arrival(self._steps.complete_token(token_id, body))

    def complete_token_blocking(self, token_id: str, body: str | None) -> None:
        self._steps.complete_token(token_id, body).result()

    async def reset_idempotency_key(self, task: str, key: str) -> bool:
        return await arrival(self._resetting(task, key))

    def reset_idempotency_key_blocking(self, task: str, key: str) -> bool:
        return self._resetting(task, key).result()

    async def add_tags(self, tags: Sequence[str]) -> None:
        await arrival(self._tagging(tags))

    def add_tags_blocking(self, tags: Sequence[str]) -> None:
        self._tagging(tags).result()

    # The end -----------------------------------------------------------------------------------

    @property
    def clean(self) -> bool:
        """Whether nothing was ever written, so that there is nothing to drain."""
        return not self._documents and not self._streams and self._log.is_empty

    def close(self, reason: Exception) -> None:
        """Take nothing more: every further call raises this, and what waits is cancelled."""
        with self._lock:
            self._closed = self._closed or reason
        self._steps.close()
        self._input.close()
        self._log.close()

    def interrupt(self) -> None:
        """Cancel every wait: the function shall stop."""
        self._steps.close()
        self._input.close(interrupted=True)

    def abort(self, reason: FencedError) -> None:
        """Take nothing more and drop what waits."""
        self.close(reason)
        for stream in tuple(self._streams.values()):
            stream.fail(reason)
        for document in tuple(self._documents.values()):
            document.fail(reason)
        self._log.abort()

    async def drain(self) -> None:
        """Commit all that was written, and end the run's own streams; on the engine's loop.

        Raises what a write failed with.
        """
        try:
            await self._drain()
        finally:
            await self._log.finish()

    async def _drain(self) -> None:
        self.close(NotInRunError(f"this attempt at {self._run.id} is over"))
        await self._commit(end=True)

    async def settle(self) -> None:
        """Commit all that was written so far; on the engine's loop. Raises as `drain`."""
        await self._commit(end=False)
        await self._log.flush()

    async def _commit(self, *, end: bool) -> None:
        promises: list[Future[int] | Future[None] | None] = []
        for (run_id, _), stream in tuple(self._streams.items()):
            promises.append(stream.finish(end=end and run_id == self._run.id))
        promises += [document.flush() for document in tuple(self._documents.values())]
        for promise in promises:
            if promise is not None:
                await asyncio.wrap_future(cast("Future[object]", promise))

    # -------------------------------------------------------------------------------------------

    def check_open(self) -> None:
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
            self.check_open()
            writers = list(self._documents.values())
        return [flushed for writer in writers if (flushed := writer.flush()) is not None]

    async def _apply(self, run_id: str, operations: Sequence[JsonObject]) -> int:
        await self._steps.pass_gate()
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
            self._holder.fenced(error)
            raise
        return answer.bytes

    def _stream(self, target: str, key: str) -> StreamWriter:
        run_id = self._target(target)
        writer = self._streams.get((run_id, key))
        if writer is not None and self._closed is None:
            return writer
        with self._lock:
            self.check_open()
            return self._streams.setdefault((run_id, key), self._new_stream(run_id, key))

    def _admits(self, target: str, key: str) -> bool:
        return self._steps.admits(f"stream/{self._target(target)}/{key}")

    def _next_seq(self, target: str, key: str) -> "Future[int]":
        """Return where a stream stands: the answer to an append that was done before."""
        streams, environment_id = self._around.engine.streams, self._around.environment_id

        async def look() -> int:
            heads = await streams.heads(environment_id, [(self._target(target), key)])
            return heads[0].next_seq if heads else 0

        return self.call(look)

    def _new_stream(self, run_id: str, key: str) -> StreamWriter:
        own = run_id == self._run.id

        async def send(bodies: tuple[str, ...], end: bool) -> int:
            await self._steps.pass_gate()
            run = self._run
            append = Append(
                run_id,
                key,
                bodies,
                execution=run.execution,
                attempt=run.attempt if own else None,
                writer=None if own else run.id,
                end=end,
                lineage=run.lineage if own else None,
            )
            try:
                answer = await self._around.engine.streams.append(
                    self._around.environment_id, append
                )
            except FencedError as error:
                self._holder.fenced(error)
                raise
            except RunFinalError as error:
                # Another run, and it is over: for the task the same as when its own is.
                raise FencedError(str(error), run_id=error.run_id) from error
            return answer.next_seq

        return StreamWriter(self._around.bridge, send)

    def _resetting(self, task: str, key: str) -> "Future[bool]":
        runs, environment_id = self._around.engine.runs, self._around.environment_id
        return self.call(lambda: patiently(lambda: runs.reset_key(environment_id, task, key)))

    def _tagging(self, tags: Sequence[str]) -> "Future[RunRow | None]":
        runs, environment_id = self._around.engine.runs, self._around.environment_id

        def add() -> Awaitable[RunRow]:
            run = self._run
            return runs.add_tags(environment_id, run.id, tags, execution=run.execution)

        async def added() -> RunRow | None:
            try:
                return await patiently(add)
            except TooManyTagsError as error:
                # Not worth a failed attempt: a tag only helps to find the run.
                logger.warning("tags.add(%s) was ignored: %s", ", ".join(tags), error)
                return None

        return self.call(added)

    def call(self, work: Callable[[], Awaitable[T]]) -> "Future[T]":
        """Do on the engine's loop what this execution may do only while it holds the run."""
        self.check_open()

        async def fenced() -> T:
            await self._steps.pass_gate()
            try:
                return await work()
            except FencedError as error:
                self._holder.fenced(error)
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
            schedule_id=run.schedule_id,
        ),
        attempt=AttemptInfo(run.attempt, run.execution, run.claimed_at or run.updated_at),
        task=TaskInfo(run.task),
        queue=QueueInfo(run.queue, run.concurrency_key or None),
        batch=None if run.batch_id is None else BatchInfo(run.batch_id),
        environment=environment,
    )
