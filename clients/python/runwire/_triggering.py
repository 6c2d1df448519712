"""Starting runs: through the executing run where there is one, else over HTTP."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import orjson

from runwire import _context, _default, idempotency_keys
from runwire._client import Client
from runwire._default import Blocking
from runwire._options import TriggerKeywords, trigger_options
from runwire.errors import InvalidValueError, ServerError
from runwire.requests import (
    MAX_BATCH_ITEMS,
    BatchAnswer,
    BatchBody,
    BatchItem,
    BatchItemsAnswer,
    TriggerAnswer,
    TriggerBody,
)

OutputT = TypeVar("OutputT")

# How often the items of a batch are sent when the server answers that some are still missing.
BATCH_TRIES = 5


@dataclass(frozen=True)
class RunHandle(Generic[OutputT]):
    """A run that was triggered."""

    id: str
    task_identifier: str
    # Whether an idempotency key matched and this is the run of an earlier trigger.
    is_cached: bool
    # Reads this run for an hour: what a browser needs to follow it.
    public_access_token: str | None


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
class Entry:
    """One run of a batch, its payload as JSON text."""

    task: str
    payload: str | None
    options: TriggerKeywords


async def trigger(
    client: Client | None, task: str, payload: str | None, options: TriggerKeywords
) -> RunHandle[Any]:
    """Start a run. With a client the call always goes over HTTP."""
    ready = trigger_options(options)
    runtime = _context.current() if client is None else None
    if runtime is not None:
        answer = await runtime.trigger(task, payload, ready, str(uuid.uuid4()))
        return RunHandle(answer.id, task, answer.is_cached, answer.public_access_token)
    client = client or _default.client()
    body = TriggerBody(payload=payload, options=ready)
    response = await client.http.post(
        f"/api/v1/tasks/{quote(task, safe='')}/trigger", json=_body(body)
    )
    handle = TriggerAnswer.model_validate_json(response.content)
    return RunHandle(handle.id, task, handle.is_cached, response.headers.get("x-trigger-jwt"))


def trigger_blocking(
    owner: Blocking | None, task: str, payload: str | None, options: TriggerKeywords
) -> RunHandle[Any]:
    """Start a run from code without a loop."""
    runtime = _context.current() if owner is None else None
    if runtime is not None:
        ready = trigger_options(options)
        answer = runtime.trigger_blocking(task, payload, ready, str(uuid.uuid4()))
        return RunHandle(answer.id, task, answer.is_cached, answer.public_access_token)
    owner = owner or _default.blocking()
    return owner.run(trigger(owner.client, task, payload, options))


async def trigger_batch(
    client: Client | None, entries: Sequence[Entry], idempotency_key: str | None
) -> BatchHandle:
    """Start a batch of runs. With a client the call always goes over HTTP."""
    items, key = _items(entries), _key(idempotency_key)
    runtime = _context.current() if client is None else None
    if runtime is not None:
        answer = await runtime.trigger_batch(items, key)
        return BatchHandle(
            answer.id, answer.run_count, answer.is_cached, answer.public_access_token
        )
    client = client or _default.client()
    created = await client.http.post(
        "/api/v3/batches", json=_body(BatchBody(run_count=len(items), idempotency_key=key))
    )
    batch = BatchAnswer.model_validate_json(created.content)
    if not batch.is_cached:
        await _send_items(client, batch.id, items)
    return BatchHandle(
        batch.id, batch.run_count, batch.is_cached, created.headers.get("x-trigger-jwt")
    )


def trigger_batch_blocking(
    owner: Blocking | None, entries: Sequence[Entry], idempotency_key: str | None
) -> BatchHandle:
    """Start a batch of runs from code without a loop."""
    runtime = _context.current() if owner is None else None
    if runtime is not None:
        answer = runtime.trigger_batch_blocking(_items(entries), _key(idempotency_key))
        return BatchHandle(
            answer.id, answer.run_count, answer.is_cached, answer.public_access_token
        )
    owner = owner or _default.blocking()
    return owner.run(trigger_batch(owner.client, entries, idempotency_key))


async def _send_items(client: Client, batch_id: str, items: Sequence[BatchItem]) -> None:
    lines = b"\n".join(orjson.dumps(_body(item)) for item in items)
    # The server drops by index what it already has, so sending everything again is safe.
    for _ in range(BATCH_TRIES):
        response = await client.http.post(
            f"/api/v3/batches/{batch_id}/items", content=lines, content_type="application/x-ndjson"
        )
        if BatchItemsAnswer.model_validate_json(response.content).sealed:
            return
    raise ServerError(
        f"batch {batch_id} was not sealed after {BATCH_TRIES} tries", status=500, code="internal"
    )


def _items(entries: Sequence[Entry]) -> list[BatchItem]:
    if not 1 <= len(entries) <= MAX_BATCH_ITEMS:
        raise InvalidValueError(
            f"a batch has 1 to {MAX_BATCH_ITEMS} runs, not {len(entries)}", code="batch_size"
        )
    return [
        BatchItem(
            index=index,
            task=entry.task,
            payload=entry.payload,
            options=trigger_options(entry.options),
        )
        for index, entry in enumerate(entries)
    ]


def _key(idempotency_key: str | None) -> str | None:
    return None if idempotency_key is None else idempotency_keys.create(idempotency_key)


def _body(body: TriggerBody | BatchBody | BatchItem) -> dict[str, object]:
    return body.model_dump(mode="json", by_alias=True, exclude_none=True)
