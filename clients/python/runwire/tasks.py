"""Tasks: defining them, and starting runs of them by id.

    @task(id="write-story", retry={"max_attempts": 3}, queue={"concurrency_limit": 4})
    async def write_story(payload: StoryPrompt) -> Story: ...

    handle = await write_story.trigger(StoryPrompt(topic="tides"), tags=["user:42"])
    handle = await tasks.trigger("write-story", {"topic": "tides"})      # another code base

`write_story(payload)` calls the plain function, for unit tests. The payload comes first, then any
of `ctx`, `init` and `signal` by name; the annotations are the schema, read by pydantic. Hooks are
keywords of `@task`, or attached: `@write_story.on_success`, for every task `@tasks.on_success`.
Blocking twins of every call: `write_story.sync.trigger(…)`, `runwire.sync.tasks.trigger(…)`.
"""

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Unpack, overload

from runwire import _batching, _triggering, _waiting
from runwire._batching import Key, entries_of
from runwire._caught import Caught, CaughtKeywords
from runwire._client import Client
from runwire._context import WaitInfo
from runwire._definition import (
    BatchEntry,
    Decorator,
    SchemaDecorator,
    SyncTask,
    Task,
    check_item,
)
from runwire._hooks import Completion, Hook, HookKeywords, RunPromise, of_all
from runwire._options import TriggerKeywords
from runwire._results import BatchResult, TaskRunFailure, TaskRunResult, TaskRunSuccess
from runwire._sending import BatchHandle
from runwire._signature import Signal
from runwire._task_options import (
    MAX_ID_LENGTH,
    QueueKeywords,
    QueueOptions,
    RetryKeywords,
    RetryOptions,
    queue_options,
    retry_options,
)
from runwire._triggering import Entry, RunHandle
from runwire.durations import Duration, seconds
from runwire.errors import TaskError
from runwire.values import MAX_PAYLOAD_BYTES, encode

if TYPE_CHECKING:
    from psycopg import AsyncConnection

__all__ = [
    "BatchEntry",
    "BatchHandle",
    "Caught",
    "CaughtKeywords",
    "Completion",
    "Next",
    "BatchResult",
    "QueueOptions",
    "Registry",
    "RetryOptions",
    "RunHandle",
    "RunPromise",
    "Signal",
    "SyncTask",
    "Task",
    "TaskRunFailure",
    "TaskRunResult",
    "TaskRunSuccess",
    "Tasks",
    "WaitInfo",
    "batch_trigger",
    "catch_error",
    "cleanup",
    "handle_error",
    "init",
    "middleware",
    "on_cancel",
    "on_complete",
    "on_failure",
    "on_resume",
    "on_start",
    "on_start_attempt",
    "on_success",
    "on_wait",
    "batch_trigger_and_wait",
    "registry",
    "schema_task",
    "task",
    "trigger",
    "trigger_and_wait",
]

AnyTask = Task[Any, Any, ..., Any]
# What a middleware of an `async def` task awaits; in `def` ones `next()` is a plain call.
Next: TypeAlias = Callable[[], Awaitable[None]]
GivenT = TypeVar("GivenT")
ParsedT = TypeVar("ParsedT")
PayloadT = TypeVar("PayloadT")
OutputT = TypeVar("OutputT")


class Registry(Mapping[str, AnyTask]):
    """Every task that was defined, by id."""

    def __init__(self) -> None:
        self._tasks: dict[str, AnyTask] = {}

    def __getitem__(self, id: str) -> AnyTask:
        return self._tasks[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, task: AnyTask) -> None:
        """Add a task. Raises TaskError when another function has its id."""
        held = self._tasks.get(task.id)
        if held is not None and _place(held) != _place(task):
            raise TaskError(f"two tasks have the id {task.id!r}: {_place(held)} and {_place(task)}")
        self._tasks[task.id] = task

    def clear(self) -> None:
        """Forget every task, for tests."""
        self._tasks.clear()


def _place(task: AnyTask) -> str:
    name = getattr(task.function, "__qualname__", repr(task.function))
    return f"{task.function.__module__}.{name}"


_registry = Registry()


def registry() -> Registry:
    """Return the tasks defined so far in this process."""
    return _registry


