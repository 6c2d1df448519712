"""Who follows what, and what goes to whom. [core]

The hub holds one topic for each followed run and stream, and an index of the feeds. Fed with
events, bells and what was read, it marks the readers concerned; what they write they take from the
topics when their socket has room. It never waits and never reads: what it lacks stands in `wants`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TypeVar

from runwire._stream_keys import is_reserved
from runwire.wire import CloseCode
from runwire_engine.bells import StreamMoved
from runwire_engine.followed import FollowedRun, StreamHead
from runwire_engine.id_format import day_of
from runwire_realtime import messages
from runwire_realtime.feed_members import FeedMembers
from runwire_realtime.followed_streams import FollowedStreams
from runwire_realtime.follower import Follower
from runwire_realtime.limits import HubLimits
from runwire_realtime.outbox import Outbox
from runwire_realtime.run_reader import RunReader
from runwire_realtime.run_topic import RunTopic, Step, step_of
from runwire_realtime.scope import Grant
from runwire_realtime.stream_topic import chunk_of
from runwire_realtime.subscription import BatchTarget, RunsTarget, TagsTarget
from runwire_realtime.wants import StreamName, Wants

RunKey = tuple[int, str]
# An environment and a `jti`; API keys have none.
TokenKey = tuple[int, str | None]
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One revision of a run, and what routes it; `tags` are those before and after."""

    environment_id: int
    run_id: str
    task: str
    tags: tuple[str, ...]
    batch_id: str | None
    step: Step


