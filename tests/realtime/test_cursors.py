"""Cursors: what is handed out comes back, anything else is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runwire_realtime.cursors import (
    FeedCursor,
    RunCursor,
    feed_cursor,
    parse_cursor,
    run_cursor,
)


def test_a_runs_cursor_comes_back_as_it_was() -> None:
    assert parse_cursor(run_cursor("0123abcd", 17)) == RunCursor("0123abcd", 17)


@given(st.sets(st.integers(10, 10_000), max_size=60), st.integers(1, 10))
def test_a_feeds_cursor_comes_back_as_it_was(ids: set[int], oldest: int) -> None:
    snapshot = f"{oldest}:10001:{','.join(map(str, sorted(ids)))}"
    assert parse_cursor(feed_cursor("ab", snapshot)) == FeedCursor("ab", snapshot)


def test_a_feeds_cursor_with_many_in_progress_starts_before_them_all() -> None:
    ids = ",".join(map(str, range(100, 300)))
    assert parse_cursor(feed_cursor("ab", f"100:400:{ids}")) == FeedCursor("ab", "100:100:")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "r1.ab",
        "r1..5",
        "r1.AB.5",
        "r1.ab.-1",
        "r1.ab.٣",
        "r1.ab.5\n",
        "r2.ab.5",
        "f1.ab.0-0-",
        "f1.ab.5-4-",
        "f1.ab.1-9-3_2",
        "f1.ab.5-9-4",
        "f1.ab.5-9-9",
        "f1.ab.5-9-6_6",
        f"f1.ab.1-{2**63}-",
        f"f1.ab.{2**32}-{2**32 + 5}-",
        "f1.ab.1-2-'; drop table runwire.runs; --",
        "f1." + "a" * 100 + ".1-1-",
    ],
)
def test_what_was_never_handed_out_is_no_cursor(text: str) -> None:
    assert parse_cursor(text) is None


@given(st.text(max_size=60))
def test_no_text_upsets_the_parser(text: str) -> None:
    parse_cursor(text)
