import json
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from runwire._connection import STABLE, Act, Carrier, Phase, backoff
from runwire._items import ChunkItem, CursorItem, EofItem, Item, Request, RunItem
from runwire._progress import Progress, Taken
from runwire._session import Session
from runwire._states import State
from runwire._subscription import MAX_QUEUED, Subscription
from runwire.errors import (
    ApiError,
    InvalidValueError,
    SubscriptionError,
    TooLargeError,
    UnauthorizedError,
    UnreachableError,
)
from runwire.wire import SILENCE, CloseCode, JsonObject, Mode

VECTORS: list[JsonObject] = json.loads(
    (Path(__file__).parent.parent / "wire" / "subscription.json").read_text()
)["vectors"]


def request(to: JsonObject | None = None, **options: Any) -> Request:
    return Request(to=to or {"run": "run_a"}, **options)


def run(revision: int, id: str = "run_a", **fields: Any) -> JsonObject:
    return {
        "id": id,
        "taskIdentifier": "t",
        "status": "EXECUTING",
        "revision": revision,
        "createdAt": "2026-11-23T20:00:00.000Z",
        "updatedAt": "2026-11-23T20:00:00.000Z",
        **fields,
    }


def chunks(seq: int, *data: object, attempt: int = 1) -> JsonObject:
    return {
        "type": "chunks",
        "run": "run_a",
        "stream": "log",
        "seq": seq,
        "data": list(data),
        "attempt": attempt,
    }


@dataclass
class Client:
    """A session with one subscription, a clock, and what the application took."""

    request: Request
    is_refreshable: bool = False
    carrier: Carrier = Carrier.SOCKET
    now: float = 1000.0
    session: Session = field(init=False)
    subscription: Subscription = field(init=False)

    def __post_init__(self) -> None:
        self.session = Session(is_refreshable=self.is_refreshable)
        self.session.connection = replace(self.session.connection, carrier=self.carrier)
        self.subscription = self.session.add(self.request, self.now)

    def open(self) -> None:
        """Come to where the token was shown."""
        due = self.session.connection.deadline
        if self.session.connection.phase is Phase.WAITING and due is not None:
            self.now = due
            self.session.tick(self.now, 0.5)
        self.session.did(Act.HANG_UP)
        if self.session.connection.phase is Phase.TOKEN:
            assert self.order() is Act.FETCH_TOKEN
            self.session.connection = replace(self.session.connection, carrier=self.carrier)
            self.session.token("token", self.now)
        assert self.order() is Act.OPEN
        self.session.opened(self.now)

    def order(self) -> Act | None:
        return self.session.order

    def connect(self, epoch: str = "e1") -> list[JsonObject]:
        self.open()
        auth, *sent = self.sent()
        assert auth == {"type": "auth", "token": "token"}
        self.receive({"type": "ready", "protocol": "runwire.v1", "epoch": epoch, "heartbeat": 15})
        return sent + self.sent()

    def receive(self, *messages: JsonObject) -> bool:
        named = json.loads(json.dumps(messages).replace("$sub", self.subscription.name))
        return self.session.receive(named, self.now, 0.5)

    def start(self, revision: int = 1) -> None:
        self.connect()
        self.receive(snapshot(run(revision)), {"type": "live", "sub": "$sub"})

    def lose(self, code: int = 1006) -> None:
        self.session.lost(code, "", self.now, 0.5)

    def sent(self) -> list[JsonObject]:
        return self.session.outgoing()

    def took(self) -> list[Item]:
        items: list[Item] = []
        while (item := self.subscription.take()) is not None:
            items.append(item)
        return items


def large_request() -> Request:
    return request({"tags": ["x"]}, streams={"k" * 127 + str(n): "start" for n in range(1000)})


def test_what_does_not_fit_into_a_frame_is_refused_here_and_spares_the_others() -> None:
    client = Client(request())
    large = client.session.add(large_request(), client.now)
    assert [message["sub"] for message in client.connect()] == [client.subscription.name]
    assert isinstance(large.error, TooLargeError) and large.state is State.CLOSED
    late = client.session.add(large_request(), client.now)
    assert isinstance(late.error, TooLargeError) and not client.sent()
    assert client.subscription.state is State.SYNCING


def snapshot(*runs: JsonObject, cursor: str = "c1") -> JsonObject:
    return {"type": "snapshot", "sub": "$sub", "runs": list(runs), "cursor": cursor, "more": False}


