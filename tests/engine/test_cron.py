"""When ticks come: fields, windows, and the days on which clocks are changed."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runwire.errors import InvalidValueError
from runwire_engine.cron import Cron, Tick, Timetable, parse_cron, parse_window
from runwire_engine.schedules import timezones

EXAMPLES = int(os.environ.get("RUNWIRE_CRON_EXAMPLES", "60"))
MINUTE = timedelta(minutes=1)
# Clocks set forward and back, by an hour, by half of one, by two, in Ramadan, by a whole day.
ZONES = [
    "UTC",
    "America/New_York",
    "Europe/Berlin",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Antarctica/Troll",
    "America/Nuuk",
    "Pacific/Apia",
    "Asia/Kolkata",
]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def ticks(expression: str, timezone: str, after: str, count: int) -> list[str]:
    found = islice(parse_cron(expression, timezone).ticks(at(after)), count)
    return [f"{tick:%Y-%m-%dT%H:%M}" for tick in found]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 */2 * * *", ["2026-01-30T12:00", "2026-01-30T14:00", "2026-01-30T16:00"]),
        ("30 9 * * 1", ["2026-02-02T09:30", "2026-02-09T09:30", "2026-02-16T09:30"]),
        ("0 0 L * *", ["2026-01-31T00:00", "2026-02-28T00:00", "2026-03-31T00:00"]),
        ("0 12 * * 5L", ["2026-01-30T12:00", "2026-02-27T12:00", "2026-03-27T12:00"]),
        ("0 0 29 2 *", ["2028-02-29T00:00", "2032-02-29T00:00", "2036-02-29T00:00"]),
        ("  * *  * * * ", ["2026-01-30T11:01", "2026-01-30T11:02", "2026-01-30T11:03"]),
    ],
)
def test_five_fields_are_read_as_cron_does(expression: str, expected: list[str]) -> None:
    assert ticks(expression, "UTC", "2026-01-30T11:00", 3) == expected


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("* * * * * *", "five fields"),
        ("@daily", "five fields"),
        ("", "five fields"),
        ("61 * * * *", "bad minute"),
        ("* * * * MONDAY", "bad day-of-week"),
        ("0 0 31 2 *", "bad day-of-month"),
        ("* * */20 * 1L", "never comes"),
        ("*/0 * * * *", "bad minute"),
        ("* * 1,,2 * *", "bad day-of-month"),
        ("0 0 * * 1L/2", "cannot be used"),
    ],
)
def test_what_is_no_cron_is_refused_and_named(expression: str, words: str) -> None:
    with pytest.raises(InvalidValueError, match=words) as caught:
        parse_cron(expression, "UTC")
    assert caught.value.code == "cron"


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "\x00", "europe/berlin/x"])
def test_what_is_no_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(InvalidValueError, match="IANA"):
        parse_cron("0 0 * * *", zone)


def test_every_time_zone_that_is_listed_can_be_used() -> None:
    assert timezones()[0] == "UTC" and "Europe/Berlin" in timezones()
    for zone in timezones():
        assert parse_cron("0 3 * * *", zone)


def test_a_time_that_a_change_leaves_out_comes_at_the_end_of_the_gap() -> None:
    # New York, 8 March 2026: from 2:00 EST, which is 7:00 in UTC, to 3:00 EDT.
    new_york = "America/New_York"
    expected = ["2026-03-08T07:00", "2026-03-09T06:30"]
    assert ticks("30 2 * * *", new_york, "2026-03-07T12:00", 2) == expected
    # Three times fall on the end of the gap; it is one tick.
    expected = ["2026-03-08T07:00", "2026-03-08T07:30", "2026-03-09T06:00"]
    assert ticks("0,30 2,3 * * *", new_york, "2026-03-07T12:00", 3) == expected


def test_a_time_that_comes_twice_has_its_tick_the_first_time() -> None:
    # New York, 1 November 2026: from 2:00 EDT, which is 6:00 in UTC, back to 1:00 EST.
    expected = ["2026-11-01T05:30", "2026-11-02T06:30"]
    assert ticks("30 1 * * *", "America/New_York", "2026-10-31T12:00", 2) == expected
    # Also seen from within the hour that comes again.
    assert ticks("30 1 * * *", "America/New_York", "2026-11-01T06:10", 1) == expected[1:]


def test_stars_follow_the_hands_through_a_change() -> None:
    twice = ["2026-11-01T05:00", "2026-11-01T05:30", "2026-11-01T06:00", "2026-11-01T06:30"]
    assert ticks("*/30 1 * * *", "America/New_York", "2026-10-31T12:00", 4) == twice
    # There is no 2:00 on that day.
    left_out = ["2026-03-08T05:00", "2026-03-08T08:00"]
    assert ticks("0 */2 * * *", "America/New_York", "2026-03-08T04:30", 2) == left_out


# Against counting every minute ------------------------------------------------------------------


@cache
def changes(zone: str) -> list[datetime]:
    """Return the minutes at which a zone's clocks are changed, and some at which they are not."""
    place = ZoneInfo(zone)
    found: list[datetime] = []
    day = datetime(2006, 1, 1, tzinfo=UTC)
    while day.year < 2036:
        following = day + timedelta(days=1)
        if day.astimezone(place).utcoffset() != following.astimezone(place).utcoffset():
            minute = day
            while (
                minute.astimezone(place).utcoffset()
                == (minute + MINUTE).astimezone(place).utcoffset()
            ):
                minute += MINUTE
            found.append(minute + MINUTE)
        day = following
    return found or [datetime(2026, 6, 1, tzinfo=UTC)]


