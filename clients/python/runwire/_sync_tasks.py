"""The blocking twins of what starts runs."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from runwire import _batching, _triggering, _waiting
from runwire._batching import Key, blocking_entries_of
from runwire._by_task import SyncByTask
from runwire._default import Blocking as Owner
from runwire._definition import BatchEntry, Task
from runwire._options import TriggerKeywords
from runwire._results import BatchResult, TaskRunResult
from runwire._sending import BatchHandle
from runwire._triggering import RunHandle
from runwire.batch import Batch, BatchItem, mixed_entry
from runwire.batch import Batches as AsyncBatches
from runwire.tasks import AnyTask, entry, wanted

if TYPE_CHECKING:
    from psycopg import Connection

PayloadT = TypeVar("PayloadT")
OutputT = TypeVar("OutputT")


class SyncTasks:
    """Starts runs of tasks by id; see `runwire.tasks`."""

    def __init__(self, owner: Callable[[], Owner | None]) -> None:
        self._owner = owner

    @overload
    def trigger(
        self,
        task: Task[PayloadT, OutputT, ..., Any],
        payload: PayloadT = ...,
        *,
        connection: "Connection[Any] | None" = None,
        **options: Unpack[TriggerKeywords],
    ) -> RunHandle[OutputT]: ...

    @overload
    def trigger(
        self,
        task: str,
        payload: object = None,
        *,
        connection: "Connection[Any] | None" = None,
        **options: Unpack[TriggerKeywords],
    ) -> RunHandle[Any]: ...

    def trigger(
        self,
        task: Any,
        payload: object = None,
        *,
        connection: "Connection[Any] | None" = None,
        **options: Unpack[TriggerKeywords],
    ) -> RunHandle[Any]:
        """Start a run of a task, given by its id or itself."""
        entry = wanted(task, payload, options)
        return _triggering.trigger_blocking(self._owner(), entry, connection)

    def batch_trigger(
        self,
        task: str | AnyTask,
        items: Iterable[BatchEntry[Any]],
        *,
        idempotency_key: Key = None,
        connection: "Connection[Any] | None" = None,
    ) -> BatchHandle:
        """Start up to 1 000 runs of a task as one batch."""
        entries = blocking_entries_of(items, partial(entry, task))
        return _batching.trigger_batch_blocking(self._owner(), entries, idempotency_key, connection)

    @overload
    def trigger_and_wait(
        self,
        task: Task[PayloadT, OutputT, ..., Any],
        payload: PayloadT = ...,
        **options: Unpack[TriggerKeywords],
    ) -> TaskRunResult[OutputT]: ...

    @overload
    def trigger_and_wait(
        self, task: str, payload: object = None, **options: Unpack[TriggerKeywords]
    ) -> TaskRunResult[Any]: ...

    def trigger_and_wait(
        self, task: Any, payload: object = None, **options: Unpack[TriggerKeywords]
    ) -> TaskRunResult[Any]:
        """Start a child of the executing run, wait for its end, and return how it ended."""
        return _waiting.trigger_and_wait_blocking(self._owner(), wanted(task, payload, options))

    @overload
    def batch_trigger_and_wait(
        self,
        task: Task[PayloadT, OutputT, ..., Any],
        items: Iterable[BatchEntry[PayloadT]],
        *,
        idempotency_key: Key = None,
    ) -> BatchResult[tuple[TaskRunResult[OutputT], ...]]: ...

    @overload
    def batch_trigger_and_wait(
        self, task: str, items: Iterable[BatchEntry[Any]], *, idempotency_key: Key = None
    ) -> BatchResult[tuple[TaskRunResult[Any], ...]]: ...

    def batch_trigger_and_wait(
        self, task: Any, items: Any, *, idempotency_key: Key = None
    ) -> BatchResult[tuple[TaskRunResult[Any], ...]]:
        """Start a batch of children of the executing run, and wait for all of them."""
        entries = blocking_entries_of(items, partial(entry, task))
        return _waiting.trigger_batch_and_wait_blocking(self._owner(), entries, idempotency_key)


class SyncBatches(SyncByTask):
    """Everything about batches; see `runwire.batch`."""

    def __init__(self, owner: Callable[[], Owner], chosen: Callable[[], Owner | None]) -> None:
        super().__init__(chosen)
        self._owner = owner
        self._batches = AsyncBatches(lambda: owner().client, lambda: owner().client)

    def trigger(
        self,
        items: Iterable[BatchItem],
        *,
        idempotency_key: Key = None,
        connection: "Connection[Any] | None" = None,
    ) -> BatchHandle:
        """Start up to 1 000 runs of any tasks."""
        entries = blocking_entries_of(items, mixed_entry)
        return _batching.trigger_batch_blocking(
            self._chosen(), entries, idempotency_key, connection
        )

    def trigger_and_wait(
        self, items: Iterable[BatchItem], *, idempotency_key: Key = None
    ) -> BatchResult[tuple[TaskRunResult[Any], ...]]:
        """Start children of the executing run as one batch, and wait for all of them."""
        entries = blocking_entries_of(items, mixed_entry)
        return _waiting.trigger_batch_and_wait_blocking(self._chosen(), entries, idempotency_key)

    def retrieve(self, batch_id: str) -> Batch:
        """Return a batch as it is now. Raises NotFoundError."""
        return self._owner().run(self._batches.retrieve(batch_id))
