"""Starting children of the executing run and waiting for their ends."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from runwire import _context
from runwire._batching import (
    BlockingEntries,
    Entries,
    Key,
    all_blocking_entries,
    all_entries,
    batch_items,
)
from runwire._context import ChildResults, Runtime
from runwire._results import BatchResult, TaskRunResult, result_of
from runwire._triggering import Entry, key_of
from runwire.errors import NotInRunError

Results: TypeAlias = tuple[TaskRunResult[Any], ...]


async def trigger_and_wait(client: object | None, entry: Entry) -> TaskRunResult[Any]:
    """Start a child and wait for its end."""
    runtime = _waiting_run(client)
    ended = await runtime.trigger_and_wait([entry.item(0)], batch=False)
    return _results(ended, [entry])[0]


def trigger_and_wait_blocking(owner: object | None, entry: Entry) -> TaskRunResult[Any]:
    """Start a child and wait for its end, in a thread."""
    runtime = _waiting_run(owner)
    ended = runtime.trigger_and_wait_blocking([entry.item(0)], batch=False)
    return _results(ended, [entry])[0]


async def trigger_batch_and_wait(
    client: object | None, entries: Entries, idempotency_key: Key
) -> BatchResult[Results]:
    """Start a batch of children and wait until all of them are over."""
    runtime, key = _waiting_run(client), key_of(idempotency_key)
    listed = await all_entries(entries)
    ended = await runtime.trigger_and_wait(batch_items(listed), batch=True, idempotency_key=key)
    return BatchResult(ended.batch_id or "", _results(ended, listed))


def trigger_batch_and_wait_blocking(
    owner: object | None, entries: BlockingEntries, idempotency_key: Key
) -> BatchResult[Results]:
    """Start a batch of children and wait until all of them are over, in a thread."""
    runtime, key = _waiting_run(owner), key_of(idempotency_key)
    listed = all_blocking_entries(entries)
    ended = runtime.trigger_and_wait_blocking(batch_items(listed), batch=True, idempotency_key=key)
    return BatchResult(ended.batch_id or "", _results(ended, listed))


def _waiting_run(client: object | None) -> Runtime:
    if client is not None:
        raise NotInRunError(
            "a client of its own cannot wait for a run as a task does: use the task's own calls, or"
            " the modules runwire.tasks and runwire.batch, inside of an executing task"
        )
    runtime = _context.current()
    if runtime is None:
        raise NotInRunError(
            "…_and_wait works only inside an executing task, whose run waits; elsewhere trigger the"
            " run, and follow it with runs.subscribe_to_run or runs.poll"
        )
    return runtime


def _results(ended: ChildResults, entries: Sequence[Entry]) -> Results:
    pairs = zip(ended.runs, entries, strict=True)
    return tuple(result_of(child, entry.parse) for child, entry in pairs)
