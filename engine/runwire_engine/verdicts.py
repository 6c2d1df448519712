"""How an attempt ended, and what that makes of its run."""

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias, assert_never

from runwire.tasks import AnyTask
from runwire_engine import outcomes
from runwire_engine.claims import ClaimedRun
from runwire_engine.failures import FailureCode, failure
from runwire_engine.retries import RetryPolicy, next_delay


class Interruption(Enum):
    """Why an attempt is stopped before its function has ended."""

    CANCEL = "cancel"  # somebody asked for it; the run becomes CANCELED
    TIME_OUT = "time out"  # max_duration passed
    RELEASE = "release"  # the worker stops; another one takes the run, this attempt uncounted
    LOST = "lost"  # another execution holds the run: nothing may be written any more


@dataclass(frozen=True)
class Returned:
    """The function returned; its output as JSON text."""

    output: str


@dataclass(frozen=True)
class Failed:
    """The function raised, or could not be called, or returned what cannot be stored."""

    error: str
    may_retry: bool


@dataclass(frozen=True)
class Stopped:
    """The attempt was interrupted."""

    reason: Interruption


Verdict: TypeAlias = Returned | Failed | Stopped


def outcome_of(
    run: ClaimedRun, task: AnyTask, verdict: Verdict, random: float
) -> outcomes.Outcome | None:
    """Return the outcome to store, or None for a run that another execution holds.

    `random` is uniform in [0, 1) and spreads retries.
    """
    run_id, execution = run.id, run.execution
    match verdict:
        case Returned():
            return outcomes.Completed(run_id, execution, verdict.output)
        case Failed(may_retry=False):
            return outcomes.Failed(run_id, execution, verdict.error)
        case Failed():
            delay = next_delay(_policy(task), run.attempt, random, max_attempts=run.max_attempts)
            return outcomes.Failed(run_id, execution, verdict.error, delay)
        case Stopped():
            return _stopped(run, task, verdict.reason)
        case _:
            assert_never(verdict)


def max_duration(run: ClaimedRun, task: AnyTask) -> float | None:
    """Return the seconds that one attempt may take, if that is bounded."""
    return task.max_duration if run.max_duration is None else run.max_duration


def _stopped(run: ClaimedRun, task: AnyTask, reason: Interruption) -> outcomes.Outcome | None:
    run_id, execution = run.id, run.execution
    match reason:
        case Interruption.CANCEL:
            return outcomes.Canceled(run_id, execution)
        case Interruption.RELEASE:
            return outcomes.Released(run_id, execution)
        case Interruption.TIME_OUT:
            sentence = f"the attempt took longer than max_duration, {max_duration(run, task)} s"
            error = failure("MaxDurationError", sentence, FailureCode.MAX_DURATION)
            return outcomes.TimedOut(run_id, execution, error)
        case Interruption.LOST:
            return None
        case _:
            assert_never(reason)


def _policy(task: AnyTask) -> RetryPolicy:
    given = task.retry
    return RetryPolicy(
        max_attempts=given.max_attempts,
        factor=given.factor,
        min_timeout=given.min_timeout,
        max_timeout=given.max_timeout,
        randomize=given.randomize,
    )
