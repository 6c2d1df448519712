"""Starting batches of runs: from a list, or from an iterable while it is still being read.

Over HTTP a batch has two phases: it is created, then its items are sent as NDJSON. A list is
announced with its number. An iterable's number is not known before its end: its batch is created
open with the first item, filled in groups, and ended.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

import orjson

from runwire import _context, _default, _transactional
from runwire._client import Client
from runwire._context import TriggeredBatch
from runwire._default import Blocking
from runwire._triggering import Entry, key_of, refuse_client, request_key
from runwire.errors import ApiError, BatchTriggerError, InvalidValueError, RunwireError, ServerError
from runwire.requests import (
    MAX_BATCH_ITEMS,
    BatchAnswer,
    BatchBody,
    BatchItem,
    BatchItemsAnswer,
)

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

ItemT = TypeVar("ItemT")
RunsT = TypeVar("RunsT")

# How often the items of a batch are sent when the server answers that some are still missing.
BATCH_TRIES: Final = 5
# Of an iterable: what waits is sent as soon as it is so much, or nothing was sent for so long.
_GROUP_ITEMS: Final = 100
_GROUP_BYTES: Final = 512 * 1024
_GROUP_SECONDS: Final = 0.1

Key: TypeAlias = str | Sequence[str] | None
# All of a batch at once, or one after another.
Entries: TypeAlias = Sequence[Entry] | AsyncGenerator[Entry]
BlockingEntries: TypeAlias = Sequence[Entry] | Iterator[Entry]


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


@dataclass(frozen=True)
class BatchRunHandle(BatchHandle, Generic[RunsT]):
    """A batch that was triggered by tasks, and a handle for each of its runs, in order."""

    runs: RunsT


def entries_of(
    items: Iterable[ItemT] | AsyncIterable[ItemT], entry: Callable[[ItemT], Entry]
) -> Entries:
    """Return the items of a batch as they are triggered; those of a list are checked at once."""
    if isinstance(items, Sequence):
        return [entry(item) for item in items]
    return _each(items, entry)


async def _each(
    items: Iterable[ItemT] | AsyncIterable[ItemT], entry: Callable[[ItemT], Entry]
) -> AsyncGenerator[Entry]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield entry(item)
        return
    for item in items:
        yield entry(item)


def blocking_entries_of(items: Iterable[ItemT], entry: Callable[[ItemT], Entry]) -> BlockingEntries:
    """Do what `entries_of` does, for code without a loop."""
    if isinstance(items, Sequence):
        return [entry(item) for item in items]
    return (entry(item) for item in items)


# Triggering --------------------------------------------------------------------------------------


async def trigger_batch(
    client: Client | None,
    entries: Entries,
    idempotency_key: Key,
    connection: "AsyncConnection[Any] | None" = None,
) -> BatchHandle:
    """Start a batch of runs. With a client the call always goes over HTTP."""
    key = key_of(idempotency_key)
    if connection is not None:
        refuse_client(client)
        items = _items(await _all(entries))
        environment, parent = _transactional.surroundings()
        engine = _transactional.engine()
        return _handle(await engine.trigger_batch(connection, environment, items, key, parent))
    runtime = _context.current() if client is None else None
    if runtime is not None:
        items = _items(await _all(entries))
        try:
            return _handle(await runtime.trigger_batch(items, key, request_key()))
        except ApiError as error:
            raise _refused(error, len(items)) from error
    sending = _Sending(client or _default.client(), key)
    if isinstance(entries, Sequence):
        return await sending.whole(_items(entries))
    return await _streamed(sending, entries)


def trigger_batch_blocking(
    owner: Blocking | None,
    entries: BlockingEntries,
    idempotency_key: Key,
    connection: "Connection[Any] | None" = None,
) -> BatchHandle:
    """Start a batch of runs from code without a loop."""
    key = key_of(idempotency_key)
    if connection is not None:
        refuse_client(owner)
        items = _items(_all_blocking(entries))
        environment, parent = _transactional.surroundings()
        engine = _transactional.engine()
        return _handle(engine.trigger_batch_blocking(connection, environment, items, key, parent))
    runtime = _context.current() if owner is None else None
    if runtime is not None:
        items = _items(_all_blocking(entries))
        try:
            return _handle(runtime.trigger_batch_blocking(items, key, request_key()))
        except ApiError as error:
            raise _refused(error, len(items)) from error
    owner = owner or _default.blocking()
    sending = _Sending(owner.client, key)
    if isinstance(entries, Sequence):
        return owner.run(sending.whole(_items(entries)))
    return _streamed_blocking(owner, sending, entries)


# Over HTTP ---------------------------------------------------------------------------------------


class _Sending:
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
            _check_number(0)
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


class _Group:
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
            _check_number(MAX_BATCH_ITEMS + 1)
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


async def _streamed(sending: _Sending, entries: AsyncGenerator[Entry]) -> BatchHandle:
    group = _Group()
    try:
        async with aclosing(entries):
            async for entry in entries:
                if group.add(entry) and not await sending.add(group.take()):
                    return await sending.end()
        if rest := group.take():
            await sending.add(rest)
    except BatchTriggerError:
        raise
    except Exception as error:
        # Of the iterable, or of an item of it.
        if not sending.has_begun:
            raise
        raise await sending.abort(error) from error
    return await sending.end()


def _streamed_blocking(owner: Blocking, sending: _Sending, entries: Iterator[Entry]) -> BatchHandle:
    """Do what `_streamed` does, reading the iterable in the caller's own thread."""
    group = _Group()
    try:
        for entry in entries:
            if group.add(entry) and not owner.run(sending.add(group.take())):
                return owner.run(sending.end())
        if rest := group.take():
            owner.run(sending.add(rest))
    except BatchTriggerError:
        raise
    except Exception as error:
        if not sending.has_begun:
            raise
        raise owner.run(sending.abort(error)) from error
    return owner.run(sending.end())


# -------------------------------------------------------------------------------------------------


async def _all(entries: Entries) -> Sequence[Entry]:
    """Return all items of a batch, in which not more are than may be."""
    if isinstance(entries, Sequence):
        return entries
    listed: list[Entry] = []
    async with aclosing(entries):
        async for entry in entries:
            listed.append(entry)
            if len(listed) > MAX_BATCH_ITEMS:
                break
    return listed


def _all_blocking(entries: BlockingEntries) -> Sequence[Entry]:
    if isinstance(entries, Sequence):
        return entries
    listed: list[Entry] = []
    for entry in entries:
        listed.append(entry)
        if len(listed) > MAX_BATCH_ITEMS:
            break
    return listed


def _items(entries: Sequence[Entry]) -> list[BatchItem]:
    _check_number(len(entries))
    return [entry.item(index) for index, entry in enumerate(entries)]


def _check_number(number: int) -> None:
    if not 1 <= number <= MAX_BATCH_ITEMS:
        raise InvalidValueError(
            f"a batch has 1 to {MAX_BATCH_ITEMS} runs, not {number}", code="batch_size"
        )


def _handle(answer: TriggeredBatch) -> BatchHandle:
    return BatchHandle(answer.id, answer.run_count, answer.is_cached, answer.public_access_token)


def _refused(error: ApiError, item_count: int) -> BatchTriggerError:
    return BatchTriggerError(error, phase="stream", batch_id=None, item_count=item_count)


def _body(body: BatchBody | BatchItem) -> dict[str, object]:
    return body.model_dump(mode="json", by_alias=True, exclude_none=True)