def request_of(subscribe: JsonObject) -> Request:
    streams: dict[str, JsonObject] | None = subscribe.get("streams")
    fields: list[str] | None = subscribe.get("fields")
    return request(
        subscribe["to"],
        mode=subscribe.get("mode", "latest"),
        fields=None if fields is None else frozenset(fields),
        streams=None if streams is None else {key: one["from"] for key, one in streams.items()},
        progress=Progress(cursor=subscribe.get("cursor")),
    )


def told(item: Item) -> list[JsonObject]:
    match item:
        case RunItem(document, gap):
            state: list[JsonObject] = [{"document": document}]
            return ([{"gap": gap}] if gap else []) + state
        case ChunkItem():
            chunk: JsonObject = {"chunk": item.value, "stream": item.stream, "seq": item.seq}
            if item.is_restart:
                chunk["restart"] = True
            return ([{"gap": item.gap}] if item.gap else []) + [chunk]
        case EofItem():
            return [{"eof": item.stream}]
        case CursorItem():
            return []


def ending(subscription: Subscription) -> list[JsonObject]:
    if subscription.state is not State.CLOSED:
        return []
    match subscription.error:
        case None:
            return [{"done": True}]
        case ApiError() | SubscriptionError() as error:
            return [{"error": error.code}]
        case error:
            raise AssertionError(error)


def check_told(expected: list[JsonObject], actual: list[JsonObject]) -> None:
    wanted = [one for one in expected if "removed" not in one]
    assert len(wanted) == len(actual), actual
    for want, have in zip(wanted, actual, strict=True):
        if "run" not in want:
            assert have == want
            continue
        document = have["document"]
        assert (document["id"], document["revision"]) == (want["run"], want["revision"])
        assert {name: document[name] for name in want.get("has", {})} == want.get("has", {})
        assert not set(want.get("without", [])) & set(document)


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_the_shared_vectors_hold(vector: JsonObject) -> None:
    client = Client(request_of(vector["subscribe"]))
    for step in vector["steps"]:
        sent: list[JsonObject] = []
        seen: list[JsonObject] = []
        broken = False
        if "connected" in step:
            sent += client.connect(step["connected"]["epoch"])
        if "lost" in step:
            client.lose(step["lost"])
        for message in step.get("receive", []):
            broken = client.receive(message)
            seen += [one for item in client.took() for one in told(item)]
        sent += client.sent()
        seen += [one for item in client.took() for one in told(item)]
        seen += ending(client.subscription)
        assert broken == step.get("broken", False)
        if "told" in step:
            check_told(step["told"], seen)
        if "send" in step:
            bare = [{k: v for k, v in message.items() if k != "sub"} for message in sent]
            assert bare == step["send"]
        if "state" in step:
            assert step["state"] == client.subscription.state.value


def test_a_socket_that_was_stable_starts_the_waits_again() -> None:
    client = Client(request())
    client.connect()
    for failures in range(4):
        client.lose()
        assert client.session.connection.deadline == client.now + backoff(failures, 0.5)
        client.connect()
    client.now += STABLE
    client.lose()
    assert client.session.connection.deadline == client.now + backoff(0, 0.5)


def test_a_socket_without_a_word_for_too_long_is_dropped() -> None:
    client = Client(request())
    client.start()
    assert client.session.next_tick() == client.now + SILENCE
    client.now += SILENCE - 1
    client.session.tick(client.now, 0.5)
    client.receive({"type": "hb", "t": "2026-11-23T20:00:00.000Z"})
    client.now += SILENCE - 1
    client.session.tick(client.now, 0.5)
    assert client.session.order is None
    client.now += 1
    client.session.tick(client.now, 0.5)
    assert client.session.order is Act.HANG_UP
    assert client.subscription.visible_state == "waiting"


def test_the_heartbeat_that_the_server_tells_decides_how_long_silence_lasts() -> None:
    client = Client(request())
    client.open()
    client.receive({"type": "ready", "protocol": "runwire.v1", "epoch": "e1", "heartbeat": 2})
    assert client.session.next_tick() == client.now + 5
    client.receive({"type": "hb", "t": "2026-11-23T20:00:00.000Z"})
    assert client.session.next_tick() == client.now + 5