class TaskKeywords(HookKeywords, total=False):
    """The options of `@task`."""

    # A typed object or a dict.
    retry: RetryOptions | RetryKeywords | None
    # Without a name a task has its own queue.
    queue: QueueOptions | QueueKeywords | str | None
    # Of one attempt.
    max_duration: Duration | None
    # How long a run may wait to start once it is due.
    ttl: Duration | None


@overload
def task(*, id: str, schema: None = None, **options: Unpack[TaskKeywords]) -> Decorator: ...


@overload
def task(
    *, id: str, schema: type[ParsedT], **options: Unpack[TaskKeywords]
) -> SchemaDecorator[ParsedT, ParsedT]: ...


@overload
def task(
    *, id: str, schema: Callable[[GivenT], ParsedT], **options: Unpack[TaskKeywords]
) -> SchemaDecorator[GivenT, ParsedT]: ...


@overload
def task(
    *, id: str, schema: object, **options: Unpack[TaskKeywords]
) -> SchemaDecorator[Any, Any]: ...


def task(*, id: str, schema: object = None, **options: Unpack[TaskKeywords]) -> Any:
    """Make a function a task. Raises TaskError when the definition cannot work.

    `schema` is any type that pydantic knows, or a function that takes a value and returns the
    payload; without one the function's annotation is the schema. `def` functions run in threads,
    `async def` on the task loop. Options, hooks and their order: docs/reference/tasks.md.
    """
    if not 1 <= len(id) <= MAX_ID_LENGTH or not id.isprintable():
        raise TaskError(f"a task id is 1 to {MAX_ID_LENGTH} printable characters, not {id!r}")
    unknown = sorted(set(options) - set(TaskKeywords.__annotations__))
    if unknown:
        raise TypeError(f"task has no option {', '.join(unknown)}")
    given: Mapping[str, Any] = options
    hooks: dict[str, Hook] = {
        name: given[name] for name in HookKeywords.__annotations__ if name in given
    }
    max_duration, ttl = options.get("max_duration"), options.get("ttl")
    if max_duration is not None and seconds(max_duration) <= 0:
        raise TaskError(f"max_duration of task {id!r} must be positive")
    if ttl is not None and seconds(ttl) <= 0:
        raise TaskError(f"ttl of task {id!r} must be positive")

    def decorate(function: Callable[..., Any]) -> AnyTask:
        defined: AnyTask = Task(
            function,
            id=id,
            retry=retry_options(options.get("retry")),
            queue=queue_options(options.get("queue"), id),
            max_duration=None if max_duration is None else seconds(max_duration),
            ttl=None if ttl is None else seconds(ttl),
            schema=schema,
            hooks=hooks,
        )
        _registry.add(defined)
        return defined

    return decorate if schema is None else SchemaDecorator[Any, Any](decorate)


@overload
def schema_task(
    *, id: str, schema: type[ParsedT], **options: Unpack[TaskKeywords]
) -> SchemaDecorator[ParsedT, ParsedT]: ...


@overload
def schema_task(
    *, id: str, schema: Callable[[GivenT], ParsedT], **options: Unpack[TaskKeywords]
) -> SchemaDecorator[GivenT, ParsedT]: ...


@overload
def schema_task(
    *, id: str, schema: object, **options: Unpack[TaskKeywords]
) -> SchemaDecorator[Any, Any]: ...


def schema_task(*, id: str, schema: object, **options: Unpack[TaskKeywords]) -> Any:
    """Make a function a task with a schema: `task` under the name it has in the guide."""
    return task(id=id, schema=schema, **options)


middleware = of_all.middleware
init = of_all.init
on_start = of_all.on_start
on_start_attempt = of_all.on_start_attempt
on_wait = of_all.on_wait
on_resume = of_all.on_resume
catch_error = of_all.catch_error
handle_error = of_all.handle_error
on_success = of_all.on_success
on_failure = of_all.on_failure
on_complete = of_all.on_complete
on_cancel = of_all.on_cancel
cleanup = of_all.cleanup


