"""One attempt at one run: from the call of its function to its verdict, which is given once.

The function runs on the task loop (`async def`) or in a thread (`def`); interruptions come from the
engine's loop. A function that does not end when it is told to is left behind: the verdict is given
without it, and whatever it still writes is refused.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import Context as Variables
from typing import Any, cast

from runwire import _context
from runwire._hooks import Prepared, hooks_for, of_all
from runwire.tasks import AnyTask
from runwire_engine.bridge import Bridge, pending_promise
from runwire_engine.claims import ClaimedRun
from runwire_engine.hook_calls import LoopCalls, OutcomePromise, ThreadCalls
from runwire_engine.life import Around, Life, tell_failure
from runwire_engine.life_in_thread import LifeInThread
from runwire_engine.life_on_loop import LifeOnLoop
from runwire_engine.lifecycle import UNDECIDED
from runwire_engine.runtime import RunRuntime
from runwire_engine.threads import Errand, Threads
from runwire_engine.verdicts import (
    Interruption,
    PayloadError,
    Returned,
    Stopped,
    Verdict,
    failed,
    output_text,
)

logger = logging.getLogger("runwire.worker")


class StopSignal:
    """What a `def` task gets as `signal`: it is set when the run shall stop."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the run shall stop, or for so many seconds; say whether it shall."""
        return self._event.wait(timeout)

    def raise_if_set(self) -> None:
        """Leave the task at this point when the run shall stop."""
        if self._event.is_set():
            raise asyncio.CancelledError("the run was asked to stop")

    def set(self) -> None:
        self._event.set()


