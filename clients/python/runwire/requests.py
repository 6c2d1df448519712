"""HTTP bodies, once for the client that writes them and the server that reads them.

Their shape is Trigger.dev's management API, so that its official clients work: camelCase, and a
`payload` that is JSON *text* whose meaning `payloadType` gives.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from runwire.wire import Json, JsonObject, Tag

MAX_TAGS = 10
MAX_BATCH_ITEMS = 1000


class _Body(BaseModel):
    """Unknown fields are ignored: official clients send more than we need."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True
    )


class QueueOption(_Body):
    name: str = Field(min_length=1, max_length=128)
    concurrency_limit: int | None = Field(default=None, ge=0)


class DebounceOption(_Body):
    """One run for all triggers of a key that come while it waits `delay` after the last of them."""

    key: str = Field(min_length=1, max_length=512)
    delay: str | float = Field(examples=["5s"])
    # Whose payload and options the run has: the first trigger's, or the last one's.
    mode: Literal["leading", "trailing"] = "leading"
    max_delay: str | float | None = Field(default=None, examples=["5m"])


class TriggerOptions(_Body):
    """How a run is triggered. Durations are seconds or text like "1h30m"; times are ISO 8601."""

    payload_type: str = "application/json"
    tags: Tag | Annotated[list[Tag], Field(max_length=MAX_TAGS)] | None = None
    metadata: JsonObject | None = None
    delay: str | float | None = None
    ttl: str | float | None = None
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=2048)
    idempotency_key_ttl: str | float | None = Field(default=None, alias="idempotencyKeyTTL")
    queue: QueueOption | str | None = None
    concurrency_key: str | None = Field(default=None, max_length=128)
    max_attempts: int | None = Field(default=None, ge=1, le=1000)
    max_duration: float | None = Field(default=None, gt=0)
    priority: float | None = None
    test: bool = False
    debounce: DebounceOption | None = None
    # Not built: refused with a clear error rather than accepted and ignored.
    machine: Json = None
    region: Json = None
    lock_to_version: str | None = None


class TriggerBody(_Body):
    """POST /api/v1/tasks/{task}/trigger."""

    payload: str | None = None
    options: TriggerOptions = TriggerOptions()


class TriggerAnswer(_Body):
    id: str
    is_cached: bool = False


class BatchBody(_Body):
    """POST /api/v3/batches: the first of two phases. Without runCount, as many items as come until
    the batch is ended."""

    run_count: int | None = Field(default=None, ge=0, le=MAX_BATCH_ITEMS)
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=2048)


class BatchItem(_Body):
    """One NDJSON line of POST /api/v3/batches/{batchId}/items."""

    index: int = Field(ge=0, lt=MAX_BATCH_ITEMS, examples=[0])
    task: str = Field(examples=["ask"])
    payload: str | None = None
    options: TriggerOptions = TriggerOptions()


class BatchAnswer(_Body):
    id: str
    run_count: int
    is_cached: bool = False


class BatchItemsAnswer(_Body):
    id: str
    items_accepted: int
    items_deduplicated: int
    sealed: bool
    enqueued_count: int | None = None
    expected_count: int | None = None


class ResetKeyBody(_Body):
    """POST /api/v1/idempotencyKeys/{key}/reset."""

    task_identifier: str = Field(min_length=1, max_length=128, examples=["ask"])


class PublicTokenBody(_Body):
    """POST /api/v1/auth/public-tokens."""

    scopes: list[str] = Field(min_length=1, max_length=64, examples=[["read:tags:user:42"]])
    expiration_time: str | float | None = None  # a span ("1h"), or Unix seconds
    one_time_use: bool = False
    # Narrower than the default view: only these run fields, only these streams.
    fields: list[str] | None = None
    streams: list[str] | None = None


class RescheduleBody(_Body):
    """POST /api/v1/runs/{runId}/reschedule: seconds, text like "1h30m", or an ISO 8601 time."""

    delay: str | float = Field(examples=["1h30m"])


QueueType = Literal["id", "task", "custom"]


class QueueBody(_Body):
    """How a queue in a path is meant: by its id, as the own one of a task, or by its name."""

    type: QueueType = "id"


class PauseBody(QueueBody):
    """POST /api/v1/queues/{queue}/pause."""

    action: Literal["pause", "resume"]


class OverrideBody(QueueBody):
    """POST /api/v1/queues/{queue}/concurrency/override."""

    concurrency_limit: int = Field(ge=0, le=100_000)


class TokenBody(_Body):
    """POST /api/v1/waitpoints/tokens. Spans are seconds or text; a timeout may be a time."""

    timeout: str | float | None = None
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=2048)
    idempotency_key_ttl: str | float | None = Field(default=None, alias="idempotencyKeyTTL")
    tags: Tag | Annotated[list[Tag], Field(max_length=MAX_TAGS)] | None = None


class TagsBody(_Body):
    """POST /api/v1/runs/{runId}/tags."""

    tags: Tag | Annotated[list[Tag], Field(min_length=1, max_length=MAX_TAGS)]


class MetadataBody(_Body):
    """PUT /api/v1/runs/{runId}/metadata: a whole document, or operations in order."""

    metadata: JsonObject | None = None
    operations: list[JsonObject] | None = None


class ScheduleBody(_Body):
    """POST /api/v1/schedules: the same deduplicationKey again changes the same schedule."""

    task: str = Field(min_length=1, max_length=128, examples=["ask"])
    # Five fields.
    cron: str = Field(min_length=1, max_length=256, examples=["0 9 * * 1"])
    deduplication_key: str = Field(min_length=1, max_length=256, examples=["user_42"])
    # IANA.
    timezone: str = Field(default="UTC", max_length=64, examples=["Europe/Berlin"])
    external_id: str | None = Field(default=None, max_length=256)
    # Spreads runs: "30m", "2h", or "50%" of the time to the next tick.
    window: str | None = Field(default=None, max_length=16, examples=["30m"])
    # Of ticks nobody made runs for: one for the newest, or one for each.
    missed: Literal["newest", "all"] = "newest"


class ScheduleChanges(_Body):
    """PUT /api/v1/schedules/{scheduleId}. Absent stays; externalId and window may be null."""

    task: str | None = Field(default=None, min_length=1, max_length=128)
    cron: str | None = Field(default=None, min_length=1, max_length=256, examples=["0 9 * * 1"])
    timezone: str | None = Field(default=None, max_length=64)
    external_id: str | None = Field(default=None, max_length=256)
    window: str | None = Field(default=None, max_length=16)
    missed: Literal["newest", "all"] | None = None


class ErrorAnswer(BaseModel):
    """Every error of the HTTP API."""

    error: str
    code: str


RunStatus = Literal[
    "PENDING_VERSION",
    "DELAYED",
    "QUEUED",
    "DEQUEUED",
    "EXECUTING",
    "WAITING",
    "COMPLETED",
    "CANCELED",
    "FAILED",
    "CRASHED",
    "SYSTEM_FAILURE",
    "EXPIRED",
    "TIMED_OUT",
]
