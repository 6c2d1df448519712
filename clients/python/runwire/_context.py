"""The executing run, as a context variable, and what an engine must offer to be one.

`runwire.metadata`, `runwire.streams` and `task.trigger` find the executing run here. The worker
(runwire_engine.executor) sets it around every attempt and implements `Runtime`; the public package
never imports the engine.
"""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol, TypeAlias

from runwire._log_line import LogLevel
from runwire.errors import NotInRunError
from runwire.requests import BatchItem, TriggerOptions
from runwire.wire import JsonObject

MetadataTarget: TypeAlias = Literal["self", "parent", "root"]


@dataclass(frozen=True)
class RunInfo:
    id: str
    tags: tuple[str, ...]
    is_test: bool
    created_at: datetime
    started_at: datetime
    parent_id: str | None
    root_id: str | None
    depth: int
    idempotency_key: str | None
    version: str | None
    max_duration: float | None
    # Of a run that came of a tick.
    schedule_id: str | None = None


@dataclass(frozen=True)
class AttemptInfo:
    number: int  # from 1
    execution: int  # +1 on every claim, retries or not
    started_at: datetime


@dataclass(frozen=True)
class TaskInfo:
    id: str


@dataclass(frozen=True)
class QueueInfo:
    name: str
    concurrency_key: str | None


@dataclass(frozen=True)
class BatchInfo:
    id: str


@dataclass(frozen=True)
class Context:
    """What a task function gets when it names a parameter `ctx`."""

    run: RunInfo
    attempt: AttemptInfo
    task: TaskInfo
    queue: QueueInfo
    batch: BatchInfo | None
    environment: str


@dataclass(frozen=True)
class Triggered:
    """The answer to a trigger. The token reads that run; None where no secret is at hand."""

    id: str
    is_cached: bool
    public_access_token: str | None


@dataclass(frozen=True)
class TriggeredBatch:
    id: str
    run_count: int
    is_cached: bool
    public_access_token: str | None
    # The runs of its items, in order.
    run_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class WaitInfo:
    """What a run waits for, as `on_wait` and `on_resume` get it."""

    type: str  # "time", "run", "batch", "token" or "input"
    # When it ends by time.
    until: datetime | None = None
    run_ids: tuple[str, ...] = ()
    batch_id: str | None = None
    token_id: str | None = None


@dataclass(frozen=True)
class ChildResult:
    """How a child run ended; output is JSON text, error the wire's object."""

    id: str
    task: str
    status: str
    output: str | None
    output_type: str | None
    error: JsonObject | None
    # Whether an idempotency key led to an earlier run.
    is_cached: bool

    @property
    def ok(self) -> bool:
        return self.status == "COMPLETED"


@dataclass(frozen=True)
class ChildResults:
    """How children ended, in the order they were asked for."""

    # None where they were triggered without a batch.
    batch_id: str | None
    runs: tuple[ChildResult, ...]


@dataclass(frozen=True)
class WaitResult:
    """How a wait ended; output is JSON text. Where it is not `ok`, the error says why."""

    ok: bool
    output: str | None = None
    output_type: str = "application/json"
    error: JsonObject | None = None


class OpenPipe(Protocol):
    """A pipe that goes on beside the function, on the task's loop."""

    @property
    def is_open(self) -> bool:
        """Whether the attempt has to wait for it."""
        ...

    async def finish(self) -> None:
        """Write the rest. Raises what its source or a write failed with."""
        ...

    def abort(self) -> None:
        """Write no more."""
        ...


class OpenSyncPipe(Protocol):
    """A pipe of a `def` task that nobody has read yet."""

    @property
    def is_open(self) -> bool: ...

    def finish_blocking(self, is_late: Callable[[], bool]) -> bool:
        """Write the rest, chunk by chunk until it is late; say whether all is written."""
        ...


@dataclass(frozen=True)
class TokenRequest:
    """A wait token that is wanted. Spans are seconds; no timeout: it never times out."""

    timeout: float | None
    timeout_at: datetime | None
    idempotency_key: str | None
    idempotency_key_ttl: float
    tags: tuple[str, ...]


@dataclass(frozen=True)
class CreatedToken:
    """A wait token; url and public_access_token are None where no secret is at hand."""

    id: str
    is_cached: bool
    url: str | None
    public_access_token: str | None