def counted(
    minutes: set[int],
    hours: set[int],
    follows: bool,
    zone: ZoneInfo,
    after: datetime,
    end: datetime,
) -> Iterator[datetime]:
    """Yield the ticks until `end` by the rule of the docs, looking at each minute."""
    instant = after.replace(second=0, microsecond=0)
    before = instant.astimezone(zone).replace(tzinfo=None)
    while instant < end:
        instant += MINUTE
        local = instant.astimezone(zone)
        wall = local.replace(tzinfo=None, fold=0)
        is_tick = wall.hour in hours and wall.minute in minutes and (follows or local.fold == 0)
        if not follows:
            left_out = before + MINUTE
            while left_out < wall:
                is_tick |= left_out.hour in hours and left_out.minute in minutes
                left_out += MINUTE
        if is_tick and instant > after:
            yield instant
        before = wall


def values(field: str, size: int) -> set[int]:
    if field.startswith("*"):
        return set(range(0, size, int(field[2:] or "1")))
    return {int(part) for part in field.split(",")}


def a_field(size: int) -> st.SearchStrategy[str]:
    numbers = st.lists(st.integers(0, size - 1), min_size=1, max_size=3)
    listed = numbers.map(lambda some: ",".join(map(str, sorted(set(some)))))
    return st.one_of(st.just("*"), st.integers(2, size // 2).map(lambda n: f"*/{n}"), listed)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    which=st.integers(0, 100),
    seconds=st.integers(-26 * 3600, 6 * 3600),
    minute=a_field(60),
    hour=st.one_of(a_field(24), st.sampled_from(["0", "1", "2", "3", "1,2", "0,2,3"])),
)
@example("Australia/Lord_Howe", 0, -3600, "*/15", "1,2,3")
@example("Pacific/Apia", 3, -3600, "30", "12")
@example("Africa/Casablanca", 5, 1, "30", "2,3")
def test_no_tick_is_lost_or_doubled_when_clocks_are_changed(
    zone: str, which: int, seconds: int, minute: str, hour: str
) -> None:
    found = changes(zone)
    after = found[which % len(found)] + timedelta(seconds=seconds)
    end = (after + timedelta(hours=40)).replace(second=0)
    cron = parse_cron(f"{minute} {hour} * * *", zone)
    follows = minute.startswith("*") or hour.startswith("*")
    expected = list(
        counted(values(minute, 60), values(hour, 24), follows, ZoneInfo(zone), after, end)
    )
    all_of_them = list(_until(cron, after, end))
    assert all_of_them == expected
    # A schedule keeps one tick at a time: asked anew after each, they are the same.
    one_by_one: list[datetime] = []
    now = after
    while (now := next(cron.ticks(now))) <= end and len(one_by_one) < 30:
        one_by_one.append(now)
    assert one_by_one == expected[:30]


@pytest.mark.parametrize("zone", ["America/New_York", "Europe/Berlin", "Asia/Kolkata"])
@pytest.mark.parametrize("expression", ["30 2 * * *", "*/20 * * * *", "0 */2 * * *", "5 1-3 * * *"])
def test_where_clocks_change_by_an_hour_ticks_are_those_of_cronsim(
    zone: str, expression: str
) -> None:
    after = datetime(2026, 1, 1, tzinfo=UTC)
    theirs = (
        tick.astimezone(UTC) for tick in CronSim(expression, after.astimezone(ZoneInfo(zone)))
    )
    assert list(islice(parse_cron(expression, zone).ticks(after), 600)) == list(islice(theirs, 600))


def _until(cron: Cron, after: datetime, end: datetime) -> Iterator[datetime]:
    for tick in cron.ticks(after):
        if tick > end:
            return
        yield tick


# Windows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["30", "1441m", "25h", "101%", "-5m", "5 m", "050%", "", "1d", "1.5h"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(InvalidValueError, match="window"):
        parse_window(text)


@given(
    name=st.text(min_size=1, max_size=20),
    window=st.one_of(
        st.integers(0, 1440).map(lambda n: f"{n}m"), st.integers(0, 100).map(lambda n: f"{n}%")
    ),
    expression=st.sampled_from(["* * * * *", "0 */2 * * *", "30 9 * * 1", "0 0 L * *"]),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_window_makes_runs_due_later_always_by_the_same_and_before_the_next_tick(
    name: str, window: str, expression: str
) -> None:
    cron = parse_cron(expression, "Europe/Berlin")
    table = Timetable(name, cron, parse_window(window))
    after, offsets = at("2026-05-04T10:10"), set[timedelta]()
    times = table.upcoming(after, 4)
    for time, following in zip(times, times[1:], strict=False):
        tick = table.next(after)
        assert tick is not None and tick.at == time
        assert time <= tick.due < following
        assert tick == Timetable(name, cron, parse_window(window)).next(after)
        offsets.add(tick.due - tick.at)
        after = time
    if window.endswith("m") and expression != "* * * * *":
        assert len(offsets) == 1 and offsets.pop() <= timedelta(minutes=int(window[:-1]))


def test_windows_spread_schedules_over_their_whole_length() -> None:
    cron = parse_cron("0 * * * *", "UTC")
    tables = [Timetable(f"sched_{n}", cron, parse_window("50%")) for n in range(200)]
    due = [table.next(at("2026-05-04T10:10")) for table in tables]
    minutes = sorted((tick.due - tick.at).total_seconds() / 60 for tick in due if tick)
    assert minutes[0] < 2 and 28 < minutes[-1] < 30 and len(set(minutes)) > 150


@given(
    expression=st.sampled_from(["* * * * *", "*/7 * * * *", "0 9 * * 1", "0 0 1 1 *"]),
    window=st.sampled_from([None, "30m", "50%", "100%"]),
    minutes=st.integers(0, 3 * 366 * 24 * 60),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_the_newest_tick_is_the_last_that_is_due(
    expression: str, window: str | None, minutes: int
) -> None:
    table = Timetable("sched_x", parse_cron(expression, "Europe/Berlin"), parse_window(window))
    first = table.next(at("2026-01-01T00:00"))
    assert first is not None
    now = first.due + timedelta(minutes=minutes, seconds=minutes % 60)
    newest = table.newest(first, now)
    following = table.next(newest.at)
    assert first.at <= newest.at and newest.due <= now
    assert following is not None and following.due > now


def test_an_expression_is_told_in_words() -> None:
    assert "9" in parse_cron("0 9 * * 1", "UTC").description
    assert Tick(at("2026-01-01T00:00"), at("2026-01-01T00:00")).due
