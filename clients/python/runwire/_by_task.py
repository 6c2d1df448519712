"""Batches by task: each item names its task, and each result has that one's type.

    handles = await batch.trigger_by_task(
        ({"task": ship, "payload": Order(id=1)}, {"task": bill, "payload": Bill(total=7)})
    )

The items of a tuple of up to five keep their types one by one; those of a list have results of any
type.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Required, TypedDict, TypeVar, cast, overload

from runwire import _batching, _waiting
from runwire._batching import BatchRunHandle, Key
from runwire._client import Client
from runwire._default import Blocking
from runwire._definition import Task, check_item
from runwire._options import TriggerKeywords
from runwire._results import BatchResult, TaskRunResult
from runwire._triggering import Entry, RunHandle

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

PayloadT = TypeVar("PayloadT")
OutputT = TypeVar("OutputT")
P1 = TypeVar("P1")
O1 = TypeVar("O1")
P2 = TypeVar("P2")
O2 = TypeVar("O2")
P3 = TypeVar("P3")
O3 = TypeVar("O3")
P4 = TypeVar("P4")
O4 = TypeVar("O4")
P5 = TypeVar("P5")
O5 = TypeVar("O5")


class ByTaskItem(TypedDict, Generic[PayloadT, OutputT], total=False):
    """One run of a batch by task: which task, with which payload and options."""

    task: Required[Task[PayloadT, OutputT, ..., Any]]
    payload: PayloadT
    options: TriggerKeywords


class AnyByTaskItem(TypedDict, total=False):
    """A ByTaskItem of a list, whose items are of several types."""

    task: Required[Task[Any, Any, ..., Any]]
    payload: Any
    options: TriggerKeywords


class ByTask:
    """The calls by task of `runwire.batch`."""

    def __init__(self, client: Callable[[], Client | None]) -> None:
        # Who triggers: None while the executing run goes first.
        self._client = client

    @overload
    async def trigger_by_task(
        self,
        items: tuple[ByTaskItem[P1, O1]],
        *,
        idempotency_key: Key = None,
        connection: "AsyncConnection[Any] | None" = None,
    ) -> BatchRunHandle[tuple[RunHandle[O1]]]: ...

    @overload
    async def trigger_by_task(
        self,
        items: tuple[ByTaskItem[P1, O1], ByTaskItem[P2, O2]],
        *,
        idempotency_key: Key = None,
        connection: "AsyncConnection[Any] | None" = None,
    ) -> BatchRunHandle[tuple[RunHandle[O1], RunHandle[O2]]]: ...

    @overload
    async def trigger_by_task(
        self,
        items: tuple[ByTaskItem[P1, O1], ByTaskItem[P2, O2], ByTaskItem[P3, O3]],
        *,
        idempotency_key: Key = None,
        connection: "AsyncConnection[Any] | None" = None,
    ) -> BatchRunHandle[tuple[RunHandle[O1], RunHandle[O2], RunHandle[O3]]]: ...

    @overload
    async def trigger_by_task(
        self,
        items: tuple[
            ByTaskItem[P1, O1], ByTaskItem[P2, O2], ByTaskItem[P3, O3], ByTaskItem[P4, O4]
        ],
        *,
        idempotency_key: Key = None,
        connection: "AsyncConnection[Any] | None" = None,
    ) -> BatchRunHandle[tuple[RunHandle[O1], RunHandle[O2], RunHandle[O3], RunHandle[O4]]]: ...

    @overload
    async def trigger_by_task(
        self,
        items: tuple[
            ByTaskItem[P1, O1],
            ByTaskItem[P2, O2],
            ByTaskItem[P3, O3],
            ByTaskItem[P4, O4],
            ByTaskItem[P5, O5],
        ],
        *,
        idempotency_key: Key = None,
        connection: "AsyncConnection[Any] | None" = None,
    ) -> BatchRunHandle[
        tuple[RunHandle[O1], RunHandle[O2], RunHandle[O3], RunHandle[O4], RunHandle[O5]]
    ]: ...

    @overload
    async def trigger_by_task(
        self,
        items: list[AnyByTaskItem],
        *,
        idempotency_key: Key = None,
        connection: "AsyncConnection[Any] | None" = None,
    ) -> BatchRunHandle[tuple[RunHandle[Any], ...]]: ...

    async def trigger_by_task(
        self,
        items: Any,
        *,
        idempotency_key: Key = None,
        connection: "AsyncConnection[Any] | None" = None,
    ) -> BatchRunHandle[Any]:
        """Start up to 1 000 runs as one batch, and return a handle for each in `runs`.

        Their tokens read the whole batch; `is_cached` is the batch's.
        """
        return await _batching.trigger_by_task(
            self._client(), entries(items), idempotency_key, connection
        )

    @overload
    async def trigger_by_task_and_wait(
        self,
        items: tuple[ByTaskItem[P1, O1]],
        *,
        idempotency_key: Key = None,
    ) -> BatchResult[tuple[TaskRunResult[O1]]]: ...

    @overload
    async def trigger_by_task_and_wait(
        self,
        items: tuple[ByTaskItem[P1, O1], ByTaskItem[P2, O2]],
        *,
        idempotency_key: Key = None,
    ) -> BatchResult[tuple[TaskRunResult[O1], TaskRunResult[O2]]]: ...

    @overload
    async def trigger_by_task_and_wait(
        self,
        items: tuple[ByTaskItem[P1, O1], ByTaskItem[P2, O2], ByTaskItem[P3, O3]],
        *,
        idempotency_key: Key = None,
    ) -> BatchResult[tuple[TaskRunResult[O1], TaskRunResult[O2], TaskRunResult[O3]]]: ...

    @overload
    async def trigger_by_task_and_wait(
        self,
        items: tuple[
            ByTaskItem[P1, O1], ByTaskItem[P2, O2], ByTaskItem[P3, O3], ByTaskItem[P4, O4]
        ],
        *,
        idempotency_key: Key = None,
    ) -> BatchResult[
        tuple[TaskRunResult[O1], TaskRunResult[O2], TaskRunResult[O3], TaskRunResult[O4]]
    ]: ...

    @overload
    async def trigger_by_task_and_wait(
        self,
        items: tuple[
            ByTaskItem[P1, O1],
            ByTaskItem[P2, O2],
            ByTaskItem[P3, O3],
            ByTaskItem[P4, O4],
            ByTaskItem[P5, O5],
        ],
        *,
        idempotency_key: Key = None,
    ) -> BatchResult[
        tuple[
            TaskRunResult[O1],
            TaskRunResult[O2],
            TaskRunResult[O3],
            TaskRunResult[O4],
            TaskRunResult[O5],
        ]
    ]: ...

    @overload
    async def trigger_by_task_and_wait(
        self,
        items: list[AnyByTaskItem],
        *,
        idempotency_key: Key = None,
    ) -> BatchResult[tuple[TaskRunResult[Any], ...]]: ...

    async def trigger_by_task_and_wait(
        self, items: Any, *, idempotency_key: Key = None
    ) -> BatchResult[Any]:
        """Start up to 1 000 children of the executing run as one batch, and wait for all of them.

        Raises NotInRunError outside of a run.
        """
        return await _waiting.trigger_batch_and_wait(
            self._client(), entries(items), idempotency_key
        )


class SyncByTask:
    """The blocking twins."""

    def __init__(self, chosen: Callable[[], Blocking | None]) -> None:
        # Who triggers: None while the executing run goes first.
        self._chosen = chosen

    @overload
    def trigger_by_task(
        self,
        items: tuple[ByTaskItem[P1, O1]],
        *,
        idempotency_key: Key = None,
        connection: "Connection[Any] | None" = None,
    ) -> BatchRunHandle[tuple[RunHandle[O1]]]: ...

    @overload
    def trigger_by_task(
        self,
        items: tuple[ByTaskItem[P1, O1], ByTaskItem[P2, O2]],
        *,
        idempotency_key: Key = None,
        connection: "Connection[Any] | None" = None,
    ) -> BatchRunHandle[tuple[RunHandle[O1], RunHandle[O2]]]: ...

    @overload
    def trigger_by_task(
        self,
        items: tuple[ByTaskItem[P1, O1], ByTaskItem[P2, O2], ByTaskItem[P3, O3]],
        *,
        idempotency_key: Key = None,
        connection: "Connection[Any] | None" = None,
    ) -> BatchRunHandle[tuple[RunHandle[O1], RunHandle[O2], RunHandle[O3]]]: ...

    @overload
    def trigger_by_task(
        self,
        items: tuple[
            ByTaskItem[P1, O1], ByTaskItem[P2, O2], ByTaskItem[P3, O3], ByTaskItem[P4, O4]
        ],
        *,
        idempotency_key: Key = None,
        connection: "Connection[Any] | None" = None,
    ) -> BatchRunHandle[tuple[RunHandle[O1], RunHandle[O2], RunHandle[O3], RunHandle[O4]]]: ...

    @overload
    def trigger_by_task(
        self,
        items: tuple[
            ByTaskItem[P1, O1],
            ByTaskItem[P2, O2],
            ByTaskItem[P3, O3],
            ByTaskItem[P4, O4],
            ByTaskItem[P5, O5],
        ],
        *,
        idempotency_key: Key = None,
        connection: "Connection[Any] | None" = None,
    ) -> BatchRunHandle[
        tuple[RunHandle[O1], RunHandle[O2], RunHandle[O3], RunHandle[O4], RunHandle[O5]]
    ]: ...

    @overload
    def trigger_by_task(
        self,
        items: list[AnyByTaskItem],
        *,
        idempotency_key: Key = None,
        connection: "Connection[Any] | None" = None,
    ) -> BatchRunHandle[tuple[RunHandle[Any], ...]]: ...

    def trigger_by_task(
        self,
        items: Any,
        *,
        idempotency_key: Key = None,
        connection: "Connection[Any] | None" = None,
    ) -> BatchRunHandle[Any]:
        """Start up to 1 000 runs as one batch, and return a handle for each in `runs`."""
        return _batching.trigger_by_task_blocking(
            self._chosen(), entries(items), idempotency_key, connection
        )

    @overload
    def trigger_by_task_and_wait(
        self,
        items: tuple[ByTaskItem[P1, O1]],
        *,
        idempotency_key: Key = None,
    ) -> BatchResult[tuple[TaskRunResult[O1]]]: ...

    @overload
    def trigger_by_task_and_wait(
        self,
        items: tuple[ByTaskItem[P1, O1], ByTaskItem[P2, O2]],
        *,
        idempotency_key: Key = None,
    ) -> BatchResult[tuple[TaskRunResult[O1], TaskRunResult[O2]]]: ...

    @overload
    def trigger_by_task_and_wait(
        self,
        items: tuple[ByTaskItem[P1, O1], ByTaskItem[P2, O2], ByTaskItem[P3, O3]],
        *,
        idempotency_key: Key = None,
    ) -> BatchResult[tuple[TaskRunResult[O1], TaskRunResult[O2], TaskRunResult[O3]]]: ...

    @overload
    def trigger_by_task_and_wait(
        self,
        items: tuple[
            ByTaskItem[P1, O1], ByTaskItem[P2, O2], ByTaskItem[P3, O3], ByTaskItem[P4, O4]
        ],
        *,
        idempotency_key: Key = None,
    ) -> BatchResult[
        tuple[TaskRunResult[O1], TaskRunResult[O2], TaskRunResult[O3], TaskRunResult[O4]]
    ]: ...

    @overload
    def trigger_by_task_and_wait(
        self,
        items: tuple[
            ByTaskItem[P1, O1],
            ByTaskItem[P2, O2],
            ByTaskItem[P3, O3],
            ByTaskItem[P4, O4],
            ByTaskItem[P5, O5],
        ],
        *,
        idempotency_key: Key = None,
    ) -> BatchResult[
        tuple[
            TaskRunResult[O1],
            TaskRunResult[O2],
            TaskRunResult[O3],
            TaskRunResult[O4],
            TaskRunResult[O5],
        ]
    ]: ...

    @overload
    def trigger_by_task_and_wait(
        self,
        items: list[AnyByTaskItem],
        *,
        idempotency_key: Key = None,
    ) -> BatchResult[tuple[TaskRunResult[Any], ...]]: ...

    def trigger_by_task_and_wait(
        self, items: Any, *, idempotency_key: Key = None
    ) -> BatchResult[Any]:
        """Start up to 1 000 children of the executing run as one batch, and wait for all."""
        return _waiting.trigger_batch_and_wait_blocking(
            self._chosen(), entries(items), idempotency_key
        )


def entries(items: Sequence[AnyByTaskItem]) -> list[Entry]:
    """Return the items as they are triggered. Raises TypeError for one without a task."""
    return [_entry(item) for item in items]


def _entry(item: AnyByTaskItem) -> Entry:
    check_item(item, "task")
    task = cast(object, item["task"])
    if not isinstance(task, Task):
        raise TypeError(f"an item by task names a task, not {task!r}; batch.trigger takes ids, too")
    return cast(Task[Any, Any, ..., Any], task).wanted(item.get("payload"), item.get("options", {}))
