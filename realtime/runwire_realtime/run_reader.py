"""One run as one connection follows it: a position, and the next message from there. [core]

There is one for each run and connection, whatever number of subscriptions follow it: one view (the
union of the fields asked for), one mode (`every` beats `latest`), one revision last written. Where
streams are read, the run's final state waits until all of them have been written to their end.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runwire.wire import ErrorCode, GapReason, JsonObject
from runwire_engine.followed import FollowedRun
from runwire_realtime import messages
from runwire_realtime.beginnings import beginning
from runwire_realtime.run_history import RunHistory
from runwire_realtime.run_openings import RunOpenings
from runwire_realtime.run_streams import Entry, RunStreams
from runwire_realtime.run_topic import RunTopic, Step, size_of
from runwire_realtime.run_view import View, view_of
from runwire_realtime.stream_reader import StreamReader
from runwire_realtime.stream_topic import StreamTopic
from runwire_realtime.subscription import Stage, Subscription

if TYPE_CHECKING:
    from runwire_realtime.follower import Follower


class RunReader:
    """Writes one run; `streams` writes its streams."""

    # One for each connection, and many of them: no dict beside it.
    __slots__ = (
        "_created",
        "_expects_every",
        "_follower",
        "_has_widened",
        "_holds_slot",
        "_is_reading",
        "_joined",
        "_may_hold",
        "_needs_whole",
        "_openings",
        "_row",
        "_skipped_to",
        "history",
        "is_every",
        "is_queued",
        "streams",
        "subscriptions",
        "topic",
        "view",
        "written",
    )

    def __init__(self, topic: RunTopic, follower: "Follower") -> None:
        self.topic = topic
        self.is_queued = False
        # The revision last written to the socket; 0: none.
        self.written = 0
        self.subscriptions: dict[str, Subscription] = {}
        self.streams = RunStreams(topic, self, follower)
        self.view: View
        # Somebody wants each revision.
        self.is_every = False
        self._follower = follower
        self._openings = RunOpenings(self, follower)
        # Feeds to be told that they hold the run, once the client has it; then its streams follow.
        self._joined: dict[Subscription, Entry] = {}
        # The changes are not at hand, or larger than the run: it is sent whole.
        self._needs_whole = False
        # The client holds the run, but not all that it may see by now.
        self._has_widened = False
        # How the run was created, where each revision is wanted and nothing of it was told yet.
        self._created: JsonObject | None = None
        # The last revision before which some were skipped; 0: the client got each, or has it.
        self._skipped_to = 0
        # Up to this revision the client may hold more than was written here: a cursor lags.
        self._may_hold = 0
        # A feed that is still to be resumed will want each revision.
        self._expects_every = False
        self._row: FollowedRun | None = None
        self.history = RunHistory()
        self._is_reading = False
        self._holds_slot = False

    # Who follows

    def open(self, subscription: Subscription) -> None:
        """Follow the run for a subscription to it, once the row shows that it may."""
        self.subscriptions[subscription.sub] = subscription
        self._look()
        self._openings.add(subscription)
        self.moved()

    def join(
        self, subscription: Subscription, run: FollowedRun, entry: Entry, *, is_told: bool
    ) -> None:
        """Follow the run for a feed that it has entered; `is_told`: the client knows."""
        self.subscriptions[subscription.sub] = subscription
        self._look()
        if is_told:
            self.streams.add(subscription, entry)
        else:
            self._joined[subscription] = entry
        self.moved()
        if not is_told and self.written == 0 and self._row is None and self._take_slot():
            self.row_read(run)

    def leave(self, subscription: Subscription) -> None:
        """Follow it no more for this subscription; close with the last one."""
        self.subscriptions.pop(subscription.sub, None)
        self._joined.pop(subscription, None)
        self._openings.discard(subscription)
        self.streams.remove(subscription)
        if not self.subscriptions:
            self.close()
            return
        if not any(map(self._is_held_for, self.subscriptions.values())):
            # Nobody was told that the run is theirs: the client lets it go.
            self._needs_whole = self.written > 0
        self._look()
        self.moved()

    def _is_held_for(self, subscription: Subscription) -> bool:
        """Say whether the client holds the run for a subscription."""
        if subscription in self._openings:
            return subscription.cursor is not None and not subscription.holds_nothing
        entry = self._joined.get(subscription)
        return entry is None or entry.is_held

    def close(self) -> None:
        self.streams.close()
        self._follower.readers.pop(self.topic.run_id, None)
        self._follower.hub.leave_run(self)
        self._follower.unsettled.discard(self)
        self._is_reading = False
        self._drop_row()

    def _look(self) -> None:
        """Decide anew what of the run is shown, and how."""
        followers = list(self.subscriptions.values())
        shown = self.view if self.written else None
        self.view = view_of(
            self._follower.grant.visibility(),
            [each.fields for each in followers],
            is_feed=all(each.is_feed for each in followers),
        )
        wants_every = any(each.mode == "every" for each in followers)
        self._expects_every = self._expects_every and not wants_every
        self.is_every = wants_every or self._expects_every
        if shown is not None and not shown.covers(self.view):
            self._has_widened = True

    @property
    def _tells_each(self) -> bool:
        """Whether each revision is wanted, or will be by a feed that is about to say so."""
        return self.is_every or self._follower.awaits_every

    @property
    def is_written(self) -> bool:
        """Whether the client holds this run, so that patches apply."""
        return self.written > 0 and not self._needs_whole

    # What happens

    def moved(self) -> None:
        """Note that there may be news of the run."""
        for subscription in self.subscriptions.values():
            subscription.is_moved = True
        self._follower.is_restless = True
        self._follower.unsettled.add(self)
        self._follower.outbox.mark(self)

    def holds(self, revision: int) -> None:
        """Note that the client was given the run whole at a revision, by other means."""
        if revision >= self.written:
            self._needs_whole = self._has_widened = False
        if revision > self.written + 1:
            self._skipped_to = revision
        self.written = max(self.written, revision)

    def has_skipped(self, first: int) -> bool:
        """Say whether a client that has all before a revision lacks it or one after it."""
        return self._skipped_to > first

    def resumes(self, revision: int, now: int) -> None:
        """Note at which revision at least the client held the run, of those up to `now`."""
        self.written = max(self.written, revision)
        self._may_hold = max(self._may_hold, now)

    def begin_with(self, created: JsonObject | None) -> None:
        """Tell the run from its creation on, which set this, where nothing of it is told yet."""
        if self.written == 0:
            self._created = self._created or created

    def widen(self) -> None:
        """Send the run whole once it is told up to now: values were left out of what was told."""
        self._has_widened = True

    def expect_every(self) -> None:
        """Skip no revision: a feed that is still to be resumed wants each."""
        self._expects_every = True
        self._look()

    def refetch(self) -> None:
        """Send the whole run again."""
        self._needs_whole = True
        self.moved()

    def regranted(self) -> None:
        """Look again what may be read, and how: by the row as it is now."""
        self._look()
        for subscription in self.subscriptions.values():
            if not subscription.is_feed:
                self._openings.add(subscription)
        if self._openings and self._row is not None:
            self._drop_row()  # by it others were let in
        self.streams.regranted()
        self.moved()

    def tags_changed(self) -> None:
        """Look again what may be read: a tag may have been what allowed it."""
        if not self._follower.grant.api_key:
            self.regranted()

    def give_up(self, subscription: Subscription) -> None:
        """Refuse a subscription whose run did not appear in time."""
        self._openings.give_up(subscription)

    def stream_reader(self, topic: StreamTopic) -> StreamReader:
        """Return a reader of one of the run's streams, for this connection."""
        follower = self._follower
        return StreamReader(topic, self, follower.outbox, follower.wants, follower.limits)

    def stream_over(self) -> None:
        """Note that a stream was written to its end."""
        self._follower.outbox.mark(self)

    def row_read(self, run: FollowedRun | None) -> None:
        """Take the run as it stands in the database; None: it does not exist."""
        self._openings.admit(run)
        if run is None or not self.subscriptions:
            self._drop_row()
            return
        if self._follower.wants_every(run):
            # Also where a feed is about to join that saw it come.
            self.begin_with(self._follower.creation_of(run.row.id))
        self._row = run
        self._follower.outbox.mark(self)

    def vanished(self) -> None:
        """Let everybody go: the run was there, and has been deleted."""
        for subscription in list(self.subscriptions.values()):
            if subscription.is_feed:
                self._follower.run_vanished(subscription, self.topic.run_id)
            elif subscription not in self._openings:
                self._follower.refuse(subscription, ErrorCode.GONE, "the run is not kept any more")

    @property
    def _is_blocked(self) -> bool:
        """Whether the final state has to wait for streams."""
        return (
            self.topic.final_at is not None and self.streams.is_wanted and not self.streams.are_over
        )

    # Writing

    @property
    def has_more(self) -> bool:
        return True

    @property
    def is_underway(self) -> bool:
        return False

    def produce(self, budget: int) -> bytes | None:
        """Return the next message about the run, if there is one."""
        message = self._next() or self._done()
        if message is None and self._is_settled:
            self._follower.unsettled.discard(self)
        return message

    @property
    def _is_settled(self) -> bool:
        is_waiting = (
            self._openings
            or self._needs_whole
            or self._has_widened
            or self._joined
            or self._is_blocked
        )
        is_told = 0 < self.written >= self.topic.revision
        return not is_waiting and is_told and self.streams.are_placed

    def _next(self) -> bytes | None:
        if not self.subscriptions:
            return None
        if self._row is not None:
            message = self._from_row(self._row)
            if message is not None:
                return message
        if self._openings or self._needs_whole or self._has_widened or self.written == 0:
            if self._row is None and not self._is_blocked:
                self._want_row()
            return None
        if self._joined:
            return self._with_live(self._announced())
        # A feed's page may have brought a subscription up to where it resumes.
        return self._with_live([]) or self._change(self.topic.revision)

    def _announced(self, *, only_news: bool = False) -> list[bytes]:
        """Return what tells that feeds hold the run, which the client has got by now."""
        joined = {
            each: entry for each, entry in self._joined.items() if entry.is_news or not only_news
        }
        for subscription, entry in joined.items():
            del self._joined[subscription]
            self.streams.add(subscription, entry)
        return [messages.joined(each.sub, self.topic.run_id) for each in joined]

    def _change(self, target: int) -> bytes | None:
        """Return what happened to the run since the revision written, as a patch."""
        if self._is_blocked and self.topic.final_at is not None:
            target = min(target, self.topic.final_at - 1)
        if self.written >= target:
            return None
        steps = self._steps_to(target)
        if not steps:
            return None
        is_partial = any(step.is_partial for step in steps)
        if self._tells_each:
            if is_partial and not self._may_refer(steps[-1]):
                return None
        elif is_partial or not self._may_join(steps):
            self._want_whole()
            return None
        if len(steps) > 1:
            self._skipped_to = steps[-1].revision
        self.written = steps[-1].revision
        return self._with_live([self.topic.patch(steps, self.view)])

    def _may_join(self, steps: Sequence[Step]) -> bool:
        """Say whether changes may come as one patch: it is small, and applies to what is held."""
        if len(steps) > 1 and self.written < self._may_hold:
            return False
        return size_of(steps) <= self._follower.limits.patch_bytes

    def _may_refer(self, step: Step) -> bool:
        """Say whether a change is told with a value that stands by reference.

        Only where the row does not have it any more; the run comes whole as soon as it can.
        """
        self._has_widened = True
        if self._row is None and not self._is_blocked:
            self._want_row()
        return self._is_blocked or (
            self._row is not None and self._row.row.revision > step.revision
        )

    def _steps_to(self, target: int) -> Sequence[Step] | None:
        if not self._tells_each:
            self.history.clear()
            steps = self.topic.between(self.written, target)
            if steps is None:
                self._want_whole()
            return steps
        step = self.history.next(self.written)
        if step is not None:
            return [step]
        steps = self.topic.between(self.written, self.written + 1)
        if steps is None:
            self.read_history()
        return steps

    def _from_row(self, run: FollowedRun) -> bytes | None:
        """Say what takes the whole run to say."""
        revision = run.row.revision
        is_stale = revision < self.written
        if is_stale or self._is_blocked:
            self._drop_row()
            return None
        if self._openings.await_past(run):
            return None
        bases = self._openings.resume(run)
        if bases:
            return self._with_live(bases)
        if self.written == 0 and self._created is not None:
            begun = self._begun(run, self._created)
            if begun is not None:
                return begun
        if self._is_catching_up(revision):
            # First every change up to here, then what was to be said about it.
            news = [] if self._has_widened else self._announced(only_news=True)
            message = self._with_live(news) or self._change(revision)
            if message is not None or self._is_catching_up(revision):
                return message
        document = self.topic.document(run, self.view)
        parts = self._openings.begin(run, document)
        if self._needs_whole or self._has_widened or self.written == 0:
            parts.insert(0, messages.run(document))
            self.holds(revision)
        parts += self._announced()
        self._drop_row()
        return self._with_live(parts)

    def _begun(self, run: FollowedRun, created: JsonObject) -> bytes | None:
        """Say how the run was created; what it has become since comes as changes."""
        self._created = None
        first = beginning(run, created)
        if first is None:
            return None
        self.holds(first.row.revision)
        parts = [messages.run(self.topic.document(first, self.view)), *self._announced()]
        if not self._openings:
            self._drop_row()
        return self._with_live(parts)

    def _is_catching_up(self, revision: int) -> bool:
        """Say whether changes come before the row at a revision; the last one may come with it."""
        if not self._tells_each or self._needs_whole or self.written == 0:
            return False
        return self.written < revision - (1 if self._has_widened else 0)

    def _with_live(self, parts: list[bytes]) -> bytes | None:
        """Add the `live` of subscriptions that have caught up, and join it all."""
        for subscription in self.subscriptions.values():
            if subscription.live_at is not None and subscription.live_at <= self.written:
                subscription.live_at = None
                parts.append(messages.live(subscription.sub))
        return b",".join(parts) if parts else None

    def _done(self) -> bytes | None:
        """End what is over: the run is final, and so are its streams."""
        final_at = self.topic.final_at
        if final_at is None or self.written < final_at or self._is_blocked or self._openings:
            return None
        parts: list[bytes] = []
        for subscription in list(self.subscriptions.values()):
            if subscription.is_feed:
                self._follower.final_written(subscription, self.topic.run_id)
            elif subscription.live_at is None:
                parts.append(messages.done(subscription.sub))
                self._follower.close(subscription)
        return b",".join(parts) if parts else None

    # Reading

    def _want_whole(self) -> None:
        # What is final cannot be said yet; once it can, this is looked at again.
        if not self._is_blocked:
            self._needs_whole = True
            self._want_row()

    def _want_row(self) -> None:
        if self in self.topic.waiting or not self._take_slot():
            return
        self.topic.waiting.add(self)
        self._follower.wants.row(self.topic)

    def _drop_row(self) -> None:
        self._row = None
        self.topic.waiting.discard(self)
        if self._holds_slot and not self._is_reading:
            self._holds_slot = False
            self._follower.outbox.release()

    def _take_slot(self) -> bool:
        self._holds_slot = self._holds_slot or self._follower.outbox.acquire(self)
        return self._holds_slot

    def read_history(self) -> None:
        """Have changes read from the log, from where the history asks for them."""
        if not self._is_reading and self._take_slot():
            self._is_reading = True
            self.history.missed(self.written)
            self._follower.wants.history(self)

    @property
    def history_after(self) -> int:
        """The revision after which changes of the log are wanted."""
        return self.history.after(self.written)

    def history_read(self, after: int, steps: Sequence[Step]) -> None:
        """Take changes of the log that come after a revision."""
        self._is_reading = False
        if self.history.take(after, self.written, steps):
            self._lose_history()
        if self._row is None and self not in self.topic.waiting:
            self._drop_row()
        self._follower.outbox.mark(self)

    def history_failed(self) -> None:
        """Ask again: the log could not be read."""
        self._is_reading = False
        self._follower.outbox.mark(self)

    def _lose_history(self) -> None:
        """Start over from a snapshot: the log does not reach back so far."""
        self._needs_whole = True
        if not self.is_every:
            return
        for subscription in list(self.subscriptions.values()):
            if subscription.is_feed:
                self._follower.start_over(subscription, GapReason.RETENTION)
            elif subscription.stage is Stage.LIVE:
                self._follower.outbox.say(messages.gap(subscription.sub, GapReason.RETENTION))
                subscription.cursor = subscription.live_at = None
                subscription.stage = Stage.ALLOWED
                self._openings.add(subscription)
