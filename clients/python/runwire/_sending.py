"""A batch on its way to the server: created, filled in groups of NDJSON, sealed, or given up."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from runwire._client import Client
from runwire._triggering import Entry
from runwire.errors import BatchTriggerError, InvalidValueError, RunwireError, ServerError
from runwire.requests import (
    MAX_BATCH_ITEMS,
    BatchAnswer,
    BatchBody,
    BatchItem,
    BatchItemsAnswer,
)

# How often the items of a batch are sent when the server answers that some are still missing.
BATCH_TRIES: Final = 5
# Of an iterable: what waits is sent as soon as it is so much, or nothing was sent for so long.
_GROUP_ITEMS: Final = 100
_GROUP_BYTES: Final = 512 * 1024
_GROUP_SECONDS: Final = 0.1


@dataclass(frozen=True)
class BatchHandle:
    """A batch that was triggered."""

    batch_id: str
    run_count: int
    is_cached: bool
    # Reads this batch and its runs for an hour.
    public_access_token: str | None

    @property
    def id(self) -> str:
        return self.batch_id


class Sending:
    """One batch on its way to the server; what fails is raised as BatchTriggerError."""

    def __init__(self, client: Client, key: str | None) -> None:
        self._http = client.http
        self._key = key
        self._batch: BatchAnswer | None = None
        self._token: str | None = None
        # Items that have been sent, or are about to be.
        self._count = 0

    @property
    def has_begun(self) -> bool:
        """Whether there is a batch."""
        return self._batch is not None

    async def whole(self, items: Sequence[BatchItem]) -> BatchHandle:
        """Create the batch of a list and send all its items."""
        self._count = len(items)
        batch = await self._create(len(items))
        if not batch.is_cached:
            await self._send(items)
        return self._handle(batch.run_count)

    async def add(self, items: Sequence[BatchItem]) -> bool:
        """Send some items, after creating the batch; False when there is no need for more."""
        self._count += len(items)
        if self._batch is None and (await self._create(None)).is_cached:
            return False
        await self._send(items, until_sealed=False)
        return True

    async def end(self) -> BatchHandle:
        """Seal an open batch with what was sent."""
        if self._batch is None:
            check_number(0)
            raise AssertionError("a batch of nothing is refused")
        if self._batch.is_cached:
            return self._handle(self._batch.run_count)
        await self._send((), query="?end=true")
        return self._handle(self._count)

    async def abort(self, cause: BaseException) -> BatchTriggerError:
        """Seal the batch with what is in, if the server can be told; return what to raise."""
        batch_id = None if self._batch is None else self._batch.id
        if batch_id is not None:
            try:
                await self._post(batch_id, b"", "?abort=true")
            except RunwireError:
                pass  # what is to be told is why the batch is aborted
        return BatchTriggerError(
            cause,
            phase="create" if batch_id is None else "stream",
            batch_id=batch_id,
            item_count=self._count,
        )

    async def _create(self, run_count: int | None) -> BatchAnswer:
        body = BatchBody(run_count=run_count, idempotency_key=self._key)
        try:
            created = await self._http.post("/api/v3/batches", json=_body(body))
        except RunwireError as error:
            raise await self.abort(error) from error
        self._batch = BatchAnswer.model_validate_json(created.content)
        self._token = created.headers.get("x-trigger-jwt")
        return self._batch

    async def _send(
        self, items: Sequence[BatchItem], query: str = "", *, until_sealed: bool = True
    ) -> None:
        assert self._batch is not None
        lines = b"\n".join(orjson.dumps(_body(item)) for item in items)
        try:
            # The server drops by index what it already has: sending everything again is safe.
            for _ in range(BATCH_TRIES):
                answer = await self._post(self._batch.id, lines, query)
                if answer.sealed or not until_sealed:
                    return
        except RunwireError as error:
            raise await self.abort(error) from error
        unsealed = ServerError(
            f"it was not sealed after {BATCH_TRIES} tries", status=500, code="internal"
        )
        raise await self.abort(unsealed) from unsealed

    async def _post(self, batch_id: str, lines: bytes, query: str) -> BatchItemsAnswer:
        response = await self._http.post(
            f"/api/v3/batches/{batch_id}/items{query}",
            content=lines,
            content_type="application/x-ndjson",
        )
        return BatchItemsAnswer.model_validate_json(response.content)

    def _handle(self, run_count: int) -> BatchHandle:
        assert self._batch is not None
        return BatchHandle(self._batch.id, run_count, self._batch.is_cached, self._token)


class Group:
    """Items of an iterable that wait to be sent together."""

    def __init__(self) -> None:
        self._items: list[BatchItem] = []
        self._next_index = 0
        self._bytes = 0
        # So that the first one leaves at once.
        self._sent_at = float("-inf")

    def add(self, entry: Entry) -> bool:
        """Take one more; say whether it is time to send."""
        if self._next_index == MAX_BATCH_ITEMS:
            check_number(MAX_BATCH_ITEMS + 1)
        self._items.append(entry.item(self._next_index))
        self._next_index += 1
        self._bytes += len(entry.payload or "")
        return (
            len(self._items) >= _GROUP_ITEMS
            or self._bytes >= _GROUP_BYTES
            or time.monotonic() - self._sent_at >= _GROUP_SECONDS
        )

    def take(self) -> list[BatchItem]:
        """Return what waits, and begin anew."""
        taken, self._items, self._bytes = self._items, [], 0
        self._sent_at = time.monotonic()
        return taken


def check_number(number: int) -> None:
    """Raise InvalidValueError for a number of items that no batch may have."""
    if not 1 <= number <= MAX_BATCH_ITEMS:
        raise InvalidValueError(
            f"a batch has 1 to {MAX_BATCH_ITEMS} runs, not {number}", code="batch_size"
        )


def _body(body: BatchBody | BatchItem) -> dict[str, object]:
    return body.model_dump(mode="json", by_alias=True, exclude_none=True)
