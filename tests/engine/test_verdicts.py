"""What the verdict on an attempt makes of its run."""

from typing import Any

import orjson
import pytest

from runwire_engine import outcomes
from runwire_engine.claims import ClaimedRun
from runwire_engine.run_row import run_row
from runwire_engine.verdicts import Failed, Interruption, Returned, Stopped, outcome_of
from tests.support.working import defined

RUN: dict[str, Any] = {
    **dict.fromkeys(ClaimedRun._fields),
    "environment_id": 1,
    "id": "run_00000000",
    "execution": 7,
    "attempt": 2,
    "tags": (),
    "stream_keys": (),
    "max_duration": None,
}


def run(**changes: Any) -> ClaimedRun:
    return run_row({**RUN, **changes})


def do() -> None: ...


MADE = defined(
    do,
    retry={"max_attempts": 3, "min_timeout": 2, "factor": 3, "randomize": True},
    max_duration=9,
)


def test_a_return_completes_the_run() -> None:
    assert outcome_of(run(), MADE, Returned("1"), 0.0) == outcomes.Completed("run_00000000", 7, "1")


@pytest.mark.parametrize(
    ("attempt", "max_attempts", "may_retry", "random", "retry_in"),
    [
        (1, None, True, 0.0, 2.0),
        (2, None, True, 0.0, 6.0),
        (2, None, True, 0.5, 9.0),
        (3, None, True, 0.0, None),
        (3, 5, True, 0.0, 18.0),
        (1, 1, True, 0.0, None),
        (1, None, False, 0.0, None),
    ],
)
def test_a_failure_is_retried_by_the_tasks_policy_and_the_runs_own_limit(
    attempt: int, max_attempts: int | None, may_retry: bool, random: float, retry_in: float | None
) -> None:
    outcome = outcome_of(
        run(attempt=attempt, max_attempts=max_attempts), MADE, Failed("{}", may_retry), random
    )
    assert outcome == outcomes.Failed("run_00000000", 7, "{}", retry_in)


def test_interruptions_have_outcomes_of_their_own_but_for_a_lost_run() -> None:
    ended = {reason: outcome_of(run(), MADE, Stopped(reason), 0.0) for reason in Interruption}
    timed_out = ended.pop(Interruption.TIME_OUT)
    assert ended == {
        Interruption.CANCEL: outcomes.Canceled("run_00000000", 7),
        Interruption.RELEASE: outcomes.Released("run_00000000", 7),
        Interruption.LOST: None,
    }
    assert isinstance(timed_out, outcomes.TimedOut)
    error = orjson.loads(timed_out.error)
    assert (error["code"], "9" in error["message"]) == ("MAX_DURATION", True)
