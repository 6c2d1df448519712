"""Executes claimed runs: starts their attempts, stops them, and hands in their outcomes.

Lives on the engine's loop. An attempt is held from its claim until its outcome is committed;
before that, everything it wrote is committed, so that what readers see last is the outcome.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import Context as Variables
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import anyio

from runwire.errors import FencedError, InvalidValueError, NotInRunError
from runwire.tasks import AnyTask
from runwire_engine import outcomes
from runwire_engine.attempt import Attempt
from runwire_engine.bridge import Bridge
from runwire_engine.claims import ClaimedRun
from runwire_engine.errors import DatabaseUnavailableError, DataRefusedError, EngineError
from runwire_engine.failures import FailureCode, describe
from runwire_engine.runtime import RunRuntime
from runwire_engine.surroundings import Surroundings
from runwire_engine.threads import Threads
from runwire_engine.verdicts import (
    Failed,
    Interruption,
    Returned,
    Stopped,
    Verdict,
    max_duration,
    outcome_of,
)

logger = logging.getLogger("runwire.worker")

# How long a function may go on after it was told to stop. The sweep forces a cancel after 35 s.
BUDGETS: Final = {
    Interruption.CANCEL: 30.0,
    Interruption.TIME_OUT: 5.0,
    Interruption.RELEASE: 2.0,
    Interruption.LOST: 0.0,
}
# A canceled function has this long to unwind before on_cancel is called beside it.
HOOK_AFTER: Final = 5.0
# A function whose write was refused has this long to end by itself.
FENCED_AFTER: Final = 0.2


@dataclass
class _Held:
    attempt: Attempt
    timers: list[asyncio.TimerHandle] = field(default_factory=list[asyncio.TimerHandle])
    # Its function has a slot.
    executing: bool = True
    # It is about to give up its slot; whether the database agrees is not known yet.
    parking: bool = False
    # It has given it up: it is in memory only to go on in place.
    parked: bool = False
    # The run as it was claimed again before that was known.
    claimed: ClaimedRun | None = None


class _Holder:
    """What an attempt's runtime tells the executor, and asks it."""

    def __init__(self, executor: "Executor", run_id: str) -> None:
        self._executor = executor
        self._run_id = run_id
        self.held: _Held | None = None

    def fenced(self, error: FencedError) -> None:
        if self._is_held():
            self._executor.fenced(self._run_id, error)

    def begin_parking(self) -> bool:
        return self._is_held() and self._executor.begin_parking(self._run_id)

    def cancel_parking(self) -> None:
        if self._is_held():
            self._executor.cancel_parking(self._run_id)

    def park(self, due_in: float | None) -> None:
        if self._is_held():
            self._executor.park(self._run_id, due_in)

    def _is_held(self) -> bool:
        """Whether it still is this attempt that is held of the run."""
        return self.held is not None and self._executor.holds(self._run_id, self.held)


