"""The streams that somebody follows: what is known of each, and their rings. [core]

A stream is known here as long as it has readers. The rings of recent chunks share one bound: that
of the stream which has been quiet for longest is emptied first, and the log has what was in it.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from runwire_engine.followed import Chunk, StreamHead
from runwire_realtime.limits import HubLimits
from runwire_realtime.run_reader import RunReader
from runwire_realtime.run_topic import RunTopic
from runwire_realtime.stream_reader import StreamReader
from runwire_realtime.stream_topic import StreamTopic
from runwire_realtime.wants import StreamName, Wants

# An environment, a run, a key.
StreamKey: TypeAlias = tuple[int, str, str]


class FollowedStreams:
    """Every stream that a connection of this process reads."""

    def __init__(self, limits: HubLimits, wants: Wants) -> None:
        self.topics: dict[StreamKey, StreamTopic] = {}
        # Streams whose cohorts have something to be pushed; `wake` is called when there are.
        self.moved: dict[StreamTopic, None] = {}
        self.wake: Callable[[], None] = _nobody
        self._limits = limits
        self._wants = wants
        # In the order of their last chunk.
        self._rings: dict[StreamKey, StreamTopic] = {}
        self._ring_bytes = 0

    def topic(self, run: RunTopic, key: str) -> StreamTopic:
        """Return what is known of a stream, nothing of a new one."""
        name = (*run.key, key)
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = StreamTopic(*name, self._limits)
        return topic

    def join(self, run: RunReader, key: str) -> StreamReader:
        """Return a new reader of a stream."""
        topic = self.topic(run.topic, key)
        reader = run.stream_reader(topic)
        topic.readers.add(reader)
        topic.apart.add(reader)
        return reader

    def leave(self, reader: StreamReader) -> None:
        reader.close()
        self.drop_unread(reader.topic)

    def drop_unread(self, topic: StreamTopic) -> None:
        """Forget a stream that nobody reads."""
        if not topic.readers and self.topics.get(topic.name) is topic:
            del self.topics[topic.name]
            self._wants.fills.pop(topic.name, None)
            self.moved.pop(topic, None)
            self._empty(topic)

    def names(self) -> list[StreamName]:
        """Return the streams whose place in the database is worth a look: all that may move."""
        return [name for name, topic in self.topics.items() if topic.eof_reason is None]

    def take_head(self, topic: StreamTopic, head: StreamHead) -> None:
        """Take where a stream stands."""
        if topic.learn(head):
            for reader in topic.readers:
                reader.mark()
        if any(reader.next is None for reader in topic.apart):
            self._wants.head(topic.environment_id, topic.run_id, None)
        if topic.is_behind:
            self._wants.fill(topic)

    def extend(self, topic: StreamTopic, chunks: Sequence[Chunk], head: int = 0) -> None:
        """Append chunks that continue a stream, and let its readers write."""
        before = topic.bytes if topic.name in self._rings else 0
        if topic.extend(chunks):
            self._rings.pop(topic.name, None)
            self._rings[topic.name] = topic
            self._ring_bytes += topic.bytes - before
            self._limit_rings()
            for reader in topic.apart:
                reader.mark()
            if topic.cohorts:
                self.moved[topic] = None
                self.wake()
        topic.heard(head)
        if topic.is_behind:
            self._wants.fill(topic)

    def filled(self, topic: StreamTopic, chunks: Sequence[Chunk]) -> None:
        """Take chunks that were read from the end of a stream's ring on."""
        place = chunks[0].seq if chunks else topic.head
        if place > topic.end:
            # The log has lost what lies between; readers hear of it when they read there.
            self._empty(topic)
            topic.skip_to(place)
            for reader in topic.readers:
                reader.mark()
        self.extend(topic, chunks)

    def _limit_rings(self) -> None:
        while self._ring_bytes > self._limits.rings_bytes and len(self._rings) > 1:
            self._empty(next(iter(self._rings.values())))

    def _empty(self, topic: StreamTopic) -> None:
        if self._rings.pop(topic.name, None) is not None:
            self._ring_bytes -= topic.bytes
        topic.empty()


def _nobody() -> None:
    """Stand in until a shell listens."""
