"""One subscription of one connection: what it follows, how, and how far it has come. [core]"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeAlias

from runwire._stream_keys import is_reserved
from runwire.wire import GapReason, Mode, StreamRequest, StreamStart
from runwire_realtime.cursors import FeedCursor, RunCursor


@dataclass(frozen=True, slots=True)
class RunTarget:
    run_id: str


@dataclass(frozen=True, slots=True)
class TagsTarget:
    """The runs that carry all these tags, created since a time or so many seconds ago."""

    tags: tuple[str, ...]
    since: datetime | float


@dataclass(frozen=True, slots=True)
class BatchTarget:
    batch_id: str


@dataclass(frozen=True, slots=True)
class RunsTarget:
    tasks: frozenset[str] | None
    statuses: frozenset[str] | None
    since: datetime | float | None


FeedTarget: TypeAlias = TagsTarget | BatchTarget | RunsTarget
Target: TypeAlias = RunTarget | FeedTarget


class Stage(StrEnum):
    """How far a subscription has come."""

    ASKED = "asked"  # registered; nothing has been read for it yet
    ALLOWED = "allowed"  # it may be served; its snapshot is not out yet
    LIVE = "live"
    CLOSED = "closed"


def is_relative(start: StreamStart) -> bool:
    """Say whether only the server knows where this is."""
    return start == "latest" or (isinstance(start, int) and start < 0)


@dataclass(eq=False, slots=True)
class Subscription:
    """What a client asked for under the name `sub`, and its state."""

    sub: str
    target: Target
    mode: Mode
    fields: frozenset[str] | None
    streams: Mapping[str, StreamRequest]
    cursor: RunCursor | FeedCursor | None = None
    # The cursor as the client gave it; "": it gave none.
    resumed_from: str = ""
    # Where the client stands, by run and stream: what is not named is news; None: it begins.
    positions: Mapping[str, Mapping[str, int]] | None = None
    # Its client holds no run: it is sent each as it was where the cursor is.
    holds_nothing: bool = False
    # Its positions are of another history: nothing is read on from them.
    broken: GapReason | None = None
    # Until when (monotonic) to wait for a run that does not exist; None: not at all.
    awaited_until: float | None = None
    stage: Stage = Stage.ASKED
    # `live` is due once this revision has been written.
    live_at: int | None = None
    # Something was sent since the last cursor.
    is_moved: bool = False
    cursor_at: float = 0.0
    cursor_sent: str = ""

    def request_for(self, key: str) -> StreamRequest | None:
        """Return how a stream was asked for, by name or by "*", which is no reserved one."""
        everything = None if is_reserved(key) else self.streams.get("*")
        return self.streams.get(key) or everything

    @property
    def goes_on_unplaced(self) -> bool:
        """Whether its client was told something, and has no cursor to say how much."""
        return self.positions is not None and self.cursor is None

    @property
    def begins_relative(self) -> bool:
        """Whether it reads streams from where only the server knows."""
        return any(is_relative(request.start) for request in self.streams.values())

    @property
    def begins_inside(self) -> bool:
        """Whether it reads a stream from anywhere but its beginning."""
        return any(request.start not in (0, "start") for request in self.streams.values())

    @property
    def is_feed(self) -> bool:
        return not isinstance(self.target, RunTarget)

    @property
    def is_closed(self) -> bool:
        return self.stage is Stage.CLOSED
