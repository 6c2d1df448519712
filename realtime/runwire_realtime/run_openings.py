"""Subscriptions to one run that wait to be told how it stands, on one connection. [core]

Each waits for the run's row, by which it is allowed or refused. Then it begins with a snapshot, or
goes on from its cursor where the client has, or is told first, what the run was there.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from runwire.wire import ErrorCode, GapReason
from runwire_engine.followed import FollowedRun
from runwire_realtime import messages
from runwire_realtime.cursors import RunCursor, run_cursor
from runwire_realtime.run_streams import Entry
from runwire_realtime.subscription import Stage, Subscription

if TYPE_CHECKING:
    from runwire_realtime.follower import Follower
    from runwire_realtime.run_reader import RunReader


class RunOpenings:
    """Those that have not been told how the run stands, or may have lost it."""

    # One for each connection, and many of them: no dict beside it.
    __slots__ = (
        "_follower",
        "_reader",
        "_waiting",
    )

    def __init__(self, reader: "RunReader", follower: "Follower") -> None:
        self._reader = reader
        self._follower = follower
        self._waiting: list[Subscription] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, subscription: Subscription) -> bool:
        return subscription in self._waiting

    def add(self, subscription: Subscription) -> None:
        if subscription not in self._waiting:
            self._waiting.append(subscription)

    def discard(self, subscription: Subscription) -> None:
        if subscription in self._waiting:
            self._waiting.remove(subscription)

    # By the row

    def admit(self, run: FollowedRun | None) -> None:
        """Decide who may follow the run, by its row as it is now; None: it does not exist."""
        for subscription in list(self._waiting):
            if run is None and subscription.awaited_until is not None:
                continue
            if run is None or not self._follower.may_read(run):
                self._refuse(subscription)
            elif subscription.stage is Stage.ASKED:
                self._allow(subscription, run)

    def _allow(self, subscription: Subscription, run: FollowedRun) -> None:
        subscription.stage = Stage.ALLOWED
        subscription.awaited_until = None
        if isinstance(subscription.cursor, RunCursor):
            subscription.broken = self._gap_of(subscription.cursor, run)
        positions = subscription.positions
        places = None if positions is None else positions.get(run.row.id, {})
        self._reader.streams.add(subscription, Entry(places=places))

    def give_up(self, subscription: Subscription) -> None:
        """Refuse a subscription whose run did not appear in time."""
        if subscription in self._waiting and subscription.stage is Stage.ASKED:
            self._refuse(subscription)

    def _refuse(self, subscription: Subscription) -> None:
        code, text = ErrorCode.NOT_FOUND, "there is no such run, or the token may not read it"
        if self._follower.hub.is_past(self._reader.topic.run_id):
            code, text = ErrorCode.GONE, "runs of so long ago are not kept any more"
        self._follower.refuse(subscription, code, text)

    # Going on from a cursor

    def await_past(self, run: FollowedRun) -> bool:
        """Say whether somebody has to be told first what the run was, and that is being read."""
        reader, history = self._reader, self._reader.history
        if reader.written > 0 or history.past_gap is not None:
            return False
        for subscription, cursor in self._resuming():
            has_changed = 0 < cursor.revision < run.row.revision
            is_needed = subscription.holds_nothing and has_changed
            if is_needed and not self._gap_of(cursor, run) and self._follower.wants_every(run):
                past = history.past(cursor.revision, self._follower.limits.past_bytes)
                if not past.is_whole:
                    reader.read_history()
                return not past.is_whole
        return False

    def resume(self, run: FollowedRun) -> list[bytes]:
        """Go on with those whose clients hold the run as of a cursor.

        Return the run as it was there, for one that holds nothing any more.
        """
        reader, revision = self._reader, run.row.revision
        bases: list[bytes] = []
        for subscription, cursor in self._resuming():
            if self._lost_to(subscription, cursor, run) is not None:
                continue
            is_exact = cursor.revision == revision or self._follower.wants_every(run)
            if reader.written == 0 and is_exact:
                if subscription.holds_nothing and cursor.revision:
                    bases.append(messages.base(subscription.sub, self._base(run)))
                reader.resumes(cursor.revision, revision)
                if cursor.revision < revision:
                    reader.expect_every()
            subscription.live_at = max(revision, reader.written)
            subscription.stage = Stage.LIVE
            self._waiting.remove(subscription)
        reader.history.take_past()
        return bases

    def _resuming(self) -> Iterator[tuple[Subscription, RunCursor]]:
        for subscription in list(self._waiting):
            cursor = subscription.cursor
            if subscription.stage is Stage.ALLOWED and isinstance(cursor, RunCursor):
                yield subscription, cursor

    def _base(self, run: FollowedRun) -> bytes:
        """Return the run as it was where a cursor is."""
        reader = self._reader
        past = reader.history.take_past()
        if past is None:
            return reader.topic.document(run, reader.view)
        if past.has_references:
            reader.widen()
        return past.document(run, reader.view)

    def _lost_to(
        self, subscription: Subscription, cursor: RunCursor, run: FollowedRun
    ) -> GapReason | None:
        """Return why a subscription cannot go on from its cursor, if so."""
        reason, reader = self._gap_of(cursor, run), self._reader
        if reason is not None or subscription.mode != "every":
            return reason
        if reader.written == 0 and subscription.holds_nothing:
            return reader.history.past_gap
        # Others here were told the run without what this one lacks.
        return GapReason.OVERFLOW if reader.has_skipped(cursor.revision + 1) else None

    def _gap_of(self, cursor: RunCursor, run: FollowedRun) -> GapReason | None:
        if cursor.epoch != self._follower.hub.epoch:
            return GapReason.EPOCH_CHANGED
        return GapReason.AHEAD if cursor.revision > run.row.revision else None

    # Beginning

    def begin(self, run: FollowedRun, document: bytes) -> list[bytes]:
        """Begin with all that are allowed, each with a snapshot of the run."""
        parts: list[bytes] = []
        for subscription in list(self._waiting):
            if subscription.stage is Stage.ASKED:
                continue
            self._waiting.remove(subscription)
            if subscription.stage is Stage.ALLOWED:
                parts += self._begin(subscription, run, document)
        return parts

    def _begin(self, subscription: Subscription, run: FollowedRun, document: bytes) -> list[bytes]:
        parts: list[bytes] = []
        if isinstance(subscription.cursor, RunCursor):
            reason = self._lost_to(subscription, subscription.cursor, run)
            if reason is not None:
                parts.append(messages.gap(subscription.sub, reason))
        at = run_cursor(self._follower.hub.epoch, run.row.revision)
        parts.append(messages.snapshot(subscription.sub, [document], cursor=at, more=False))
        parts.append(messages.live(subscription.sub))
        subscription.stage = Stage.LIVE
        self._reader.holds(run.row.revision)
        return parts
