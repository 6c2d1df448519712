"""What a task is: a plain function, what it takes, its options, and the calls that start it."""

import inspect
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from runwire import _batching, _triggering, _waiting
from runwire._batching import Key, blocking_entries_of, entries_of
from runwire._cron import CronOptions
from runwire._hooks import Hook, Hooked, given_hooks
from runwire._options import TriggerKeywords
from runwire._results import BatchResult, TaskRunResult
from runwire._sending import BatchHandle
from runwire._signature import Signature
from runwire._task_options import QueueOptions, RetryOptions
from runwire._triggering import Entry, RunHandle
from runwire.errors import InvalidValueError
from runwire.wire import JsonObject

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

PayloadT = TypeVar("PayloadT")
OutputT = TypeVar("OutputT")
ReturnT = TypeVar("ReturnT")
GivenT = TypeVar("GivenT")
ParsedT = TypeVar("ParsedT")
P = ParamSpec("P")

# What a task without a payload, or with a default for it, is triggered with.
NO_PAYLOAD: Final[Any] = None


class BatchEntry(TypedDict, Generic[PayloadT], total=False):
    """One run of `batch_trigger`: its payload and the options of `trigger`."""

    payload: PayloadT
    options: TriggerKeywords


class Task(Hooked, Generic[PayloadT, OutputT, P, ReturnT]):
    """A task. Calling it calls the plain function; `trigger` starts a run of it."""

    # When it runs by itself; set by `schedules.task`.
    cron: CronOptions | None = None

    def __init__(
        self,
        function: Callable[..., ReturnT],
        *,
        id: str,
        retry: RetryOptions,
        queue: QueueOptions,
        max_duration: float | None,
        ttl: float | None,
        schema: object,
        hooks: Mapping[str, Hook],
    ) -> None:
        self.id = id
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function)
        self.retry = retry
        self.queue = queue
        # Seconds of one attempt, or None.
        self.max_duration = max_duration
        # Seconds that a run may wait to start once it is due, or None.
        self.ttl = ttl
        self.hooks = given_hooks(f"task {id!r}", hooks, is_async=self.is_async)
        signature = Signature.of(function, id, schema)
        # What the function names, with "payload" first if it takes one.
        self.parameters = signature.parameters
        self._payload = signature.payload
        self._output = signature.output
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", id)
        self.__module__ = function.__module__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> ReturnT:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<task {self.id}>"

    @property
    def sync(self) -> "SyncTask[PayloadT, OutputT]":
        """The blocking twins of `trigger` and `batch_trigger`, for `def` tasks and scripts."""
        return SyncTask(cast("Task[PayloadT, OutputT, ..., Any]", self))

    async def trigger(
        self,
        payload: PayloadT = NO_PAYLOAD,
        *,
        connection: "AsyncConnection[Any] | None" = None,
        **options: Unpack[TriggerKeywords],
    ) -> RunHandle[OutputT]:
        """Start a run. The payload is validated first; raises InvalidValueError when it is wrong.

        Inside a run the new run is its child; elsewhere the call goes over HTTP. With a psycopg
        connection it becomes part of that one's transaction: the run exists only if it commits.
        """
        return await _triggering.trigger(None, self.wanted(payload, options), connection)

    async def batch_trigger(
        self,
        items: Iterable[BatchEntry[PayloadT]] | AsyncIterable[BatchEntry[PayloadT]],
        *,
        idempotency_key: Key = None,
        connection: "AsyncConnection[Any] | None" = None,
    ) -> BatchHandle:
        """Start up to 1 000 runs as one batch: `[{"payload": …, "options": {…}}, …]`.

        The items of a list are checked before anything is sent. Those of another iterable, sync or
        async, are sent while it is read. Raises BatchTriggerError when not all could be started.
        """
        entries = entries_of(items, self.entry)
        return await _batching.trigger_batch(None, entries, idempotency_key, connection)

    async def trigger_and_wait(
        self, payload: PayloadT = NO_PAYLOAD, **options: Unpack[TriggerKeywords]
    ) -> TaskRunResult[OutputT]:
        """Start a child of the executing run, wait for its end, and return how it ended.

        `(await …).unwrap()` is the output, or raises SubtaskUnwrapError. Raises NotInRunError
        outside of a run.
        """
        return await _waiting.trigger_and_wait(None, self.wanted(payload, options))

    async def batch_trigger_and_wait(
        self,
        items: Iterable[BatchEntry[PayloadT]] | AsyncIterable[BatchEntry[PayloadT]],
        *,
        idempotency_key: Key = None,
    ) -> BatchResult[tuple[TaskRunResult[OutputT], ...]]:
        """Start up to 1 000 children of the executing run as one batch, and wait for all of them.

        Raises NotInRunError outside of a run.
        """
        entries = entries_of(items, self.entry)
        return await _waiting.trigger_batch_and_wait(None, entries, idempotency_key)

    def bind(
        self, payload: object, offered: Mapping[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """Return the arguments of one call: the payload if it is taken, and what is named."""
        arguments = (payload,) if "payload" in self.parameters else ()
        return arguments, {name: offered[name] for name in self.parameters if name != "payload"}

    def parse_payload(self, text: str | None, payload_type: str = "application/json") -> Any:
        """Return the payload of a run as the function expects it.

        Raises InvalidValueError (code "payload_invalid") when it does not fit its schema.
        """
        if self._payload is None:
            return None
        return self._payload.parse(text, payload_type)

    def dump_payload(self, payload: object) -> str | None:
        """Return a payload as JSON text once it was validated.

        Raises InvalidValueError (code "payload_invalid") when it does not fit its schema.
        """
        if self._payload is None:
            if payload is not None:
                raise InvalidValueError(
                    f"task {self.id!r} takes no payload", code="payload_invalid"
                )
            return None
        return self._payload.dump(payload)

    def payload_schema(self) -> JsonObject | None:
        """Return the payload's JSON schema, or None when it takes none or has no schema."""
        return None if self._payload is None else self._payload.json_schema()

    def parse_output(self, output: object) -> OutputT:
        """Return `run.output` as what the function returned. Raises InvalidValueError."""
        return cast(OutputT, self._output.parse(output))

    def wanted(self, payload: object, options: TriggerKeywords) -> Entry:
        """Return a run of this task as it is triggered, its payload validated."""
        return Entry(self.id, self.dump_payload(payload), options, self.parse_output)

    def entry(self, item: BatchEntry[PayloadT]) -> Entry:
        """Return an item of a batch as it is triggered. Raises TypeError for a key that is none."""
        check_item(item)
        return self.wanted(item.get("payload"), item.get("options", {}))


def check_item(item: Mapping[str, object], *more: str) -> None:
    """Raise TypeError for a key that no item of a batch has; `more` are those it may have."""
    known = ("payload", "options", *more)
    unknown = sorted(set(item) - set(known))
    if unknown:
        raise TypeError(f"a batch item has no {', '.join(unknown)}; it has {', '.join(known)}")


class SyncTask(Generic[PayloadT, OutputT]):
    """The blocking twins of a task's calls."""

    def __init__(self, task: Task[PayloadT, OutputT, ..., Any]) -> None:
        self._task = task

    def trigger(
        self,
        payload: PayloadT = NO_PAYLOAD,
        *,
        connection: "Connection[Any] | None" = None,
        **options: Unpack[TriggerKeywords],
    ) -> RunHandle[OutputT]:
        """Start a run, as `Task.trigger` does."""
        return _triggering.trigger_blocking(None, self._task.wanted(payload, options), connection)

    def batch_trigger(
        self,
        items: Iterable[BatchEntry[PayloadT]],
        *,
        idempotency_key: Key = None,
        connection: "Connection[Any] | None" = None,
    ) -> BatchHandle:
        """Start up to 1 000 runs as one batch, as `Task.batch_trigger` does."""
        entries = blocking_entries_of(items, self._task.entry)
        return _batching.trigger_batch_blocking(None, entries, idempotency_key, connection)

    def trigger_and_wait(
        self, payload: PayloadT = NO_PAYLOAD, **options: Unpack[TriggerKeywords]
    ) -> TaskRunResult[OutputT]:
        """Start a child and wait for its end, as `Task.trigger_and_wait` does."""
        return _waiting.trigger_and_wait_blocking(None, self._task.wanted(payload, options))

    def batch_trigger_and_wait(
        self, items: Iterable[BatchEntry[PayloadT]], *, idempotency_key: Key = None
    ) -> BatchResult[tuple[TaskRunResult[OutputT], ...]]:
        """Start a batch of children and wait for all, as `Task.batch_trigger_and_wait` does."""
        entries = blocking_entries_of(items, self._task.entry)
        return _waiting.trigger_batch_and_wait_blocking(None, entries, idempotency_key)


class Decorator(Protocol):
    """What `task(…)` returns: it makes a function a task and keeps its types."""

    @overload
    def __call__(
        self, function: Callable[[], Coroutine[Any, Any, OutputT]], /
    ) -> Task[None, OutputT, [], Coroutine[Any, Any, OutputT]]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[PayloadT, P], Coroutine[Any, Any, OutputT]], /
    ) -> Task[PayloadT, OutputT, Concatenate[PayloadT, P], Coroutine[Any, Any, OutputT]]: ...

    @overload
    def __call__(self, function: Callable[[], OutputT], /) -> Task[None, OutputT, [], OutputT]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[PayloadT, P], OutputT], /
    ) -> Task[PayloadT, OutputT, Concatenate[PayloadT, P], OutputT]: ...


class SchemaDecorator(Generic[GivenT, ParsedT]):
    """What `task(…, schema=…)` returns: runs are triggered with one type, executed with another."""

    def __init__(self, decorate: Callable[[Callable[..., Any]], Any]) -> None:
        self._decorate = decorate

    @overload
    def __call__(
        self, function: Callable[Concatenate[ParsedT, P], Coroutine[Any, Any, OutputT]], /
    ) -> Task[GivenT, OutputT, Concatenate[ParsedT, P], Coroutine[Any, Any, OutputT]]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[ParsedT, P], OutputT], /
    ) -> Task[GivenT, OutputT, Concatenate[ParsedT, P], OutputT]: ...

    def __call__(self, function: Callable[..., Any], /) -> Any:
        return self._decorate(function)
