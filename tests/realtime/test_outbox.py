"""The outbox: bounded, fair, frames of the right size."""

import orjson

from runwire.wire import CloseCode
from runwire_realtime.limits import HubLimits
from runwire_realtime.outbox import Outbox


class Told:
    """A source that says what it is given, a message a turn."""

    def __init__(self, *messages: bytes) -> None:
        self.is_queued = False
        self.messages = list(messages)

    @property
    def has_more(self) -> bool:
        return True

    @property
    def is_underway(self) -> bool:
        return False

    def produce(self, budget: int) -> bytes | None:
        return self.messages.pop(0) if self.messages else None


def small(**limits: int) -> Outbox:
    return Outbox(lambda: None, HubLimits(**limits))


def test_answers_go_before_news() -> None:
    outbox = small()
    outbox.mark(Told(b"1"))
    outbox.say(b"2")
    assert outbox.frame() == [b"2", b"1"]
    assert outbox.frame() == [] and outbox.is_drained


def test_sources_take_turns() -> None:
    outbox = small()
    outbox.mark(Told(b"1", b"2", b"3"))
    outbox.mark(Told(b"7"))
    assert outbox.frame() == [b"1", b"7", b"2", b"3"]


def test_a_frame_is_full_at_its_limit_and_loses_nothing() -> None:
    outbox = small(frame_bytes=11)
    for message in (b"aaaa", b"bbbb", b"cccc", b"d" * 40, b"e"):
        outbox.say(message)
    frames = [outbox.frame() for _ in range(4)]
    assert frames == [[b"aaaa", b"bbbb"], [b"cccc"], [b"d" * 40], [b"e"]]


def test_a_frame_that_was_begun_is_filled_up() -> None:
    outbox = small(frame_bytes=11)
    outbox.say(b"bbbb")
    outbox.say(b"c")
    assert outbox.frame([b"aaaa"]) == [b"aaaa", b"bbbb"]
    assert outbox.frame([b"a" * 9]) == [b"a" * 9]
    assert outbox.frame() == [b"c"]


def test_a_source_that_is_marked_twice_is_asked_once() -> None:
    outbox, source = small(), Told()
    outbox.mark(source)
    outbox.mark(source)
    assert outbox.frame() == [] and outbox.is_drained


def test_answers_that_nobody_takes_end_the_connection() -> None:
    outbox = small(control_bytes=100)
    for _ in range(30):
        outbox.say(b"12345")
    assert outbox.closing is not None and outbox.closing[0] == CloseCode.SLOW


def test_after_the_reason_to_close_only_answers_leave() -> None:
    outbox = small()
    outbox.mark(Told(b"1"))
    outbox.say(b"2")
    outbox.close(4001, "going")
    outbox.close(4400, "later")
    assert outbox.frame() == [b"2"] and outbox.frame() == []
    assert outbox.closing == (4001, "going")


def test_places_for_what_is_read_ahead_are_few_and_passed_on() -> None:
    outbox = small(rows_held=1)
    first, idle, last = Told(), Told(), Told(orjson.dumps(1))
    assert outbox.acquire(first)
    assert not outbox.acquire(idle) and not outbox.acquire(last)
    outbox.release()
    # The one that was offered the place did not need it any more: the next one hears of it.
    assert outbox.frame() == [b"1"]
    assert outbox.free_slots == 1