class Hub:
    """Everything this process's connections follow."""

    def __init__(self, limits: HubLimits) -> None:
        self.limits = limits
        self.wants = Wants()
        self.epoch = ""
        # Which life of Postgres `position` is of: a crash may give ids of transactions again.
        self.recovery = ""
        # The snapshot up to which events have been applied.
        self.position = ""
        self.runs: dict[RunKey, RunTopic] = {}
        self.streams = FollowedStreams(limits, self.wants)
        self.followers: set[Follower] = set()
        # Connections that have shown no credential yet, the oldest first.
        self.strangers: dict[Outbox, None] = {}
        # Connections of each environment, and of each public token.
        self._tenants: Counter[int] = Counter()
        self._tokens: Counter[TokenKey] = Counter()
        # "stale" since when, in the words of the wire; None: in touch with the database.
        self.stale_since: str | None = None
        self._tag_feeds: dict[tuple[int, str], set[FeedMembers]] = {}
        self._batch_feeds: dict[tuple[int, str], set[FeedMembers]] = {}
        # By task; None: of every task.
        self._runs_feeds: dict[tuple[int, str | None], set[FeedMembers]] = {}
        # Feeds that wait for a run's row to decide whether it joins.
        self._candidates: dict[RunKey, set[FeedMembers]] = {}
        # Days whose runs are deleted.
        self._emptied: frozenset[date] = frozenset()

    def is_past(self, run_id: str) -> bool:
        """Say whether a run by that id would be of a day whose runs are deleted."""
        return day_of(run_id) in self._emptied

    def take_emptied(self, days: frozenset[date]) -> None:
        """Note the days whose runs are deleted, and have those of them looked at."""
        fresh, self._emptied = days - self._emptied, days
        for topic in list(self.runs.values()) if fresh else ():
            if topic.bucket in fresh:
                self.wants.row(topic)

    def start_over(self) -> None:
        """Send everybody away to resume, and forget what is known: it may not be so any more."""
        for follower in list(self.followers):
            follower.outbox.close(CloseCode.INSUFFICIENT_STATE, "the history is another one")
            self.leave(follower)

    # Connections

    def knocked(self, outbox: Outbox) -> None:
        """Take a connection of which nothing is known; the oldest such makes room for it.

        Not the newest: whoever means to show a credential does so at once.
        """
        self.strangers[outbox] = None
        if len(self.strangers) > self.limits.strangers:
            oldest = next(iter(self.strangers))
            del self.strangers[oldest]
            oldest.close(CloseCode.OVERLOADED, "too many wait to show a credential")

    def has_room_for(self, grant: Grant, held: Grant | None) -> bool:
        """Say whether another connection may use a credential; `held` is what it used before."""
        if held is None and self._tenants[grant.environment_id] >= self.limits.tenant_connections:
            return False
        is_other = held is None or held.jti != grant.jti
        if grant.jti is None or not is_other:
            return True
        return self._tokens[_token(grant)] < self.limits.token_connections

    def enter(self, follower: Follower) -> None:
        """Serve a connection that has shown its credential."""
        self.strangers.pop(follower.outbox, None)
        self.followers.add(follower)
        self._tenants[follower.environment_id] += 1
        self._tokens[_token(follower.grant)] += 1
        if self.stale_since is not None:
            follower.outbox.say(messages.state("stale", self.stale_since))

    def leave(self, follower: Follower) -> None:
        """Serve a connection no more; one that was sent away before is gone already."""
        if follower not in self.followers:
            return
        follower.leave()
        self.followers.remove(follower)
        _count_down(self._tenants, follower.environment_id)
        _count_down(self._tokens, _token(follower.grant))

    def regrant(self, follower: Follower, grant: Grant) -> None:
        """Go on with a fresh credential."""
        _count_down(self._tokens, _token(follower.grant))
        self._tokens[_token(grant)] += 1
        follower.regrant(grant)

    def say_state(self, word: str, since: str) -> None:
        """Tell everybody whether the database can be reached."""
        self.stale_since = since if word == "stale" else None
        for follower in self.followers:
            follower.say_state(word, since)

    @property
    def history(self) -> str:
        """What positions of feeds hold for: the epoch, and the life of Postgres in it."""
        return self.epoch + self.recovery

    # Registration

    def join_run(self, follower: Follower, run_id: str) -> RunReader:
        """Return a new reader of a run."""
        topic = self._topic(follower.environment_id, run_id)
        reader = RunReader(topic, follower)
        topic.readers.add(reader)
        return reader

    def leave_run(self, reader: RunReader) -> None:
        topic = reader.topic
        topic.readers.discard(reader)
        topic.waiting.discard(reader)
        topic.reading.discard(reader)
        topic.unlisted.discard(reader)
        self.wants.steps.pop(reader, None)
        self._drop_if_unused(topic)

    def _topic(self, environment_id: int, run_id: str) -> RunTopic:
        key = (environment_id, run_id)
        topic = self.runs.get(key)
        if topic is None:
            topic = self.runs[key] = RunTopic(environment_id, run_id, self.limits)
        return topic

    def _drop_if_unused(self, topic: RunTopic) -> None:
        is_used = topic.readers or topic.considered_by or topic.key in self._candidates
        # While it was being read it may have been given up, and another have taken its place.
        if not is_used and self.runs.get(topic.key) is topic:
            del self.runs[topic.key]
            self.wants.rows.pop(topic.key, None)

    def want_streams(self, topic: RunTopic) -> None:
        """Have the list of a run's streams read."""
        self.wants.head(topic.environment_id, topic.run_id, None)

    def add_feed(self, feed: FeedMembers) -> None:
        environment_id = feed.follower.environment_id
        match feed.target:
            case TagsTarget(tags):
                # One tag finds it; the others are compared then.
                self._tag_feeds.setdefault((environment_id, tags[0]), set()).add(feed)
            case BatchTarget(batch_id):
                self._batch_feeds.setdefault((environment_id, batch_id), set()).add(feed)
            case RunsTarget(tasks):
                for task in tasks or (None,):
                    self._runs_feeds.setdefault((environment_id, task), set()).add(feed)

    def remove_feed(self, feed: FeedMembers) -> None:
        environment_id = feed.follower.environment_id
        match feed.target:
            case TagsTarget(tags):
                _drop(self._tag_feeds, (environment_id, tags[0]), feed)
            case BatchTarget(batch_id):
                _drop(self._batch_feeds, (environment_id, batch_id), feed)
            case RunsTarget(tasks):
                for task in tasks or (None,):
                    _drop(self._runs_feeds, (environment_id, task), feed)

    def feeds(self) -> Iterable[FeedMembers]:
        """Return every feed of every connection."""
        found: dict[FeedMembers, None] = {}
        for feeds in (
            *self._tag_feeds.values(),
            *self._batch_feeds.values(),
            *self._runs_feeds.values(),
        ):
            found.update(dict.fromkeys(feeds))
        return found

    def batches(self) -> Iterable[tuple[int, str]]:
        """Name the batches that somebody follows."""
        return list(self._batch_feeds)

    def open_feeds(self, environment_id: int, batch_id: str) -> list[FeedMembers]:
        """Return who follows a batch that may still get items."""
        feeds = self._batch_feeds.get((environment_id, batch_id), ())
        return [feed for feed in feeds if not feed.is_sealed and not feed.is_loading]

    # Events of runs

    def follows(
        self,
        environment_id: int,
        run_id: str,
        task: str,
        tags: Iterable[str],
        batch_id: str | None,
    ) -> bool:
        """Say whether an event of this run concerns anybody here."""
        return (
            (environment_id, run_id) in self.runs
            or (environment_id, task) in self._runs_feeds
            or (environment_id, None) in self._runs_feeds
            or (batch_id is not None and (environment_id, batch_id) in self._batch_feeds)
            or any((environment_id, tag) in self._tag_feeds for tag in tags)
        )

    def apply(self, events: Sequence[RunEvent], position: str) -> None:
        """Take the events that became visible up to a position."""
        for event in events:
            self._event(event)
        self.position = position

    def _event(self, event: RunEvent) -> None:
        topic = self.runs.get((event.environment_id, event.run_id))
        was_final = topic is not None and topic.final_at is not None
        if topic is not None and topic.add(event.step):
            self._moved(topic, event, became_final=not was_final and topic.final_at is not None)
        for feed in self._feeds_of(event):
            feed.event(event)

    def _moved(self, topic: RunTopic, event: RunEvent, *, became_final: bool) -> None:
        changes = event.step.changes
        if (became_final or "realtimeStreams" in changes) and _reads_streams(topic):
            self.want_streams(topic)
        for reader in list(topic.readers):
            reader.moved()
            if "tags" in changes:
                reader.tags_changed()

    def _feeds_of(self, event: RunEvent) -> list[FeedMembers]:
        environment_id = event.environment_id
        found = list(self._runs_feeds.get((environment_id, None), ()))
        found += self._runs_feeds.get((environment_id, event.task), ())
        if event.batch_id is not None:
            found += self._batch_feeds.get((environment_id, event.batch_id), ())
        for tag in event.tags:
            found += self._tag_feeds.get((environment_id, tag), ())
        return found

    def jumped(self, position: str) -> None:
        """Note that too much happened to be told event by event: look at everything again."""
        for topic in self.runs.values():
            topic.has_missed = True
            self.wants.row(topic)
        for feed in self.feeds():
            feed.missed_events()
        self.position = position

    def behind(self, environment_id: int, revisions: Mapping[str, int]) -> dict[RunKey, int]:
        """Return those of followed runs that are further than was heard here, and how far."""
        found: dict[RunKey, int] = {}
        for run_id, revision in revisions.items():
            topic = self.runs.get((environment_id, run_id))
            # One whose row is still to be read stands nowhere.
            is_known = topic is not None and topic.revision > 0 and not topic.has_missed
            if topic is not None and is_known and topic.revision < revision:
                found[topic.key] = revision
        return found

    def make_up(self, key: RunKey) -> None:
        """Read a followed run again: something of it was missed."""
        topic = self.runs.get(key)
        if topic is not None:
            topic.has_missed = True
            self.wants.row(topic)

    # Rows

    def consider(self, feed: FeedMembers, run_id: str) -> None:
        """Have a run's row read, to decide whether it is in a feed."""
        topic = self._topic(feed.follower.environment_id, run_id)
        self._candidates.setdefault(topic.key, set()).add(feed)
        self.wants.row(topic)

    def drop_candidate(self, feed: FeedMembers, run_id: str) -> None:
        topic = self.runs.get((feed.follower.environment_id, run_id))
        if topic is None:
            return
        topic.considered_by.discard(feed)
        feeds = self._candidates.get(topic.key, set())
        feeds.discard(feed)
        if not feeds:
            self._candidates.pop(topic.key, None)
        self._drop_if_unused(topic)

    def take_rows(self) -> list[RunTopic]:
        """Return the runs to be read now; who asks later waits for the next read."""
        topics = list(self.wants.rows.values())
        self.wants.rows.clear()
        for topic in topics:
            topic.reading |= topic.waiting
            topic.waiting.clear()
            topic.considered_by |= self._candidates.pop(topic.key, set())
            topic.makes_up, topic.has_missed = topic.has_missed, False
            topic.was_there = topic.bucket is not None
        return topics

    def rows_failed(self, topics: Iterable[RunTopic]) -> None:
        """Ask again: the runs of `take_rows` could not be read."""
        for topic in topics:
            topic.waiting |= topic.reading
            topic.reading.clear()
            if self.runs.get(topic.key) is topic:
                self._candidates.setdefault(topic.key, set()).update(topic.considered_by)
                self.wants.row(topic)
            topic.considered_by.clear()
            topic.has_missed = topic.has_missed or topic.makes_up

    def row_read(self, topic: RunTopic, run: FollowedRun | None) -> None:
        """Take a run's row as it was read; None: there is no such run."""
        readers, topic.reading = topic.reading, set()
        feeds, topic.considered_by = topic.considered_by, set()
        if run is not None:
            self.learn(topic, run)
            if topic.makes_up:
                self._make_up(topic, run)
        for feed in feeds:
            feed.row_read(run, topic.run_id)
        for reader in readers:
            if reader in topic.readers:
                reader.row_read(run)
        if run is None and topic.was_there:
            for reader in list(topic.readers):
                reader.vanished()
        self._drop_if_unused(topic)

    def learn(self, topic: RunTopic, run: FollowedRun) -> None:
        """Take what a row says of a run."""
        was_final = topic.final_at is not None
        topic.learn(run)
        if topic.revision == 0:
            # What happened before it was followed is not told any more.
            self.moved_to(topic, run.row.revision)
        if not was_final and topic.final_at is not None and _reads_streams(topic):
            self.want_streams(topic)

    def _make_up(self, topic: RunTopic, run: FollowedRun) -> None:
        """Go on from a row where events were missed."""
        if _reads_streams(topic):
            self.want_streams(topic)
        self.moved_to(topic, run.row.revision)
        for reader in list(topic.readers):
            reader.tags_changed()

    @staticmethod
    def moved_to(topic: RunTopic, revision: int) -> None:
        """Note that a run stands at a revision, or beyond, without having heard how."""
        if topic.moved_to(revision):
            for reader in list(topic.readers):
                reader.moved()

    # Streams

    def rang(self, moved: StreamMoved) -> None:
        """Take what a bell says of a stream: its chunks, if they are the next ones."""
        topic = self.streams.topics.get((moved.environment_id, moved.run_id, moved.key))
        if topic is None and is_reserved(moved.key):
            return  # nobody asked for it by its name
        if topic is None or not topic.is_known:
            run = self.runs.get((moved.environment_id, moved.run_id))
            if run is not None and moved.key not in run.stream_keys and _reads_streams(run):
                self.want_streams(run)
            return
        self.streams.extend(topic, [chunk_of(row) for row in moved.chunks], moved.next_seq)
        if moved.ended:
            self.wants.head(*topic.name)

    def take_heads(self) -> dict[StreamName, bool]:
        """Return the streams to be looked up, and whether their run was final before that."""
        names = list(self.wants.heads)
        self.wants.heads.clear()
        return {name: self._is_final(name) for name in names}

    def _is_final(self, name: StreamName) -> bool:
        topic = self.runs.get(name[:2])
        return topic is not None and topic.final_at is not None

    def heads_read(self, names: Mapping[StreamName, bool], heads: Sequence[StreamHead]) -> None:
        """Take where streams stand; the names are those of `take_heads`."""
        # By key: a stream that was also asked for by its name is there twice.
        listed: dict[RunKey, dict[str, StreamHead]] = {
            name[:2]: {} for name in names if name[2] is None
        }
        for head in heads:
            run_key = (head.environment_id, head.run_id)
            if run_key in listed:
                listed[run_key][head.key] = head
            topic = self.streams.topics.get((*run_key, head.key))
            if topic is not None:
                self.streams.take_head(topic, head)
        for run_key, rows in listed.items():
            run = self.runs.get(run_key)
            if run is not None:
                self._listed(run, list(rows.values()), is_final=names[*run_key, None])

    def _listed(self, run: RunTopic, heads: Sequence[StreamHead], *, is_final: bool) -> None:
        """Let readers of all streams of a run find those there are."""
        reason = (run.status or "").lower()
        keys = [head.key for head in heads]
        # Who was told before, and finds nothing new, is left in peace: many may come to one run.
        is_news = is_final or not run.stream_keys.issuperset(keys)
        readers = list(run.readers if is_news else run.unlisted)
        run.unlisted.clear()
        run.stream_keys.update(keys)
        for head in heads:
            topic = self.streams.topic(run, head.key)
            topic.learn(head)
            if is_final:
                topic.close_unwritten(reason)
        moved = [each for each in readers if each.streams.found(keys) or is_final]
        if is_final:
            for reader in moved:
                reader.streams.close_unwritten(reason)
        run.is_sealed = run.is_sealed or is_final
        for head in heads:
            self.streams.drop_unread(self.streams.topics[*run.key, head.key])
        for reader in moved:
            reader.moved()


def event_of(
    environment_id: int,
    run_id: str,
    revision: int,
    delta: str,
    updated_at: str,
    *,
    task: str,
    tags: tuple[str, ...],
    batch_id: str | None,
) -> RunEvent:
    """Read an event as it is stored."""
    step = step_of(revision, delta, updated_at)
    return RunEvent(environment_id, run_id, task, tags, batch_id, step)


def _reads_streams(topic: RunTopic) -> bool:
    return any(reader.streams.is_wanted for reader in topic.readers)


def _drop(index: dict[Key, set[FeedMembers]], key: Key, feed: FeedMembers) -> None:
    feeds = index.get(key, set())
    feeds.discard(feed)
    if not feeds:
        index.pop(key, None)


def _token(grant: Grant) -> TokenKey:
    return grant.environment_id, grant.jti


def _count_down(counter: Counter[Key], key: Key) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
