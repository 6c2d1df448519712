"""Runs that are wanted, and the rows that they become. [core]"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

from runwire_engine.debouncing import Debounce

DEFAULT_IDEMPOTENCY_TTL: Final = 30 * 86_400.0


@dataclass(frozen=True, slots=True)
class Parent:
    """The run that triggers, and the execution of it that does; refused once it lost its run."""

    run_id: str
    execution: int


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run that is wanted. Bodies are JSON text; spans are seconds."""

    task: str
    payload: str | None = None
    payload_type: str = "application/json"
    # None: the task's own.
    queue: str | None = None
    # Becomes the limit that code says for the queue, for everybody.
    concurrency_limit: int | None = None
    concurrency_key: str = ""
    tags: tuple[str, ...] = ()
    metadata: str | None = None
    delay_until: datetime | None = None
    delay: float | None = None
    # Instead of a delay: one run for all triggers of a key that come while it waits.
    debounce: Debounce | None = None
    # Counted from when the run is due; None: the task's own.
    ttl: float | None = None
    max_attempts: int | None = None
    max_duration: float | None = None
    # Seconds by which the run goes ahead of others.
    priority: float = 0.0
    idempotency_key: str | None = None
    idempotency_ttl: float = DEFAULT_IDEMPOTENCY_TTL
    # Names the call, so that the call may be repeated.
    request_key: str | None = None
    # The id of a one-time token that pays for the run, and when it expires.
    one_time_jti: tuple[str, datetime] | None = None
    parent: Parent | None = None
    batch: tuple[str, int] | None = None
    is_test: bool = False
    # Its parent waits for it.
    awaited: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it asks for nothing beside its own row, but that its call is made once."""
        beside = (
            self.queue,
            self.concurrency_limit,
            self.debounce,
            self.idempotency_key,
            self.one_time_jti,
            self.parent,
            self.batch,
        )
        return all(each is None for each in beside)


@dataclass(frozen=True, slots=True)
class TriggerResult:
    """The run that a trigger led to; `is_cached`: a key led to the one of an earlier trigger."""

    id: str
    is_cached: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """A run that is wanted, and the id it gets unless a key leads to an earlier one."""

    id: str
    new: NewRun


TriggerAnswer: TypeAlias = TriggerResult | Exception


def columns(wanted: Sequence[Wanted]) -> dict[str, object]:
    """Return runs as `triggers.insert` takes them: what is None here is as the task has it."""
    new = [w.new for w in wanted]
    tags = [(at, tag) for at, n in enumerate(new, 1) for tag in dict.fromkeys(n.tags)]
    nothing = [None] * len(new)
    return {
        "now": None,
        "ids": [w.id for w in wanted],
        "tasks": [n.task for n in new],
        "queues": [n.queue for n in new],
        "payloads": [n.payload for n in new],
        "payload_types": [n.payload_type for n in new],
        "metadata": [n.metadata for n in new],
        "concurrency_keys": [n.concurrency_key for n in new],
        "delays_until": [n.delay_until for n in new],
        "delays": [number_or_none(n.delay) for n in new],
        "ttls": [number_or_none(n.ttl or None) for n in new],
        "max_attempts": [n.max_attempts for n in new],
        "max_durations": [number_or_none(n.max_duration or None) for n in new],
        "priorities": [float(n.priority) for n in new],
        "idempotency_keys": [n.idempotency_key for n in new],
        "request_keys": nothing,
        "parent_ids": [n.parent.run_id if n.parent else None for n in new],
        "root_ids": nothing,
        "depths": [0] * len(new),
        "batch_ids": [n.batch[0] if n.batch else None for n in new],
        "are_tests": [n.is_test for n in new],
        "awaited": [n.awaited for n in new],
        "tag_places": [at for at, _ in tags],
        "tags": [tag for _, tag in tags],
        "makes_groups": True,
    }


def plain_columns(wanted: Sequence[Wanted]) -> dict[str, object]:
    """Return plain runs as the one statement of their trigger takes them."""
    return {**columns(wanted), "request_keys": [w.new.request_key for w in wanted]}


def lone_columns(wanted: Wanted) -> dict[str, object]:
    """Return one plain run as the statement takes it that makes it and rings for it."""
    new = wanted.new
    return {
        "id": wanted.id,
        "task": new.task,
        "concurrency_key": new.concurrency_key,
        "payload": new.payload,
        "payload_type": new.payload_type,
        "metadata": new.metadata,
        "delay_until": new.delay_until,
        "delay": new.delay,
        "ttl": new.ttl or None,
        "max_attempts": new.max_attempts,
        "max_duration": new.max_duration or None,
        "priority": float(new.priority),
        "tags": list(dict.fromkeys(new.tags)),
        "is_test": new.is_test,
        "request_key": new.request_key,
    }


def number_or_none(value: float | None) -> float | None:
    """Return a float even of an int: an array for Postgres has members of one type."""
    return None if value is None else float(value)