class Runtime(Protocol):
    """What the executing run offers. Every method may be called from the task's loop or thread.

    Coroutines run on the caller's loop; the `_blocking` twins are for `def` tasks, which run in a
    thread without a loop. Writes raise FencedError once the run is no longer this execution's.
    """

    @property
    def ctx(self) -> Context: ...

    def metadata_current(self) -> JsonObject:
        """Return the run's metadata as this attempt sees it (a copy)."""
        ...

    def metadata_apply(self, target: MetadataTarget, operation: JsonObject) -> None:
        """Apply one operation to the local document at once (target self) and queue its flush."""
        ...

    async def metadata_flush(self) -> None:
        """Wait until every operation queued so far is committed."""
        ...

    def metadata_flush_blocking(self) -> None: ...

    async def stream_append(self, target: str, key: str, bodies: Sequence[str]) -> int:
        """Append chunks (JSON text each) to a stream; target: "self", "parent", "root", a run id.

        Return the seq after the last one, once committed. Waits while the buffer is full.
        """
        ...

    async def stream_write(self, target: str, key: str, body: str) -> None:
        """Queue one chunk in order and return; waits only while the buffer is full."""
        ...

    async def stream_end(self, target: str, key: str) -> None:
        """Say that this attempt's writer is done, after everything queued is committed."""
        ...

    def stream_append_blocking(self, target: str, key: str, bodies: Sequence[str]) -> int: ...

    def stream_write_blocking(self, target: str, key: str, body: str) -> None: ...

    def stream_end_blocking(self, target: str, key: str) -> None: ...

    def log(
        self,
        level: LogLevel,
        message: object,
        attributes: Mapping[str, object] | None = None,
        logger: str | None = None,
    ) -> None:
        """Write a line to the run's log; never waits and never raises."""
        ...

    def opened(self, pipe: OpenPipe) -> None:
        """Note a pipe that may go on by itself: the end of the attempt waits for it, bounded."""
        ...

    def opened_blocking(self, pipe: OpenSyncPipe) -> None: ...

    async def input_take(self, key: str, timeout: float | None) -> str | None:
        """Return what was sent next to an input stream, as JSON text; None: nothing in time."""
        ...

    def input_take_blocking(self, key: str, timeout: float | None) -> str | None: ...

    async def input_wait(self, key: str, timeout: float | None, idle: float) -> str | None:
        """As `input_take`, but after `idle` seconds the run is WAITING, its slot free."""
        ...

    def input_wait_blocking(self, key: str, timeout: float | None, idle: float) -> str | None: ...

    async def input_peek(self, key: str) -> str | None:
        """Return what `input_take` would return at once, and leave it there."""
        ...

    def input_peek_blocking(self, key: str) -> str | None: ...

    async def input_send(self, run_id: str, key: str, body: str) -> None:
        """Send to an input stream of a run, this one or another. Raises FencedError."""
        ...

    def input_send_blocking(self, run_id: str, key: str, body: str) -> None: ...

    async def trigger(
        self, task: str, payload: str | None, options: TriggerOptions, request_key: str
    ) -> Triggered:
        """Start a child run of this run; `request_key` names the call, which may be repeated."""
        ...

    async def trigger_batch(
        self, items: Sequence[BatchItem], idempotency_key: str | None, request_key: str
    ) -> TriggeredBatch:
        """Start a batch of child runs; `request_key` names the call, which may be repeated."""
        ...

    def trigger_blocking(
        self, task: str, payload: str | None, options: TriggerOptions, request_key: str
    ) -> Triggered: ...

    def trigger_batch_blocking(
        self, items: Sequence[BatchItem], idempotency_key: str | None, request_key: str
    ) -> TriggeredBatch: ...

    async def trigger_and_wait(
        self, items: Sequence[BatchItem], *, batch: bool, idempotency_key: str | None = None
    ) -> ChildResults:
        """Start child runs (as a batch of that idempotency key, or by themselves) and wait.

        The run is WAITING meanwhile, its slot free, once everything else in it waits too.
        """
        ...

    def trigger_and_wait_blocking(
        self, items: Sequence[BatchItem], *, batch: bool, idempotency_key: str | None = None
    ) -> ChildResults: ...

    async def wait_until(self, due: datetime | float) -> None:
        """Wait for a time, or so many seconds, as `trigger_and_wait` does."""
        ...

    def wait_until_blocking(self, due: datetime | float) -> None: ...

    async def create_token(self, request: TokenRequest) -> CreatedToken:
        """Create what somebody outside of the run completes."""
        ...

    def create_token_blocking(self, request: TokenRequest) -> CreatedToken: ...

    async def wait_for_token(self, token_id: str) -> WaitResult:
        """Wait until a token is completed or has timed out, as `trigger_and_wait` does."""
        ...

    def wait_for_token_blocking(self, token_id: str) -> WaitResult: ...

    async def complete_token(self, token_id: str, body: str | None) -> None:
        """Complete a token; one that is completed or timed out stays as it is."""
        ...

    def complete_token_blocking(self, token_id: str, body: str | None) -> None: ...

    async def reset_idempotency_key(self, task: str, key: str) -> bool:
        """Free a key of a task, as `idempotency_keys.create` made it; say whether it was held."""
        ...

    def reset_idempotency_key_blocking(self, task: str, key: str) -> bool: ...

    async def add_tags(self, tags: Sequence[str]) -> None: ...

    def add_tags_blocking(self, tags: Sequence[str]) -> None: ...

    def locals(self) -> dict[Any, object]:
        """Return what `runwire.locals` keeps in this attempt, to read and to change."""
        ...


_current: ContextVar[Runtime | None] = ContextVar("runwire_runtime", default=None)


def enter(runtime: Runtime | None) -> None:
    """Make a run the executing one for the rest of this context; for the engine alone."""
    _current.set(runtime)


def current() -> Runtime | None:
    """Return the executing run, or None outside of one."""
    return _current.get()


def require(what: str) -> Runtime:
    """Return the executing run. Raises NotInRunError, naming the call, outside of one."""
    runtime = _current.get()
    if runtime is None:
        raise NotInRunError(f"{what} works only inside an executing task")
    return runtime
