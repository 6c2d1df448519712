"""A run as it is stored, read back whole. [core]"""

from collections.abc import Callable, Mapping
from datetime import date, datetime
from operator import itemgetter
from typing import Any, Final, NamedTuple, cast


# A worker makes one for each run: a frozen dataclass with fifty fields takes ten times as long.
class RunRow(NamedTuple):
    """Every column of runwire.runs, and the run's metadata; bodies are JSON text."""

    environment_id: int
    id: str
    bucket: date
    task: str
    status: str
    revision: int
    execution: int
    attempt: int
    max_attempts: int | None
    queue: str
    concurrency_key: str
    limited: bool
    sort_at: datetime
    priority: float
    worker_id: str | None
    version: str | None
    payload: str | None
    payload_type: str
    output: str | None
    output_type: str | None
    error: str | None
    tags: tuple[str, ...]
    stream_keys: tuple[str, ...]
    parent_id: str | None
    root_id: str | None
    depth: int
    batch_id: str | None
    idempotency_key: str | None
    is_test: bool
    max_duration: float | None
    ttl: float | None
    expires_at: datetime | None
    delayed_until: datetime | None
    cancel_requested_at: datetime | None
    created_at: datetime
    updated_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    claimed_at: datetime | None
    duration_ms: int
    finished_at: datetime | None
    expired_at: datetime | None
    metadata: str | None = None
    # Whose journal counts, and (0 or not) whether there is one.
    generation: int = 0
    waited: int = 0
    # The execution since which what it writes is one piece.
    lineage: int = 0
    # The active time of this attempt before its last claim.
    active_ms: int = 0
    # Of a run that came of a tick: its schedule, and the tick's time by the cron.
    schedule_id: str | None = None
    scheduled_at: datetime | None = None


_COLUMNS: Final = RunRow._fields
_DEFAULTS: Final = RunRow._field_defaults
_TAGS: Final = _COLUMNS.index("tags")
_STREAM_KEYS: Final = _COLUMNS.index("stream_keys")
_whole: Final = cast("Callable[[Mapping[str, Any]], tuple[Any, ...]]", itemgetter(*_COLUMNS))


def run_row(row: Mapping[str, Any]) -> RunRow:
    """Return a run from a row with its columns and `metadata`, and maybe newer ones.

    Lists leave out what has a default here.
    """
    try:
        values: list[Any] = list(_whole(row))
    except KeyError:
        values = [row[name] if name in row else _DEFAULTS[name] for name in _COLUMNS]
    values[_TAGS] = tuple(values[_TAGS])
    values[_STREAM_KEYS] = tuple(values[_STREAM_KEYS])
    return RunRow._make(values)
