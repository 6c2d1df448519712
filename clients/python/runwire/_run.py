"""A run as an application sees it."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, cast

from runwire.durations import seconds
from runwire.requests import RunStatus
from runwire.wire import Json, JsonObject

_QUEUED: Final = frozenset({"PENDING_VERSION", "DELAYED", "QUEUED"})
_EXECUTING: Final = frozenset({"DEQUEUED", "EXECUTING"})
_FAILED: Final = frozenset({"FAILED", "CRASHED", "SYSTEM_FAILURE", "TIMED_OUT", "EXPIRED"})
_FINAL: Final = _FAILED | {"COMPLETED", "CANCELED"}


@dataclass(frozen=True)
class RunError:
    """Why a run failed. `stack_trace` comes only to holders of an API key."""

    name: str
    message: str
    code: str | None = None
    stack_trace: str | None = None


@dataclass(frozen=True)
class LargeValue:
    """Stands for a value too large for a feed of many runs: `runs.retrieve(run.id)` has it."""

    bytes: int


@dataclass(frozen=True)
class Run:
    """The state of a run at one revision. What it has not, or was not asked for, is None."""

    id: str
    task_identifier: str
    status: RunStatus
    # Grows by one with every change of the run.
    revision: int
    created_at: datetime
    updated_at: datetime
    attempt: int | None = None
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    delayed_until: datetime | None = None
    expired_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Json] = field(default_factory=dict[str, Json])
    payload: Json = None
    output: Json = None
    error: RunError | None = None
    duration_ms: float | None = None
    # Seconds that it may wait to start.
    ttl: float | None = None
    batch_id: str | None = None
    parent_id: str | None = None
    root_id: str | None = None
    depth: int = 0
    queue: str | None = None
    concurrency_key: str | None = None
    priority: float | None = None
    max_attempts: int | None = None
    max_duration: float | None = None
    idempotency_key: str | None = None
    version: str | None = None
    worker_id: str | None = None
    is_test: bool = False
    # The keys of the streams it has opened.
    realtime_streams: tuple[str, ...] = ()
    # Why continuity with the state before could not be proven; None where it was.
    gap: str | None = None
    # The object as the server sent it.
    raw: JsonObject = field(default_factory=dict[str, Json], repr=False, compare=False)

    @property
    def is_queued(self) -> bool:
        return self.status in _QUEUED

    @property
    def is_executing(self) -> bool:
        return self.status in _EXECUTING

    @property
    def is_waiting(self) -> bool:
        return self.status == "WAITING"

    @property
    def is_completed(self) -> bool:
        """Whether it is over, in whatever way."""
        return self.status in _FINAL

    @property
    def is_success(self) -> bool:
        return self.status == "COMPLETED"

    @property
    def is_failed(self) -> bool:
        return self.status in _FAILED

    @property
    def is_cancelled(self) -> bool:
        return self.status == "CANCELED"

    @classmethod
    def of(cls, wire: JsonObject, gap: str | None = None) -> "Run":
        """Return a run out of the object on the wire."""
        values: dict[str, Any] = {
            name: _READ.get(name, _same)(wire[key])
            for name, key in WIRE_NAMES.items()
            if wire.get(key) is not None
        }
        return cls(**values, gap=gap, raw=wire)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))


# The fields of a run as users write them, and as the wire does.
WIRE_NAMES: Final[dict[str, str]] = {
    name: _camel(name) for name in Run.__dataclass_fields__ if name not in ("gap", "raw")
}


def _same(value: Json) -> Json:
    if isinstance(value, dict) and "$large" in value:
        large = cast(JsonObject, value)["$large"]
        return LargeValue(large["bytes"])
    return cast(Json, value)


def run_error(value: Json) -> RunError:
    """Return why a run failed out of the object on the wire."""
    return RunError(
        name=value.get("name", "Error"),
        message=value.get("message", ""),
        code=value.get("code"),
        stack_trace=value.get("stackTrace"),
    )


_READ: Final[dict[str, Any]] = {
    **dict.fromkeys(
        (
            "created_at",
            "updated_at",
            "queued_at",
            "started_at",
            "finished_at",
            "delayed_until",
            "expired_at",
            "cancel_requested_at",
        ),
        datetime.fromisoformat,
    ),
    "ttl": seconds,
    "tags": tuple,
    # Stays an object, so that reading a key of it gives None.
    "metadata": dict,
    "realtime_streams": tuple,
    "error": run_error,
}