class Tasks:
    """Starts runs of tasks by id, over HTTP; inside a run, as its children."""

    def __init__(self, client: Client | None) -> None:
        self._client = client

    @overload
    async def trigger(
        self,
        task: Task[PayloadT, OutputT, ..., Any],
        payload: PayloadT = ...,
        *,
        connection: "AsyncConnection[Any] | None" = None,
        **options: Unpack[TriggerKeywords],
    ) -> RunHandle[OutputT]: ...

    @overload
    async def trigger(
        self,
        task: str,
        payload: object = None,
        *,
        connection: "AsyncConnection[Any] | None" = None,
        **options: Unpack[TriggerKeywords],
    ) -> RunHandle[Any]: ...

    async def trigger(
        self,
        task: Any,
        payload: object = None,
        *,
        connection: "AsyncConnection[Any] | None" = None,
        **options: Unpack[TriggerKeywords],
    ) -> RunHandle[Any]:
        """Start a run of a task, given by its id or itself.

        By id the payload is checked by the worker only. With a psycopg connection the run becomes
        part of that one's transaction. Raises NotFoundError for an unknown task.
        """
        return await _triggering.trigger(self._client, wanted(task, payload, options), connection)

    async def batch_trigger(
        self,
        task: str | AnyTask,
        items: Iterable[BatchEntry[Any]] | AsyncIterable[BatchEntry[Any]],
        *,
        idempotency_key: Key = None,
        connection: "AsyncConnection[Any] | None" = None,
    ) -> BatchHandle:
        """Start up to 1 000 runs of a task as one batch: `[{"payload": …, "options": {…}}, …]`.

        An iterable that is no list, sync or async, is sent while it is read. Raises
        BatchTriggerError when not all could be started.
        """
        entries = entries_of(items, partial(entry, task))
        return await _batching.trigger_batch(self._client, entries, idempotency_key, connection)

    @overload
    async def trigger_and_wait(
        self,
        task: Task[PayloadT, OutputT, ..., Any],
        payload: PayloadT = ...,
        **options: Unpack[TriggerKeywords],
    ) -> TaskRunResult[OutputT]: ...

    @overload
    async def trigger_and_wait(
        self, task: str, payload: object = None, **options: Unpack[TriggerKeywords]
    ) -> TaskRunResult[Any]: ...

    async def trigger_and_wait(
        self, task: Any, payload: object = None, **options: Unpack[TriggerKeywords]
    ) -> TaskRunResult[Any]:
        """Start a child of the executing run, wait for its end, and return how it ended.

        Raises NotInRunError outside of a run.
        """
        return await _waiting.trigger_and_wait(self._client, wanted(task, payload, options))

    @overload
    async def batch_trigger_and_wait(
        self,
        task: Task[PayloadT, OutputT, ..., Any],
        items: Iterable[BatchEntry[PayloadT]] | AsyncIterable[BatchEntry[PayloadT]],
        *,
        idempotency_key: Key = None,
    ) -> BatchResult[tuple[TaskRunResult[OutputT], ...]]: ...

    @overload
    async def batch_trigger_and_wait(
        self,
        task: str,
        items: Iterable[BatchEntry[Any]] | AsyncIterable[BatchEntry[Any]],
        *,
        idempotency_key: Key = None,
    ) -> BatchResult[tuple[TaskRunResult[Any], ...]]: ...

    async def batch_trigger_and_wait(
        self, task: Any, items: Any, *, idempotency_key: Key = None
    ) -> BatchResult[tuple[TaskRunResult[Any], ...]]:
        """Start a batch of children of the executing run, and wait for all of them.

        Raises NotInRunError outside of a run.
        """
        entries = entries_of(items, partial(entry, task))
        return await _waiting.trigger_batch_and_wait(self._client, entries, idempotency_key)


def wanted(task: str | AnyTask, payload: object, options: TriggerKeywords) -> Entry:
    """Return a run of a task as it is triggered, its payload as JSON text."""
    if isinstance(task, Task):
        return task.wanted(payload, options)
    text = None if payload is None else encode(payload, what="payload", limit=MAX_PAYLOAD_BYTES)
    return Entry(task, text, options)


def entry(task: str | AnyTask, item: BatchEntry[Any]) -> Entry:
    """Return one item of a batch as it is triggered. Raises TypeError for a key that is none."""
    check_item(item)
    return wanted(task, item.get("payload"), item.get("options", {}))


_default_tasks = Tasks(None)
trigger = _default_tasks.trigger
batch_trigger = _default_tasks.batch_trigger
trigger_and_wait = _default_tasks.trigger_and_wait
batch_trigger_and_wait = _default_tasks.batch_trigger_and_wait
