"""Batches: many runs started, and followed, as one. Blocking twins: `runwire.sync.batch`."""

from collections.abc import AsyncIterable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict
from urllib.parse import quote

import orjson

from runwire import _batching, _default, _waiting
from runwire._batching import BatchRunHandle, Key, entries_of
from runwire._by_task import ByTask, ByTaskItem
from runwire._client import Client
from runwire._definition import Task, check_item
from runwire._options import TriggerKeywords
from runwire._results import BatchResult, TaskRunResult
from runwire._sending import BatchHandle
from runwire._triggering import Entry
from runwire.tasks import wanted
from runwire.wire import JsonObject

if TYPE_CHECKING:
    from psycopg import AsyncConnection

__all__ = [
    "Batch",
    "BatchHandle",
    "BatchItem",
    "BatchResult",
    "BatchRunHandle",
    "Batches",
    "ByTaskItem",
    "ItemError",
    "retrieve",
    "trigger",
    "trigger_and_wait",
    "trigger_by_task",
    "trigger_by_task_and_wait",
]


class _Named(TypedDict):
    task: str | Task[Any, Any, ..., Any]


class BatchItem(_Named, total=False):
    """One run of a batch: which task, with which payload and options."""

    payload: object
    options: TriggerKeywords


@dataclass(frozen=True)
class ItemError:
    """An item of a batch that was refused, so that it has no run."""

    index: int
    task_identifier: str
    error: str
    error_code: str


@dataclass(frozen=True)
class Batch:
    """The state of a batch.

    PENDING while items are missing; then PROCESSING, as long as a run of it is not over; then
    COMPLETED, PARTIAL_FAILED when a run has failed, or ABORTED when items of it were refused.
    """

    id: str
    status: Literal["PENDING", "PROCESSING", "COMPLETED", "PARTIAL_FAILED", "ABORTED"]
    run_count: int
    run_ids: tuple[str, ...]
    created_at: datetime
    updated_at: datetime
    processing_errors: tuple[ItemError, ...] = ()

    @property
    def is_completed(self) -> bool:
        return self.status in ("COMPLETED", "PARTIAL_FAILED", "ABORTED")


class Batches(ByTask):
    """Everything about batches, over one client."""

    def __init__(self, connect: Callable[[], Client], client: Callable[[], Client | None]) -> None:
        super().__init__(client)
        self._connect = connect

    async def trigger(
        self,
        items: Iterable[BatchItem] | AsyncIterable[BatchItem],
        *,
        idempotency_key: Key = None,
        connection: "AsyncConnection[Any] | None" = None,
    ) -> BatchHandle:
        """Start up to 1 000 runs of any tasks: `[{"task": …, "payload": …, "options": {…}}, …]`.

        An iterable that is no list, sync or async, is sent while it is read. Raises
        BatchTriggerError when not all could be started.
        """
        entries = entries_of(items, mixed_entry)
        return await _batching.trigger_batch(self._client(), entries, idempotency_key, connection)

    async def trigger_and_wait(
        self,
        items: Iterable[BatchItem] | AsyncIterable[BatchItem],
        *,
        idempotency_key: Key = None,
    ) -> BatchResult[tuple[TaskRunResult[Any], ...]]:
        """Start children of the executing run as one batch, and wait for all of them.

        `task_identifier` of each result says whose it is. Raises NotInRunError outside of a run.
        """
        entries = entries_of(items, mixed_entry)
        return await _waiting.trigger_batch_and_wait(self._client(), entries, idempotency_key)

    async def retrieve(self, batch_id: str) -> Batch:
        """Return a batch as it is now. Raises NotFoundError."""
        response = await self._connect().http.get(f"/api/v2/batches/{quote(batch_id, safe='')}")
        body: JsonObject = orjson.loads(response.content)
        return Batch(
            id=body["id"],
            status=body["status"],
            run_count=body["runCount"],
            run_ids=tuple(body["runs"]),
            created_at=datetime.fromisoformat(body["createdAt"]),
            updated_at=datetime.fromisoformat(body["updatedAt"]),
            processing_errors=tuple(
                ItemError(
                    error["index"],
                    error["taskIdentifier"],
                    error["error"],
                    error["errorCode"],
                )
                for error in body["processing"]["errors"]
            ),
        )


def mixed_entry(item: BatchItem) -> Entry:
    """Return an item of a batch of several tasks as it is triggered."""
    check_item(item, "task")
    return wanted(item["task"], item.get("payload"), item.get("options", {}))


def _nobody() -> Client | None:
    return None


_default_batches = Batches(_default.client, _nobody)
trigger = _default_batches.trigger
trigger_and_wait = _default_batches.trigger_and_wait
trigger_by_task = _default_batches.trigger_by_task
trigger_by_task_and_wait = _default_batches.trigger_by_task_and_wait
retrieve = _default_batches.retrieve
