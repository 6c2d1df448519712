"""What is read for those who follow runs and streams. [core]"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import NamedTuple

from runwire_engine.placement import AttemptMark
from runwire_engine.run_row import RunRow


@dataclass(frozen=True, slots=True)
class FollowedRun:
    """A run as it was read for subscribers.

    `sizes` tells of bodies too large to be read ("payload", "output", "metadata"); `batches` are
    all that the run stands in.
    """

    row: RunRow
    sizes: Mapping[str, int]
    batches: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """A run of a feed, and where it stood when that was read."""

    run_id: str
    is_final: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Touched:
    """Which part of a run's history is news.

    `first` is its first revision that is, `tagged` the first of those that changed its tags;
    `created` is the delta of revision 1, when that is news. `has_entered`: it was not in the feed
    before, so that all of it is told as news.
    """

    first: int
    created: str | None = None
    tagged: int | None = None
    has_entered: bool = False


@dataclass(frozen=True, slots=True)
class Before:
    """What decided, before a revision, which feeds held a run; `batch_id`: it was created in it."""

    tags: tuple[str, ...]
    status: str
    batch_id: str | None


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One revision of a run, from its history."""

    revision: int
    delta: str
    created_at: datetime


class Chunk(NamedTuple):
    """One chunk of a stream, as it is sent: a `ChunkRow` whose body is bytes."""

    seq: int
    execution: int | None
    attempt: int | None
    writer: str | None
    body: bytes


@dataclass(frozen=True, slots=True)
class StreamHead:
    """Where a stream stands."""

    environment_id: int
    id: int
    run_id: str
    key: str
    bucket: date
    next_seq: int
    attempts: tuple[AttemptMark, ...]
    ended_execution: int | None
    eof_reason: str | None
