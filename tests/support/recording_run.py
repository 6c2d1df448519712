"""An executing run that writes down what it is told, for the calls that only pass things on."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from runwire import _context
from runwire._context import (
    AttemptInfo,
    ChildResult,
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
from runwire._metadata import apply
from runwire.requests import BatchItem, TriggerOptions
from runwire.wire import JsonObject

NOW = datetime(2026, 11, 23, 20, tzinfo=UTC)


def context(attempt: int = 1) -> Context:
    return Context(
        run=RunInfo("run_a", (), False, NOW, NOW, None, None, 0, None, None, None),
        attempt=AttemptInfo(attempt, attempt, NOW),
        task=TaskInfo("t"),
        queue=QueueInfo("task/t", None),
        batch=None,
        environment="dev",
    )


@dataclass
class RecordingRun:
    """Keeps the metadata as a real run would; everything else is a line in `told`."""

    ctx: Context = field(default_factory=context)
    document: JsonObject = field(default_factory=dict[str, object])
    kept: dict[Any, object] = field(default_factory=dict[Any, object])
    told: list[tuple[object, ...]] = field(default_factory=list[tuple[object, ...]])
    # How every token was decided.
    token_result: WaitResult = field(default_factory=lambda: WaitResult(True, '{"answer":42}'))
    # What was sent to it, as JSON text.
    input: list[str] = field(default_factory=list[str])
    pipes: list[OpenPipe] = field(default_factory=list[OpenPipe])
    blocking_pipes: list[OpenSyncPipe] = field(default_factory=list[OpenSyncPipe])

    def metadata_current(self) -> JsonObject:
        return dict(self.document)

    def metadata_apply(self, target: MetadataTarget, operation: JsonObject) -> None:
        self.told.append((target, operation))
        if target == "self":
            self.document = apply(self.document, [operation])

    async def metadata_flush(self) -> None:
        self.metadata_flush_blocking()

    def metadata_flush_blocking(self) -> None:
        self.told.append(("flush",))

    async def stream_append(self, target: str, key: str, bodies: Sequence[str]) -> int:
        return self.stream_append_blocking(target, key, bodies)

    async def stream_write(self, target: str, key: str, body: str) -> None:
        self.stream_write_blocking(target, key, body)

    async def stream_end(self, target: str, key: str) -> None:
        self.stream_end_blocking(target, key)

    def stream_append_blocking(self, target: str, key: str, bodies: Sequence[str]) -> int:
        self.told.append(("append", target, key, *bodies))
        return 7

    def stream_write_blocking(self, target: str, key: str, body: str) -> None:
        self.told.append(("write", target, key, body))

    def stream_end_blocking(self, target: str, key: str) -> None:
        self.told.append(("end", target, key))

    def log(
        self,
        level: LogLevel,
        message: object,
        attributes: Mapping[str, object] | None = None,
        logger: str | None = None,
    ) -> None:
        self.told.append(("log", level, message, attributes))

    async def input_take(self, key: str, timeout: float | None) -> str | None:
        return self.input_take_blocking(key, timeout)

    def input_take_blocking(self, key: str, timeout: float | None) -> str | None:
        self.told.append(("take", key, timeout))
        return self.input.pop(0) if self.input else None

    async def input_wait(self, key: str, timeout: float | None, idle: float) -> str | None:
        return self.input_wait_blocking(key, timeout, idle)

    def input_wait_blocking(self, key: str, timeout: float | None, idle: float) -> str | None:
        self.told.append(("wait", key, timeout, idle))
        return self.input.pop(0) if self.input else None

    async def input_peek(self, key: str) -> str | None:
        return self.input_peek_blocking(key)

    def input_peek_blocking(self, key: str) -> str | None:
        return self.input[0] if self.input else None

    async def input_send(self, run_id: str, key: str, body: str) -> None:
        self.input_send_blocking(run_id, key, body)

    def input_send_blocking(self, run_id: str, key: str, body: str) -> None:
        self.told.append(("send", run_id, key, body))

    def opened(self, pipe: OpenPipe) -> None:
        self.pipes.append(pipe)

    def opened_blocking(self, pipe: OpenSyncPipe) -> None:
        self.blocking_pipes.append(pipe)

    async def trigger(
        self, task: str, payload: str | None, options: TriggerOptions, request_key: str
    ) -> Triggered:
        return self.trigger_blocking(task, payload, options, request_key)

    async def trigger_batch(
        self, items: Sequence[BatchItem], idempotency_key: str | None, request_key: str
    ) -> TriggeredBatch:
        return self.trigger_batch_blocking(items, idempotency_key, request_key)

    def trigger_blocking(
        self, task: str, payload: str | None, options: TriggerOptions, request_key: str
    ) -> Triggered:
        self.told.append(("trigger", task, payload, options.tags))
        return Triggered("run_b", False, "token")

    def trigger_batch_blocking(
        self, items: Sequence[BatchItem], idempotency_key: str | None, request_key: str
    ) -> TriggeredBatch:
        self.told.append(("batch", *((item.task, item.payload) for item in items)))
        ids = tuple(f"run_{item.index}" for item in items)
        return TriggeredBatch("batch_a", len(items), False, None, ids)

    async def reset_idempotency_key(self, task: str, key: str) -> bool:
        return self.reset_idempotency_key_blocking(task, key)

    def reset_idempotency_key_blocking(self, task: str, key: str) -> bool:
        self.told.append(("reset", task, key))
        return True

    async def trigger_and_wait(
        self, items: Sequence[BatchItem], *, batch: bool, idempotency_key: str | None = None
    ) -> ChildResults:
        return self.trigger_and_wait_blocking(items, batch=batch, idempotency_key=idempotency_key)

    def trigger_and_wait_blocking(
        self, items: Sequence[BatchItem], *, batch: bool, idempotency_key: str | None = None
    ) -> ChildResults:
        self.told.append(("trigger_and_wait", *((item.task, item.payload) for item in items)))
        runs = [self.child_result(item) for item in items]
        return ChildResults("batch_a" if batch else None, tuple(runs))

    def child_result(self, item: BatchItem) -> ChildResult:
        """Say that a child answered with its payload; tests may replace this."""
        return ChildResult(
            f"run_{item.index}", item.task, "COMPLETED", item.payload, None, None, False
        )

    async def wait_until(self, due: datetime | float) -> None:
        self.wait_until_blocking(due)

    def wait_until_blocking(self, due: datetime | float) -> None:
        self.told.append(("wait", due))

    async def create_token(self, request: TokenRequest) -> CreatedToken:
        return self.create_token_blocking(request)

    def create_token_blocking(self, request: TokenRequest) -> CreatedToken:
        self.told.append(("create_token", request))
        return CreatedToken("waitpoint_a", False, "https://runwire.example/callback", "token")

    async def wait_for_token(self, token_id: str) -> WaitResult:
        return self.wait_for_token_blocking(token_id)

    def wait_for_token_blocking(self, token_id: str) -> WaitResult:
        self.told.append(("wait_for_token", token_id))
        return self.token_result

    async def complete_token(self, token_id: str, body: str | None) -> None:
        self.complete_token_blocking(token_id, body)

    def complete_token_blocking(self, token_id: str, body: str | None) -> None:
        self.told.append(("complete_token", token_id, body))

    async def add_tags(self, tags: Sequence[str]) -> None:
        self.add_tags_blocking(tags)

    def add_tags_blocking(self, tags: Sequence[str]) -> None:
        self.told.append(("tags", *tags))

    def locals(self) -> dict[Any, object]:
        return self.kept


@contextmanager
def executing(attempt: int = 1) -> Generator[RecordingRun]:
    """Make the code inside believe that it is a run."""
    run = RecordingRun(context(attempt))
    _context.enter(run)
    try:
        yield run
    finally:
        _context.enter(None)
