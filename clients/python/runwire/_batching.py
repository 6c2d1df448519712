"""Starting batches of runs: from a list, or from an iterable while it is still being read.

A list is announced with its number. An iterable's number is not known before its end: over HTTP its
batch is created open with the first item, filled in groups while it is read, and ended.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

import orjson

from runwire import _context, _default, _transactional
from runwire._client import Client
from runwire._context import TriggeredBatch
from runwire._default import Blocking
from runwire._sending import BatchHandle, Group, Sending, check_number
from runwire._triggering import Entry, RunHandle, key_of, refuse_client, request_key
from runwire.errors import ApiError, BatchTriggerError, InvalidValueError
from runwire.requests import MAX_BATCH_ITEMS, BatchItem

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

ItemT = TypeVar("ItemT")
RunsT = TypeVar("RunsT")

Key: TypeAlias = str | Sequence[str] | None
# All of a batch at once, or one after another.
Entries: TypeAlias = Sequence[Entry] | AsyncGenerator[Entry]
BlockingEntries: TypeAlias = Sequence[Entry] | Iterator[Entry]


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


# A batch, and the ids of its runs, where they are known without asking.
_Triggered: TypeAlias = tuple[BatchHandle, tuple[str, ...] | None]

# Triggering --------------------------------------------------------------------------------------


async def trigger_batch(
    client: Client | None,
    entries: Entries,
    idempotency_key: Key,
    connection: "AsyncConnection[Any] | None" = None,
) -> BatchHandle:
    """Start a batch of runs. With a client the call always goes over HTTP."""
    return (await _trigger_batch(client, entries, idempotency_key, connection))[0]


async def trigger_by_task(
    client: Client | None,
    entries: Sequence[Entry],
    idempotency_key: Key,
    connection: "AsyncConnection[Any] | None" = None,
) -> BatchRunHandle[tuple[RunHandle[Any], ...]]:
    """Start a batch of runs and return a handle for each of them."""
    handle, run_ids = await _trigger_batch(client, entries, idempotency_key, connection)
    if run_ids is None:
        run_ids = await _run_ids(client or _default.client(), handle)
    return _with_runs(handle, entries, run_ids)


async def _trigger_batch(
    client: Client | None,
    entries: Entries,
    idempotency_key: Key,
    connection: "AsyncConnection[Any] | None",
) -> _Triggered:
    key = key_of(idempotency_key)
    if connection is not None:
        refuse_client(client)
        items = batch_items(await all_entries(entries))
        environment, parent = _transactional.surroundings()
        engine = _transactional.engine()
        return _answered(await engine.trigger_batch(connection, environment, items, key, parent))
    runtime = _context.current() if client is None else None
    if runtime is not None:
        items = batch_items(await all_entries(entries))
        try:
            return _answered(await runtime.trigger_batch(items, key, request_key()))
        except ApiError as error:
            raise _refused(error, len(items)) from error
    sending = Sending(client or _default.client(), key)
    if isinstance(entries, Sequence):
        return await sending.whole(batch_items(entries)), None
    return await _streamed(sending, entries), None


def trigger_batch_blocking(
    owner: Blocking | None,
    entries: BlockingEntries,
    idempotency_key: Key,
    connection: "Connection[Any] | None" = None,
) -> BatchHandle:
    """Start a batch of runs from code without a loop."""
    return _trigger_batch_blocking(owner, entries, idempotency_key, connection)[0]


def trigger_by_task_blocking(
    owner: Blocking | None,
    entries: Sequence[Entry],
    idempotency_key: Key,
    connection: "Connection[Any] | None" = None,
) -> BatchRunHandle[tuple[RunHandle[Any], ...]]:
    """Start a batch of runs and return a handle for each of them, from code without a loop."""
    handle, run_ids = _trigger_batch_blocking(owner, entries, idempotency_key, connection)
    if run_ids is None:
        owner = owner or _default.blocking()
        run_ids = owner.run(_run_ids(owner.client, handle))
    return _with_runs(handle, entries, run_ids)


def _trigger_batch_blocking(
    owner: Blocking | None,
    entries: BlockingEntries,
    idempotency_key: Key,
    connection: "Connection[Any] | None",
) -> _Triggered:
    key = key_of(idempotency_key)
    if connection is not None:
        refuse_client(owner)
        items = batch_items(all_blocking_entries(entries))
        environment, parent = _transactional.surroundings()
        engine = _transactional.engine()
        answer = engine.trigger_batch_blocking(connection, environment, items, key, parent)
        return _answered(answer)
    runtime = _context.current() if owner is None else None
    if runtime is not None:
        items = batch_items(all_blocking_entries(entries))
        try:
            return _answered(runtime.trigger_batch_blocking(items, key, request_key()))
        except ApiError as error:
            raise _refused(error, len(items)) from error
    owner = owner or _default.blocking()
    sending = Sending(owner.client, key)
    if isinstance(entries, Sequence):
        return owner.run(sending.whole(batch_items(entries))), None
    return _streamed_blocking(owner, sending, entries), None


# Of an iterable over HTTP ------------------------------------------------------------------------


async def _streamed(sending: Sending, entries: AsyncGenerator[Entry]) -> BatchHandle:
    group = Group()
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


def _streamed_blocking(owner: Blocking, sending: Sending, entries: Iterator[Entry]) -> BatchHandle:
    """Do what `_streamed` does, reading the iterable in the caller's own thread."""
    group = Group()
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


async def all_entries(entries: Entries) -> Sequence[Entry]:
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


def all_blocking_entries(entries: BlockingEntries) -> Sequence[Entry]:
    """Do what `all_entries` does, for code without a loop."""
    if isinstance(entries, Sequence):
        return entries
    listed: list[Entry] = []
    for entry in entries:
        listed.append(entry)
        if len(listed) > MAX_BATCH_ITEMS:
            break
    return listed


def batch_items(entries: Sequence[Entry]) -> list[BatchItem]:
    """Return the items of a batch as they travel. Raises InvalidValueError for their number."""
    check_number(len(entries))
    return [entry.item(index) for index, entry in enumerate(entries)]


def _answered(answer: TriggeredBatch) -> _Triggered:
    token = answer.public_access_token
    handle = BatchHandle(answer.id, answer.run_count, answer.is_cached, token)
    return handle, answer.run_ids


async def _run_ids(client: Client, handle: BatchHandle) -> tuple[str, ...]:
    response = await client.http.get(f"/api/v2/batches/{quote(handle.id, safe='')}")
    return tuple(orjson.loads(response.content)["runs"])


def _with_runs(
    handle: BatchHandle, entries: Sequence[Entry], run_ids: Sequence[str]
) -> BatchRunHandle[tuple[RunHandle[Any], ...]]:
    if len(run_ids) != len(entries):
        raise InvalidValueError(
            f"the idempotency key led to batch {handle.id}, which has {len(run_ids)} runs and not"
            f" {len(entries)}",
            code="batch_size",
        )
    token = handle.public_access_token
    return BatchRunHandle(
        handle.batch_id,
        handle.run_count,
        handle.is_cached,
        token,
        tuple(
            RunHandle(id, entry.task, handle.is_cached, token)
            for id, entry in zip(run_ids, entries, strict=True)
        ),
    )


def _refused(error: ApiError, item_count: int) -> BatchTriggerError:
    return BatchTriggerError(error, phase="stream", batch_id=None, item_count=item_count)