def test_a_server_that_stays_away_past_the_deadline_ends_the_subscription() -> None:
    client = Client(request(deadline=10.0))
    client.start()
    client.now += 1000
    client.receive({"type": "hb", "t": "2026-11-23T20:00:00.000Z"})
    away = client.now
    while client.subscription.state is not State.CLOSED:
        client.lose()
        due = client.session.next_tick()
        assert due is not None and due <= away + 10.0
        client.now = due
        client.session.tick(client.now, 0.5)
    assert client.now == away + 10.0
    assert isinstance(client.subscription.error, UnreachableError)
    assert client.subscription.error.after == 10.0


def test_without_a_deadline_it_tries_for_ever() -> None:
    client = Client(request(deadline=None))
    for _ in range(1000):
        client.lose()
        due = client.session.next_tick()
        assert due is not None
        client.now = due
        client.session.tick(client.now, 0.5)
    assert client.subscription.state is State.AWAY


def test_a_token_refused_once_is_asked_for_again_and_then_it_is_an_error() -> None:
    client = Client(request(), is_refreshable=True)
    client.open()
    client.lose(CloseCode.INVALID_TOKEN)
    assert client.subscription.visible_state == "waiting"
    client.connect()
    client.lose(CloseCode.TOKEN_EXPIRED)
    assert client.subscription.visible_state == "waiting"
    client.open()
    client.lose(CloseCode.INVALID_TOKEN)
    assert client.subscription.visible_state == "waiting"
    client.open()
    client.lose(CloseCode.INVALID_TOKEN)
    assert isinstance(client.subscription.error, UnauthorizedError)


def test_a_fresh_token_is_sent_when_the_old_one_is_about_to_end() -> None:
    client = Client(request(), is_refreshable=True)
    client.start()
    client.receive({"type": "token_expiring", "in": 30.0})
    assert client.session.order is Act.FETCH_TOKEN
    client.session.token("fresh", client.now)
    client.receive({"type": "ready", "protocol": "runwire.v1", "epoch": "e1", "heartbeat": 15})
    assert client.sent() == [{"type": "auth", "token": "fresh"}]
    assert client.subscription.state is State.LIVE


@pytest.mark.parametrize("carrier", Carrier)
def test_a_token_that_is_about_to_end_as_soon_as_it_is_shown_is_no_loop(carrier: Carrier) -> None:
    client = Client(request(), is_refreshable=True, carrier=carrier)
    client.start()
    asked = 0
    for _ in range(100):
        client.now += 0.1
        client.receive({"type": "token_expiring", "in": 5.0})
        if client.order() is Act.FETCH_TOKEN:
            asked += 1
            client.session.token("token", client.now)
            if carrier is Carrier.EVENTS:
                client.connect()
    assert asked == 1
    client.now += 10
    client.receive({"type": "token_expiring", "in": 5.0})
    assert client.order() is Act.FETCH_TOKEN


def test_an_error_that_passes_is_asked_again_without_disturbing_the_socket() -> None:
    client = Client(request(deadline=60.0))
    client.connect()
    client.receive({"type": "error", "sub": "$sub", "code": "unavailable", "message": "later"})
    assert client.session.connection.phase is Phase.READY
    assert client.subscription.state.value == "waiting"
    due = client.session.next_tick()
    assert due is not None
    client.session.tick(due, 0.5)
    assert [message["type"] for message in client.sent()] == ["subscribe"]
    assert client.subscription.state is State.SYNCING


def test_another_epoch_is_told_and_reads_its_streams_from_where_they_began() -> None:
    client = Client(request(streams={"log": "start"}))
    client.start(revision=9)
    client.receive(chunks(0, "a", "b"))
    client.took()
    client.lose()
    [subscribe] = client.connect(epoch="e2")
    assert subscribe["streams"] == {"log": {"from": 0}}
    client.receive(
        {"type": "gap", "sub": "$sub", "reason": "epoch_changed"},
        snapshot(run(2)),
        {"type": "live", "sub": "$sub"},
        chunks(0, "other"),
    )
    state, chunk = (item for item in client.took() if not isinstance(item, CursorItem))
    assert isinstance(state, RunItem) and (state.revision, state.gap) == (2, "epoch_changed")
    assert isinstance(chunk, ChunkItem) and (chunk.value, chunk.gap) == ("other", "epoch_changed")


