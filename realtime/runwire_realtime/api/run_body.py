"""A run as the HTTP API shows it: the wire's fields and what Trigger.dev's clients require."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from runwire.requests import RunStatus
from runwire.wire import Json, JsonObject
from runwire_engine.run_row import RunRow
from runwire_realtime.api.cron_view import Generator
from runwire_realtime.run_view import flags, run_json
from runwire_realtime.scope import Visibility


class RunError(BaseModel):
    """Why a run failed; the traceback is shown to API keys and the dashboard only."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    name: str | None = None
    message: str | None = None
    stack_trace: str | None = None
    code: str | None = None


class RunEnvironment(BaseModel):
    id: str
    name: str


class RunSchedule(BaseModel):
    """The schedule that a run came of."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    id: str
    external_id: str | None = None
    deduplication_key: str
    generator: Generator


class RunBody(BaseModel):
    """A run. A field that is absent has no value, or the token was minted without it."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    id: str
    task_identifier: str
    status: RunStatus
    revision: int
    attempt: int | None = None
    created_at: str
    updated_at: str
    queued_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    delayed_until: str | None = None
    expired_at: str | None = None
    cancel_requested_at: str | None = None
    ttl: str | None = None
    tags: list[str] = []
    metadata: JsonObject | None = None
    payload: Json = None
    payload_type: str | None = None
    output: Json = None
    output_type: str | None = None
    error: RunError | None = None
    duration_ms: int = 0
    depth: int = 0
    batch_id: str | None = None
    parent_id: str | None = None
    root_id: str | None = None
    queue: str | None = None
    concurrency_key: str | None = None
    priority: float | None = None
    version: str | None = None
    max_attempts: int | None = None
    max_duration: float | None = None
    idempotency_key: str | None = None
    worker_id: str | None = None
    realtime_streams: list[str] = []
    is_test: bool = False
    is_queued: bool
    is_executing: bool
    is_waiting: bool
    is_completed: bool
    is_success: bool
    is_failed: bool
    is_cancelled: bool
    # What Trigger.dev's clients require and we have no other value for.
    attempt_count: int = 0
    cost_in_cents: float = 0
    base_cost_in_cents: float = 0
    trigger_function: Literal["trigger"] = "trigger"
    # Only where one run is read, and its schedule still is there.
    schedule: RunSchedule | None = None
    related_runs: JsonObject = Field(default_factory=dict[str, Json])
    env: RunEnvironment | None = None


def run_body(row: RunRow, visibility: Visibility) -> JsonObject:
    """Return a run for an HTTP answer, as far as the credential sees it."""
    required: JsonObject = {
        "tags": [],
        "isTest": row.is_test,
        "durationMs": row.duration_ms,
        "depth": row.depth,
        "attemptCount": row.attempt,
        "costInCents": 0,
        "baseCostInCents": 0,
        "triggerFunction": "trigger",
        "relatedRuns": {},
    }
    body = required | flags(row.status) | run_json(row, visibility)
    if body.get("ttl") is not None:
        body["ttl"] = _span(body["ttl"])  # the socket has a number; official clients ask for text
    return body


def _span(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"
