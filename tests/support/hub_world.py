"""A database in memory, a hub on it, and clients that check every message: for tests of the core.

`World` holds what is committed; each read of the hub is taken at one time and answered at another,
so that a test decides what happens in between. `Client` is as strict as the protocol allows one to
be: a patch that does not apply, a chunk that is not the next one, an end too early: all fail.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import orjson

from runwire._metadata import apply
from runwire.wire import Json, JsonObject
from runwire_engine.bells import ChunkRow, StreamMoved
from runwire_engine.followed import Chunk, FollowedRun, StreamHead, Touched
from runwire_engine.placement import AttemptMark
from runwire_engine.run_row import RunRow
from runwire_realtime import messages
from runwire_realtime.cursors import FeedCursor, feed_cursor
from runwire_realtime.feed_members import FeedMembers
from runwire_realtime.hub import Hub, RunEvent, event_of
from runwire_realtime.limits import HubLimits
from runwire_realtime.line import Line
from runwire_realtime.outbox import Outbox
from runwire_realtime.run_past import RunPast
from runwire_realtime.run_topic import RunTopic, Step, step_of
from runwire_realtime.run_view import is_final, wire_time
from runwire_realtime.scope import Grant
from runwire_realtime.stream_reader import StreamReader
from runwire_realtime.stream_topic import chunk_of
from runwire_realtime.subscriber import Subscriber
from runwire_realtime.wants import StreamName
from tests.support.pushing import joined, push

ENV = 1
EPOCH = "e0"
_BEGAN = datetime(2026, 11, 23, 12, tzinfo=UTC)


def new_row(run_id: str, tags: tuple[str, ...] = ()) -> RunRow:
    """Return a run that was just triggered."""
    return RunRow(
        environment_id=ENV,
        id=run_id,
        bucket=date(2026, 11, 23),
        task="task",
        status="QUEUED",
        revision=1,
        execution=0,
        attempt=0,
        max_attempts=3,
        queue="task/task",
        concurrency_key="",
        limited=False,
        sort_at=_BEGAN,
        priority=0.0,
        worker_id=None,
        version=None,
        payload='{"a":1}',
        payload_type="application/json",
        output=None,
        output_type=None,
        error=None,
        tags=tags,
        stream_keys=(),
        parent_id=None,
        root_id=None,
        depth=0,
        batch_id=None,
        idempotency_key=None,
        is_test=False,
        max_duration=None,
        ttl=None,
        expires_at=None,
        delayed_until=None,
        cancel_requested_at=None,
        created_at=_BEGAN,
        updated_at=_BEGAN,
        queued_at=_BEGAN,
        started_at=None,
        claimed_at=None,
        duration_ms=0,
        finished_at=None,
        expired_at=None,
        metadata=None,
    )


@dataclass
class StoredStream:
    id: int
    chunks: list[ChunkRow] = field(default_factory=list[ChunkRow])
    marks: tuple[AttemptMark, ...] = ()
    ended_execution: int | None = None
    eof_reason: str | None = None


class World:
    """What is committed, the hub that follows it, and the reads under way."""

    def __init__(self, limits: HubLimits) -> None:
        self.rows: dict[str, RunRow] = {}
        self.streams: dict[tuple[str, str], StoredStream] = {}
        self.history: dict[str, list[tuple[int, str, datetime]]] = {}
        self.events: list[RunEvent] = []
        self.hub = Hub(limits)
        self.hub.epoch = EPOCH
        self.hub.position = self._position()
        self.clients: list[Client] = []
        self.now = 1000.0
        # Texts that were read and not used yet.
        self.held_texts = 0
        self._tailed = 0
        self._loads: list[FeedMembers] = []

    # Commits

    def create(self, run_id: str, tags: tuple[str, ...] = ()) -> None:
        self.rows[run_id] = new_row(run_id, tags)
        self.history[run_id] = []
        then = {"status": "QUEUED", "tags": list(tags), "queuedAt": wire_time(_BEGAN)}
        self._log(run_id, {"set": then})

    def change(
        self,
        run_id: str,
        changes: JsonObject,
        operations: Sequence[JsonObject] = (),
        **columns: Any,
    ) -> None:
        """Commit a revision: columns of the row, and what its event says of them."""
        row = self.rows[run_id]
        metadata = row.metadata
        if operations:
            document = apply(orjson.loads(metadata or "{}"), operations)
            metadata = orjson.dumps(document).decode()
        revision = row.revision + 1
        at = _BEGAN + timedelta(milliseconds=len(self.events) + 1)
        changed: dict[str, Any] = {**columns, "revision": revision, "updated_at": at}
        self.rows[run_id] = row._replace(**changed, metadata=metadata)
        delta: JsonObject = {"set": changes}
        if operations:
            delta["metadata"] = list(operations)
        self._log(run_id, delta, row.tags)

    def status(self, run_id: str, status: str) -> None:
        columns: dict[str, Any] = {"status": status}
        changes: JsonObject = {"status": status}
        if is_final(status):
            columns["finished_at"] = _BEGAN
            changes["finishedAt"] = wire_time(_BEGAN)
            for (owner, _), stream in self.streams.items():
                if owner == run_id:
                    stream.eof_reason = status.lower()
        if status == "EXECUTING":
            columns["execution"] = columns["attempt"] = self.rows[run_id].execution + 1
            changes["attempt"] = columns["attempt"]
        self.change(run_id, changes, **columns)

    def begin_anew(self, run_id: str) -> None:
        """Give a run back and execute it again, under the same attempt number."""
        attempt, execution = self.rows[run_id].attempt, self.rows[run_id].execution + 1
        self.change(run_id, {"status": "QUEUED"}, status="QUEUED")
        self.change(
            run_id,
            {"status": "EXECUTING"},
            status="EXECUTING",
            execution=execution,
            attempt=attempt,
        )

    def append(self, run_id: str, key: str, *bodies: str) -> StreamMoved:
        """Commit chunks, and return the bell that would ring for them."""
        row = self.rows[run_id]
        stream = self.streams.get((run_id, key))
        if stream is None:
            stream = self.streams[run_id, key] = StoredStream(len(self.streams) + 1)
            keys = (*row.stream_keys, key)
            self.change(run_id, {"realtimeStreams": list(keys)}, stream_keys=keys)
        if not stream.marks or stream.marks[-1].execution < row.execution:
            mark = AttemptMark(row.attempt, row.execution, len(stream.chunks))
            stream.marks = (*stream.marks, mark)
            stream.ended_execution = None
        first = len(stream.chunks)
        for body in bodies:
            seq = len(stream.chunks)
            stream.chunks.append(ChunkRow(seq, row.execution, row.attempt, None, body))
        chunks = tuple(stream.chunks[first:])
        return StreamMoved(run_id, key, len(stream.chunks), chunks, environment_id=ENV)

    def _log(self, run_id: str, delta: JsonObject, before: tuple[str, ...] = ()) -> None:
        row = self.rows[run_id]
        text = orjson.dumps(delta).decode()
        self.history[run_id].append((row.revision, text, row.updated_at))
        self.events.append(
            event_of(
                ENV,
                run_id,
                row.revision,
                text,
                wire_time(row.updated_at),
                task=row.task,
                tags=tuple({*row.tags, *before}),
                batch_id=None,
            )
        )

    # The hub's reads: taken now, answered when the returned function is called

    def tail(self) -> None:
        fresh = self.events[self._tailed :]
        self._tailed = len(self.events)
        events = [
            each
            for each in sorted(fresh, key=lambda e: (e.run_id, e.step.revision))
            if self.hub.follows(ENV, each.run_id, each.task, each.tags, each.batch_id)
        ]
        self.hub.apply(events, self._position())

    def jump(self) -> None:
        """Skip the events, as a tail does that is too far behind."""
        self._tailed = len(self.events)
        self.hub.jumped(self._position())

    def _position(self) -> str:
        at = len(self.events) + 1
        return f"{at}:{at}:"

    def read_rows(self) -> Callable[[], None]:
        topics = self.hub.take_rows()
        found = {topic.run_id: self._followed(topic.run_id) for topic in topics}

        def answer() -> None:
            for topic in topics:
                self.hub.row_read(topic, found[topic.run_id])

        return answer

    def _followed(self, run_id: str) -> FollowedRun | None:
        row = self.rows.get(run_id)
        return None if row is None else FollowedRun(row, {})

    def read_heads(self) -> Callable[[], None]:
        names = self.hub.take_heads()
        # As the statement does: once for each name that fits.
        heads = [
            self._head(run_id, key, stream)
            for (_, wanted, wanted_key) in names
            for (run_id, key), stream in self.streams.items()
            if run_id == wanted and wanted_key in (None, key)
        ]
        return lambda: self.hub.heads_read(names, heads)

    def scan(self) -> None:
        names: list[StreamName] = self.hub.streams.names()
        for name in names:
            self.hub.wants.head(*name)

    @staticmethod
    def _head(run_id: str, key: str, stream: StoredStream) -> StreamHead:
        return StreamHead(
            ENV,
            stream.id,
            run_id,
            key,
            date(2026, 11, 23),
            len(stream.chunks),
            stream.marks,
            stream.ended_execution,
            stream.eof_reason,
        )

    def read_fills(self) -> Callable[[], None]:
        topics = [topic for topic in self.hub.wants.fills.values() if topic.is_behind]
        self.hub.wants.fills.clear()
        pages = [
            [chunk_of(each) for each in self.streams[t.run_id, t.key].chunks[t.end : t.end + 4]]
            for t in topics
        ]

        def answer() -> None:
            for topic, page in zip(topics, pages, strict=True):
                if topic.readers:
                    self.hub.streams.filled(topic, page)

        return answer

    def read_pages(self) -> Callable[[], None]:
        readers = list(self.hub.wants.pages)
        self.hub.wants.pages.clear()
        pages: list[tuple[StreamReader, int, list[Chunk]]] = []
        for reader in readers:
            assert reader.next is not None
            chunks = self.streams[reader.topic.run_id, reader.topic.key].chunks
            page = [chunk_of(each) for each in chunks[reader.next : reader.next + 3]]
            pages.append((reader, reader.next, page))

        texts = [(reader, self._text_of(reader)) for reader in self.hub.wants.texts]
        self.hub.wants.texts.clear()

        def answer() -> None:
            for reader, seq, page in pages:
                reader.page_read(seq, page)
            for reader, text in texts:
                self.held_texts += 1
                reader.text_read(text, self._text_used)

        return answer

    def _text_of(self, reader: StreamReader) -> tuple[bytes, int] | None:
        topic = reader.topic
        value, count = "", 0
        for chunk in self.streams[topic.run_id, topic.key].chunks[: reader.text_before]:
            if not chunk.body.startswith('"'):
                break
            if len(value) + len(chunk.body) - 2 > self.hub.limits.text_bytes:
                break
            value, count = value + chunk.body[1:-1], count + 1
        message = messages.text(topic.run_id, topic.key, count, value.encode())
        return (message, count) if count else None

    def _text_used(self) -> None:
        self.held_texts -= 1

    def read_history(self) -> Callable[[], None]:
        runs = list(self.hub.wants.steps)
        self.hub.wants.steps.clear()
        pages = [
            (
                run,
                run.history_after,
                self._steps(run.topic.run_id, run.history_after)[:3],
            )
            for run in runs
        ]

        def answer() -> None:
            for run, after, steps in pages:
                run.history_read(after, steps)

        return answer

    def take_load(self) -> FeedMembers:
        """Return the feed that asked last, for a test to answer."""
        return self._loads.pop()

    def load(self) -> None:
        """Read the snapshots of feeds that have just begun, or what they missed."""
        feeds = list(self._loads)
        self._loads.clear()
        for feed in feeds:
            if feed.is_loading and not feed.is_closed:
                self._load(feed)

    def _load(self, feed: FeedMembers) -> None:
        rows = [run for run_id in self.rows if (run := self._followed(run_id)) is not None]
        tags = getattr(feed.target, "tags", ())
        members = [run for run in rows if set(tags) <= set(run.row.tags)]
        cursor, version = feed.subscription.cursor, feed.version
        if isinstance(cursor, FeedCursor):
            self._resume(feed, cursor, members)
            if feed.version != version:
                return  # it begins anew
        else:
            position = feed_cursor(EPOCH, self.hub.position)
            for at in range(0, max(1, len(members)), 2):
                is_last = at + 2 >= len(members)
                feed.page(
                    members[at : at + 2], cursor=position if is_last else None, more=not is_last
                )
        feed.complete()

    def _resume(
        self, feed: FeedMembers, cursor: FeedCursor, members: Sequence[FollowedRun]
    ) -> None:
        seen = int(cursor.snapshot.split(":")[0]) - 1
        touched: dict[str, Touched] = {}
        for event in self.events[seen:]:
            touched.setdefault(event.run_id, Touched(event.step.revision))
        feed.is_resumed = True
        news = [run for run in members if run.row.id in touched]
        feed.resumed(news, touched, self._pasts(feed, news, touched))
        held = [
            run for run in members if run.row.id not in touched and not is_final(run.row.status)
        ]
        feed.held(held, {run.row.id: run.row.revision for run in held}, {})

    def _pasts(
        self, feed: FeedMembers, runs: Sequence[FollowedRun], touched: Mapping[str, Touched]
    ) -> dict[str, RunPast]:
        pasts: dict[str, RunPast] = {}
        for run in runs:
            revision = touched[run.row.id].first - 1
            if feed.needs_past(run, revision):
                past = pasts[run.row.id] = RunPast(revision, self.hub.limits.past_bytes)
                assert past.add(self._steps(run.row.id, 0)) is None
        return pasts

    def _steps(self, run_id: str, after: int) -> list[Step]:
        return [
            step_of(revision, delta, wire_time(at))
            for revision, delta, at in self.history[run_id]
            if revision > after
        ]

    def settle(self, rounds: int = 400) -> None:
        """Let everything happen that is still to happen."""
        for _ in range(rounds):
            self.tail()
            self.scan()
            for read in (
                self.read_rows,
                self.read_heads,
                self.read_fills,
                self.read_pages,
                self.read_history,
            ):
                read()()
            self.load()
            self.push()
            if not any([client.turn() for client in self.clients]) and self._is_quiet():
                return
        raise AssertionError("the hub does not come to rest")

    def _is_quiet(self) -> bool:
        wants = self.hub.wants
        is_read = not (wants.rows or wants.fills or wants.pages or wants.texts or wants.steps)
        return is_read and not self._loads

    # Clients

    def push(self) -> None:
        """Write what is the same for many to those who are free."""
        push(self.hub, self.now)

    def connect(self, grant: Grant | None = None, *, is_direct: bool = True) -> "Client":
        grant = grant or Grant(ENV, api_key=True)
        client = Client(self, grant, self._loads.append, is_direct=is_direct)
        self.clients.append(client)
        return client

    def topic(self, run_id: str) -> RunTopic:
        return self.hub.runs[ENV, run_id]


@dataclass
class Held:
    """A subscription, as the client knows it."""

    request: JsonObject
    runs: set[str] = field(default_factory=set[str])
    is_live: bool = False
    is_done: bool = False
    gaps: list[str] = field(default_factory=list[str])
    cursor: str | None = None
    has_begun: bool = False
    # Revisions of the run it follows, since it went live.
    revisions: list[int] = field(default_factory=list[int])

    @property
    def is_told(self) -> bool:
        """Whether it has begun and is not over."""
        return self.has_begun and not self.is_done

    @property
    def streams(self) -> JsonObject:
        return self.request.get("streams") or {}


class Client:
    """One connection and a client that believes nothing."""

    def __init__(
        self,
        world: World,
        grant: Grant,
        load: Callable[[FeedMembers], None],
        *,
        is_direct: bool,
    ) -> None:
        self.world = world
        self._is_direct = is_direct
        self._grant, self._load = grant, load
        self._connect()
        self.subscriptions: dict[str, Held] = {}
        self.views: dict[str, JsonObject] = {}
        self.chunks: dict[tuple[str, str], list[Json]] = {}
        self.first: dict[tuple[str, str], int] = {}
        self.eofs: dict[tuple[str, str], JsonObject] = {}
        self.attempts: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self.has_resumed = self.has_left = False
        self.refetched: set[str] = set()
        self.messages: list[JsonObject] = []
        self.errors: list[JsonObject] = []
        self.loose: set[tuple[str, str]] = set()

    def _connect(self) -> None:
        self._line = Line(self._receive)
        self.outbox = Outbox(self._woken, self.world.hub.limits)
        if self._is_direct:
            self.outbox.line = self._line
        self.subscriber = Subscriber(
            self.world.hub, self.outbox, self._load, self.world.now, is_browser=False
        )
        self.subscriber.authenticated(self._grant, self.world.now, 0.0)

    def _woken(self) -> None:
        self._line.is_free = False

    def reconnect(self) -> None:
        """Lose the connection, and go on with another from where this client is."""
        self._line.is_free = False
        self.subscriber.close()
        self._connect()
        self.has_resumed = True
        for held in self.subscriptions.values():
            if not held.is_done:
                self.send({**held.request, **self._resumption(held)})

    def _resumption(self, held: Held) -> JsonObject:
        run_id = held.request["to"].get("run")
        held.is_live = False
        if not held.has_begun:
            return {}
        if run_id is None:
            place = {"cursor": held.cursor} if held.cursor else {}
            return {**place, "positions": self._positions(held)}
        streams = dict(held.streams)
        for owner, key in self.chunks:
            request = streams.get(key) or streams.get("*")
            if owner == run_id and request:
                next_seq = self.first[owner, key] + len(self.chunks[owner, key])
                streams[key] = {**request, "from": next_seq}
        cursor = f"r1.{EPOCH}.{self.views[run_id]['revision']}"
        return {"cursor": cursor, "streams": streams, "positions": self._positions(held)}

    def _positions(self, held: Held) -> JsonObject:
        positions: JsonObject = {}
        for (run_id, key), chunks in self.chunks.items():
            if key in held.streams or "*" in held.streams:
                next_seq = self.first[run_id, key] + len(chunks)
                positions.setdefault(run_id, {})[key] = next_seq
        return positions

    def send(self, message: JsonObject) -> str | None:
        return self.subscriber.receive(orjson.dumps(message).decode(), self.world.now)

    def subscribe(self, sub: str, to: JsonObject, **options: Json) -> None:
        request: JsonObject = {"type": "subscribe", "sub": sub, "to": to, **options}
        self.subscriptions[sub] = Held(request)
        self.send(request)

    def unsubscribe(self, sub: str) -> None:
        self.subscriptions.pop(sub, None)
        self.has_left = True
        # Another reader of a stream may begin at a place of its own now.
        self.loose.update(self.chunks)
        followed = {self.subscriptions[s].request["to"].get("run") for s in self.subscriptions}
        followed.update(*(held.runs for held in self.subscriptions.values()))
        self.views = {run_id: held for run_id, held in self.views.items() if run_id in followed}
        self.send({"type": "unsubscribe", "sub": sub})

    def turn(self) -> bool:
        """Write one frame, and take it. Return whether there was one."""
        frame = self.outbox.frame()
        if frame:
            self.subscriber.wrote(self.world.now)
        self.subscriber.tick(self.world.now, lambda: "now")
        frame = self.outbox.frame(frame)
        self._receive(joined(frame))
        self._line.is_free = self.outbox.is_idle
        return bool(frame)

    def _receive(self, frame: bytes) -> None:
        for message in orjson.loads(frame):
            self.messages.append(message)
            getattr(self, f"_on_{message['type']}")(message)

    def _on_ready(self, message: JsonObject) -> None:
        assert message["epoch"] == self.world.hub.epoch

    def _on_hb(self, message: JsonObject) -> None: ...

    def _on_pong(self, message: JsonObject) -> None: ...

    def _on_state(self, message: JsonObject) -> None: ...

    def _on_cursor(self, message: JsonObject) -> None:
        held = self.subscriptions.get(message["sub"])
        if held is not None:
            held.cursor = message["cursor"]

    def _on_token_expiring(self, message: JsonObject) -> None: ...

    def _on_error(self, message: JsonObject) -> None:
        self.errors.append(message)
        self.subscriptions.pop(message.get("sub", ""), None)

    def _on_snapshot(self, message: JsonObject) -> None:
        held = self.subscriptions.get(message["sub"])
        for document in message["runs"]:
            if held is not None:
                held.runs.add(document["id"])
                held.has_begun = True
                held.cursor = message.get("cursor", held.cursor)
            self._hold(document)

    def _on_base(self, message: JsonObject) -> None:
        held = self.subscriptions.get(message["sub"])
        if held is not None:
            held.runs.add(message["run"]["id"])
        self.views[message["run"]["id"]] = message["run"]

    def _on_run(self, message: JsonObject) -> None:
        self._hold(message["run"])

    def _hold(self, document: JsonObject) -> None:
        held = self.views.get(document["id"])
        if held is not None and held["revision"] > document["revision"]:
            # It may have been left and entered again, as of a row read before.
            assert self.has_left, "a run went back"
            return
        self.views[document["id"]] = document
        self._show(document)

    def _on_patch(self, message: JsonObject) -> None:
        held = self.views.get(message["run"])
        if held is None:
            self._refetch(message["run"])
            return
        if message["revision"] <= held["revision"]:
            # Another subscription resumes from an earlier place.
            assert self.has_resumed or self.has_left, "a patch goes back"
            return
        assert held["revision"] == message["from"], "a patch does not apply"
        document = {**held, **message["set"], "revision": message["revision"]}
        if message.get("metadata"):
            document["metadata"] = apply(document.get("metadata") or {}, message["metadata"])
        if is_final(document["status"]) and not is_final(held["status"]):
            self._check_ends(message["run"])
        self.views[message["run"]] = {n: v for n, v in document.items() if v is not None}
        self._show(document)

    def _show(self, document: JsonObject) -> None:
        for held in self.subscriptions.values():
            if held.request["to"].get("run") == document["id"] and held.is_told:
                held.revisions.append(document["revision"])

    def _refetch(self, run_id: str) -> None:
        """Ask for a run that was let go, while the server was about to say that it joined."""
        assert self.has_left, "news of a run that was never sent"
        self.refetched.add(run_id)
        self.send({"type": "refetch", "run": run_id})

    def _check_ends(self, run_id: str) -> None:
        """A final state comes after the end of every stream that is read."""
        for held in self.subscriptions.values():
            # A feed that resumes learns of the run anew, final or not.
            runs = set[str]() if self.has_resumed else held.runs
            if held.is_live and run_id in {held.request["to"].get("run"), *runs}:
                for owner, key in self.world.streams:
                    if owner == run_id and (key in held.streams or "*" in held.streams):
                        assert (owner, key) in self.eofs, "final before the end of a stream"

    def _on_joined(self, message: JsonObject) -> None:
        if message["run"] not in self.views:
            self._refetch(message["run"])
        held = self.subscriptions.get(message["sub"])
        if held is not None:
            held.runs.add(message["run"])

    def _on_removed(self, message: JsonObject) -> None:
        held = self.subscriptions.get(message["sub"])
        if held is not None:
            held.runs.discard(message["run"])

    def _on_live(self, message: JsonObject) -> None:
        held = self.subscriptions.get(message["sub"])
        if held is not None:
            held.is_live = held.has_begun = True

    def _on_gap(self, message: JsonObject) -> None:
        held = self.subscriptions.get(message["sub"])
        if held is not None:
            held.gaps.append(message["reason"])
        if "stream" in message:
            name = (message["run"], message["stream"])
            self.first[name], self.chunks[name] = message["next"], []

    def _name(self, message: JsonObject) -> tuple[str, str]:
        return message["run"], message["stream"]

    def _on_chunks(self, message: JsonObject) -> None:
        name = self._name(message)
        self._take(name, message["seq"], message["data"])

    def _on_text(self, message: JsonObject) -> None:
        name = self._name(message)
        stored = self.world.streams[name].chunks[: message["upTo"]]
        bodies = [orjson.loads(chunk.body) for chunk in stored]
        assert message["value"] == "".join(bodies)
        self._take(name, 0, bodies)

    def _take(self, name: tuple[str, str], seq: int, data: Sequence[Json]) -> None:
        assert name not in self.eofs or seq + len(data) <= self.eofs[name]["next"]
        expected = self.first.setdefault(name, seq) + len(self.chunks.get(name, []))
        if seq < self.first[name] or (seq > expected and name in self.loose):
            # Another reader began elsewhere: the server starts over there, for both.
            self.first[name], self.chunks[name] = seq, []
        self.loose.discard(name)
        first, held = self.first[name], self.chunks.setdefault(name, [])
        assert first <= seq <= first + len(held), "a chunk is missing"
        # The server may repeat itself where another reader began lower.
        fresh = data[first + len(held) - seq :]
        held.extend(fresh)

    def _on_attempt(self, message: JsonObject) -> None:
        name = self._name(message)
        self.attempts.setdefault(name, []).append((message["attempt"], message["fromSeq"]))

    def _on_end(self, message: JsonObject) -> None: ...

    def _on_eof(self, message: JsonObject) -> None:
        name = self._name(message)
        next_seq = self.first.get(name, 0) + len(self.chunks.get(name, []))
        assert message["next"] == next_seq or not self.chunks.get(name), "eof before its chunks"
        self.eofs[name] = message

    def _on_done(self, message: JsonObject) -> None:
        held = self.subscriptions.get(message["sub"])
        if held is not None:
            held.is_done = True
            run_id = held.request["to"].get("run")
            assert run_id is None or is_final(self.views[run_id]["status"]), "done before its end"
