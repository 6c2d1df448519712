"""One mapping from the options of a trigger to the run, for HTTP and for runs alike."""

from datetime import UTC, datetime, timedelta

import pytest

from runwire.errors import InvalidValueError
from runwire.requests import DebounceOption, TriggerOptions
from runwire_engine.debouncing import Debounce
from runwire_engine.new_runs import check_payload, new_run
from runwire_engine.wanted_runs import Parent


def debounce(delay: str | float, max_delay: str | None = None) -> DebounceOption:
    return DebounceOption(key="k", delay=delay, max_delay=max_delay)


TOMORROW = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)


@pytest.mark.parametrize(
    ("delay", "expected"),
    [
        (TOMORROW.isoformat(), TOMORROW),
        (TOMORROW.replace(tzinfo=None).isoformat(), TOMORROW),  # without a zone it is UTC
        (f"{TOMORROW:%Y-%m-%d}", TOMORROW.replace(hour=0, minute=0, second=0)),
        ("1h30m", 5400.0),
        ("90", 90.0),
        (0, 0.0),
        (None, None),
    ],
    ids=["a time", "without a zone", "a day", "1h30m", "seconds", "zero", "none"],
)
def test_a_delay_is_a_time_or_a_span(
    delay: str | float | None, expected: datetime | float | None
) -> None:
    new = new_run("echo", None, TriggerOptions(delay=delay))
    assert expected in (new.delay_until, new.delay)
    assert new.delay_until is None or new.delay is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (TriggerOptions(delay="soon"), "delay"),
        (TriggerOptions(delay="2026-13-45T00:00:00"), "delay"),
        (TriggerOptions(ttl=0), "ttl"),
        (TriggerOptions(tags=["a\x7fb"]), "tags"),
        (TriggerOptions(priority=1e300), "priority"),
        (TriggerOptions(machine="large"), "machine"),
        (TriggerOptions(delay=1, debounce=debounce(1)), "not both"),
        (TriggerOptions(debounce=debounce(0)), "debounce.delay"),
        (TriggerOptions(debounce=debounce("5s", max_delay="5s")), "debounce.maxDelay"),
    ],
)
def test_what_cannot_be_names_its_option(options: TriggerOptions, named: str) -> None:
    with pytest.raises(InvalidValueError, match=named):
        new_run("echo", None, options)


def test_a_debounce_is_leading_unless_told_otherwise() -> None:
    leading = new_run("echo", None, TriggerOptions(debounce=debounce("5s")))
    assert leading.debounce == Debounce("k", 5.0) and leading.delay is None
    option = DebounceOption(key="k", delay=5, mode="trailing", max_delay="1m")
    trailing = new_run("echo", None, TriggerOptions(debounce=option))
    assert trailing.debounce == Debounce("k", 5.0, is_trailing=True, max_delay=60.0)


def test_what_is_known_of_the_caller_is_kept() -> None:
    parent = Parent("run_a", 3)
    new = new_run("echo", "1", TriggerOptions(), parent=parent, batch=("batch_a", 0))
    assert (new.parent, new.batch, new.payload) == (parent, ("batch_a", 0), "1")


@pytest.mark.parametrize(
    ("payload", "kind"),
    [("NaN", "application/json"), ("1", "application/super+json"), ("1", "application/store")],
)
def test_a_payload_is_what_its_type_says(payload: str, kind: str) -> None:
    with pytest.raises(InvalidValueError):
        check_payload(payload, kind)
