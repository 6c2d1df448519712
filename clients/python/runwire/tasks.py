"""Tasks: defining them, and starting runs of them by id.

    @task(id="write-story", retry={"max_attempts": 3}, queue={"concurrency_limit": 4})
    async def write_story(payload: StoryPrompt) -> Story: ...

    handle = await write_story.trigger(StoryPrompt(topic="tides"), tags=["user:42"])
    handle = await tasks.trigger("write-story", {"topic": "tides"})      # another code base

`write_story(payload)` calls the plain function, for unit tests. The payload comes first, then any
of `ctx` and `signal` by name; the annotations are the schema, read by pydantic. Blocking twins of
every call: `write_story.sync.trigger(…)`, `runwire.sync.tasks.trigger(…)`.
"""

from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast, overload

from runwire import _batching, _triggering
from runwire._batching import BatchHandle, Key, entries_of
from runwire._client import Client
from runwire._definition import BatchEntry, Decorator, SyncTask, Task, check_item
from runwire._hooks import Hook
from runwire._options import TriggerKeywords
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
    "QueueOptions",
    "Registry",
    "RetryOptions",
    "RunHandle",
    "Signal",
    "SyncTask",
    "Task",
    "Tasks",
    "batch_trigger",
    "registry",
    "task",
    "trigger",
]

AnyTask = Task[Any, Any, ..., Any]
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


def task(
    *,
    id: str,
    retry: RetryOptions | RetryKeywords | None = None,
    queue: QueueOptions | QueueKeywords | str | None = None,
    max_duration: Duration | None = None,
    ttl: Duration | None = None,
    on_cancel: Hook | None = None,
) -> Decorator:
    """Make a function a task. Raises TaskError when the definition cannot work.

    `retry` and `queue` take a typed object or a dict; without a name a task has its own queue.
    `max_duration` bounds one attempt, `ttl` how long a run may wait to start. `def` functions run
    in threads, `async def` on the task loop.
    """
    if not 1 <= len(id) <= MAX_ID_LENGTH or not id.isprintable():
        raise TaskError(f"a task id is 1 to {MAX_ID_LENGTH} printable characters, not {id!r}")
    if max_duration is not None and seconds(max_duration) <= 0:
        raise TaskError(f"max_duration of task {id!r} must be positive")
    if ttl is not None and seconds(ttl) <= 0:
        raise TaskError(f"ttl of task {id!r} must be positive")

    def decorate(function: Callable[..., Any]) -> AnyTask:
        defined: AnyTask = Task(
            function,
            id=id,
            retry=retry_options(retry),
            queue=queue_options(queue, id),
            max_duration=None if max_duration is None else seconds(max_duration),
            ttl=None if ttl is None else seconds(ttl),
            on_cancel=on_cancel,
        )
        _registry.add(defined)
        return defined

    return cast(Decorator, decorate)


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
