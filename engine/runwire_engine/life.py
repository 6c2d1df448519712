"""One attempt with its hooks, in the order of `lifecycle`.

Only what has hooks lives; a task without any is a plain call (see `attempt`). Its two shells
have the same methods: `LifeOnLoop` awaits what `LifeInThread` calls.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, cast

import orjson

from runwire._backoff import next_delay
from runwire._caught import Caught
from runwire._hooks import Completion, Prepared, hooks_for
from runwire.errors import AbortTaskRunError, TaskError
from runwire.tasks import AnyTask, Signal
from runwire_engine.bridge import pending_promise
from runwire_engine.claims import ClaimedRun
from runwire_engine.failures import FailureCode, describe
from runwire_engine.lifecycle import UNDECIDED, Course, Ending, Event, Phase, after
from runwire_engine.runtime import RunRuntime
from runwire_engine.steps import WaitHooks
from runwire_engine.verdicts import (
    MAX_ATTEMPTS,
    Crashed,
    Failed,
    Interruption,
    OutputError,
    PayloadError,
    Returned,
    Verdict,
    failed,
    output_text,
)

logger = logging.getLogger("runwire.worker")

# Whose errors are told and change nothing.
TOLD: Final = frozenset({Phase.SUCCESS, Phase.FAILURE, Phase.COMPLETE})


@dataclass(frozen=True)
class Around:
    """What an attempt lends to its life."""

    run: ClaimedRun
    task: AnyTask
    runtime: RunRuntime
    signal: Callable[[], Signal]
    # Why the attempt is to stop, if it is.
    interruption: Callable[[], Interruption | None]
    # The same, and from then on only a lost run stops it: what comes is decided.
    decide: Callable[[], Interruption | None]
    # Starts the on_cancel hooks, once, and promises their end.
    cancel: Callable[[], "Future[None]"]


class Life:
    """What both shells share: where the attempt is, and what came of it."""

    def __init__(self, around: Around) -> None:
        self._around = around
        self._task = around.task
        self._course = Course(is_first=around.run.attempt == 1)
        if self._hooks("on_wait") or self._hooks("on_resume"):
            around.runtime.wait_hooks = cast(WaitHooks, self)
        self.payload: object = None
        self.init: object = None
        # How the function ends, for those who wait for it.
        self.outcome: Future[object] = pending_promise()
        self._output: object = None
        self._text: str | None = None
        self._error: BaseException | None = None
        self._verdict: Failed | Crashed | None = None
        self._retry_in: float | None = None

    @property
    def phase(self) -> Phase:
        return self._course.phase

    def offered(self) -> dict[str, object]:
        """Return what hooks of every kind may name."""
        around = self._around
        return {
            "payload": self.payload,
            "ctx": around.runtime.ctx,
            "signal": around.signal(),
            "task": self._task.id,
            "init": self.init,
        }

    def _hooks(self, kind: str) -> tuple[Prepared, ...]:
        return hooks_for(self._task.hooks, kind)

    def _apart(self, kind: str) -> AbstractContextManager[None]:
        """Keep what hooks do apart from the steps of the function, for a replay."""
        return self._around.runtime.apart(kind) if self._hooks(kind) else nullcontext()

    def _calls_again(self, phase: Phase) -> bool:
        """Say whether hooks are to be called: on_start once, also when the code is replayed."""
        return phase is not Phase.START or self._around.runtime.begins_anew(phase.value)

    # What a phase is ---------------------------------------------------------------------------

    def _parse(self) -> None:
        run = self._around.run
        try:
            self.payload = self._task.parse_payload(run.payload, run.payload_type)
        except Exception as error:
            raise PayloadError(error) from error

    def _arguments(self) -> tuple[tuple[object, ...], dict[str, object]]:
        return self._task.bind(self.payload, self.offered())

    def _serialise(self) -> None:
        self._text = output_text(self._output)

    def _take_init(self, results: Sequence[object]) -> None:
        """Merge what the init hooks returned; the task's own comes last, and may be anything."""
        own = results[-1] if self._task.hooks.of("init") else None
        merged: dict[str, object] = {}
        for result in results[:-1] if self._task.hooks.of("init") else results:
            if result is not None and not isinstance(result, Mapping):
                raise TaskError(
                    f"an init hook of every task returned a {type(result).__name__}; it is a dict"
                )
            merged.update(cast(Mapping[str, object], result or {}))
        if merged and isinstance(own, Mapping):
            own = {**merged, **cast(Mapping[str, object], own)}
        self.init = (merged or None) if own is None else own

    def _extra(self, phase: Phase) -> Iterator[tuple[str, object]]:
        match phase:
            case Phase.SUCCESS:
                yield "output", self._output
            case Phase.FAILURE:
                yield "error", self._error
            case Phase.COMPLETE:
                ok = self._course.ending is Ending.SUCCEEDED
                yield "result", Completion(ok, self._output if ok else None, self._error)
            case _:
                return

    # catch_error -------------------------------------------------------------------------------

    def _default_delay(self) -> float | None:
        run = self._around.run
        return next_delay(
            self._task.retry, run.attempt, random.random(), max_attempts=run.max_attempts
        )

    def _catching(self, delay: float | None) -> dict[str, object]:
        at = None if delay is None else datetime.now(UTC) + timedelta(seconds=delay)
        return {
            **self.offered(),
            "error": self._error,
            "retry": self._task.retry,
            "retry_delay": delay,
            "retry_at": at,
        }

    def _judge(self, verdict: Caught | None, default: float | None) -> Event:
        """Note what catch_error decided."""
        if verdict is not None and verdict.error is not None:
            self._error, self._verdict = verdict.error, None
        if isinstance(self._error, AbortTaskRunError):
            return Event.GIVE_UP
        self._retry_in = _delay(verdict, default, self._around.run.attempt)
        return Event.GIVE_UP if self._retry_in is None else Event.RETRY

    def _caught_badly(self, error: BaseException) -> Event | None:
        """Note that a catch_error hook raised; None when it only left the error to the others."""
        if error is self._error:
            return None
        if isinstance(error, AbortTaskRunError):
            self._error, self._verdict = error, None
            return Event.GIVE_UP
        if error.__context__ is None:
            error.__context__ = self._error
        self._verdict = Crashed(describe(error, FailureCode.CATCH_ERROR))
        return Event.RAISED

    # How it went -------------------------------------------------------------------------------

    def _went(self, event: Event) -> None:
        """Go on to the next phase."""
        self._course = after(self._course, self._interrupted(event))

    def _interrupted(self, event: Event) -> Event:
        """Return how a phase went, given that somebody may have wanted the attempt to stop."""
        phase, around = self._course.phase, self._around
        if phase not in UNDECIDED:
            lost = around.interruption() is Interruption.LOST
            return Event.STOPPED if lost and phase is not Phase.OVER else event
        ends = event is not Event.DONE or phase is Phase.RUN
        reason = around.decide() if ends else around.interruption()
        match reason:
            case None:
                return event
            case Interruption.RELEASE if phase is Phase.RUN and event is Event.DONE:
                return event  # it finished after all
            case Interruption.CANCEL:
                around.decide()
                return Event.CANCELED
            case _:
                around.decide()
                return Event.STOPPED

    def _raised(self, error: BaseException) -> Event:
        """Note an error that ends the attempt, and return how the phase went."""
        if self._course.ending in (Ending.OPEN, Ending.SUCCEEDED):
            verdict = self._verdict = failed(error)
            self._error = error.cause if isinstance(error, (PayloadError, OutputError)) else error
            return Event.RAISED if verdict.may_retry else Event.REFUSED
        self._tell(self._course.phase, error)
        return Event.RAISED

    def _tell(self, phase: Phase, error: BaseException, hook: Prepared | None = None) -> None:
        what = phase.value if hook is None else f"the {hook.kind} hook {hook.name}"
        tell_failure(self._around.runtime, self._task, what, error)

    def _end_function(self, error: BaseException | None) -> None:
        """Tell those who wait for the function how it ended."""
        if self.outcome.done():
            return
        if error is None:
            self.outcome.set_result(self._output)
        elif self._around.interruption() is not None and isinstance(error, asyncio.CancelledError):
            self.outcome.set_result(None)
        else:
            self.outcome.set_exception(error)

    def verdict(self) -> Verdict | None:
        """Return what the attempt came to; None where it was stopped before that was decided."""
        match self._course.ending:
            case Ending.SUCCEEDED:
                return Returned(cast(str, self._text))
            case Ending.FAILED:
                return Failed(self._told_error(), may_retry=False)
            case Ending.RETRIED:
                return Failed(self._told_error(), may_retry=True, retry_in=self._retry_in)
            case Ending.CRASHED:
                return self._verdict
            case _:
                return None

    def _told_error(self) -> str:
        if self._verdict is not None:
            return self._verdict.error
        assert self._error is not None
        return failed(self._error).error


def tell_failure(runtime: RunRuntime, task: AnyTask, what: str, error: BaseException) -> None:
    """Tell an error that changes nothing: to who runs the worker, and in the log of the run."""
    logger.warning("%s of %s failed in run %s", what, task.id, runtime.run.id, exc_info=error)
    told = orjson.loads(describe(error, FailureCode.TASK_ERROR))
    runtime.log("warn", f"{what} failed: {told['message']}", {"error": told}, "runwire.hooks")


def _delay(verdict: Caught | None, default: float | None, attempt: int) -> float | None:
    """Return the seconds until another attempt, or None for none."""
    if verdict is None or attempt >= MAX_ATTEMPTS:
        return default
    if verdict.skip_retrying:
        return None
    if verdict.retry_at is not None:
        return max(0.0, (verdict.retry_at.astimezone(UTC) - datetime.now(UTC)).total_seconds())
    if verdict.retry_delay is not None:
        return verdict.retry_delay
    if verdict.retry is not None:
        return next_delay(verdict.retry, attempt, random.random())
    return default