class Attempt:
    """The state of one attempt; every method may be called from any thread."""

    def __init__(
        self,
        run: ClaimedRun,
        task: AnyTask,
        runtime: RunRuntime,
        *,
        loop: Bridge,
        threads: Threads,
        settled: Callable[["Attempt", Verdict], None],
    ) -> None:
        """Take the task loop, the threads, and whom to tell the verdict (on any thread)."""
        self.run = run
        self.task = task
        self.runtime = runtime
        self.interruption: Interruption | None = None
        self._loop = loop
        self._threads = threads
        self._settled = settled
        self._lock = threading.Lock()
        self._signal: StopSignal | None = None
        self._started = False
        self._settled_already = False
        # Whether the function, and what belongs to it, has ended.
        self._ended = False
        # Whether what comes of it is decided, so that its time cannot run out any more.
        self._decided = False
        self._function: asyncio.Task[Any] | None = None
        self._errand: Errand | None = None
        # Of a task with hooks.
        self._life: Life | None = None
        self._loop_calls: LoopCalls | None = None
        # The end of the on_cancel hooks, once they were started.
        self._canceling: Future[None] | None = None

    # The function ------------------------------------------------------------------------------

    async def run_on_loop(self) -> None:
        """Call an `async def` function; runs on the task loop, in an asyncio task of its own."""
        self._function = asyncio.current_task()
        if self._function is not None:
            self._function.set_name(self.run.id)  # what the watchdog tells
        _context.enter(self.runtime)
        self.runtime.begin_branches()
        if self._begin():
            self._end(await (self._lived() if self._has_hooks() else self._awaited()))

    def run_in_thread(self, variables: Variables) -> None:
        """Have a `def` function called in a thread, with a copy of the given variables."""
        self._errand = self._threads.submit(lambda: variables.copy().run(self._run_here))

    def _run_here(self) -> None:
        _context.enter(self.runtime)
        if self._begin():
            self._end(self._lived_here() if self._has_hooks() else self._called())

    def _has_hooks(self) -> bool:
        return bool(self.task.hooks or of_all.hooks)

    def _begin(self) -> bool:
        with self._lock:
            self._started = not self._settled_already and self.interruption is None
            stopped = self.interruption if not self._started else None
        if stopped is not None:
            self._settle(Stopped(stopped))
        return self._started

    async def _awaited(self) -> Verdict | None:
        try:
            arguments, named = self._arguments()
            output = await cast(
                Coroutine[Any, Any, object], self.task.function(*arguments, **named)
            )
            await self.runtime.pipes.finish()
            return Returned(output_text(output))
        except BaseException as error:
            self.runtime.pipes.abort()
            return self._failed(error)

    def _called(self) -> Verdict | None:
        try:
            arguments, named = self._arguments()
            output = cast(object, self.task.function(*arguments, **named))
            self.runtime.pipes.finish_blocking()
            return Returned(output_text(output))
        except BaseException as error:
            return self._failed(error)

    def _failed(self, error: BaseException) -> Verdict | None:
        """Return the verdict on an error; None when it may be how the function was stopped."""
        return failed(error) if self.interruption is None else None

    def _arguments(self) -> tuple[tuple[object, ...], dict[str, object]]:
        try:
            payload = self.task.parse_payload(self.run.payload, self.run.payload_type)
        except Exception as error:
            raise PayloadError(error) from error
        offered: dict[str, object] = {"init": None}
        if "ctx" in self.task.parameters:
            offered["ctx"] = self.runtime.ctx
        if "signal" in self.task.parameters:
            offered["signal"] = self._stop_signal()
        return self.task.bind(payload, offered)

    # The function with its hooks ---------------------------------------------------------------

    async def _lived(self) -> Verdict | None:
        self._loop_calls = LoopCalls(self._threads)
        life = self._life = LifeOnLoop(self._around(), self._loop_calls)
        try:
            return await life.live()
        except BaseException as error:
            return self._failed(error)

    def _lived_here(self) -> Verdict | None:
        calls = ThreadCalls()
        life = self._life = LifeInThread(self._around(), calls)
        try:
            return life.live()
        except BaseException as error:
            return self._failed(error)
        finally:
            calls.close()

    def _around(self) -> Around:
        return Around(
            self.run,
            self.task,
            self.runtime,
            signal=self._stop_signal,
            interruption=lambda: self.interruption,
            decide=self._decide,
            cancel=self.start_hook,
        )

    def _decide(self) -> Interruption | None:
        with self._lock:
            self._decided = self.interruption is None
            return self.interruption

    def _stop_signal(self) -> StopSignal:
        with self._lock:
            if self._signal is None:
                self._signal = StopSignal()
                if self.interruption is not None:
                    self._signal.set()
            return self._signal

    # Its end -----------------------------------------------------------------------------------

    def _end(self, verdict: Verdict | None) -> None:
        """Take what the function came to; None where it was stopped before that was decided."""
        if self.runtime.divergence is not None:
            verdict = failed(self.runtime.divergence)  # even if the code has caught it
        with self._lock:
            self._ended = True
            reason = self.interruption
        match reason:
            case None:
                self._settle(verdict or Stopped(Interruption.RELEASE))
            case Interruption.CANCEL:
                self.start_hook().add_done_callback(lambda _: self._settle_canceled())
            case Interruption.RELEASE if verdict is not None:
                self._settle(verdict)  # it finished after all
            case _:
                self._settle(Stopped(reason))

    def _settle(self, verdict: Verdict) -> None:
        with self._lock:
            if self._settled_already:
                return
            self._settled_already = True
        self._settled(self, verdict)

    def _settle_canceled(self) -> None:
        with self._lock:
            hooks_ended = self._canceling is not None and self._canceling.done()
            ready = hooks_ended and (self._ended or not self._started)
        if ready:
            self._settle(Stopped(Interruption.CANCEL))

    @property
    def settled(self) -> bool:
        return self._settled_already

    # Interruptions -----------------------------------------------------------------------------

    def interrupt(self, reason: Interruption) -> bool:
        """Tell the function to stop; False when the attempt is settled or already told so.

        A loss beats every other reason: then the verdict is given at once.
        """
        with self._lock:
            told = self.interruption is not None
            if self._settled_already or (told and reason is not Interruption.LOST):
                return False
            if self._decided and reason is Interruption.TIME_OUT:
                return False
            self.interruption = reason
            if self._signal is not None:
                self._signal.set()
        # Hooks that a cancellation let finish are stopped once the run is lost.
        if self.task.is_async and (not told or self._life is not None):
            self._loop.post(self._cancel_function)
        elif not told:
            # A thread cannot be interrupted, but where it waits it can be woken.
            self.runtime.interrupt()
        if reason is Interruption.LOST:
            self.give_up()
        return True

    def give_up(self) -> None:
        """Give the verdict without waiting for the function any longer."""
        reason = self.interruption
        if reason is None or self._settled_already:
            return
        if self._started and not self._ended and reason is not Interruption.LOST:
            logger.warning(
                "run %s (%s) did not stop (%s); it is left behind",
                self.run.id,
                self.task.id,
                reason.value,
            )
        if self._errand is not None:
            self._threads.abandon(self._errand)
        if self._loop_calls is not None:
            self._loop_calls.abandon()
        self._settle(Stopped(reason))

    def _cancel_function(self) -> None:
        if self._function is None or self._ended:
            return
        # The hooks after the function are let finish, unless nothing of theirs can count.
        undecided = self._life is None or self._life.phase in UNDECIDED
        if undecided or self.interruption is Interruption.LOST:
            self._function.cancel()

    # Waits -------------------------------------------------------------------------------------

    def park(self) -> None:
        """Lend the thread, if there is one, while the function waits."""
        if self._errand is not None:
            self._threads.lend(self._errand)

    def resume(self, run: ClaimedRun) -> None:
        """Go on under the execution with which the run was claimed again."""
        if self._errand is not None:
            self._threads.reclaim(self._errand)
        self.run = run
        self.runtime.resume(run)

    # The on_cancel hooks -----------------------------------------------------------------------

    def start_hook(self) -> "Future[None]":
        """Call the on_cancel hooks, once, if the function was called at all; promise their end."""
        hooks = hooks_for(self.task.hooks, "on_cancel")
        with self._lock:
            if self._canceling is not None:
                return self._canceling
            over = self._canceling = pending_promise()
        over.add_done_callback(lambda _: self._settle_canceled())
        if not hooks or not self._started:
            over.set_result(None)
        elif self.task.is_async:
            self._loop.call(lambda: self._await_hooks(hooks, over))
        else:
            self._threads.submit(lambda: self._call_hooks(hooks, over))
        return over

    async def _await_hooks(self, hooks: tuple[Prepared, ...], over: "Future[None]") -> None:
        _context.enter(self.runtime)
        calls = LoopCalls(self._threads)
        try:
            for hook in hooks:
                try:
                    await calls.call(hook, self._offered())
                except BaseException as error:
                    self._hook_failed(hook, error)
        finally:
            over.set_result(None)

    def _call_hooks(self, hooks: tuple[Prepared, ...], over: "Future[None]") -> None:
        _context.enter(self.runtime)
        calls = ThreadCalls()
        try:
            for hook in hooks:
                try:
                    calls.call(hook, self._offered())
                except BaseException as error:
                    self._hook_failed(hook, error)
        finally:
            calls.close()
            _context.enter(None)
            over.set_result(None)

    def _offered(self) -> dict[str, object]:
        life = self._life
        assert life is not None, "a task without hooks has no on_cancel hook"
        return {**life.offered(), "run_promise": OutcomePromise(life.outcome)}

    def _hook_failed(self, hook: Prepared, error: BaseException) -> None:
        tell_failure(self.runtime, self.task, f"the on_cancel hook {hook.name}", error)