def test_a_hole_that_is_still_there_on_the_next_socket_is_told_as_a_gap() -> None:
    client = Client(request(streams={"log": "start"}))
    client.start()
    assert client.receive(chunks(2, "c"))
    client.lose(CloseCode.INSUFFICIENT_STATE)
    client.connect()
    client.receive({"type": "live", "sub": "$sub"})
    assert not client.receive(chunks(2, "c"))
    chunk = client.took()[-1]
    assert isinstance(chunk, ChunkItem) and (chunk.seq, chunk.gap) == (2, "retention")


def test_garbage_from_the_server_drops_the_socket_and_nothing_else() -> None:
    garbage: list[Any] = [
        {},
        {"type": "snapshot"},
        {"type": "run", "run": 5},
        {"type": "chunks", "run": "run_a", "stream": "log", "seq": "x", "data": ["a"]},
        {"type": "patch", "run": "run_a", "from": 1, "revision": 2, "set": 5},
        {"type": "error", "code": "gone"},
        "text",
        None,
    ]
    for message in garbage:
        client = Client(request(streams={"log": "start"}))
        client.start()
        assert client.receive(message), message
        assert client.subscription.state is State.LIVE


def test_states_that_were_not_read_yet_give_way_to_newer_ones() -> None:
    client = Client(request())
    client.start(revision=1)
    for revision in range(2, 500):
        client.receive({"type": "run", "run": run(revision)})
    states = [item for item in client.took() if isinstance(item, RunItem)]
    assert [state.revision for state in states] == [499]


def test_a_subscription_that_nobody_reads_is_left_and_taken_up_where_it_stopped() -> None:
    client = Client(request(streams={"log": "start"}))
    client.start()
    client.receive(chunks(0, *range(MAX_QUEUED)))
    assert [message["type"] for message in client.sent()] == ["unsubscribe"]
    client.receive(chunks(MAX_QUEUED, "not yet"))
    values = [item.value for item in client.took() if isinstance(item, ChunkItem)]
    assert values == list(range(MAX_QUEUED))
    client.session.drained(client.subscription, client.now)
    [subscribe] = client.sent()
    assert subscribe["streams"] == {"log": {"from": MAX_QUEUED}}
    # A frame from before the server read this must not pass for a hole.
    assert not client.receive(chunks(MAX_QUEUED + 5, "early"))
    client.receive({"type": "live", "sub": "$sub"}, chunks(MAX_QUEUED, "next"))
    assert [item.value for item in client.took() if isinstance(item, ChunkItem)] == ["next"]


def test_two_subscriptions_share_a_run_and_each_gets_what_it_asked_for() -> None:
    client = Client(request(fields=frozenset({"metadata"})))
    other = client.session.add(request(mode="every", streams={"log": "start"}), client.now)
    client.start()
    client.receive({**snapshot(run(1)), "sub": other.name}, {"type": "live", "sub": other.name})
    client.receive(
        {"type": "patch", "run": "run_a", "from": 1, "revision": 2, "set": {"output": 1}},
        {"type": "patch", "run": "run_a", "from": 2, "revision": 3, "set": {"tags": ["x"]}},
        chunks(0, "a"),
    )
    mine = [item for item in client.took() if not isinstance(item, CursorItem)]
    assert [type(item) for item in mine] == [RunItem]
    theirs: list[Item] = []
    while (item := other.take()) is not None:
        theirs.append(item)
    assert [item.revision for item in theirs if isinstance(item, RunItem)] == [1, 2, 3]
    assert [item.value for item in theirs if isinstance(item, ChunkItem)] == ["a"]


def test_a_reader_behind_another_on_the_same_socket_waits_until_the_server_comes_to_it() -> None:
    client = Client(request(streams={"log": "start"}))
    client.start()
    client.receive(chunks(0, *range(10)))
    late = client.session.add(request(streams={"*": "start"}), client.now)
    client.receive({**snapshot(run(1)), "sub": late.name}, {"type": "live", "sub": late.name})
    assert not client.receive(chunks(10, 10))
    assert not client.receive(chunks(0, *range(11)))
    assert not client.receive(chunks(11, 11))
    for subscription in (client.subscription, late):
        seqs: list[int] = []
        while (item := subscription.take()) is not None:
            seqs += [item.seq] if isinstance(item, ChunkItem) else []
        assert seqs == list(range(12))


