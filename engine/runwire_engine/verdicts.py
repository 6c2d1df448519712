"""How an attempt ended, and what that makes of its run."""

import inspect
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias, assert_never

from runwire._backoff import next_delay
from runwire.errors import AbortTaskRunError, InvalidValueError, NonDeterministicError
from runwire.tasks import AnyTask
from runwire.values import MAX_OUTPUT_BYTES, encode
from runwire_engine import outcomes
from runwire_engine.claims import ClaimedRun
from runwire_engine.failures import FailureCode, describe, failure

# Beyond it not even catch_error gets another one: what never ends is a mistake.
MAX_ATTEMPTS: Final = 1000


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
    # Seconds until the next attempt, where catch_error has decided that already.
    retry_in: float | None = None


@dataclass(frozen=True)
class Crashed:
    """catch_error raised itself, so that nobody knows what was wanted."""

    error: str


@dataclass(frozen=True)
class Stopped:
    """The attempt was interrupted."""

    reason: Interruption


Verdict: TypeAlias = Returned | Failed | Crashed | Stopped


class PayloadError(Exception):
    """The payload does not fit the task; carries why."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class OutputError(Exception):
    """What the function returned cannot be stored; carries why."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def failed(error: BaseException) -> Failed:
    """Return the verdict on an attempt that raised this."""
    match error:
        case PayloadError(cause=cause):
            return Failed(describe(cause, FailureCode.PAYLOAD_INVALID, stack=False), False)
        case OutputError(cause=InvalidValueError(code="too_large") as cause):
            return Failed(describe(cause, FailureCode.OUTPUT_TOO_LARGE, stack=False), False)
        case OutputError(cause=InvalidValueError() as cause):
            return Failed(describe(cause, FailureCode.OUTPUT_INVALID, stack=False), False)
        case OutputError(cause=cause):
            return Failed(describe(cause, FailureCode.OUTPUT_INVALID), False)
        case AbortTaskRunError():
            return Failed(describe(error, FailureCode.TASK_ABORTED), False)
        case NonDeterministicError():
            return Failed(describe(error, FailureCode.NON_DETERMINISTIC), False)
        case SystemExit() | KeyboardInterrupt():
            return Failed(describe(error, FailureCode.TASK_ERROR), False)
        case _:
            return Failed(describe(error, FailureCode.TASK_ERROR), True)


def output_text(output: object) -> str:
    """Return an output as JSON text. Raises OutputError."""
    try:
        return encode(output, what="output", limit=MAX_OUTPUT_BYTES)
    except Exception as error:
        raise OutputError(error) from error
    finally:
        if inspect.iscoroutine(output):
            output.close()


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
        case Crashed():
            return outcomes.Crashed(run_id, execution, verdict.error)
        case Failed(may_retry=False):
            return outcomes.Failed(run_id, execution, verdict.error)
        case Failed(retry_in=float() as decided):
            return outcomes.Failed(run_id, execution, verdict.error, decided)
        case Failed():
            delay = next_delay(task.retry, run.attempt, random, max_attempts=run.max_attempts)
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
