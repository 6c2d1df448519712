"""Which runs a feed (tags, batch, runs) holds on one connection, and when they come and go. [core]

An event tells that a run may have entered or left; its row decides. While the feed's snapshot is
read, events are only noted, and looked at when it is complete: registered first, read then, so
that no run falls between. Final runs that are written are forgotten beyond a number; one that
changes once more simply joins again.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import orjson

from runwire.wire import GapReason, JsonObject
from runwire_engine.followed import FollowedRun, Touched
from runwire_realtime import messages
from runwire_realtime.beginnings import beginning
from runwire_realtime.cursors import FeedCursor
from runwire_realtime.feed_filter import FeedFilter
from runwire_realtime.run_past import RunPast
from runwire_realtime.run_reader import RunReader
from runwire_realtime.run_streams import Entry
from runwire_realtime.run_topic import RunTopic
from runwire_realtime.run_view import is_final
from runwire_realtime.subscription import (
    BatchTarget,
    FeedTarget,
    RunsTarget,
    RunTarget,
    Stage,
    Subscription,
)

if TYPE_CHECKING:
    from runwire_realtime.follower import Follower
    from runwire_realtime.hub import RunEvent

# What a page holds beside its runs: a name, a cursor of 64 transactions in progress.
_AROUND_PAGE = 4 * 1024


class FeedMembers:
    """One feed subscription: what it holds, and what it waits for."""

    def __init__(self, follower: "Follower", subscription: Subscription) -> None:
        self.follower = follower
        self.subscription = subscription
        self.members: set[str] = set()
        # The snapshot (or what is missing since the cursor) is being read.
        self.is_loading = True
        # Resumed: the client may hold runs that are not known here.
        self.is_resumed = False
        # +1 with each start over, so that a snapshot being read for nothing is noticed.
        self.version = 0
        self.filter = FeedFilter(self.target)
        # Of a batch: all its items are there; those it had when it was read; its runs that are not
        # over yet, and those that are.
        self.is_sealed = False
        self.first_items: frozenset[str] = frozenset()
        self.open_runs: set[str] = set()
        self._over: set[str] = set()
        # Runs whose rows decide whether they join.
        self._candidates: set[str] = set()
        # Runs that changed while loading, and how far.
        self._touched: dict[str, int] = {}
        # Runs that are not members yet and were created since the feed began, and how.
        self._created: dict[str, JsonObject] = {}
        # Runs that join once the feeds have been resumed that want each revision of them.
        self._postponed: set[str] = set()
        # The snapshot holds runs whose streams have to be read before there is a cursor.
        self._has_unread = False
        # Runs that the snapshot left out and that join afterwards; members, maybe, from before it.
        self._skipped: set[str] = set()
        # Runs that the client may hold and that join after the resume; of which revision on it has
        # to be told of them.
        self._owed: dict[str, int] = {}
        # How far the streams of runs were read that have left, the first that did first.
        self._left: dict[str, Mapping[str, int]] = {}
        # Too many have left: one that comes back cannot be told from one that enters.
        self._has_forgotten = False
        # Final members, oldest first.
        self._finals: dict[str, None] = {}
        # Whether such runs were let go, which the client goes on holding.
        self._has_let_go = False

    @property
    def target(self) -> FeedTarget:
        target = self.subscription.target
        assert not isinstance(target, RunTarget)
        return target

    @property
    def sub(self) -> str:
        return self.subscription.sub

    @property
    def is_closed(self) -> bool:
        return self.subscription.is_closed

    @property
    def wants_every(self) -> bool:
        return self.subscription.mode == "every"

    @property
    def has_statuses(self) -> bool:
        """Whether runs leave it by what becomes of them."""
        return isinstance(self.target, RunsTarget) and self.target.statuses is not None

    @property
    def is_resuming_every(self) -> bool:
        """Whether it is about to tell each revision since its cursor."""
        return self.wants_every and self.is_loading and self.subscription.cursor is not None

    @property
    def awaits_every(self) -> bool:
        """Whether it is about to join runs of which it wants each revision."""
        is_joining = bool(self._candidates) or bool(self._postponed)
        return self.is_resuming_every or (self.wants_every and is_joining)

    @property
    def is_unsettled(self) -> bool:
        """Whether it may lack a run that has entered."""
        return self.is_loading or bool(self._candidates) or bool(self._postponed)

    def close(self) -> None:
        for run_id in self.members:
            reader = self.follower.readers.get(run_id)
            if reader is not None:
                reader.leave(self.subscription)
        for run_id in self._candidates:
            self.follower.hub.drop_candidate(self, run_id)
        self.members.clear()
        self._candidates.clear()
        self._created.clear()
        self._postponed.clear()
        self._owed.clear()

    def creation_of(self, run_id: str) -> JsonObject | None:
        """Return what the creation of a run set that is about to join, where it was seen."""
        return self._created.get(run_id)

    # Events

    def event(self, event: "RunEvent") -> None:
        """Take an event of a run that the feed's target may include."""
        if self.is_loading:
            if not self.filter.may_be_entered_by(event) and not self.filter.is_left_by(event):
                return
            before = self._touched.get(event.run_id, 0)
            self._touched[event.run_id] = max(before, event.step.revision)
            self._note_creation(event)
        elif event.run_id in self.members:
            if self.filter.is_left_by(event):
                self._remove(event.run_id)
        elif self.filter.may_be_entered_by(event) or self._may_be_passed_by(event):
            self._note_creation(event)
            self._consider(event.run_id)
        elif (self.is_resumed or self._has_let_go) and self.filter.is_left_by(event):
            # The client may hold it from before.
            self._say_removed(event.run_id)

    def _may_be_passed_by(self, event: "RunEvent") -> bool:
        """Say whether a run leaves whose row is on its way: that one may be from before."""
        return event.run_id in self._candidates and self.filter.is_left_by(event)

    def _note_creation(self, event: "RunEvent") -> None:
        if event.step.revision == 1:
            self._created[event.run_id] = event.step.changes

    def _consider(self, run_id: str) -> None:
        self._candidates.add(run_id)
        self.follower.hub.consider(self, run_id)

    def row_read(self, run: FollowedRun | None, run_id: str) -> None:
        """Decide by its row whether a run joins."""
        self._candidates.discard(run_id)
        if self.is_closed or run is None:
            self._created.pop(run_id, None)
            self.look_done()
            return
        is_member, is_included = run_id in self.members, self.includes(run)
        is_told = is_member and run_id not in self._skipped
        if is_included and not is_told:
            if self.follower.is_resuming_every(run, self):
                self._postponed.add(run_id)
                return
            self._join(run, is_told=False)
        elif is_member and not is_included:
            self._remove(run_id)
        elif (self.is_resumed or self._has_let_go) and not is_included:
            self._say_removed(run_id)
        self._created.pop(run_id, None)
        self._owed.pop(run_id, None)
        self._skipped.discard(run_id)
        self.look_done()

    def recall(self) -> None:
        """Consider runs again that had to wait for another feed."""
        postponed, self._postponed = self._postponed, set()
        for run_id in postponed:
            self._consider(run_id)

    def _beginning(self, run: FollowedRun, created: JsonObject | None) -> FollowedRun:
        """Return a run as it began, for who wants each revision and saw it come."""
        if created is None or not self.follower.wants_every(run):
            return run
        return beginning(run, created) or run

    def includes(self, run: FollowedRun) -> bool:
        """Say whether a run as it is now belongs to the feed."""
        return self.filter.includes(run)

    def _join(self, run: FollowedRun, *, is_told: bool, is_news: bool = False) -> None:
        follower = self.follower
        run_id = run.row.id
        is_news = is_news or run_id in self._created
        if (
            run_id not in follower.readers
            and len(follower.readers) >= follower.limits.followed_runs
        ):
            self.start_over(GapReason.OVERFLOW)
            return
        first = self._owed.get(run_id)
        if first is not None and self._has_lost(run_id, first):
            self.start_over(GapReason.OVERFLOW)
            return
        entry = self._entry(run_id, is_news=is_news)
        reader = follower.reader(run_id)
        follower.hub.learn(reader.topic, run)
        if not is_told and follower.wants_every(run):
            reader.begin_with(follower.creation_of(run_id))
        self.members.add(run_id)
        if isinstance(self.target, BatchTarget):
            self.open_runs.add(run_id)
        reader.join(self.subscription, run, entry, is_told=is_told)

    def _has_lost(self, run_id: str, first: int) -> bool:
        """Say whether others here were told a run without revisions that this has to tell."""
        reader = self.follower.readers.get(run_id)
        return self.wants_every and reader is not None and reader.has_skipped(first)

    def _owes(self, run_id: str, first: int) -> bool:
        """Say whether the client, which comes from elsewhere, has to be told of a run from here."""
        return (
            first > 0 and self.subscription.stage is not Stage.LIVE and (run_id not in self.members)
        )

    def _entry(self, run_id: str, *, is_news: bool) -> Entry:
        """Return how the client comes to read the streams of a run that joins."""
        if run_id in self._left:
            return Entry(is_news, self._left.pop(run_id), has_left=True)
        if self._has_forgotten and not is_news:
            return Entry(places={}, has_left=True)
        positions = self.subscription.positions
        is_held = self._owed.pop(run_id, None) is not None
        if positions is None or (self.subscription.stage is Stage.LIVE and not is_held):
            return Entry(is_news, is_held=is_held)
        return Entry(is_news, positions.get(run_id, {}), is_held=is_held)

    def _remove(self, run_id: str) -> None:
        self.members.discard(run_id)
        self._finals.pop(run_id, None)
        reader = self.follower.readers.get(run_id)
        if reader is not None:
            self._note_left(reader)
            reader.leave(self.subscription)
        self._say_removed(run_id)

    def _note_left(self, reader: RunReader) -> None:
        """Keep how far a run's streams were read, in case it comes back."""
        places = reader.streams.places(self.sub)
        is_gone = isinstance(self.target, RunsTarget) and reader.topic.final_at is not None
        if places is None or is_gone or not self.subscription.begins_relative:
            return
        self._left[reader.topic.run_id] = places
        if len(self._left) > self.follower.limits.left_kept:
            del self._left[next(iter(self._left))]
            self._has_forgotten = True

    def run_vanished(self, run_id: str) -> None:
        """Let a run go that was deleted."""
        if run_id in self.members:
            self.open_runs.discard(run_id)
            self._remove(run_id)
            self._left.pop(run_id, None)
            self.look_done()

    def _say_removed(self, run_id: str) -> None:
        self.subscription.is_moved = True
        self.follower.is_restless = True
        self.follower.outbox.say(messages.removed(self.sub, run_id))

    def final_written(self, run_id: str) -> None:
        """Note that a run was written to its end."""
        if run_id not in self.members:
            return
        self.open_runs.discard(run_id)
        if isinstance(self.target, BatchTarget):
            self._over.add(run_id)
        self._finals[run_id] = None
        if len(self._finals) > self.follower.limits.finals_kept:
            self._forget_one()
        self.look_done()

    def _forget_one(self) -> None:
        """Forget the oldest final run of which everything was written."""
        for run_id in self._finals:
            reader = self.follower.readers.get(run_id)
            if reader is None or reader not in self.follower.unsettled:
                del self._finals[run_id]
                self._has_let_go = True
                self.members.discard(run_id)
                if reader is not None:
                    reader.leave(self.subscription)
                return

    # The snapshot

    def start_over(self, reason: GapReason) -> None:
        """Forget everything and read a fresh snapshot, which is announced."""
        self.follower.outbox.say(messages.gap(self.sub, reason))
        self.subscription.cursor = None
        self.close()
        for known in (self._finals, self.open_runs, self._over, self._touched, self._skipped):
            known.clear()
        self._left.clear()
        self.version += 1
        self.is_loading, self.is_resumed, self.is_sealed = True, False, False
        self.subscription.stage = Stage.ALLOWED
        self.follower.load(self)

    def missed_events(self) -> None:
        """Read what the events would have told of runs that came or went."""
        hub = self.follower.hub
        if not self.is_loading:
            self.subscription.cursor = FeedCursor(hub.history, hub.position)
        self.version += 1
        self.is_loading = True
        self.follower.load(self)

    def keep(self, run_ids: Collection[str]) -> None:
        """Let go of the runs that a snapshot does not hold, where events were missed."""
        self._has_unread = False
        for run_id in self.members.difference(run_ids):
            self.open_runs.discard(run_id)
            self._remove(run_id)

    def page(self, runs: Sequence[FollowedRun], *, cursor: str | None, more: bool) -> None:
        """Write a page of the snapshot."""
        documents: list[bytes] = []
        size = 0
        for run in runs:
            if not self.includes(run):
                continue  # it has left since it was listed
            if self._would_skip(run) or self.follower.is_resuming_every(run, self):
                self._skipped.add(run.row.id)
                self._touched.setdefault(run.row.id, 0)
                continue
            self._join(run, is_told=True)
            reader = self.follower.readers.get(run.row.id)
            if reader is None or not self.is_loading:
                return
            document = reader.topic.document(run, reader.view)
            room = self.follower.limits.frame_bytes - _AROUND_PAGE
            if size + len(document) > room and documents:
                self._say_page(documents, None, more=True)
                documents, size = [], 0
            self._has_unread = self._has_unread or self._is_read_once(run)
            documents.append(document)
            size += len(document) + 1
            reader.holds(run.row.revision)
            self._catch_up(reader.topic)
        # A position from which nothing is missing: not while some are still to join, or have
        # streams that a resume would not read. Then a cursor follows when all is written.
        is_behind = bool(self._skipped) or self._has_unread
        self._say_page(documents, None if is_behind else cursor, more=more)

    def _is_read_once(self, run: FollowedRun) -> bool:
        """Say whether a client that is lost before it has a run's streams would not get them.

        A resume reads those of open runs and of runs that have changed, from where the client is,
        and from seq 0 where it is nowhere.
        """
        wanted = self.subscription
        return bool(wanted.streams) and (is_final(run.row.status) or wanted.begins_inside)

    def _would_skip(self, run: FollowedRun) -> bool:
        """Say whether telling this state would skip what somebody else here wants of the run.

        Each revision of it, or a value that is too large for feeds. Such a run joins afterwards, as
        one that has changed.
        """
        reader = self.follower.readers.get(run.row.id)
        if reader is None:
            return self.follower.is_about_to_begin(run, self)
        if reader.is_every and reader.written != run.row.revision:
            return True
        is_late = reader.written == 0 and self.follower.is_about_to_begin(run, self)
        return is_late or not reader.view.is_served_by(run)

    def _say_page(self, documents: Sequence[bytes], cursor: str | None, *, more: bool) -> None:
        self.follower.outbox.say(messages.snapshot(self.sub, documents, cursor=cursor, more=more))

    def _catch_up(self, topic: RunTopic) -> None:
        """Note what happened between the reading of a row and now, when it is followed."""
        self.follower.hub.moved_to(topic, self._touched.get(topic.run_id, 0))

    def needs_past(self, run: FollowedRun, revision: int) -> bool:
        """Say whether a client that holds nothing has to be told what it held of a run."""
        reader = self.follower.readers.get(run.row.id)
        is_told = run.row.id in self.members or (reader is not None and reader.is_written)
        is_wanted = self.subscription.holds_nothing and not is_told and self.includes(run)
        return is_wanted and 0 < revision < run.row.revision and self.follower.wants_every(run)

    def resumed(
        self,
        runs: Sequence[FollowedRun],
        touched: Mapping[str, Touched],
        pasts: Mapping[str, RunPast],
    ) -> None:
        """Write runs that changed since the cursor; `touched` says from where on.

        `pasts`: what they were there, of those that need it.
        """
        for run in runs:
            run_id = run.row.id
            news = touched[run_id]
            first = 0 if news.has_entered else news.first
            if self._owes(run_id, first) and self._has_lost(run_id, first):
                self.start_over(GapReason.OVERFLOW)
                return
            if self._would_skip(run):
                self._postpone(run_id, first, _creation(news))
            elif self.includes(run):
                self._resume(run, news, pasts.get(run_id))
            else:
                self._remove(run_id)

    def _postpone(self, run_id: str, first: int, creation: JsonObject | None = None) -> None:
        """Have a run join after the resume, told from a revision on."""
        self._touched.setdefault(run_id, 0)
        if self._owes(run_id, first):
            self._owed[run_id] = first
        if creation is not None and run_id not in self.members:
            self._created.setdefault(run_id, creation)

    def _resume(self, run: FollowedRun, touched: Touched, past: RunPast | None) -> None:
        was_member = run.row.id in self.members
        self._join(run, is_told=True, is_news=touched.first == 1 and not was_member)
        reader = self.follower.readers.get(run.row.id)
        if reader is None or not self.is_loading:
            return
        if not reader.is_written:
            # Also where another feed wants it that is still to be resumed.
            if self.follower.wants_every(run):
                reader.expect_every()
            if reader.is_every and touched.first > 1:
                reader.resumes(touched.first - 1, run.row.revision)
                if past is not None:
                    self._say_past(run, reader, past)
            else:
                reader.resumes(touched.first - 1, run.row.revision)
                whole = self._beginning(run, _creation(touched))
                document = reader.topic.document(whole, reader.view)
                self.follower.outbox.say(messages.run(document))
                reader.holds(whole.row.revision)
        if not was_member:
            self.follower.outbox.say(messages.joined(self.sub, run.row.id))
        self._catch_up(reader.topic)
        reader.moved()

    def _say_past(self, run: FollowedRun, reader: RunReader, past: RunPast) -> None:
        document = past.document(run, reader.view)
        self.follower.outbox.say(messages.base(self.sub, document))
        if past.has_references:
            reader.widen()

    def held(
        self,
        runs: Sequence[FollowedRun],
        revisions: Mapping[str, int],
        pasts: Mapping[str, RunPast],
    ) -> None:
        """Follow runs that the client holds, at these revisions, or held: then `pasts` helps."""
        for run in runs:
            # A candidate was never told: its row is about to say whether it must be.
            is_open = run.row.id in self._candidates
            if run.row.id in self.members or is_open or not self.includes(run):
                continue
            first = revisions[run.row.id] + 1
            if self._owes(run.row.id, first) and self._has_lost(run.row.id, first):
                self.start_over(GapReason.OVERFLOW)
                return
            if self._would_skip(run):
                self._postpone(run.row.id, first)
                continue
            self._join(run, is_told=True)
            reader = self.follower.readers.get(run.row.id)
            if reader is None or not self.is_loading:
                return
            if self.subscription.holds_nothing:
                self._remind(run, reader, first - 1, pasts.get(run.row.id))
            elif self._may_be_unknown(run) and run.row.revision == first - 1:
                self._introduce(run, reader)
            reader.resumes(first - 1, run.row.revision)
            self.follower.hub.moved_to(reader.topic, run.row.revision)
            self._catch_up(reader.topic)

    def _may_be_unknown(self, run: FollowedRun) -> bool:
        """Say whether the run may have come without an event: as an item for an older run."""
        return isinstance(self.target, BatchTarget) and run.row.batch_id != self.target.batch_id

    def _introduce(self, run: FollowedRun, reader: RunReader) -> None:
        if not reader.is_written:
            document = reader.topic.document(run, reader.view)
            self.follower.outbox.say(messages.run(document))
        self.follower.outbox.say(messages.joined(self.sub, run.row.id))

    def _remind(
        self, run: FollowedRun, reader: RunReader, revision: int, past: RunPast | None
    ) -> None:
        """Tell a client that holds nothing of a run that it held at a revision."""
        say = self.follower.outbox.say
        if past is not None:
            self._say_past(run, reader, past)
        elif reader.is_written or run.row.revision != revision:
            if not reader.is_written:
                say(messages.run(reader.topic.document(run, reader.view)))
                reader.resumes(revision, run.row.revision)
                reader.holds(run.row.revision)
            say(messages.joined(self.sub, run.row.id))
        else:
            say(messages.base(self.sub, reader.topic.document(run, reader.view)))

    def complete(self) -> None:
        """Go live: everything is queued, and what happened meanwhile is looked at."""
        self.is_loading = False
        self.subscription.stage = Stage.LIVE
        self.subscription.is_moved = True
        self.follower.is_restless = True
        self.follower.outbox.say(messages.live(self.sub))
        self.follower.feed_settled()
        touched, self._touched = self._touched, {}
        for run_id in touched:
            # A member may have left meanwhile, anybody else may have entered.
            self._consider(run_id)
        self.follower.recall()
        self.look_done()

    # Batches

    def new_items(self, run_ids: Sequence[str]) -> list[str]:
        """Return those items that came after the feed had begun, and of which it knows nothing."""
        known = (self.members, self._over, self.first_items, self._created)
        return [run_id for run_id in run_ids if not any(run_id in each for each in known)]

    def found(
        self, run_ids: Sequence[str], created: Mapping[str, Touched], *, is_sealed: bool
    ) -> None:
        """Take the items that a batch has now, and how those were created that are new."""
        for run_id in self.new_items(run_ids):
            # The tail has yet to tell of it: it begins with its creation all the same.
            creation = _creation(created[run_id]) if run_id in created else None
            if creation is not None:
                self._created[run_id] = creation
        for run_id in run_ids:
            if run_id not in self.members and run_id not in self._over:
                self._consider(run_id)
        self.is_sealed = is_sealed
        self.look_done()

    def look_done(self) -> None:
        """End a batch that is complete, with all its runs over and written."""
        is_over = self.is_sealed and not self.is_unsettled and not self.open_runs
        if isinstance(self.target, BatchTarget) and is_over and not self.is_closed:
            self.follower.outbox.say(messages.done(self.sub))
            self.follower.close(self.subscription)


def _creation(touched: Touched) -> JsonObject | None:
    """Return what a run's creation set, where that is known."""
    return orjson.loads(touched.created)["set"] if touched.created else None