def test_a_reader_to_whom_the_server_never_comes_asks_again_and_then_it_is_an_error() -> None:
    client = Client(request(streams={"log": "start"}))
    client.start()
    client.receive(chunks(0, *range(10)))
    late = client.session.add(request(streams={"log": "start"}), client.now)
    client.sent()
    eof = {"type": "eof", "run": "run_a", "stream": "log", "next": 11, "reason": "completed"}
    for _ in range(2):
        assert late.state is not State.CLOSED
        client.receive({"type": "live", "sub": late.name}, chunks(10, 10), eof)
        client.receive({"type": "done", "sub": late.name})
    assert [message["type"] for message in client.sent()] == ["subscribe"]
    assert isinstance(late.error, SubscriptionError) and late.error.code == "gap"


def test_text_comes_as_one_piece_and_only_what_is_new_of_it() -> None:
    client = Client(request(streams={"log": "start"}, as_text=True))
    client.start()
    text = {"type": "text", "run": "run_a", "stream": "log"}
    client.receive({**text, "upTo": 3, "value": "abc"}, chunks(3, "d"))
    client.receive({**text, "upTo": 6, "value": "abcdef"})
    pieces = [(item.seq, item.value) for item in client.took() if isinstance(item, ChunkItem)]
    assert pieces == [(2, "abc"), (3, "d"), (5, "ef")]


def test_a_cursor_that_was_kept_goes_on_in_another_process_without_a_repeat() -> None:
    first = Client(request(streams={"log": "start"}))
    first.start(revision=3)
    first.receive(chunks(0, "a", "b"), {"type": "run", "run": run(4)})
    taken = Taken(Progress())
    for item in first.took():
        match item:
            case CursorItem(cursor):
                taken.cursor(cursor)
            case RunItem():
                taken.run(item.run, item.revision)
            case ChunkItem():
                taken.chunk(item.run, item.stream, item.seq)
            case EofItem():
                pass
    kept = Progress.parse(taken.progress().text())
    second = Client(request(streams={"log": "start"}, progress=kept))
    [subscribe] = second.connect()
    assert subscribe["cursor"] == "c1" and subscribe["streams"] == {"log": {"from": 2}}
    second.receive(
        {"type": "run", "run": run(4)}, {"type": "live", "sub": "$sub"}, chunks(1, "b", "c")
    )
    assert [type(item) for item in second.took()] == [ChunkItem]


def test_a_feed_of_another_process_goes_on_with_runs_it_was_never_told_the_names_of() -> None:
    kept = Progress("f1", {"run_a": 3})
    client = Client(request({"tags": ["x"]}, progress=kept))
    assert client.request.needs_own_socket
    client.connect()
    patch = {"type": "patch", "run": "run_a", "from": 3, "revision": 4, "set": {"output": 1}}
    client.receive({"type": "live", "sub": "$sub"}, patch)
    assert client.sent() == [{"type": "refetch", "run": "run_a"}]
    client.receive({"type": "run", "run": run(4)}, {"type": "run", "run": run(1, "run_b")})
    told = [(item.run, item.revision) for item in client.took() if isinstance(item, RunItem)]
    assert told == [("run_a", 4), ("run_b", 1)]


def test_each_state_is_told_in_another_process_that_is_told_what_the_first_one_held() -> None:
    kept = Progress("f1", {"run_a": 4})
    client = Client(request({"tags": ["x"]}, mode="every", progress=kept))
    [subscribe] = client.connect()
    assert subscribe["cursor"] == "f1" and subscribe["whole"] is True
    client.receive({"type": "base", "sub": "$sub", "run": run(3, metadata={"n": 3})})
    client.receive({"type": "base", "sub": "$sub", "run": run(7, "run_b")})
    client.receive({"type": "live", "sub": "$sub"})
    for number in (4, 5, 6):
        operation = {"type": "increment", "key": "n", "value": 1}
        patch = {"type": "patch", "run": "run_a", "from": number - 1, "revision": number}
        client.receive({**patch, "set": {}, "metadata": [operation]})
    told = [
        (item.revision, item.document["metadata"], item.gap)
        for item in client.took()
        if isinstance(item, RunItem)
    ]
    assert told == [(5, {"n": 5}, None), (6, {"n": 6}, None)]
    assert client.sent() == []
    client.lose()
    [again] = client.connect()
    assert "whole" not in again


