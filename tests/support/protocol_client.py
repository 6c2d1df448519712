"""A client of the realtime protocol without any I/O, written from the protocol's page alone.

    client = ProtocolClient("c1", {"s": {"to": {"run": "run_…"}, "streams": {"*": {}}}})
    for message in client.requests(): ...         # to a new connection, whichever server it is to
    for answer in client.receive(frame): ...      # of each frame that comes

It knows nothing of Runwire's code and believes nothing: whatever the page does not allow is a
finding in its `log`, which also holds what an application would have seen, for the checker.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from tests.support.history import ClientLog, Fault, FeedLog, Key

JsonObject = dict[str, Any]
_FINAL: Final = frozenset(
    {"COMPLETED", "CANCELED", "FAILED", "CRASHED", "SYSTEM_FAILURE", "EXPIRED", "TIMED_OUT"}
)
# Refusals that say "not now": the subscription is asked for again.
_PASSING: Final = frozenset({"unavailable", "rate_limited"})


@dataclass
class Held:
    """One subscription, as the client knows it."""

    request: JsonObject
    cursor: str | None = None
    # Whether a snapshot has come, so that there is something to resume.
    has_begun: bool = False
    is_live: bool = False
    is_done: bool = False
    # Asked for on the connection that is open now.
    is_asked: bool = False
    # Asked for with a cursor there.
    is_resumed: bool = False
    # The runs of a snapshot of which not all pages have come.
    pages: set[str] | None = None
    # Of a feed: the runs it holds.
    members: set[str] = field(default_factory=set[str])

    @property
    def run_id(self) -> str | None:
        run_id: str | None = self.request["to"].get("run")
        return run_id

    @property
    def wants_every(self) -> bool:
        return bool(self.request["mode"] == "every")

    @property
    def holds_from_creation(self) -> bool:
        """Whether each run that comes is one that is created then, and is told from there on."""
        return self.wants_every and self.request["to"] == {"runs": {}}

    @property
    def streams(self) -> JsonObject:
        streams: JsonObject = self.request.get("streams") or {}
        return streams


class ProtocolClient:
    """Some subscriptions on one connection at a time, resumed on the next."""

    def __init__(
        self,
        name: str,
        subscriptions: Mapping[str, JsonObject],
        *,
        mode: Literal["latest", "every"] = "latest",
        allowed_gaps: Iterable[str] = (),
        existing: Callable[[], Iterable[str]] | None = None,
    ) -> None:
        """Take subscriptions by name, with the fields of `subscribe` but type and sub.

        `mode` is that of those that name none; "every" where one of them does. `existing`: which
        runs there are now; given, all others must be told from revision 1 on.
        """
        self.log = ClientLog(name, mode, restarts={})
        self.epoch: str | None = None
        self.is_stale = False
        # What the server refused, by subscription; such a subscription is over.
        self.errors: list[JsonObject] = []
        self.gaps: list[JsonObject] = []
        # What was sent and received, for whoever looks for the cause of a finding.
        self.journal: deque[tuple[str, JsonObject]] = deque(maxlen=2_000)
        self._allowed_gaps = frozenset(allowed_gaps)
        self.log.allows_gaps = bool(self._allowed_gaps)
        self._held = {sub: Held({"mode": mode, **body}) for sub, body in subscriptions.items()}
        # The next seq of each stream.
        self._next: dict[Key, int] = {}
        self._eofs: dict[Key, int] = {}
        # What another process held of runs, and was told last of each.
        self._remembered: dict[str, JsonObject] = {}
        # The first revision of each run that was told; runs that may have begun before that.
        self._first: dict[str, int] = {}
        self._existing = existing
        self._older: set[str] = set()
        # Runs that are told anew, though another subscription goes on with them.
        self._anew: set[str] = set()
        # Runs that were asked for again, and are not here yet.
        self._awaited: set[str] = set()
        self._handlers: dict[str, Callable[[JsonObject], JsonObject | None]] = {
            "ready": self._ready,
            "snapshot": self._snapshot,
            "base": self._base,
            "live": self._live,
            "joined": self._joined,
            "removed": self._removed,
            "run": self._run,
            "patch": self._patch,
            "chunks": self._chunks,
            "text": self._text,
            "attempt": self._attempt,
            "eof": self._eof,
            "done": self._done,
            "cursor": self._cursor,
            "gap": self._gap,
            "state": self._state,
            "error": self._error,
        }
        for held in self._held.values():
            if held.run_id is not None:
                self.log.follows(held.run_id)

    @property
    def documents(self) -> dict[str, JsonObject]:
        return self.log.documents

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come for any subscription."""
        return all(held.is_done for held in self._held.values())

    @property
    def is_live(self) -> bool:
        return all(held.is_live or held.is_done for held in self._held.values())

    def requests(self) -> list[JsonObject]:
        """Return what to send on a new connection: every subscription, from where it is."""
        self._awaited.clear()
        for held in self._held.values():
            held.is_live, held.pages = False, None
            held.is_asked = not held.is_done
            held.is_resumed = held.cursor is not None
            if held.is_asked and held.run_id is None and held.cursor is None:
                self._begin_anew(held)
        by_mode = sorted(self._held.items(), key=lambda each: not each[1].wants_every)
        asked = [
            {"type": "subscribe", "sub": sub, **held.request, **self._resumption(held)}
            for sub, held in by_mode
            if held.is_asked
        ]
        self.journal.extend((">", message) for message in asked)
        return asked

    def change_process(self) -> None:
        """Go on as another process would: with the cursors, and without the runs that go on."""
        for run_id, document in list(self.documents.items()):
            if document["status"] in _FINAL:
                continue
            del self.documents[run_id]
            told = self._remembered.get(run_id)
            if told is None or told["revision"] < document["revision"]:
                self._remembered[run_id] = document

    def receive(self, frame: Iterable[JsonObject]) -> list[JsonObject]:
        """Take a frame and return what to answer."""
        answers: list[JsonObject] = []
        for message in frame:
            self.journal.append(("<", message))
            handler = self._handlers.get(message["type"])
            answer = handler(message) if handler is not None else None
            if answer is not None:
                answers.append(answer)
        return answers

    def finish(self) -> ClientLog:
        """Note what is missing now that everything has had its time, and return the log."""
        for sub, held in self._held.items():
            name = held.run_id or sub
            if not (held.is_live or held.is_done):
                self.log.found(Fault.NEVER_LIVE, name)
            document = self.documents.get(held.run_id or "")
            if document is not None and document["status"] in _FINAL and not held.is_done:
                self.log.found(Fault.NEVER_DONE, name)
            if held.run_id is None:
                self.log.feeds[sub] = FeedLog(held.request["to"], set(held.members))
        return self.log

    def note_streams(self, streams: Iterable[Key]) -> None:
        """Note streams that there are, so that seeing nothing of one is a fault."""
        for run_id, key in streams:
            for held in self._held.values():
                request = held.streams.get(key) or held.streams.get("*")
                is_from_start = request is not None and request.get("from", "start") in ("start", 0)
                if is_from_start and run_id in {held.run_id, *held.members}:
                    self.log.chunks.setdefault((run_id, key), [])

    def story(self, run_id: str) -> str:
        """Return what was said of a run, and of no run in particular."""
        lines: list[str] = []
        for way, message in self.journal:
            text = json.dumps(message)
            if run_id in text or not re.search("run_[0-9a-z]{8}", text):
                lines.append(f"{way} {text[:300]}")
        return "\n".join(lines)

    # Resuming

    def _resumption(self, held: Held) -> JsonObject:
        if not held.has_begun:
            return {}
        whole: JsonObject = {"whole": True} if self._remembered else {}
        if held.run_id is None:
            return {"cursor": held.cursor, **whole} if held.cursor is not None else {}
        document = self.documents.get(held.run_id) or self._remembered.get(held.run_id)
        if document is None:
            return {}
        streams = dict(held.streams)
        for (run_id, key), next_seq in self._next.items():
            request = streams.get(key) or streams.get("*")
            if run_id == held.run_id and request is not None:
                streams[key] = {**request, "from": next_seq}
        cursor = f"r1.{self.epoch}.{document['revision']}"
        return {"cursor": cursor, "streams": streams, **whole}

    def _begin_anew(self, held: Held) -> None:
        """Forget what a feed held that has given no cursor yet: its snapshot is all there is.

        The page has a client say so in `every`: nothing tells the server from where to go on, also
        where a subscription in `latest` stays with the run.
        """
        members, held.members = held.members, set()
        for run_id in sorted(members):
            self._let_go(run_id)
            is_kept = run_id in self.documents or run_id in self._remembered
            if is_kept and not self._is_each_wanted(run_id):
                self._anew.add(run_id)

    def _ready(self, message: JsonObject) -> None:
        if self.epoch is not None and message["epoch"] != self.epoch:
            # Positions of another history: the gaps that follow say so, too.
            if "epoch_changed" not in self._allowed_gaps:
                self.log.found(Fault.UNEXPECTED_GAP, "*")
        self.epoch = message["epoch"]

    # Runs

    def _snapshot(self, message: JsonObject) -> None:
        held = self._of(message)
        if held is None:
            return
        held.has_begun = True
        if held.pages is None:
            held.pages = set()
        for document in message["runs"]:
            held.pages.add(document["id"])
            held.members.add(document["id"])
            self._hold(document)
        held.cursor = message.get("cursor", held.cursor)
        if not message["more"]:
            gone = held.members - held.pages
            held.members, held.pages = held.pages, None
            for run_id in sorted(gone):
                self._let_go(run_id)

    def _base(self, message: JsonObject) -> None:
        """Take what another process held of a run: the same, and no news."""
        held, document = self._of(message), message["run"]
        remembered = self._remembered.get(document["id"])
        known = remembered or self.documents.get(document["id"])
        if known is None or document["revision"] > known["revision"]:
            self.log.found(Fault.UNKNOWN_RUN, document["id"], number=document["revision"])
        if held is not None and held.run_id is None:
            held.members.add(document["id"])
        self._hold(document)

    def _run(self, message: JsonObject) -> None:
        self._check_ends(message["run"]["id"], message["run"]["status"])
        self._hold(message["run"])

    def _patch(self, message: JsonObject) -> JsonObject | None:
        run_id = message["run"]
        held = self.documents.get(run_id)
        if held is not None and message["revision"] <= held["revision"]:
            return None
        if run_id in self._awaited:
            return None
        if held is None or message["from"] != held["revision"]:
            fault = Fault.UNKNOWN_RUN if held is None else Fault.BAD_PATCH
            self.log.found(fault, run_id, number=message["revision"])
            return {"type": "refetch", "run": run_id}
        document = {**held, **message["set"], "revision": message["revision"]}
        if message.get("metadata"):
            document["metadata"] = folded(document.get("metadata") or {}, message["metadata"])
        document = {name: value for name, value in document.items() if value is not None}
        self._check_ends(run_id, document["status"])
        self._hold(document)
        return None

    def _hold(self, document: JsonObject) -> None:
        run_id = document["id"]
        self._awaited.discard(run_id)
        held, remembered = self.documents.get(run_id), self._remembered.get(run_id)
        if held is not None and held["revision"] >= document["revision"]:
            return
        self.documents[run_id] = document
        told = 0 if remembered is None else remembered["revision"]
        if document["revision"] < told:
            return
        self._remembered.pop(run_id, None)
        self._first.setdefault(run_id, document["revision"])
        if document["revision"] > told:
            if self.log.mode == "every" and not self._is_each_owed(run_id):
                self.log.left(run_id)  # others may skip
            self.log.saw_run(run_id, document["revision"], document["status"])
        elif document != remembered:
            # The same change on top of the same run makes the same.
            self.log.found(Fault.BAD_PATCH, run_id, number=told)

    def _is_each_owed(self, run_id: str) -> bool:
        """Whether the next revision must be the one after what was told last."""
        if run_id in self._anew:
            self._anew.discard(run_id)
            return False
        return self._is_each_wanted(run_id)

    def _is_each_wanted(self, run_id: str) -> bool:
        return any(
            held.wants_every
            and held.has_begun
            and (run_id == held.run_id or run_id in held.members)
            for held in self._held.values()
        )

    def _let_go(self, run_id: str) -> None:
        """Forget a run that left, unless another subscription holds it."""
        if any(run_id == held.run_id or run_id in held.members for held in self._held.values()):
            return
        self.documents.pop(run_id, None)
        self._remembered.pop(run_id, None)
        self.log.left(run_id)

    def _joined(self, message: JsonObject) -> JsonObject | None:
        held, run_id = self._of(message), message["run"]
        if held is not None:
            self._check_beginning(held, run_id)
            held.members.add(run_id)
        if run_id in self.documents:
            return None
        if held is not None and held.is_resumed and self.log.mode == "every":
            # It entered while this client was away, and comes as changes of what it never held.
            self._awaited.add(run_id)
            return {"type": "refetch", "run": run_id}
        self.log.found(Fault.UNKNOWN_RUN, run_id)
        return None

    def _check_beginning(self, held: Held, run_id: str) -> None:
        """A run that is created while a feed is followed begins at revision 1."""
        if self._existing is None or not held.holds_from_creation or run_id in held.members:
            return
        by_name = {each.run_id for each in self._held.values()}
        if run_id not in self._older | by_name and self._first.get(run_id, 1) > 1:
            self.log.found(Fault.MISSING_REVISION, run_id, number=1)

    def _removed(self, message: JsonObject) -> None:
        held = self._of(message)
        if held is not None and message["run"] in held.members:
            held.members.discard(message["run"])
            self._let_go(message["run"])

    def _live(self, message: JsonObject) -> None:
        held = self._of(message)
        if held is not None:
            held.is_live = held.has_begun = True
            if self._existing is not None and not held.is_resumed:
                self._older.update(self._existing())

    def _done(self, message: JsonObject) -> None:
        held = self._of(message)
        if held is None:
            return
        held.is_done = True
        for run_id in [held.run_id] if held.run_id else sorted(held.members):
            if self.documents.get(run_id, {}).get("status") not in _FINAL:
                self.log.found(Fault.EARLY_END, run_id)
            self._check_eofs(held, run_id)

    def _check_ends(self, run_id: str, status: str) -> None:
        """For a run subscription the final state comes after the eof of each stream it reads."""
        before = self.documents.get(run_id, {}).get("status")
        if status in _FINAL and before not in _FINAL:
            for held in self._held.values():
                if held.run_id == run_id and held.is_live:
                    self._check_eofs(held, run_id)

    def _check_eofs(self, held: Held, run_id: str) -> None:
        for key in self.documents.get(run_id, {}).get("realtimeStreams", ()):
            is_read = key in held.streams or "*" in held.streams
            if is_read and (run_id, key) not in self._eofs:
                self.log.found(Fault.EARLY_END, run_id, stream=key)

    # Streams

    def _chunks(self, message: JsonObject) -> None:
        key, seq, data = _name(message), message["seq"], message["data"]
        expected = self._next.get(key)
        if expected is None:
            expected = self._begin(key, seq)
        if seq > expected:
            self.log.found(Fault.LOST_CHUNK, key[0], stream=key[1], number=expected)
        end = seq + len(data)
        if end > self._eofs.get(key, end):
            self.log.found(Fault.EARLY_END, key[0], stream=key[1], number=end)
        for at in range(max(seq, expected), end):
            self.log.saw_chunk(*key, at, data[at - seq])
        self._next[key] = max(expected, end)

    def _begin(self, key: Key, seq: int) -> int:
        """Return where a stream was to begin; one that was not asked from the start begins here."""
        if self._is_from_start(key):
            return 0
        self.log.starts[key] = seq
        self.log.chunks.setdefault(key, [])
        return seq

    def _is_from_start(self, key: Key) -> bool:
        asked = [
            held.streams.get(key[1]) or held.streams.get("*")
            for held in self._held.values()
            if key[0] == held.run_id or key[0] in held.members
        ]
        starts = [request.get("from", "start") for request in asked if request is not None]
        return any(start in ("start", 0) for start in starts)

    def _text(self, message: JsonObject) -> None:
        key, up_to = _name(message), message["upTo"]
        if self._next.get(key, 0) == 0:
            self.log.texts[key] = (up_to, message["value"])
            self.log.chunks.setdefault(key, [])
            self._next[key] = up_to
        elif up_to > self._next[key]:
            self.log.found(Fault.REORDERED_CHUNK, key[0], stream=key[1], number=up_to)

    def _attempt(self, message: JsonObject) -> None:
        key, begin = _name(message), message["fromSeq"]
        if self._next.get(key, begin) == begin and self.log.restarts is not None:
            told = self.log.restarts.setdefault(key, [])
            if begin not in told:
                told.append(begin)

    def _eof(self, message: JsonObject) -> None:
        key, next_seq = _name(message), message["next"]
        self._eofs[key] = next_seq
        expected = self._next.get(key)
        if expected is None and not self._is_from_start(key):
            return
        if (expected or 0) != next_seq:
            self.log.found(Fault.EARLY_END, key[0], stream=key[1], number=next_seq)

    # The connection

    def _cursor(self, message: JsonObject) -> None:
        held = self._of(message)
        if held is not None:
            held.cursor = message["cursor"]

    def _gap(self, message: JsonObject) -> None:
        self.gaps.append(message)
        held = self._of(message)
        if message["reason"] not in self._allowed_gaps:
            subject = message.get("run") or message["sub"]
            self.log.found(Fault.UNEXPECTED_GAP, subject, detail=message["reason"])
        if held is None:
            return
        if "stream" in message:
            self._next[_name(message)] = message["next"]
            return
        held.cursor, held.is_resumed = None, False
        runs = {held.run_id} if held.run_id is not None else set(held.members)
        others = [each for each in self._held.values() if each is not held]
        for run_id in sorted(runs):
            if any(run_id in {each.run_id, *each.members} for each in others):
                continue  # the other's reading of it goes on
            # What is held is told by the snapshot anew, whatever its revision.
            self.documents.pop(run_id, None)
            self._remembered.pop(run_id, None)
            self.log.saw_gap(run_id)
        if message["reason"] == "epoch_changed":
            self._forget_streams(runs)

    def _forget_streams(self, runs: set[str]) -> None:
        for key in [key for key in self._next if key[0] in runs]:
            del self._next[key]
            self._eofs.pop(key, None)
            self.log.chunks.pop(key, None)
            self.log.texts.pop(key, None)
            self.log.starts.pop(key, None)
            if self.log.restarts is not None:
                self.log.restarts.pop(key, None)

    def _state(self, message: JsonObject) -> None:
        self.is_stale = message["state"] == "stale"

    def _error(self, message: JsonObject) -> None:
        self.errors.append(message)
        held = self._held.get(message.get("sub", ""))
        if message["code"] not in _PASSING:
            self.log.found(Fault.REFUSED, message.get("sub") or message["code"])
            if held is not None:
                held.is_done = True

    def _of(self, message: JsonObject) -> Held | None:
        return self._held.get(message["sub"])


def folded(document: JsonObject, operations: Iterable[JsonObject]) -> JsonObject:
    """Apply metadata operations (section 5.1), those of top-level keys, to a document."""
    value = dict(document)
    for operation in operations:
        key: str = operation.get("key", "")
        given: Any = operation.get("value")
        before: Any = value.get(key)
        match operation["type"]:
            case "set":
                value[key] = given
            case "delete":
                value.pop(key, None)
            case "update":
                value = dict(given)
            case "append":
                kept: list[Any] = [] if key not in value else [before]
                value[key] = [*(before if isinstance(before, list) else kept), given]
            case "remove":
                if isinstance(before, list):
                    value[key] = [each for each in before if each != given]  # pyright: ignore[reportUnknownVariableType]
            case "increment":
                is_number = isinstance(before, int | float) and not isinstance(before, bool)
                value[key] = (before if is_number else 0) + given
            case other:
                raise ValueError(other)
    return value


def _name(message: JsonObject) -> Key:
    return message["run"], message["stream"]
