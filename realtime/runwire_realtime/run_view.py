"""A run as a credential may see it: rows and changes to JSON of the wire. [core]

Bodies that are JSON text already are put in as they are; nothing is parsed that need not be. What a
subscriber may see is its `View`, which is also the key under which encoded bytes are shared.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, cast

import orjson

from runwire.wire import LARGE_VALUE_BYTES, Json, JsonObject
from runwire_engine.followed import FollowedRun
from runwire_engine.run_row import RunRow
from runwire_engine.states import FINAL, RunStatus
from runwire_realtime.scope import Visibility

NEVER_SKIPPED: Final = frozenset(
    {"id", "taskIdentifier", "status", "revision", "createdAt", "updatedAt"}
)
# For API keys and the signed-in dashboard only.
_INTERNAL: Final = frozenset({"workerId"})
# Payload, output and metadata of this size together still fit into one message.
MAX_VALUE_BYTES: Final = 256 * 1024
_QUEUED: Final = frozenset({"PENDING_VERSION", "DELAYED", "QUEUED"})
_EXECUTING: Final = frozenset({"DEQUEUED", "EXECUTING"})
_FAILED: Final = frozenset({"FAILED", "CRASHED", "SYSTEM_FAILURE", "TIMED_OUT", "EXPIRED"})


@dataclass(frozen=True, slots=True)
class View:
    """What one connection sees of one run."""

    is_internal: bool
    # Only these fields, and those never left out; None: all.
    fields: frozenset[str] | None = None
    # A larger payload, output or metadata comes as {"$large": {"bytes": n}}.
    value_limit: int = MAX_VALUE_BYTES

    def shows(self, field: str) -> bool:
        if field in _INTERNAL and not self.is_internal:
            return False
        return self.fields is None or field in self.fields or field in NEVER_SKIPPED

    def is_served_by(self, run: FollowedRun) -> bool:
        """Say whether a row was read with every value that it shows."""
        return all(
            size > self.value_limit or not self.shows(name) for name, size in run.sizes.items()
        )

    def covers(self, other: "View") -> bool:
        """Say whether it shows all that another one shows."""
        has_fields = self.fields is None or (
            other.fields is not None and other.fields <= self.fields
        )
        return (
            has_fields
            and self.is_internal >= other.is_internal
            and (self.value_limit >= other.value_limit)
        )


def view_of(
    visibility: Visibility, asked: Iterable[frozenset[str] | None], *, is_feed: bool
) -> View:
    """Return the view of a connection whose subscriptions asked for these fields."""
    fields = _union(asked)
    if visibility.fields is not None:
        fields = visibility.fields if fields is None else fields & visibility.fields
    limit = LARGE_VALUE_BYTES if is_feed else MAX_VALUE_BYTES
    return View(visibility.internal, fields, limit)


def _union(asked: Iterable[frozenset[str] | None]) -> frozenset[str] | None:
    union: frozenset[str] = frozenset()
    for fields in asked:
        if fields is None:
            return None
        union |= fields
    return union


def run_json(row: RunRow, visibility: Visibility, *, value_limit: int | None = None) -> JsonObject:
    """Return a run as plain JSON values; absent where there is nothing."""
    limit = (
        sum(map(_size, (row.payload, row.output, row.metadata)))
        if value_limit is None
        else value_limit
    )
    view = View(visibility.internal, visibility.fields, limit)
    return _document(FollowedRun(row, {}), view, orjson.loads)


def run_bytes(run: FollowedRun, view: View) -> bytes:
    """Return a run as JSON text."""
    return orjson.dumps(_document(run, view, orjson.Fragment))


def flags(status: str) -> dict[str, bool]:
    """Return what the HTTP API says of a status besides its name."""
    return {
        "isQueued": status in _QUEUED,
        "isExecuting": status in _EXECUTING,
        "isWaiting": status == "WAITING",
        "isCompleted": is_final(status),
        "isSuccess": status == "COMPLETED",
        "isFailed": status in _FAILED,
        "isCancelled": status == "CANCELED",
    }


def is_final(status: str) -> bool:
    return status in _FINAL


def patch_bytes(
    run_id: str,
    base: int,
    revision: int,
    changes: Mapping[str, Json],
    view: View,
    operations: Sequence[JsonObject] = (),
) -> bytes:
    """Return the patch that turns the run at `base` into `revision`, as far as the view goes."""
    message: JsonObject = {
        "type": "patch",
        "run": run_id,
        "from": base,
        "revision": revision,
        "set": {
            name: _visible(name, value, view) for name, value in changes.items() if view.shows(name)
        },
    }
    if operations and view.shows("metadata"):
        message["metadata"] = list(operations)
    return orjson.dumps(message)


def _visible(name: str, value: Json, view: View) -> Json:
    if name == "error" and isinstance(value, dict) and not view.is_internal:
        return {key: part for key, part in cast(JsonObject, value).items() if key != "stackTrace"}
    if name in _BODIES:
        text = orjson.dumps(value)
        return _large(len(text)) if len(text) > view.value_limit else orjson.Fragment(text)
    return cast(Json, value)


def wire_time(at: datetime) -> str:
    """Return a time as it goes over the wire."""
    utc = at.astimezone(UTC)
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{utc.microsecond // 1000:03d}Z"


def _document(run: FollowedRun, view: View, embed: Callable[[str], Json]) -> JsonObject:
    row = run.row
    document: JsonObject = {
        "id": row.id,
        "taskIdentifier": row.task,
        "status": row.status,
        "revision": row.revision,
        "attempt": row.attempt,
        "createdAt": wire_time(row.created_at),
        "updatedAt": wire_time(row.updated_at),
        "queuedAt": _time(row.queued_at),
        "startedAt": _time(row.started_at),
        "finishedAt": _time(row.finished_at),
        "delayedUntil": _time(row.delayed_until),
        "expiredAt": _time(row.expired_at),
        "cancelRequestedAt": _time(row.cancel_requested_at),
        "ttl": row.ttl,
        "tags": list(row.tags),
        "durationMs": row.duration_ms,
        "depth": row.depth,
        "batchId": row.batch_id,
        "parentId": row.parent_id,
        "rootId": row.root_id,
        "queue": row.queue,
        "concurrencyKey": row.concurrency_key or None,
        "priority": row.priority,
        "version": row.version,
        "maxAttempts": row.max_attempts,
        "maxDuration": row.max_duration,
        "idempotencyKey": row.idempotency_key,
        "isTest": row.is_test,
        "realtimeStreams": list(row.stream_keys),
        "workerId": row.worker_id,
    }
    shown = {n: v for n, v in document.items() if v is not None and view.shows(n)}
    if row.error is not None and view.shows("error"):
        shown["error"] = _visible("error", orjson.loads(row.error), view)
    for name, kind, text in (
        ("payload", row.payload_type, row.payload),
        ("output", row.output_type, row.output),
        ("metadata", None, row.metadata),
    ):
        if view.shows(name):
            _add_body(shown, name, kind, text, run.sizes.get(name), view, embed)
    return shown


def _add_body(
    shown: JsonObject,
    name: str,
    kind: str | None,
    text: str | None,
    size: int | None,
    view: View,
    embed: Callable[[str], Json],
) -> None:
    if text is None and size is None:
        return
    size = _size(text) if size is None else size
    shown[name] = (
        _large(size) if text is None or size > view.value_limit else _body(kind, text, embed)
    )
    if kind is not None and view.shows(f"{name}Type"):
        shown[f"{name}Type"] = kind


def _body(kind: str | None, text: str, embed: Callable[[str], Json]) -> Json:
    """Return the value of a stored body."""
    match kind:
        case "application/super+json":
            value: Json = orjson.loads(text)
            return value.get("json") if isinstance(value, dict) else value  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        case "text/plain":
            return text
        case _:
            return embed(text)


def _large(size: int) -> JsonObject:
    return {"$large": {"bytes": size}}


def _size(text: str | None) -> int:
    return 0 if text is None else len(text.encode())


def _time(at: datetime | None) -> str | None:
    return None if at is None else wire_time(at)


_BODIES: Final = frozenset({"payload", "output", "metadata"})
_FINAL: Final = frozenset(RunStatus(status).value for status in FINAL)