@pytest.mark.parametrize(("mode", "gap"), [("every", "overflow"), ("latest", None)])
def test_states_that_another_process_cannot_rebuild_are_told_as_a_gap_in_every(
    mode: Mode, gap: str | None
) -> None:
    kept = Progress("f1", {"run_a": 3})
    client = Client(request({"tags": ["x"]}, mode=mode, progress=kept))
    client.connect()
    patch = {"type": "patch", "run": "run_a", "from": 3, "revision": 4, "set": {"output": 1}}
    client.receive({"type": "live", "sub": "$sub"}, patch)
    client.receive({"type": "run", "run": run(6)})
    patch = {"type": "patch", "run": "run_a", "from": 6, "revision": 7, "set": {"output": 2}}
    client.receive(patch)
    told = [(item.revision, item.gap) for item in client.took() if isinstance(item, RunItem)]
    assert told == ([(6, gap), (7, None)] if mode == "every" else [(7, gap)])


def ready(epoch: str = "e1") -> JsonObject:
    return {"type": "ready", "protocol": "runwire.v1", "epoch": epoch, "heartbeat": 15}


def events_client(**options: Any) -> Client:
    return Client(request(**options), carrier=Carrier.EVENTS, is_refreshable=True)


def test_by_events_what_is_asked_for_anew_is_asked_for_with_everything_else() -> None:
    client = events_client(streams={"log": "start"})
    client.start()
    client.receive(chunks(0, "a", "b"))
    other = client.session.add(request({"tags": ["x"]}), client.now)
    assert other.visible_state == "connecting"
    mine, theirs = client.connect()
    assert (mine["streams"], mine["cursor"]) == ({"log": {"from": 2}}, "c1")
    assert theirs["to"] == {"tags": ["x"]}
    # One that leaves is not listened to any more; the others keep what is open.
    client.session.remove(other, client.now)
    assert client.session.order is None and client.sent() == []


def test_by_events_a_fresh_token_opens_them_anew() -> None:
    client = events_client()
    client.start()
    client.receive({"type": "token_expiring", "in": 30.0})
    assert client.order() is Act.FETCH_TOKEN
    client.session.token("fresh", client.now)
    assert client.order() is Act.HANG_UP
    client.session.did(Act.HANG_UP)
    client.session.opened(client.now)
    assert [message["type"] for message in client.sent()] == ["auth", "subscribe"]


def test_by_events_another_epoch_is_asked_for_again_without_the_positions_of_the_old_one() -> None:
    client = events_client(streams={"log": "start"})
    client.start(revision=9)
    client.receive(chunks(0, "a", "b"))
    client.took()
    client.lose()
    client.carrier = Carrier.EVENTS
    client.open()
    client.sent()
    client.receive(ready("e2"), chunks(2, "of a history that is no more"))
    assert client.took() == []
    [subscribe] = client.connect("e2")
    assert subscribe["streams"] == {"log": {"from": 0}}


def test_by_events_a_run_whose_base_is_missing_is_asked_for_whole() -> None:
    client = events_client()
    client.start(revision=3)
    patch = {"type": "patch", "run": "run_a", "from": 4, "revision": 5, "set": {"output": 1}}
    client.receive(patch)
    [subscribe] = client.connect()
    assert "cursor" not in subscribe
    client.receive(snapshot(run(5)), {"type": "live", "sub": "$sub"})
    assert [item.revision for item in client.took() if isinstance(item, RunItem)] == [5]


def test_by_events_one_that_nobody_reads_is_left_and_taken_up_where_it_stopped() -> None:
    client = events_client(streams={"log": "start"})
    other = client.session.add(request({"tags": ["x"]}), client.now)
    client.start()
    client.receive(chunks(0, *range(MAX_QUEUED)))
    assert client.subscription.visible_state == "paused"
    assert [message["sub"] for message in client.connect()] == [other.name]
    client.took()
    client.session.drained(client.subscription, client.now)
    asked = {message["sub"]: message for message in client.connect()}
    assert asked[client.subscription.name]["streams"] == {"log": {"from": MAX_QUEUED}}


