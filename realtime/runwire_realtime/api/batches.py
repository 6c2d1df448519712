"""Batches in two phases: create one, then stream its items as NDJSON; and read one back.

The second phase may be sent again whole: items are told apart by their index.
"""

from collections.abc import AsyncIterator
from typing import Final

import anyio.to_thread
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from starlette.responses import Response

from runwire.errors import InvalidValueError
from runwire.requests import BatchAnswer, BatchBody, BatchItem, BatchItemsAnswer
from runwire_engine.batches import BatchRow, End, ItemError
from runwire_engine.new_runs import check_payload, new_run
from runwire_engine.wanted_runs import NewRun
from runwire_realtime.api.answer import answer
from runwire_realtime.api.call import Call, parsed
from runwire_realtime.api.operation import Operation
from runwire_realtime.api.run_tokens import TOKEN_HEADERS, batch_token
from runwire_realtime.errors import ForbiddenError, NotFoundError
from runwire_realtime.run_view import wire_time

# How much of a batch is held in memory and written in one transaction.
_ITEMS_AT_ONCE: Final = 100
_BYTES_AT_ONCE: Final = 1024 * 1024
_TOKEN_KEY: Final = "token:"


class BatchItemError(BaseModel):
    """An item that was refused and did not come again."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    index: int
    task_identifier: str
    error: str
    error_code: str


class BatchProcessing(BaseModel):
    errors: list[BatchItemError] = []


class BatchItemsQuery(BaseModel):
    """How a batch is sealed before every promised item is in."""

    model_config = ConfigDict(extra="ignore")

    # No more will come: the batch has the items that are in.
    end: bool = False
    # The same, because whoever filled it gave up: its idempotency key is free again.
    abort: bool = False


class BatchView(BaseModel):
    """GET /api/v2/batches/{batchId}: a batch and the runs of its items, by index."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    id: str
    status: str
    created_at: str
    updated_at: str
    run_count: int
    sealed: bool
    idempotency_key: str | None = None
    runs: list[str]
    processing: BatchProcessing = BatchProcessing()


async def create(call: Call) -> Response:
    """Announce a batch of so many items."""
    if not call.grant.may_start_batches():
        raise ForbiddenError("a batch needs a scope batchTrigger:tasks:<task>")
    body = await call.body(BatchBody)
    batch = await call.services.engine.batches.create(
        call.environment_id,
        body.run_count,
        _one_time_key(call) or body.idempotency_key,
        request_key=call.request_key("batch"),
    )
    # "Cached" makes clients skip the items: true only once they are all in.
    is_cached = batch.is_cached and batch.sealed
    made = BatchAnswer(id=batch.id, run_count=batch.run_count, is_cached=is_cached)
    return answer(made, 202, batch_token(call, batch.id))


async def add_items(call: Call) -> Response:
    """Take items of a batch; the last one promised seals it, or the word that it was the last."""
    batch_id = call.id("batchId")
    end = _end(call.query(BatchItemsQuery))
    batch = await _existing(call, batch_id)
    if call.grant.one_time and batch.idempotency_key != _one_time_key(call):
        raise ForbiddenError("the one-time token is good for another batch")
    accepted = deduplicated = 0
    progress = None
    async for items in _groups(call, batch):
        progress = await call.services.engine.batches.add_items(
            call.environment_id, batch_id, items
        )
        accepted += progress.accepted
        deduplicated += progress.deduplicated
    if progress is None or end is not None:
        progress = await call.services.engine.batches.add_items(
            call.environment_id, batch_id, [], end=end
        )
    return answer(
        BatchItemsAnswer(
            id=batch_id,
            items_accepted=accepted,
            items_deduplicated=deduplicated,
            sealed=progress.sealed,
            enqueued_count=None if progress.sealed else progress.enqueued,
            expected_count=None if progress.sealed else progress.expected,
        )
    )


