"""One connection's protocol, with the time told by hand."""

import orjson
import pytest

from runwire.wire import CloseCode, ErrorCode, JsonObject
from runwire_realtime.hub import Hub
from runwire_realtime.limits import HubLimits
from runwire_realtime.outbox import Outbox
from runwire_realtime.scope import Grant, parse_scopes
from runwire_realtime.subscriber import Subscriber

KEY = Grant(1, api_key=True)
BEGAN = 1000.0


class Line:
    """A subscriber and what it says."""

    def __init__(self, *, is_browser: bool = False, limits: HubLimits | None = None) -> None:
        self.hub = Hub(limits or HubLimits())
        self.hub.epoch = "e0"
        self.outbox = Outbox(lambda: None, self.hub.limits)
        self.subscriber = Subscriber(
            self.hub, self.outbox, lambda feed: None, BEGAN, is_browser=is_browser
        )

    def send(self, message: JsonObject | str, now: float = BEGAN) -> str | None:
        text = message if isinstance(message, str) else orjson.dumps(message).decode()
        return self.subscriber.receive(text, now)

    def tick(self, now: float) -> None:
        self.subscriber.tick(now, lambda: "now")

    def said(self) -> list[str]:
        return [orjson.loads(message)["type"] for message in self.outbox.frame()]

    @property
    def code(self) -> int | None:
        return None if self.outbox.closing is None else self.outbox.closing[0]


def token(expires_at: float, *scopes: str) -> Grant:
    return Grant(1, scopes=frozenset(parse_scopes(scopes)), expires_at=expires_at, jti="j")


def test_a_token_is_handed_over_to_be_verified() -> None:
    line = Line()
    assert line.send({"type": "auth", "token": "t"}) == "t"
    line.subscriber.authenticated(KEY, BEGAN, 0.0)
    assert line.said() == ["ready"] and len(line.hub.followers) == 1


def test_whoever_does_not_authenticate_is_let_go() -> None:
    line = Line()
    assert line.subscriber.next_tick() == BEGAN + 10
    line.tick(BEGAN + 9.9)
    assert line.code is None
    line.tick(BEGAN + 10)
    assert line.code == CloseCode.AUTH_TIMEOUT


def test_nothing_but_auth_comes_first() -> None:
    line = Line()
    assert line.send({"type": "ping"}) is None
    assert line.said() == ["error"] and line.code == CloseCode.INVALID_TOKEN


def test_a_key_does_not_belong_into_a_browser() -> None:
    line = Line(is_browser=True)
    line.subscriber.authenticated(KEY, BEGAN, 0.0)
    assert line.code == CloseCode.FORBIDDEN and not line.hub.followers


def test_a_token_is_warned_of_once_and_then_ends() -> None:
    line = Line()
    line.subscriber.authenticated(token(500.0), BEGAN, 400.0)
    line.said()
    assert line.subscriber.next_tick() == BEGAN + 15  # the heartbeat
    line.tick(BEGAN + 69)
    line.tick(BEGAN + 70)
    line.tick(BEGAN + 71)
    assert line.said().count("token_expiring") == 1
    line.tick(BEGAN + 100)
    assert line.code == CloseCode.TOKEN_EXPIRED


def test_a_fresh_token_moves_the_end() -> None:
    line = Line()
    line.subscriber.authenticated(token(500.0), BEGAN, 400.0)
    line.subscriber.authenticated(token(900.0), BEGAN + 90, 490.0)
    line.tick(BEGAN + 101)
    assert line.code is None and line.said() == ["ready", "ready"]


def test_a_token_of_another_environment_ends_it() -> None:
    line = Line()
    line.subscriber.authenticated(KEY, BEGAN, 0.0)
    line.subscriber.authenticated(Grant(2, api_key=True), BEGAN, 0.0)
    assert line.code == CloseCode.INVALID_TOKEN


def test_silence_is_broken_by_a_heartbeat() -> None:
    line = Line()
    line.subscriber.authenticated(KEY, BEGAN, 0.0)
    line.said()
    line.subscriber.wrote(BEGAN + 5)
    line.tick(BEGAN + 19.9)
    assert line.said() == []
    line.tick(BEGAN + 20)
    assert line.said() == ["hb"]


