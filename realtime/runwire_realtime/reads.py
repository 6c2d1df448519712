"""Reads what the hub wants: one statement for all who want the same, a few at a time.

Each kind of want has its own loop, which takes everything wanted by then, reads it, and hands it to
the hub; what is wanted meanwhile waits for the next turn. So reads group themselves under load and
cost nothing when there is none. While the database is away, wants wait.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice
from typing import Final, TypeAlias, TypeVar

import anyio

from runwire_engine.errors import EngineError
from runwire_engine.followed import Chunk
from runwire_engine.following import Following
from runwire_realtime import messages
from runwire_realtime.hub import Hub
from runwire_realtime.run_past import logged_steps
from runwire_realtime.run_reader import RunReader
from runwire_realtime.run_topic import RunTopic
from runwire_realtime.run_view import MAX_VALUE_BYTES
from runwire_realtime.stream_reader import StreamReader
from runwire_realtime.stream_topic import StreamTopic

logger = logging.getLogger("runwire.reads")
T = TypeVar("T")
Turn: TypeAlias = Callable[[], Awaitable[None]]

_PAUSE: Final = 0.2  # seconds between tries while the database is away
# The longest that rows and heads gather, in seconds.
_GATHERING: Final = 0.01
_HEADS_PER_READ: Final = 500
# Streams whose news one statement reads; beyond so many, less of each.
_FILLS_PER_READ: Final = 64
_WHOLE_FILLS: Final = 16
_CHUNKS_PER_PAGE: Final = 1_000
_EVENTS_PER_PAGE: Final = 200


class Reads:
    """The loops that read for the hub."""

    def __init__(self, hub: Hub, following: Following) -> None:
        self._hub = hub
        self._wants = hub.wants
        self._following = following
        self._limiter = anyio.CapacityLimiter(hub.limits.catch_up_reads)
        self._wanted: list[anyio.Event] = []
        # Of each loop, how many turns have begun, and the newest of them that read all it was to.
        self._begun: Counter[Turn] = Counter()
        self._whole: Counter[Turn] = Counter()
        self._turned = anyio.Event()
        # Pages being read, and who else wants the same.
        self._pages: dict[tuple[int, int], list[StreamReader]] = {}
        self._texts: dict[tuple[int, int], list[StreamReader]] = {}
        self._texts_held = anyio.CapacityLimiter(hub.limits.texts_held)
        self._wants.wake = self._wake

    async def run(self) -> None:
        """Read until cancelled."""
        self._wanted.clear()
        self._pages.clear()
        self._texts.clear()
        self._texts_held = anyio.CapacityLimiter(self._hub.limits.texts_held)
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for turn in (self._fills, self._catch_up):
                tasks.start_soon(self._repeat, turn)
            for turn in (self._rows, self._heads):
                tasks.start_soon(self._repeat, turn, _GATHERING)

    async def caught_up(self) -> None:
        """Wait until the rows, heads and chunks that are wanted now have been read.

        However long that takes, and whatever else comes to be wanted meanwhile.
        """
        await self._whole_turns(self._rows, self._heads)
        topics = self._hub.streams.topics.values()
        behind = [(topic, topic.head) for topic in topics if topic.is_behind]
        while any(topic.readers and topic.end < head for topic, head in behind):
            await self._whole_turns(self._fills)

    async def _whole_turns(self, *turns: Turn) -> None:
        """Wait until each loop has taken a turn that begins from here on, without a fault."""
        before = {turn: self._begun[turn] for turn in turns}
        self._wake()
        while any(self._whole[turn] <= begun for turn, begun in before.items()):
            await self._turned.wait()

    def _wake(self) -> None:
        for event in self._wanted:
            event.set()

    async def _repeat(self, turn: Turn, gathering: float = 0.0) -> None:
        """Take turns: one at the start, then whenever something is wanted.

        Where that is so already, as many come at the same time, more gathers for as long again as
        the turn took, or so many seconds: else each turn would read the same for a few of them.
        """
        event = anyio.Event()
        self._wanted.append(event)
        while True:
            at = self._wanted.index(event)
            event = self._wanted[at] = anyio.Event()
            self._begun[turn] += 1
            began = anyio.current_time()
            try:
                await turn()
            except EngineError as error:
                logger.warning("reading for subscribers failed: %s", error)
                event.set()
                await anyio.sleep(_PAUSE)
            else:
                self._whole[turn] = self._begun[turn]
                self._turned.set()
                self._turned = anyio.Event()
            if event.is_set():
                await anyio.sleep(min(gathering, anyio.current_time() - began))
            await event.wait()

    async def _rows(self) -> None:
        unread = {topic.key: topic for topic in self._hub.take_rows()}
        try:
            for environment_id, group in _by_environment(list(unread.values())):
                for part in _parts(group, self._hub.limits.rows_per_read):
                    await self._read_rows(environment_id, part)
                    for topic in part:
                        del unread[topic.key]
        except EngineError:
            # Also those whose turn had not come: nobody else would ask for them again.
            self._hub.rows_failed(unread.values())
            raise

    async def _read_rows(self, environment_id: int, topics: Sequence[RunTopic]) -> None:
        ids = [topic.run_id for topic in topics]
        runs = await self._following.rows(environment_id, ids, MAX_VALUE_BYTES)
        for topic in topics:
            self._hub.row_read(topic, runs.get(topic.run_id))

    async def _heads(self) -> None:
        names = self._hub.take_heads()
        for environment_id in {name[0] for name in names}:
            group = [name for name in names if name[0] == environment_id]
            for part in _parts(group, _HEADS_PER_READ):
                try:
                    heads = await self._following.heads(
                        environment_id, [(run_id, key) for _, run_id, key in part]
                    )
                except EngineError:
                    for name in names:
                        self._wants.head(*name)
                    raise
                self._hub.heads_read({name: names[name] for name in part}, heads)

    async def _fills(self) -> None:
        topics = [topic for topic in self._wants.fills.values() if topic.is_behind]
        self._wants.fills.clear()
        for part in _parts(topics, _FILLS_PER_READ):
            try:
                await self._fill(part)
            except EngineError:
                for topic in topics:
                    self._wants.fill(topic)
                raise

    async def _fill(self, topics: Sequence[StreamTopic]) -> None:
        wanted = [(t.id, t.bucket, t.end) for t in topics if t.id is not None and t.bucket]
        room = self._hub.limits.ring_bytes * _WHOLE_FILLS // max(_WHOLE_FILLS, len(wanted))
        pages = await self._following.chunks(wanted, room, _CHUNKS_PER_PAGE)
        for topic in topics:
            if topic.id is not None and topic.readers:
                self._hub.streams.filled(topic, pages.get(topic.id, []))

    async def _catch_up(self) -> None:
        for reader in list(self._wants.pages):
            del self._wants.pages[reader]
            self._read_page(reader)
        for reader in list(self._wants.texts):
            del self._wants.texts[reader]
            self._read_text(reader)
        for run in list(self._wants.steps):
            del self._wants.steps[run]
            self._tasks.start_soon(self._history, run)

    def _read_page(self, reader: StreamReader) -> None:
        topic = reader.topic
        if topic.id is None or reader.next is None:
            reader.page_failed()
            return
        key = (topic.id, reader.next)
        if key in self._pages:
            self._pages[key].append(reader)
        else:
            self._pages[key] = [reader]
            self._tasks.start_soon(self._page, topic, key)

    async def _page(self, topic: StreamTopic, key: tuple[int, int]) -> None:
        stream_id, seq = key
        chunks: list[Chunk] | None = None
        try:
            async with self._limiter:
                assert topic.bucket is not None
                wanted = [(stream_id, topic.bucket, seq)]
                pages = await self._following.chunks(
                    wanted, self._hub.limits.turn_bytes, _CHUNKS_PER_PAGE
                )
                chunks = pages.get(stream_id, [])
        except EngineError as error:
            logger.warning("reading a stream failed: %s", error)
            await anyio.sleep(_PAUSE)
        for reader in self._pages.pop(key):
            if chunks is None:
                reader.page_failed()
            else:
                reader.page_read(seq, chunks)

    def _read_text(self, reader: StreamReader) -> None:
        topic = reader.topic
        if topic.id is None:
            reader.page_failed()
            return
        key = (topic.id, reader.text_before)
        if key in self._texts:
            self._texts[key].append(reader)
        else:
            self._texts[key] = [reader]
            self._tasks.start_soon(self._text, topic, key)

    async def _text(self, topic: StreamTopic, key: tuple[int, int]) -> None:
        """Read the text of a stream, for all who want the same, and wait until nobody holds it."""
        stream_id, before = key
        async with self._texts_held:
            try:
                async with self._limiter:
                    assert topic.bucket is not None
                    limit = self._hub.limits.text_bytes
                    count, value = await self._following.text(
                        stream_id, topic.bucket, before, limit
                    )
            except EngineError as error:
                logger.warning("reading a text failed: %s", error)
                await anyio.sleep(_PAUSE)
                for reader in self._texts.pop(key):
                    reader.page_failed()
                return
            message = messages.text(topic.run_id, topic.key, count, value.encode())
            holders = _Holders(self._texts.pop(key))
            for reader in list(holders.readers):
                reader.text_read((message, count) if count else None, holders.leaving(reader))
            await holders.gone.wait()

    async def _history(self, run: RunReader) -> None:
        after, topic = run.history_after, run.topic
        try:
            async with self._limiter:
                events = await self._following.events(
                    topic.environment_id, topic.run_id, after, _EVENTS_PER_PAGE
                )
        except EngineError as error:
            logger.warning("reading the history of a run failed: %s", error)
            await anyio.sleep(_PAUSE)
            run.history_failed()
            return
        run.history_read(after, logged_steps(events))


class _Holders:
    """Who holds a text that was read; it counts until all of them have used it."""

    def __init__(self, readers: Sequence[StreamReader]) -> None:
        self.readers = set(readers)
        self.gone = anyio.Event()

    def leaving(self, reader: StreamReader) -> Callable[[], None]:
        """Return what is to be called when a reader does not hold it any more."""

        def leave() -> None:
            self.readers.discard(reader)
            if not self.readers:
                self.gone.set()

        return leave


def _by_environment(topics: Iterable[RunTopic]) -> list[tuple[int, list[RunTopic]]]:
    groups: dict[int, list[RunTopic]] = {}
    for topic in topics:
        groups.setdefault(topic.environment_id, []).append(topic)
    return list(groups.items())


def _parts(items: Sequence[T], size: int) -> Iterable[list[T]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