async def retrieve(call: Call) -> Response:
    """Return a batch with the ids of its runs."""
    batch_id = call.id("batchId")
    if not call.grant.may_read_batch(batch_id):
        raise ForbiddenError(f"reading a batch needs the scope read:batch:{batch_id}")
    batch = await _existing(call, batch_id)
    return answer(
        BatchView(
            id=batch.id,
            status=batch.status,
            created_at=wire_time(batch.created_at),
            updated_at=wire_time(batch.updated_at),
            run_count=batch.run_count,
            sealed=batch.sealed,
            idempotency_key=_shown_key(batch.idempotency_key),
            runs=list(batch.run_ids),
            processing=BatchProcessing(
                errors=[
                    BatchItemError(
                        index=each.index,
                        task_identifier=each.task,
                        error=each.error,
                        error_code=each.code,
                    )
                    for each in batch.errors
                ]
            ),
        )
    )


def _end(query: BatchItemsQuery) -> End | None:
    if query.abort:
        return "aborted"
    return "complete" if query.end else None


def _one_time_key(call: Call) -> str | None:
    """Return the key under which a one-time token always leads to one and the same batch."""
    return f"{_TOKEN_KEY}{call.grant.jti}" if call.grant.one_time else None


def _shown_key(key: str | None) -> str | None:
    return None if key is None or key.startswith(_TOKEN_KEY) else key


async def _existing(call: Call, batch_id: str) -> BatchRow:
    batch = await call.services.engine.batches.retrieve(call.environment_id, batch_id)
    if batch is None:
        raise NotFoundError("there is no such batch")
    return batch


async def _groups(call: Call, batch: BatchRow) -> AsyncIterator[list[tuple[int, NewRun]]]:
    items: list[tuple[int, NewRun]] = []
    size = 0
    async for line in call.lines():
        items.append(await _item(call, batch, line))
        size += len(line)
        if len(items) >= _ITEMS_AT_ONCE or size >= _BYTES_AT_ONCE:
            yield items
            items, size = [], 0
    if items:
        yield items


async def _item(call: Call, batch: BatchRow, line: bytes) -> tuple[int, NewRun]:
    item = await parsed(BatchItem, line, "item")
    if not call.grant.may_batch_trigger(item.task):
        raise ForbiddenError(f"this item needs the scope batchTrigger:tasks:{item.task[:128]}")

    def make() -> NewRun:
        payload = check_payload(item.payload, item.options.payload_type)
        return new_run(item.task, payload, item.options, batch=(batch.id, item.index))

    try:
        if len(line) <= 128 * 1024:
            return item.index, make()
        return item.index, await anyio.to_thread.run_sync(make)
    except InvalidValueError as error:
        refused = ItemError(item.index, item.task[:128], str(error), error.code)
        await call.services.engine.batches.note_errors(call.environment_id, batch.id, [refused])
        raise


OPERATIONS: Final = (
    Operation(
        "POST",
        "/api/v3/batches",
        "createBatch",
        "Announce a batch; its items follow",
        create,
        BatchAnswer,
        status=202,
        scopes="batchTrigger:tasks:<task>",
        body=BatchBody,
        request_key=True,
        answer_headers=TOKEN_HEADERS,
        errors=(408, 413, 415),
    ),
    Operation(
        "POST",
        "/api/v3/batches/{batchId}/items",
        "addBatchItems",
        "Send items of a batch, one JSON object per line; may be sent again whole",
        add_items,
        BatchItemsAnswer,
        scopes="batchTrigger:tasks:<task> for each item",
        query=BatchItemsQuery,
        body=BatchItem,
        body_type="application/x-ndjson",
        body_required=False,
        errors=(404, 408, 413, 415),
    ),
    Operation(
        "GET",
        "/api/v2/batches/{batchId}",
        "retrieveBatch",
        "Read a batch and the ids of its runs",
        retrieve,
        BatchView,
        scopes="read:batch:<batchId>, read:runs",
        errors=(404,),
    ),
)