def test_by_events_what_does_not_fit_with_the_others_is_an_error_and_spares_them() -> None:
    client = events_client()
    streams = {f"{'k' * 120}{number}": "start" for number in range(250)}
    large = [client.session.add(request(streams=streams), client.now) for _ in range(40)]
    sent = client.connect()
    assert len(json.dumps(sent, separators=(",", ":"))) <= 1024 * 1024
    refused = [isinstance(each.error, TooLargeError) for each in large]
    assert refused == sorted(refused) and refused.count(False) == len(sent) - 1
    assert client.subscription.state is State.SYNCING


def test_one_that_is_left_because_nobody_reads_is_not_given_up() -> None:
    client = Client(request(streams={"log": "start"}, deadline=10.0))
    client.start()
    client.receive(chunks(0, *range(MAX_QUEUED)))
    client.lose()
    client.connect()
    client.now += 1000
    client.receive({"type": "hb", "t": ""})
    client.session.tick(client.now, 0.5)
    assert client.subscription.is_paused
    client.took()
    client.session.drained(client.subscription, client.now)
    assert [message["type"] for message in client.sent()][-1] == "subscribe"


def test_the_time_that_was_slept_through_is_not_time_the_server_was_away() -> None:
    client = Client(request(deadline=60.0))
    client.start()
    client.lose()
    client.now += 600
    client.session.tick(client.now, 0.5, slept=599.0)
    # And the next try is due at once.
    assert client.subscription.state is State.AWAY
    assert client.session.connection.phase is Phase.TOKEN


@pytest.mark.parametrize("text", ["rw1.", "rw1.!!", "rw1.e30", "rw1.W10"])
def test_a_damaged_cursor_is_an_error(text: str) -> None:
    with pytest.raises(InvalidValueError):
        Progress.parse(text)


@pytest.mark.parametrize("carrier", Carrier)
@pytest.mark.parametrize("seed", range(50))
def test_whatever_the_network_does_each_revision_and_chunk_is_told_once_and_in_order(
    seed: int, carrier: Carrier
) -> None:
    """Cuts, silence, sleep, stale and live, fresh tokens, and an application that is busy."""
    dice = random.Random(seed)
    client = Client(
        request(mode="every", streams={"log": "start"}), is_refreshable=True, carrier=carrier
    )
    seqs: list[int] = []
    revisions: list[int] = []
    stored, revision = 0, 1

    def take() -> None:
        for item in client.took():
            if isinstance(item, ChunkItem):
                seqs.append(item.seq)
            elif isinstance(item, RunItem):
                revisions.append(item.revision)

    client.connect()
    client.receive(snapshot(run(1), cursor="1"), {"type": "live", "sub": "$sub"})
    sent_seq, sent_revision = 0, 1
    for _ in range(200):
        action = dice.random()
        if action < 0.4:
            stored += dice.randint(1, 3)
            frame = chunks(sent_seq, *range(sent_seq, stored))
            sent_seq = stored
            assert not client.receive(frame)
        elif action < 0.7:
            revision += 1
            patch = {"type": "patch", "run": "run_a", "from": sent_revision, "revision": revision}
            assert not client.receive({**patch, "set": {"attempt": revision}})
            sent_revision = revision
        elif action < 0.8:
            client.receive({"type": "cursor", "sub": "$sub", "cursor": str(sent_revision)})
        elif action < 0.85:
            client.receive({"type": "state", "state": dice.choice(["stale", "live"]), "since": ""})
        else:
            end = dice.choice(["cut", "silence", "sleep", "token"])
            if end == "token" and carrier is Carrier.EVENTS:
                client.receive({"type": "token_expiring", "in": 30.0})
                client.session.token("token", client.now)
            elif end in ("silence", "sleep"):
                client.now += SILENCE
                client.session.tick(client.now, 0.5, slept=600.0 if end == "sleep" else 0.0)
            else:
                client.lose(dice.choice([1006, 4001, 4003]))
            [subscribe] = client.connect()
            asked = subscribe["streams"]["log"]["from"]
            sent_seq = 0 if asked == "start" else asked
            sent_revision = int(subscribe["cursor"])
            client.receive({"type": "live", "sub": "$sub"})
            for next in range(sent_revision, revision):
                patch = {"type": "patch", "run": "run_a", "from": next, "revision": next + 1}
                client.receive({**patch, "set": {"attempt": next + 1}})
            sent_revision = revision
        if dice.random() < 0.5:
            take()
    client.receive(chunks(sent_seq, *range(sent_seq, stored)))
    take()
    assert seqs == list(range(stored))
    assert revisions == list(range(1, revision + 1))
