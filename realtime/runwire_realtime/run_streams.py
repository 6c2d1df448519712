"""The streams of one run as one connection reads them. [core]"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runwire.wire import StreamRequest, StreamStart
from runwire_realtime.run_topic import RunTopic
from runwire_realtime.stream_reader import StreamReader
from runwire_realtime.subscription import Subscription, is_relative

if TYPE_CHECKING:
    from runwire_realtime.follower import Follower
    from runwire_realtime.run_reader import RunReader


@dataclass(frozen=True, slots=True)
class Entry:
    """How a subscription comes to read a run's streams."""

    # The run was created after it began, so that every stream is news.
    is_news: bool = False
    # Where the client stands, by stream; one that is not named is news. None: it was told of none.
    places: Mapping[str, int] | None = None
    # The run left the feed and comes back: the places count where only the server knows others.
    has_left: bool = False
    # The client holds the run for this subscription already, which goes on.
    is_held: bool = False


_NEW = Entry()


class RunStreams:
    """Opens a reader for each stream that somebody asked for, by name or by "*"."""

    # One for each connection, and many of them: no dict beside it.
    __slots__ = (
        "_asked",
        "_entries",
        "_follower",
        "_listed",
        "_readers",
        "_run",
        "_topic",
    )

    def __init__(self, topic: RunTopic, run: "RunReader", follower: "Follower") -> None:
        self._topic = topic
        self._run = run
        self._follower = follower
        self._readers: dict[str, StreamReader] = {}
        # Who reads streams here, and who of them has been told which there are: what appears later
        # is new to them.
        self._asked: dict[str, Subscription] = {}
        self._listed: set[str] = set()
        self._entries: dict[str, Entry] = {}

    def add(self, subscription: Subscription, entry: Entry) -> None:
        """Read the streams that a subscription asked for."""
        if not subscription.streams:
            return
        self._asked[subscription.sub] = subscription
        self._entries.setdefault(subscription.sub, entry)
        for key in subscription.streams:
            if key != "*" and self._follower.grant.may_read_stream(key):
                self._ask(key, subscription)
        self._topic.unlisted.add(self._run)
        self._follower.hub.want_streams(self._topic)

    def remove(self, subscription: Subscription) -> None:
        """Read no more for a subscription."""
        if self._asked.pop(subscription.sub, None) is None:
            return
        self._listed.discard(subscription.sub)
        del self._entries[subscription.sub]
        for key, reader in list(self._readers.items()):
            reader.leave(subscription.sub)
            if not reader.subs:
                self._follower.hub.streams.leave(reader)
                del self._readers[key]

    def regranted(self) -> None:
        """Read no stream any more that the credential does not cover."""
        # It may cover others.
        self._topic.unlisted.add(self._run)
        for key, reader in list(self._readers.items()):
            if not self._follower.grant.may_read_stream(key):
                self._follower.hub.streams.leave(reader)
                del self._readers[key]

    def close(self) -> None:
        for reader in self._readers.values():
            self._follower.hub.streams.leave(reader)
        self._readers.clear()
        self._asked.clear()

    @property
    def is_wanted(self) -> bool:
        return bool(self._asked)

    @property
    def are_over(self) -> bool:
        """Whether every stream was written to its end, and no other will appear."""
        is_listed = self._topic.is_sealed and self._asked.keys() <= self._listed
        return is_listed and all(reader.is_over for reader in self._readers.values())

    @property
    def are_placed(self) -> bool:
        """Whether everybody who begins inside of a stream was told where that is.

        Resumed before, it would begin at 0.
        """
        asked = self._asked.items()
        return not any(each.begins_inside and sub not in self._listed for sub, each in asked)

    def found(self, keys: Iterable[str]) -> bool:
        """Take the list of streams that the run has now; say whether that was any news."""
        is_news = not self._asked.keys() <= self._listed
        for key in keys:
            is_news |= self._found(key)
        self._listed.update(self._asked)
        return is_news

    def _found(self, key: str) -> bool:
        if not self._follower.grant.may_read_stream(key):
            return False
        is_news = False
        for subscription in self._asked.values():
            reader = self._readers.get(key)
            if self._request(subscription, key) is not None and (
                reader is None or subscription.sub not in reader.subs
            ):
                self._ask(key, subscription)
                is_news = True
        reader = self._readers.get(key)
        if reader is not None and reader.next is None and reader.topic.is_known:
            reader.open(is_new=all(map(self._is_new_to, reader.subs)))
            is_news = True
        return is_news

    def _ask(self, key: str, subscription: Subscription) -> None:
        request = self._request(subscription, key)
        if request is None:
            return
        broken = subscription.broken
        if broken is not None and _is_position(request.start):
            # A seq of another history says nothing here.
            request = request.model_copy(update={"start": 0})
        else:
            broken = None
        reader = self._readers.get(key)
        if reader is None:
            reader = self._follower.hub.streams.join(self._run, key)
            self._readers[key] = reader
        reader.ask(
            subscription.sub,
            request,
            # One number of a feed stands for the streams of many runs, some of them shorter.
            is_lenient=subscription.is_feed and not self._is_placed(subscription.sub),
            is_new=self._is_new_to(subscription.sub),
        )
        if broken is not None:
            reader.say_gap(subscription.sub, broken, 0)

    def _is_new_to(self, sub: str) -> bool:
        """Say whether a stream that is found now is news to a subscription."""
        return sub in self._listed or self._entries.get(sub, _NEW).is_news

    def _is_placed(self, sub: str) -> bool:
        """Say whether a subscription named its place in each of this run's streams."""
        entry = self._entries.get(sub, _NEW)
        return entry.places is not None and not entry.has_left

    def close_unwritten(self, reason: str) -> None:
        """End the streams that were asked for by name and that nobody ever wrote to."""
        for reader in self._readers.values():
            if not reader.topic.is_known:
                reader.topic.close_unwritten(reason)
                reader.open(is_new=True)

    def positions(self, sub: str) -> dict[str, tuple[int, bool]]:
        """Return of each stream that a subscription reads the next seq, and whether it is over."""
        return {
            key: (each.next, each.is_over)
            for key, each in self._readers.items()
            if each.next is not None and sub in each.subs
        }

    def places(self, sub: str) -> dict[str, int] | None:
        """Return how far a subscription has read; None: it is not known yet what there is."""
        if sub not in self._listed:
            return None
        return {key: next_seq for key, (next_seq, _) in self.positions(sub).items()}

    def is_listed(self, sub: str) -> bool:
        """Whether a subscription was told which streams there are: others are new to it."""
        return sub in self._listed

    def _request(self, subscription: Subscription, key: str) -> StreamRequest | None:
        """Return how to read a stream, from where the client stands if it said so."""
        request = subscription.request_for(key)
        entry = self._entries.get(subscription.sub, _NEW)
        if request is None or entry.places is None:
            return request
        if entry.has_left and not is_relative(request.start):
            return request
        return request.model_copy(update={"start": entry.places.get(key, 0)})


def _is_position(start: StreamStart) -> bool:
    return isinstance(start, int) and start > 0