def test_a_flood_is_cut_off_and_a_burst_is_not() -> None:
    line = Line(limits=HubLimits(inbound_burst=5, inbound_rate=1))
    line.subscriber.authenticated(KEY, BEGAN, 0.0)
    for _ in range(5):
        line.send({"type": "ping"})
    assert line.code is None
    line.send({"type": "ping"}, BEGAN + 1.5)
    assert line.code is None
    line.send({"type": "ping"}, BEGAN + 1.5)
    assert line.code == CloseCode.RATE_LIMITED


def test_a_run_that_does_not_appear_is_given_up() -> None:
    line = Line()
    line.subscriber.authenticated(KEY, BEGAN, 0.0)
    line.said()
    line.send({"type": "subscribe", "sub": "a", "to": {"run": "run_x"}, "await": 3})
    for topic in line.hub.take_rows():
        line.hub.row_read(topic, None)
    assert line.subscriber.next_tick() == BEGAN + 3
    line.tick(BEGAN + 2.9)
    assert line.said() == []
    line.tick(BEGAN + 3)
    assert line.said() == ["error"] and not line.hub.runs


@pytest.mark.parametrize(
    ("scopes", "to", "code"),
    [
        (["read:tags:a"], {"tags": ["a", "b"]}, None),
        (["read:tags:a"], {"tags": ["b"]}, ErrorCode.FORBIDDEN),
        (["read:tags:a"], {"runs": {}}, ErrorCode.FORBIDDEN),
        (["read:runs"], {"runs": {}}, None),
        (["read:tasks:t"], {"runs": {"task": ["t"]}}, None),
        (["read:tasks:t"], {"runs": {"task": ["t", "u"]}}, ErrorCode.FORBIDDEN),
        (["read:tasks:t"], {"runs": {"task": []}}, ErrorCode.FORBIDDEN),
        (["read:batch:b"], {"batch": "b"}, None),
        (["read:batch:b"], {"batch": "bb"}, ErrorCode.FORBIDDEN),
        (["write:runs"], {"runs": {}}, ErrorCode.FORBIDDEN),
        ([], {"tags": ["a"]}, ErrorCode.FORBIDDEN),
    ],
)
def test_a_feed_is_for_those_whose_scopes_cover_it(
    scopes: list[str], to: JsonObject, code: str | None
) -> None:
    line = Line()
    line.subscriber.authenticated(token(5000.0, *scopes), BEGAN, 0.0)
    line.said()
    line.send({"type": "subscribe", "sub": "a", "to": to})
    answers = [orjson.loads(message) for message in line.outbox.frame()]
    assert [answer["code"] for answer in answers] == ([] if code is None else [code])


def test_a_narrower_token_ends_what_it_does_not_cover() -> None:
    line = Line()
    line.subscriber.authenticated(token(5000.0, "read:tags:a", "read:tags:b"), BEGAN, 0.0)
    for tag in ("a", "b"):
        line.send({"type": "subscribe", "sub": tag, "to": {"tags": [tag]}})
    line.said()
    line.subscriber.authenticated(token(6000.0, "read:tags:b"), BEGAN, 0.0)
    answers = [orjson.loads(message) for message in line.outbox.frame()]
    assert [(a["type"], a.get("sub")) for a in answers] == [("ready", None), ("error", "a")]


def test_a_connection_that_is_sent_away_is_counted_off_once() -> None:
    line = Line(limits=HubLimits(tenant_connections=1))
    line.subscriber.authenticated(KEY, BEGAN, 0.0)
    line.hub.start_over()
    other = Subscriber(
        line.hub, Outbox(lambda: None, line.hub.limits), lambda feed: None, BEGAN, is_browser=False
    )
    other.authenticated(KEY, BEGAN, 0.0)
    line.subscriber.close()
    assert not line.hub.has_room_for(KEY, None)
    other.close()
    assert line.hub.has_room_for(KEY, None)


def test_what_is_refused_after_it_was_left_does_not_end_another_by_its_name() -> None:
    line = Line()
    line.subscriber.authenticated(KEY, BEGAN, 0.0)
    follower = line.subscriber.follower
    assert follower is not None
    line.send({"type": "subscribe", "sub": "a", "to": {"batch": "b"}})
    left = follower.subscriptions["a"]
    line.send({"type": "unsubscribe", "sub": "a"})
    line.send({"type": "subscribe", "sub": "a", "to": {"batch": "c"}})
    line.said()
    # As when the batch was being read meanwhile, and is not kept any more.
    follower.refuse(left, ErrorCode.GONE, "the batch is not kept any more")
    assert line.said() == []
