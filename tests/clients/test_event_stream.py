"""Server-sent events, read out of bytes that come in any pieces."""

import random

import pytest

from runwire._event_stream import MAX_EVENT, EventReader, TooLongError


def read(*pieces: bytes) -> list[bytes]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.feed(piece)]


def test_an_event_is_its_data_and_ends_with_an_empty_line() -> None:
    assert read(b"id: 1\ndata: [1]\n\ndata:[2]\n\ndata: [3]\n") == [b"[1]", b"[2]"]


def test_comments_other_fields_and_events_without_data_are_passed_over() -> None:
    assert read(b": hello\n\nretry: 5\n\nid: 7\n\nevent: x\ndata: a\nbare\n\n") == [b"a"]


def test_several_lines_of_data_are_one() -> None:
    assert read(b"data: a\ndata:\ndata:  b\n\n") == [b"a\n\n b"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_line_ends_in_each_of_three_ways_wherever_it_is_cut(end: bytes) -> None:
    text = b"id: 1\ndata: [1]\n\n: c\ndata: [2]\ndata: [3]\n\n".replace(b"\n", end)
    for seed in range(50):
        dice = random.Random(seed)
        cuts = sorted(dice.sample(range(len(text)), 6))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert read(*pieces) == [b"[1]", b"[2]\n[3]"]


def test_an_event_that_never_ends_is_refused_before_it_fills_the_memory() -> None:
    reader = EventReader()
    with pytest.raises(TooLongError):
        for _ in range(MAX_EVENT // 1024 + 2):
            assert list(reader.feed(b"data: " + b"x" * 1018)) == []
    lines = EventReader()
    with pytest.raises(TooLongError):
        for _ in range(MAX_EVENT // 1024 + 2):
            assert list(lines.feed(b"data: " + b"x" * 1024 + b"\n")) == []
