"""One attempt at one run: from the call of its function to its verdict, which is given once.

The function runs on the task loop (`async def`) or in a thread (`def`); interruptions come from the
engine's loop. A function that does not end when it is told to is left behind: the verdict is given
without it, and whatever it still writes is refused.
"""

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context as Variables
from typing import Any, cast

from runwire import _context
from runwire.errors import AbortTaskRunError, InvalidValueError
from runwire.tasks import AnyTask
from runwire.values import MAX_OUTPUT_BYTES, encode
from runwire_engine.bridge import Bridge
from runwire_engine.claims import ClaimedRun
from runwire_engine.failures import FailureCode, describe
from runwire_engine.runtime import RunRuntime
from runwire_engine.threads import Errand, Threads
from runwire_engine.verdicts import Failed, Interruption, Returned, Stopped, Verdict

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
        self._payload: object = None
        self._started = False
        self._settled_already = False
        # What the function ended with; None while it runs.
        self._result: Returned | Failed | None = None
        self._function: asyncio.Task[Any] | None = None
        self._errand: Errand | None = None
        # None: not started; False: runs; True: has ended, or there is none.
        self._hook_ended: bool | None = True if task.cancel_hook is None else None

    # The function ------------------------------------------------------------------------------

    async def run_on_loop(self) -> None:
        """Call an `async def` function; runs on the task loop, in an asyncio task of its own."""
        self._function = asyncio.current_task()
        if self._function is not None:
            self._function.set_name(self.run.id)  # what the watchdog tells
        _context.enter(self.runtime)
        self.runtime.begin_branches()
        if self._begin():
            self._end(await self._awaited())

    def run_in_thread(self, variables: Variables) -> None:
        """Have a `def` function called in a thread, with a copy of the given variables."""
        self._errand = self._threads.submit(lambda: variables.copy().run(self._run_here))

    def _run_here(self) -> None:
        _context.enter(self.runtime)
        if self._begin():
            self._end(self._called())

    def _begin(self) -> bool:
        with self._lock:
            self._started = not self._settled_already and self.interruption is None
            stopped = self.interruption if not self._started else None
        if stopped is not None:
            self._settle(Stopped(stopped))
        return self._started

    async def _awaited(self) -> Returned | Failed:
        try:
            arguments, named = self._arguments()
            output = await cast(
                Coroutine[Any, Any, object], self.task.function(*arguments, **named)
            )
            await self.runtime.pipes.finish()
        except BaseException as error:
            self.runtime.pipes.abort()
            return _failed(error)
        return _returned(output)

    def _called(self) -> Returned | Failed:
        try:
            arguments, named = self._arguments()
            output = cast(object, self.task.function(*arguments, **named))
            self.runtime.pipes.finish_blocking()
        except BaseException as error:
            return _failed(error)
        return _returned(output)

    def _arguments(self) -> tuple[tuple[object, ...], dict[str, object]]:
        try:
            self._payload = self.task.parse_payload(self.run.payload, self.run.payload_type)
        except Exception as error:
            raise _PayloadError(error) from error
        offered: dict[str, object] = {}
        if "ctx" in self.task.parameters:
            offered["ctx"] = self.runtime.ctx
        if "signal" in self.task.parameters:
            offered["signal"] = self._stop_signal()
        return self.task.bind(self._payload, offered)

    def _stop_signal(self) -> StopSignal:
        with self._lock:
            if self._signal is None:
                self._signal = StopSignal()
                if self.interruption is not None:
                    self._signal.set()
            return self._signal

    # Its end -----------------------------------------------------------------------------------

    def _end(self, result: Returned | Failed) -> None:
        with self._lock:
            self._result = result
            reason = self.interruption
        match reason:
            case None:
                self._settle(result)
            case Interruption.CANCEL:
                self.start_hook()
                self._settle_canceled()
            case Interruption.RELEASE if isinstance(result, Returned):
                self._settle(result)  # it finished after all
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
            ready = self._hook_ended is True and (self._result is not None or not self._started)
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
            self.interruption = reason
            if self._signal is not None:
                self._signal.set()
        if self.task.is_async and not told:
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
        if self._started and self._result is None and reason is not Interruption.LOST:
            logger.warning(
                "run %s (%s) did not stop (%s); it is left behind",
                self.run.id,
                self.task.id,
                reason.value,
            )
        if self._errand is not None:
            self._threads.abandon(self._errand)
        self._settle(Stopped(reason))

    def _cancel_function(self) -> None:
        if self._function is not None and self._result is None:
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

    # The on_cancel hook ------------------------------------------------------------------------

    def start_hook(self) -> None:
        """Call the task's on_cancel hook, once, if its function was called at all."""
        with self._lock:
            if self._hook_ended is not None or self.interruption is not Interruption.CANCEL:
                return
            self._hook_ended = False
        if not self._started:
            self._hook_done()
        elif inspect.iscoroutinefunction(self.task.cancel_hook):
            self._loop.call(self._await_hook)
        else:
            self._threads.submit(self._call_hook)

    async def _await_hook(self) -> None:
        _context.enter(self.runtime)
        try:
            await cast(Coroutine[Any, Any, object], self._hook())
        except BaseException as error:
            self._hook_failed(error)
        self._hook_done()

    def _call_hook(self) -> None:
        _context.enter(self.runtime)
        try:
            self._hook()
        except BaseException as error:
            self._hook_failed(error)
        finally:
            _context.enter(None)
        self._hook_done()

    def _hook(self) -> object:
        hook = self.task.cancel_hook
        assert hook is not None
        offered = {"payload": self._payload, "ctx": self.runtime.ctx}
        wanted = inspect.signature(hook).parameters
        return hook(**{name: offered[name] for name in offered if name in wanted})

    def _hook_failed(self, error: BaseException) -> None:
        logger.warning(
            "the on_cancel hook of %s failed in run %s", self.task.id, self.run.id, exc_info=error
        )

    def _hook_done(self) -> None:
        with self._lock:
            self._hook_ended = True
        self._settle_canceled()


class _PayloadError(Exception):
    """The payload does not fit the task; carries why."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


def _failed(error: BaseException) -> Failed:
    match error:
        case _PayloadError(cause=cause):
            return Failed(describe(cause, FailureCode.PAYLOAD_INVALID, stack=False), False)
        case AbortTaskRunError():
            return Failed(describe(error, FailureCode.TASK_ABORTED), False)
        case SystemExit() | KeyboardInterrupt():
            return Failed(describe(error, FailureCode.TASK_ERROR), False)
        case _:
            return Failed(describe(error, FailureCode.TASK_ERROR), True)


def _returned(output: object) -> Returned | Failed:
    try:
        return Returned(encode(output, what="output", limit=MAX_OUTPUT_BYTES))
    except InvalidValueError as error:
        large = error.code == "too_large"
        code = FailureCode.OUTPUT_TOO_LARGE if large else FailureCode.OUTPUT_INVALID
        return Failed(describe(error, code, stack=False), False)
    except Exception as error:
        return Failed(describe(error, FailureCode.OUTPUT_INVALID), False)
    finally:
        if inspect.iscoroutine(output):
            output.close()