class Executor:
    """The attempts of one worker id."""

    def __init__(
        self,
        around: Surroundings,
        tasks: Mapping[str, AnyTask],
        *,
        loop: Bridge,
        threads: Threads,
        variables: Variables,
        freed: Callable[[], None],
        due_in: Callable[[float], None],
    ) -> None:
        """Take the task loop; the threads, with the variables that `def` tasks begin with; and whom
        to tell of free slots and of coming retries.
        """
        self._around = around
        self._tasks = tasks
        self._loop = loop
        self._threads = threads
        self._freed = freed
        self._due_in = due_in
        self._variables = variables
        self._held: dict[str, _Held] = {}
        # Of those, the ones whose code only waits here; in order.
        self._parked: dict[str, None] = {}
        self._max_parked = around.engine.settings.parked
        self._closed = False
        self._became_idle = asyncio.Event()
        self._became_idle.set()
        # Attempts whose function runs, and all whose outcome is not committed.
        self.executing = 0

    @property
    def held(self) -> Mapping[str, int]:
        """The runs held that execute, with their executions."""
        return {
            run_id: held.attempt.run.execution
            for run_id, held in tuple(self._held.items())
            if not (held.parking or held.parked)
        }

    @property
    def parked(self) -> Mapping[str, int]:
        """The runs whose code only waits here, with their executions; the oldest first."""
        return {run_id: self._held[run_id].attempt.run.execution for run_id in self._parked}

    @property
    def holding(self) -> int:
        return len(self._held) - len(self._parked)

    def holds(self, run_id: str, held: _Held | None = None) -> bool:
        """Whether a run is held, in whatever way; or this attempt at it."""
        if held is None:
            return run_id in self._held
        return self._held.get(run_id) is held

    def on_loop(self) -> Iterable[str]:
        """Name the runs whose functions run on the task loop."""
        return [
            run_id
            for run_id, held in tuple(self._held.items())
            if held.executing and held.attempt.task.is_async
        ]

    async def idle(self) -> None:
        """Wait until nothing is held."""
        await self._became_idle.wait()

    def start(self, runs: Sequence[ClaimedRun]) -> None:
        """Execute claimed runs."""
        on_loop: list[Attempt] = []
        for run in runs:
            held = self._held.get(run.id)
            if held is not None and _goes_on(held, run):
                self._resume(held, run)
                continue
            attempt = self._hold(run)
            if run.waited:
                self._around.bridge.start(partial(self._replay, attempt))
            elif attempt.task.is_async:
                on_loop.append(attempt)
            else:
                self._start_in_thread(attempt)
        if on_loop:
            self._loop.post(lambda: self._start_on_loop(on_loop))

    async def _replay(self, attempt: Attempt) -> None:
        """Start an attempt whose code may have waited, once it is known what it has done."""
        try:
            await attempt.runtime.load()
        except EngineError as error:
            logger.warning("what %s has done cannot be read: %s", attempt.run.id, error)
            attempt.interrupt(Interruption.RELEASE)
            attempt.give_up()
            return
        if attempt.task.is_async:
            self._loop.post(lambda: self._start_on_loop([attempt]))
        else:
            self._start_in_thread(attempt)

    def _start_in_thread(self, attempt: Attempt) -> None:
        try:
            attempt.run_in_thread(self._variables)
        except RuntimeError as error:
            # The system has no more threads to give: another worker may.
            logger.error("run %s cannot be started: %s", attempt.run.id, error)
            attempt.interrupt(Interruption.RELEASE)
            attempt.give_up()

    def _start_on_loop(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            self._loop.start(attempt.run_on_loop)

    def interrupt(self, run_id: str, reason: Interruption) -> None:
        """Tell one run's function to stop, if the run is held."""
        held = self._held.get(run_id)
        if held is None:
            return
        if held.parked:
            # Nobody waits for an outcome of it: the run itself is in the database alone.
            reason = Interruption.LOST
            self._parked.pop(run_id, None)
        if not held.attempt.interrupt(reason):
            return
        if reason is Interruption.LOST:
            self._abort(held.attempt)
            return
        self._later(held, BUDGETS[reason], held.attempt.give_up)
        if reason is Interruption.CANCEL:
            self._later(held, HOOK_AFTER, held.attempt.start_hook)

    def interrupt_all(self, reason: Interruption) -> None:
        for run_id in tuple(self._held):
            self.interrupt(run_id, reason)

    def unwind_parked(self) -> None:
        """Let go of every run that only waits here, now and from now on."""
        self._max_parked = 0
        self._unwind_beyond(0)

    def look_at_waits(self) -> None:
        """Have attempts that execute beside their waits look whether one is over."""
        for held in tuple(self._held.values()):
            if held.attempt.runtime.has_waits and not held.parked:
                held.attempt.runtime.look()

    def look_at_waits_of(self, run_id: str) -> None:
        held = self._held.get(run_id)
        if held is not None and not held.parked:
            held.attempt.runtime.look()

    def give_up_all(self) -> None:
        """Wait no longer for functions that were told to stop."""
        for held in tuple(self._held.values()):
            held.attempt.give_up()

    def close(self) -> None:
        """Lose every attempt at once: nothing of theirs is written any more."""
        self._closed = True
        self.interrupt_all(Interruption.LOST)

    # -------------------------------------------------------------------------------------------

    def _hold(self, run: ClaimedRun) -> Attempt:
        if run.id in self._held:
            self._replace(self._held[run.id])
        holder = _Holder(self, run.id)
        runtime = RunRuntime(run, self._around, holder)
        task = self._tasks[run.task]
        attempt = Attempt(
            run,
            task,
            runtime,
            loop=self._loop,
            threads=self._threads,
            settled=self._settled,
        )
        held = self._held[run.id] = holder.held = _Held(attempt)
        self._became_idle.clear()
        self.executing += 1
        self._limit(held)
        return attempt

    def _limit(self, held: _Held) -> None:
        """Interrupt an attempt when its active time is up."""
        run = held.attempt.run
        limit = max_duration(run, held.attempt.task)
        if limit is not None:
            left = max(0.0, limit - run.active_ms / 1000)
            self._later(held, left, lambda: self.interrupt(run.id, Interruption.TIME_OUT))

    def _replace(self, held: _Held) -> None:
        """Let go of an attempt whose run was claimed again, by this very worker."""
        held.attempt.interrupt(Interruption.LOST)
        self._abort(held.attempt)
        self._end_execution(held)
        self._parked.pop(held.attempt.run.id, None)

    def _end_execution(self, held: _Held) -> None:
        for timer in held.timers:
            timer.cancel()
        if held.executing:
            held.executing = False
            self.executing -= 1

    # Parking -----------------------------------------------------------------------------------

    def begin_parking(self, run_id: str) -> bool:
        """Note that an attempt is about to give up its slot; False when it shall stop."""
        held = self._held[run_id]
        attempt = held.attempt
        held.parking = held.executing and attempt.interruption is None and not attempt.settled
        return held.parking

    def cancel_parking(self, run_id: str) -> None:
        """Note that it goes on."""
        self._held[run_id].parking = False

    def park(self, run_id: str, due_in: float | None) -> None:
        """Free the slot of an attempt whose run is WAITING."""
        held = self._held[run_id]
        held.parking = False
        if held.attempt.settled or held.attempt.interruption is not None:
            return  # it is on its way out; whoever claims the run replays it
        self._end_execution(held)
        held.timers.clear()
        held.parked = True
        held.attempt.park()
        self._parked[run_id] = None
        claimed, held.claimed = held.claimed, None
        if claimed is not None:
            self._resume(held, claimed)
        else:
            self._unwind_beyond(self._max_parked)
            self._freed()
        if due_in is not None:
            self._due_in(due_in)

    def _resume(self, held: _Held, run: ClaimedRun) -> None:
        """Go on in place with a run that was claimed again."""
        if held.parking:
            held.claimed = run
            return
        self._parked.pop(run.id, None)
        held.parked = False
        held.executing = True
        self.executing += 1
        held.attempt.resume(run)
        self._limit(held)

    def _unwind_beyond(self, limit: int) -> None:
        while len(self._parked) > limit:
            self.interrupt(next(iter(self._parked)), Interruption.LOST)

    def _later(self, held: _Held, seconds: float, work: Callable[[], object]) -> None:
        held.timers.append(self._around.bridge.loop.call_later(seconds, work))

    def fenced(self, run_id: str, error: FencedError) -> None:
        """Give up a run that another execution holds."""
        held = self._held[run_id]
        logger.info("%s", error)
        held.attempt.runtime.abort(error)
        # Not at once: the call that was refused shall raise, not be cancelled.
        self._later(held, FENCED_AFTER, lambda: self.interrupt(run_id, Interruption.LOST))

    def _abort(self, attempt: Attempt) -> None:
        attempt.runtime.abort(
            FencedError(f"this attempt at {attempt.run.id} lost its run", run_id=attempt.run.id)
        )

    def _settled(self, attempt: Attempt, verdict: Verdict) -> None:
        """Take a verdict, on whatever thread it was given."""
        self._around.bridge.post(lambda: self._conclude(attempt, verdict))

    def _conclude(self, attempt: Attempt, verdict: Verdict) -> None:
        held = self._held.get(attempt.run.id)
        if held is None or held.attempt is not attempt:
            return
        self._end_execution(held)
        self._freed()
        if isinstance(verdict, Stopped) and verdict.reason is Interruption.LOST:
            self._drop(attempt)
        elif attempt.runtime.clean:
            attempt.runtime.close(_over(attempt))
            self._hand_in(attempt, verdict)
        else:
            self._around.bridge.start(partial(self._drain, attempt, verdict))

    async def _drain(self, attempt: Attempt, verdict: Verdict) -> None:
        """Commit what the attempt wrote, then hand in its outcome."""
        try:
            await attempt.runtime.drain()
        except Exception as error:
            if isinstance(error, FencedError) and error.run_id == attempt.run.id:
                self._drop(attempt)
                return
            if isinstance(verdict, Returned):
                verdict = _unwritten(error)
        self._hand_in(attempt, verdict)

    def _hand_in(self, attempt: Attempt, verdict: Verdict) -> None:
        if self._closed:
            self._drop(attempt)
            return
        outcome = outcome_of(attempt.run, attempt.task, verdict, random.random())
        if outcome is None:
            self._drop(attempt)
            return
        around = self._around
        try:
            promise = around.engine.outcomes.submit_nowait(around.environment_id, outcome)
        except EngineError as error:  # the engine is closing; the run is released
            logger.warning("the outcome of %s was not taken: %s", attempt.run.id, error)
            self._drop(attempt)
            return
        promise.add_done_callback(partial(self._committed, attempt, verdict))
        if isinstance(outcome, outcomes.Failed) and outcome.retry_in is not None:
            self._due_in(outcome.retry_in)

    def _committed(
        self, attempt: Attempt, verdict: Verdict, promise: "asyncio.Future[outcomes.Finished]"
    ) -> None:
        error = None if promise.cancelled() else promise.exception()
        match error:
            case None:
                self._drop(attempt)
            case FencedError():
                logger.info("the outcome of %s came too late: %s", attempt.run.id, error)
                self._drop(attempt)
            case DatabaseUnavailableError() if not self._closed:
                # Fenced, so that handing it in twice does nothing twice.
                self._around.bridge.start(partial(self._hand_in_later, attempt, verdict))
            case DataRefusedError() if not isinstance(verdict, Failed):
                self._hand_in(
                    attempt, Failed(describe(error, FailureCode.OUTPUT_INVALID, stack=False), False)
                )
            case _:
                logger.error("the outcome of %s cannot be stored: %r", attempt.run.id, error)
                self._drop(attempt)

    async def _hand_in_later(self, attempt: Attempt, verdict: Verdict) -> None:
        await anyio.sleep(1.0)
        self._hand_in(attempt, verdict)

    def _drop(self, attempt: Attempt) -> None:
        held = self._held.get(attempt.run.id)
        if held is not None and held.attempt is attempt:
            del self._held[attempt.run.id]
            self._parked.pop(attempt.run.id, None)
        if not self._held:
            self._became_idle.set()
        self._freed()


def _goes_on(held: _Held, run: ClaimedRun) -> bool:
    """Whether a claimed run is the one whose code waits here, as it was left."""
    before = held.attempt.run
    waits = (held.parked or held.parking) and held.attempt.interruption is None
    return waits and run.execution == before.execution + 1 and run.lineage == before.lineage


def _unwritten(error: Exception) -> Failed:
    """Return the verdict on a function that returned, but whose writes were refused."""
    if isinstance(error, DatabaseUnavailableError):
        return Failed(describe(error, FailureCode.INTERNAL, stack=False), may_retry=True)
    if not isinstance(error, (InvalidValueError, EngineError)):
        logger.error("what a run wrote could not be stored", exc_info=error)
    return Failed(describe(error, FailureCode.TASK_ERROR, stack=False), may_retry=False)


def _over(attempt: Attempt) -> Exception:
    return NotInRunError(f"this attempt at {attempt.run.id} is over")
