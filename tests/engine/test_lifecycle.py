"""The order of an attempt: every phase, with everything that can become of it."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runwire_engine.lifecycle import (
    NEXT,
    UNDECIDED,
    Course,
    Ending,
    Event,
    OutOfOrderError,
    Phase,
    after,
)

CLOSING = {Phase.CLEANUP, Phase.LEAVE, Phase.OVER}


def walk(*events: Event, is_first: bool = True) -> list[str]:
    """Return the phases of an attempt, and its ending."""
    course = Course(is_first)
    told: list[str] = [course.phase]
    for event in events:
        course = after(course, event)
        told.append(course.phase)
    return [*told, course.ending.value]


DONE, RAISED, REFUSED = Event.DONE, Event.RAISED, Event.REFUSED
IN = ["payload", "middleware", "init"]


def test_a_first_attempt_that_succeeds_goes_through_everything_in_this_order() -> None:
    assert walk(*[DONE] * 11) == [
        "payload",
        "middleware",
        "init",
        "on_start",
        "on_start_attempt",
        "run",
        "output",
        "on_success",
        "on_complete",
        "cleanup",
        "leave",
        "over",
        "succeeded",
    ]


def test_a_later_attempt_has_no_on_start() -> None:
    assert "on_start" not in walk(*[DONE] * 10, is_first=False)


def test_an_error_is_caught_and_the_attempt_fails_or_is_retried() -> None:
    failing = [*[DONE] * 5, RAISED]
    assert walk(*failing, Event.GIVE_UP, *[DONE] * 4)[-8:] == [
        "run",
        "catch_error",
        "on_failure",
        "on_complete",
        "cleanup",
        "leave",
        "over",
        "failed",
    ]
    assert walk(*failing, Event.RETRY, DONE, DONE)[-5:] == [
        "catch_error",
        "cleanup",
        "leave",
        "over",
        "retried",
    ]


def test_an_error_that_ends_the_run_is_not_caught() -> None:
    assert walk(*[DONE] * 5, REFUSED)[-3:] == ["run", "on_failure", "failed"]


def test_an_error_of_catch_error_crashes_the_run_without_on_failure() -> None:
    told = walk(*[DONE] * 5, RAISED, RAISED, DONE, DONE)
    assert told[-5:] == ["catch_error", "cleanup", "leave", "over", "crashed"]


def test_a_payload_that_does_not_fit_reaches_no_hook() -> None:
    for event in (RAISED, REFUSED):
        assert walk(event) == ["payload", "over", "failed"]


def test_an_output_that_cannot_be_stored_fails_the_run_and_is_not_caught() -> None:
    assert walk(*[DONE] * 6, REFUSED)[-3:] == ["output", "on_failure", "failed"]


@pytest.mark.parametrize("how", [DONE, RAISED, REFUSED])
def test_errors_of_the_hooks_of_an_outcome_change_nothing(how: Event) -> None:
    told = walk(*[DONE] * 7, how, how, DONE, DONE)
    assert told[-6:] == ["on_success", "on_complete", "cleanup", "leave", "over", "succeeded"]


def test_an_error_of_cleanup_fails_an_attempt_that_had_succeeded_and_cleanup_is_not_repeated() -> (
    None
):
    told = walk(*[DONE] * 9, RAISED, Event.GIVE_UP, DONE, DONE, DONE)
    assert told[-7:] == [
        "cleanup",
        "catch_error",
        "on_failure",
        "on_complete",
        "leave",
        "over",
        "failed",
    ]


def test_an_error_of_a_middleware_on_the_way_out_fails_an_attempt_that_had_succeeded() -> None:
    told = walk(*[DONE] * 10, RAISED, Event.RETRY)
    assert told[-4:] == ["leave", "catch_error", "over", "retried"]


def test_an_error_of_a_middleware_on_the_way_in_has_nothing_to_clean_up() -> None:
    told = walk(DONE, RAISED, Event.GIVE_UP, DONE, DONE)
    assert told[-6:] == [
        "middleware",
        "catch_error",
        "on_failure",
        "on_complete",
        "over",
        "failed",
    ]


def test_a_canceled_attempt_is_cleaned_up_after_on_cancel() -> None:
    told = walk(*[DONE] * 5, Event.CANCELED, DONE, DONE, DONE)
    assert told[-6:] == ["run", "on_cancel", "cleanup", "leave", "over", "canceled"]


def test_a_stopped_attempt_only_leaves_the_middleware() -> None:
    told = walk(*[DONE] * 5, Event.STOPPED, DONE)
    assert told[-4:] == ["run", "leave", "over", "stopped"]


def allowed(phase: Phase) -> set[Event]:
    """Say in other words than the table what can become of a phase."""
    errors = {DONE, RAISED, REFUSED}
    if phase is Phase.OVER:
        return set()
    if phase is Phase.CATCH_ERROR:
        return {Event.RETRY, Event.GIVE_UP, RAISED, REFUSED, Event.STOPPED}
    if phase in UNDECIDED:
        return errors | {Event.CANCELED, Event.STOPPED}
    return errors | {Event.STOPPED}


@pytest.mark.parametrize(("phase", "event"), list(product(Phase, Event)))
def test_every_phase_has_a_successor_for_what_can_become_of_it_and_refuses_the_rest(
    phase: Phase, event: Event
) -> None:
    inside = phase not in (Phase.PAYLOAD, Phase.MIDDLEWARE)
    course = Course(True, phase, Ending.SUCCEEDED if phase in CLOSING else Ending.OPEN, inside)
    if event not in allowed(phase):
        with pytest.raises(OutOfOrderError):
            after(course, event)
        return
    follows = after(course, event)
    assert follows.phase is not phase
    # What is decided stays decided, but for a success that is spoilt on the way out.
    spoilt = phase in CLOSING and event in (RAISED, REFUSED)
    if course.ending is not Ending.OPEN and not spoilt and event is not Event.STOPPED:
        assert follows.ending is course.ending


def test_the_table_has_every_phase() -> None:
    assert set(NEXT) == set(Phase)


@given(st.booleans(), st.data())
def test_every_walk_ends_decided_and_leaves_what_it_entered_once(
    is_first: bool, data: st.DataObject
) -> None:
    course, seen = Course(is_first), [Phase.PAYLOAD]
    while course.phase is not Phase.OVER:
        course = after(course, data.draw(st.sampled_from(sorted(NEXT[course.phase], key=str))))
        seen.append(course.phase)
        assert len(seen) < 30
    assert course.ending is not Ending.OPEN
    entered = Phase.INIT in seen
    assert seen.count(Phase.LEAVE) == int(entered)
    assert seen.count(Phase.CLEANUP) <= int(entered)
    if entered and course.ending not in (Ending.STOPPED,):
        assert seen.count(Phase.CLEANUP) == 1
    assert seen.count(Phase.RUN) <= 1
    failed = course.ending is Ending.FAILED and Phase.MIDDLEWARE in seen
    assert not failed or Phase.FAILURE in seen
    assert course.ending is not Ending.RETRIED or seen.count(Phase.FAILURE) == 0
    assert replace(course, phase=Phase.OVER) == course
