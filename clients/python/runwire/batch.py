"""Batches: many runs started, and followed, as one. Blocking twins: `runwire.sync.batch`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypedDict, cast
from urllib.parse import quote

import orjson

from runwire import _default, _triggering
from runwire._client import Client
from runwire._definition import BatchEntry, Task
from runwire._options import TriggerKeywords
from runwire._triggering import BatchHandle
from runwire.tasks import entry
from runwire.wire import JsonObject

__all__ = ["Batch", "BatchHandle", "BatchItem", "Batches", "retrieve", "trigger"]


class _Named(TypedDict):
    task: str | Task[Any, Any, ..., Any]


class BatchItem(_Named, total=False):
    """One run of a batch: which task, with which payload and options."""

    payload: object
    options: TriggerKeywords


@dataclass(frozen=True)
class Batch:
    """The state of a batch."""

    id: str
    status: Literal["PENDING", "PROCESSING", "COMPLETED", "PARTIAL_FAILED", "ABORTED"]
    run_count: int
    run_ids: tuple[str, ...]
    created_at: datetime
    updated_at: datetime

    @property
    def is_completed(self) -> bool:
        return self.status in ("COMPLETED", "PARTIAL_FAILED", "ABORTED")


class Batches:
    """Everything about batches, over one client."""

    def __init__(self, connect: Callable[[], Client], client: Callable[[], Client | None]) -> None:
        self._connect = connect
        self._client = client

    async def trigger(
        self, items: Sequence[BatchItem], *, idempotency_key: str | None = None
    ) -> BatchHandle:
        """Start up to 1 000 runs of any tasks: `[{"task": …, "payload": …, "options": {…}}, …]`."""
        return await _triggering.trigger_batch(self._client(), entries(items), idempotency_key)

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
        )


def entries(items: Sequence[BatchItem]) -> list[_triggering.Entry]:
    """Return the items of a mixed batch as they are triggered."""
    return [
        entry(item["task"], cast(BatchEntry[Any], {k: v for k, v in item.items() if k != "task"}))
        for item in items
    ]


def _nobody() -> Client | None:
    return None


_default_batches = Batches(_default.client, _nobody)
trigger = _default_batches.trigger
retrieve = _default_batches.retrieve
