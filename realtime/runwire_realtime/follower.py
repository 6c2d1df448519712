"""What one connection follows: its subscriptions, and one reader for each run of them. [core]"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from runwire.wire import ErrorCode, GapReason, JsonObject
from runwire_engine.followed import FollowedRun
from runwire_realtime import messages
from runwire_realtime.cursors import feed_cursor, run_cursor
from runwire_realtime.feed_members import FeedMembers
from runwire_realtime.limits import HubLimits
from runwire_realtime.outbox import Outbox
from runwire_realtime.requests import may_follow, may_read_streams
from runwire_realtime.run_reader import RunReader
from runwire_realtime.scope import Grant
from runwire_realtime.subscription import RunTarget, Stage, Subscription
from runwire_realtime.wants import Wants

if TYPE_CHECKING:
    from runwire_realtime.hub import Hub

# An idle feed's cursor grows old: it is renewed so often, so that a resume stays cheap.
_RENEW_SECONDS = 30.0


class Follower:
    """One connection as the hub sees it."""

    # One for each connection, and many of them: no dict beside it.
    __slots__ = (
        "_live_since",
        "feeds",
        "grant",
        "hub",
        "is_restless",
        "load",
        "outbox",
        "readers",
        "subscriptions",
        "unsettled",
    )

    def __init__(
        self, hub: "Hub", grant: Grant, outbox: Outbox, load: Callable[[FeedMembers], None]
    ) -> None:
        self.hub = hub
        self.grant = grant
        self.outbox = outbox
        self.subscriptions: dict[str, Subscription] = {}
        self.readers: dict[str, RunReader] = {}
        self.feeds: dict[str, FeedMembers] = {}
        # Readers that have not written all there is.
        self.unsettled: set[RunReader] = set()
        # A run or a feed has moved, and with it what its cursor will say.
        self.is_restless = True
        # Since when it is live again, which is not said yet: feeds still read what they missed.
        self._live_since: str | None = None
        # Asks the shell to read a feed's snapshot.
        self.load = load

    @property
    def limits(self) -> HubLimits:
        return self.hub.limits

    @property
    def wants(self) -> Wants:
        return self.hub.wants

    @property
    def environment_id(self) -> int:
        return self.grant.environment_id

    def may_read(self, run: FollowedRun) -> bool:
        row = run.row
        return self.grant.may_read_run(row.id, row.task, row.tags, run.batches)

    def add(self, subscription: Subscription) -> None:
        """Begin to follow: registered at once, read afterwards, so that nothing falls between."""
        self.subscriptions[subscription.sub] = subscription
        if isinstance(subscription.target, RunTarget):
            self.reader(subscription.target.run_id).open(subscription)
            return
        subscription.stage = Stage.ALLOWED
        feed = FeedMembers(self, subscription)
        self.feeds[subscription.sub] = feed
        self.hub.add_feed(feed)
        if feed.wants_every and subscription.goes_on_unplaced:
            self.outbox.say(messages.gap(subscription.sub, GapReason.OVERFLOW))
        self.load(feed)

    def say_state(self, word: str, since: str) -> None:
        """Say `stale`, or `live` once the feeds have read what they missed."""
        self._live_since = None
        if word == "live" and any(feed.is_loading for feed in self.feeds.values()):
            self._live_since = since
        else:
            self.outbox.say(messages.state(word, since))

    def feed_settled(self) -> None:
        """Say the `live` that waited for feeds, if this was the last of them."""
        if self._live_since is not None:
            self.say_state("live", self._live_since)

    def close(self, subscription: Subscription) -> None:
        """Follow no more for this subscription."""
        if self.subscriptions.get(subscription.sub) is not subscription:
            return
        del self.subscriptions[subscription.sub]
        subscription.stage = Stage.CLOSED
        feed = self.feeds.pop(subscription.sub, None)
        if feed is not None:
            self.hub.remove_feed(feed)
            feed.close()
            self.recall()
            self.feed_settled()
            return
        reader = self.readers.get(getattr(subscription.target, "run_id", ""))
        if reader is not None:
            reader.leave(subscription)

    def refuse(self, subscription: Subscription, code: ErrorCode, message: str) -> None:
        """End a subscription with an error, unless it has ended: its name may be another's now."""
        if subscription.is_closed:
            return
        self.close(subscription)
        self.outbox.say(messages.error(code, message, subscription.sub))

    def leave(self) -> None:
        """Follow nothing any more: the connection is gone."""
        for subscription in list(self.subscriptions.values()):
            self.close(subscription)

    def reader(self, run_id: str) -> RunReader:
        """Return the reader of a run on this connection, a new one if nobody follows it yet."""
        reader = self.readers.get(run_id)
        if reader is None:
            reader = self.hub.join_run(self, run_id)
            self.readers[run_id] = reader
        return reader

    def refetch(self, run_id: str) -> bool:
        """Send a run again. Return whether it is followed here."""
        reader = self.readers.get(run_id)
        if reader is not None:
            reader.refetch()
        return reader is not None

    def wants_every(self, run: FollowedRun) -> bool:
        """Say whether somebody here wants each revision of a run, or will once it is loaded."""
        return any(
            each.mode == "every" and self._may_include(each, run)
            for each in self.subscriptions.values()
        )

    def creation_of(self, run_id: str) -> JsonObject | None:
        """Return what the creation of a run set, where a feed saw it that has not joined it yet."""
        seen = (feed.creation_of(run_id) for feed in self.feeds.values())
        return next((each for each in seen if each is not None), None)

    @property
    def awaits_every(self) -> bool:
        """Whether a feed is about to join runs of which it wants each revision."""
        return any(each.awaits_every for each in self.feeds.values())

    def is_about_to_begin(self, run: FollowedRun, feed: FeedMembers) -> bool:
        """Say whether another feed is about to tell a run from its creation on."""
        return any(
            each is not feed
            and each.wants_every
            and each.creation_of(run.row.id) is not None
            and each.includes(run)
            for each in self.feeds.values()
        )

    def is_resuming_every(self, run: FollowedRun, feed: FeedMembers) -> bool:
        """Say whether another feed is about to tell each revision since a cursor."""
        return any(
            each is not feed and each.is_resuming_every and each.includes(run)
            for each in self.feeds.values()
        )

    def _may_include(self, subscription: Subscription, run: FollowedRun) -> bool:
        feed = self.feeds.get(subscription.sub)
        if feed is not None:
            return feed.includes(run)
        return getattr(subscription.target, "run_id", None) == run.row.id

    def recall(self) -> None:
        """Let feeds consider again what had to wait for another one."""
        for feed in self.feeds.values():
            feed.recall()

    def final_written(self, subscription: Subscription, run_id: str) -> None:
        """Note that a feed's run was written to its end."""
        feed = self.feeds.get(subscription.sub)
        if feed is not None:
            feed.final_written(run_id)

    def start_over(self, subscription: Subscription, reason: GapReason) -> None:
        """Have a feed say why it cannot go on, and begin with a fresh snapshot."""
        feed = self.feeds.get(subscription.sub)
        if feed is not None:
            feed.start_over(reason)

    def run_vanished(self, subscription: Subscription, run_id: str) -> None:
        """Note that a run of a feed was deleted."""
        feed = self.feeds.get(subscription.sub)
        if feed is not None:
            feed.run_vanished(run_id)

    def regrant(self, grant: Grant) -> None:
        """Take a fresh credential of the same environment; what it does not cover is ended."""
        self.grant = grant
        for subscription in list(self.subscriptions.values()):
            is_allowed = may_follow(grant, subscription.target)
            if not (is_allowed and may_read_streams(grant, subscription.streams)):
                self.refuse(
                    subscription, ErrorCode.FORBIDDEN, "the new token does not allow this any more"
                )
        for reader in list(self.readers.values()):
            reader.regranted()

    def cursors(self, now: float) -> None:
        """Hand out the cursors that are due: everything up to them is in frames."""
        if self.outbox.closing is not None:
            return
        for subscription in self.subscriptions.values():
            if subscription.stage is not Stage.LIVE or not self._is_due(subscription, now):
                continue
            at = self._place(subscription)
            if at is not None:
                subscription.cursor_at, subscription.is_moved = now, False
                if at != subscription.cursor_sent:
                    subscription.cursor_sent = at
                    self.outbox.say(messages.cursor(subscription.sub, at))

    def _is_due(self, subscription: Subscription, now: float) -> bool:
        since = now - subscription.cursor_at
        if subscription.is_moved:
            return since >= self.limits.cursor_seconds
        return subscription.is_feed and since >= _RENEW_SECONDS

    def _place(self, subscription: Subscription) -> str | None:
        """Return where the subscription stands, or None while it lags behind."""
        if isinstance(subscription.target, RunTarget):
            reader = self.readers.get(subscription.target.run_id)
            if reader is None or reader in self.unsettled:
                return None
            return run_cursor(self.hub.epoch, reader.written)
        feed = self.feeds[subscription.sub]
        if feed.is_unsettled or any(_follows(reader, subscription) for reader in self.unsettled):
            return None
        return feed_cursor(self.hub.history, self.hub.position)

    def next_cursor_at(self) -> float | None:
        """Return when `cursors` may have something to say."""
        times = [
            subscription.cursor_at + self.limits.cursor_seconds
            for subscription in self.subscriptions.values()
            if subscription.is_moved and subscription.stage is Stage.LIVE
        ]
        return min(times, default=None)


def _follows(reader: RunReader, subscription: Subscription) -> bool:
    return reader.subscriptions.get(subscription.sub) is subscription
