"""One subscription: what it has been given, and what it asks for to go on. [core]

What the application is handed is exact: a run's revisions only grow, a stream's seq is the next
one, across sockets. What came twice is dropped; what cannot be continued is said (`gap`).
`_session` feeds it, `_states` says in which state it is.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from runwire._connection import Phase
from runwire._items import CursorItem, Item, Request, RunItem
from runwire._positions import Positions
from runwire._states import TRANSITIONS, Event, State
from runwire.errors import RunwireError
from runwire.wire import GapReason, Json, JsonObject

# Fields that a run is never sent without.
NEVER_SKIPPED: Final = frozenset(
    {"id", "taskIdentifier", "status", "revision", "createdAt", "updatedAt"}
)

_STATE_OF_PHASE: Final = {
    Phase.IDLE: "connecting",
    Phase.TOKEN: "connecting",
    Phase.CONNECTING: "connecting",
    Phase.AUTHENTICATING: "authenticating",
    Phase.READY: "connecting",
    Phase.LINGERING: "connecting",
    Phase.WAITING: "waiting",
    Phase.CLOSED: "closed",
}


@dataclass
class _Entry:
    item: Item | None  # None: a newer state of the same run took its place


# Enough for a burst between two steps of a busy application. A subscription that is not read any
# more is left on the server beyond this, and taken up again where it stopped once it is.
MAX_QUEUED: Final = 4096


class Subscription:
    """What was handed out, what waits to be, and how to go on on another socket."""

    def __init__(self, name: str, request: Request, now: float) -> None:
        self.name = name
        self.request = request
        self.state = State.AWAY
        # That of the connection.
        self.phase = Phase.IDLE
        self.error: RunwireError | None = None
        # Since when the server has not served this; None while it does.
        self.away_since: float | None = now
        # When it is asked for again, after an error that passes.
        self.retry_at: float | None = None
        self.failures = 0
        self._asked_again = False
        self.cursor = request.progress.cursor
        # What this goes on from was told to another process, or on a connection that is gone.
        self._holds_nothing = self.cursor is not None
        run = request.to.get("run")
        self.members: set[str] = {run} if isinstance(run, str) else set()
        self._seen: dict[str, int] = dict(request.progress.revisions)
        self._positions = Positions(request)
        self._documents: dict[str, JsonObject] = {}
        self._gap: str | None = None
        self._queue: deque[_Entry] = deque()
        self._waiting = 0  # entries of the queue that hold something
        self._newest: dict[str, _Entry] = {}

    # What the application sees

    def move(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state][event]
        if event is Event.LIVE:
            self._holds_nothing = False

    @property
    def visible_state(self) -> str:
        """The state, and while there is no connection the one that is being opened."""
        return _STATE_OF_PHASE[self.phase] if self.state is State.AWAY else self.state.value

    def take(self) -> Item | None:
        """Return what is next for the application, or None."""
        while self._queue:
            entry = self._queue.popleft()
            if entry.item is None:
                continue
            self._waiting -= 1
            if isinstance(entry.item, RunItem) and self._newest.get(entry.item.run) is entry:
                del self._newest[entry.item.run]
            return entry.item
        return None

    @property
    def is_paused(self) -> bool:
        return self.state is State.PAUSED

    @property
    def has_items(self) -> bool:
        return self._waiting > 0

    @property
    def is_full(self) -> bool:
        return self._waiting >= MAX_QUEUED

    def end(self, error: RunwireError | None) -> None:
        """Close it; what is queued is still handed out, then the error is raised."""
        if self.state is not State.CLOSED:
            self.error = error
            self.move(Event.ENDED)

    def may_ask_again(self) -> bool:
        """Say, once until it is served, that asking anew is worth a try."""
        first, self._asked_again = not self._asked_again, True
        return first

    @property
    def gives_up_at(self) -> float | None:
        """When the server has been away for too long, or None."""
        if self.request.deadline is None or self.away_since is None or self.is_paused:
            return None
        return self.away_since + self.request.deadline

    # What is asked of the server

    def subscribe(self) -> JsonObject:
        """Return the message that begins or goes on with this subscription."""
        request = self.request
        message: JsonObject = {
            "type": "subscribe",
            "sub": self.name,
            "to": request.to,
            "mode": request.mode,
        }
        if request.fields is not None:
            message["fields"] = sorted(request.fields)
        if self.cursor is not None:
            message["cursor"] = self.cursor
            if self._holds_nothing:
                message["whole"] = True
        if request.wait is not None:
            message["await"] = request.wait
        streams = self._positions.requests()
        if streams is not None:
            message["streams"] = streams
        positions = self._positions.held()
        if positions is not None:
            message["positions"] = positions
        return message

    # What the server says

    def begin_anew(self) -> None:
        """Ask for a snapshot next time: where this is in streams, and what was told, is kept."""
        self.cursor = None
        if "run" not in self.request.to:
            self.members.clear()

    def based(self, document: JsonObject) -> None:
        """Take what a run was where this goes on: its news come as changes of that."""
        run, revision = document["id"], document["revision"]
        self.joined(run)
        self._documents[run] = document
        self._seen[run] = max(self._seen.get(run, 0), revision)

    def served(self) -> None:
        """Note that the server is at work for this subscription."""
        self.away_since = None
        self.failures = 0

    def follows(self, run: str) -> bool:
        return run in self.members and self.state not in (State.PAUSED, State.CLOSED)

    def offer(self, document: JsonObject, touched: frozenset[str] | None) -> None:
        """Queue a state of a run unless it was handed out, or holds nothing that was asked for."""
        run, revision = document["id"], document["revision"]
        self._documents[run] = document
        seen = self._seen.get(run, 0)
        if revision <= seen:
            return
        self._seen[run] = revision
        # States between, which a process that holds no base for the patches cannot make.
        is_jump = self.request.mode == "every" and 0 < seen < revision - 1
        if not self.request.runs_wanted or self._is_beside(run, touched):
            return
        gap = self._gap_of(run) or (GapReason.OVERFLOW if is_jump else None)
        item = RunItem(self._narrow(document), gap)
        entry = _Entry(item)
        older = self._newest.get(run)
        if older is not None and self.request.mode == "latest" and isinstance(older.item, RunItem):
            entry.item = replace(item, gap=item.gap or older.item.gap)
            older.item = None
            self._waiting -= 1
        self._newest[run] = entry
        self._put(entry)

    def _put(self, entry: _Entry) -> None:
        self._queue.append(entry)
        self._waiting += 1
        if len(self._queue) > 2 * self._waiting + 64:
            self._queue = deque(entry for entry in self._queue if entry.item is not None)

    def _is_beside(self, run: str, touched: frozenset[str] | None) -> bool:
        fields = self.request.fields
        if touched is None or fields is None or self.request.mode == "every":
            return False
        return not touched & (fields | {"status"}) and self._gap is None

    def _narrow(self, document: JsonObject) -> JsonObject:
        fields = self.request.fields
        if fields is None:
            return document
        return {
            name: value
            for name, value in document.items()
            if name in fields or name in NEVER_SKIPPED
        }

    def _gap_of(self, run: str) -> str | None:
        gap = self._gap
        if gap is not None and "run" in self.request.to:
            self._gap = None
        return gap

    def joined(self, run: str) -> None:
        self.members.add(run)

    def removed(self, run: str) -> None:
        self.members.discard(run)
        self._seen.pop(run, None)
        self._documents.pop(run, None)

    def synced(self) -> None:
        """Note that the snapshot is whole: what comes now continues it."""
        self._gap = None
        self._positions.began()

    def gap(self, reason: str) -> None:
        """Forget what was handed out: a fresh snapshot follows, and it is marked."""
        self._gap = reason
        self._seen.clear()
        self._positions.go_on_anywhere(reason)
        if "run" not in self.request.to:
            self.members.clear()
        self.move(Event.GAP)

    def stream_gap(self, run: str, stream: str, reason: str, next: int | None) -> None:
        """Go on with a stream elsewhere; its next chunk is marked."""
        self._positions.go_on(run, stream, reason, next)

    def restart(self, reason: str) -> None:
        """Begin again where the application began: the server's history is another one."""
        self.gap(reason)
        self._positions.restart(reason)

    def reads(self, stream: str) -> bool:
        return self._positions.wants(stream)

    def chunks(
        self,
        run: str,
        stream: str,
        seq: int,
        data: list[Json],
        attempt: int | None,
        writer: str | None,
        *,
        is_shared: bool,
    ) -> None:
        """Queue the chunks that were not handed out yet. Raises HoleError when one is missing.

        `is_shared`: another subscription on this socket reads the same stream.
        """
        if self._is_early(run, stream, seq, is_shared):
            return
        document = self._documents.get(run)
        for item in self._positions.chunks(run, stream, seq, data, attempt, writer, document):
            self._put(_Entry(item))

    def text(self, run: str, stream: str, up_to: int, value: str) -> None:
        """Queue what is new of the text so far."""
        for item in self._positions.text(run, stream, up_to, value, self._documents.get(run)):
            self._put(_Entry(item))

    def attempt(self, run: str, stream: str, from_seq: int) -> None:
        """Note that another execution of the run writes from `from_seq` on."""
        self._positions.attempt(run, stream, from_seq)

    def eof(self, run: str, stream: str, next: int, reason: str, *, is_shared: bool) -> None:
        """Queue the end of a stream. Raises HoleError when chunks before it are missing."""
        if self._is_early(run, stream, next, is_shared):
            return
        for item in self._positions.eof(run, stream, next, reason):
            self._put(_Entry(item))

    def _is_early(self, run: str, stream: str, seq: int, is_shared: bool) -> bool:
        # The server holds one place per stream and socket, and may not have moved it back yet.
        may_be = is_shared or self.state is State.SYNCING
        return self._positions.is_early(run, stream, seq, may_be=may_be)

    @property
    def has_missed(self) -> bool:
        """Whether it cannot be done: some stream was never sent from where this one is."""
        return self._positions.have_missed

    def moved_to(self, cursor: str) -> None:
        self.cursor = cursor
        self._put(_Entry(CursorItem(cursor)))
