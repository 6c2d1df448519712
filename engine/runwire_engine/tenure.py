"""One worker id's life: registered, claiming while its lease holds, stopped in order or lost.

A worker that lost its lease starts a new tenure under a new id; nothing of the old one's is written
any more, as every write is fenced by the execution that was claimed under the old id.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextvars import Context as Variables

import anyio

from runwire.tasks import AnyTask
from runwire_engine.bells import Bell
from runwire_engine.bridge import Bridge
from runwire_engine.errors import EngineError
from runwire_engine.executor import Executor
from runwire_engine.lease import Lease
from runwire_engine.outcomes import Finished, Released
from runwire_engine.schedules import declared
from runwire_engine.settings import EngineSettings
from runwire_engine.surroundings import Surroundings
from runwire_engine.threads import Threads
from runwire_engine.verdicts import Interruption

logger = logging.getLogger("runwire.worker")

# Seconds after a failed statement until the next try.
BACK_OFF = (0.1, 5.0)
# For a claim under way: what it finds is not to be what is released here.
_CLAIMED_WITHIN = 1.0
# After the grace of a stop: for functions to unwind, and for outcomes to be committed.
_UNWIND_WITHIN = 2.0
_COMMIT_WITHIN = 5.0
_LEAVE_WITHIN = 1.0
# With so many slots a claim is of half of them, so that the worker and Postgres work at once.
_MANY = 32
# Runs held, as a multiple of the slots: those that execute, and what has ended until that is
# stored. One part ends while another is stored and the next is claimed.
_HELD = 3
# Seconds in which slots become free together, where more is ready than there are.
_GATHER = 0.001
# Until the next look where other workers were serving every key with room.
_CROWDED_PAUSE = 0.01
# Between two looks for due runs, where another worker is at those that are.
_LEAST_PAUSE = 0.01


class Tenure:
    """Claims runs under one worker id and executes them."""

    def __init__(
        self,
        worker_id: str,
        around: Surroundings,
        tasks: Mapping[str, AnyTask],
        settings: EngineSettings,
        *,
        task_loop: Bridge,
        threads: Threads,
        variables: Variables,
        grace: float,
    ) -> None:
        self.worker_id = worker_id
        self.executor = Executor(
            around,
            tasks,
            loop=task_loop,
            threads=threads,
            variables=variables,
            freed=self._freed,
            due_in=self._due_in,
        )
        self._around = around
        self._settings = settings
        self._max_attempts = {task.id: task.retry.max_attempts for task in tasks.values()}
        self._declares = [spec.task for spec in declared(tasks, settings.environment)]
        limit = settings.concurrency
        # Of one claim.
        self._portion = limit if limit < _MANY else -(-limit // 2)
        self._wanted = asyncio.Event()
        # All that is wanted, where it is one run that a bell named.
        self._lone_run: str | None = None
        # Has all that is ready looked for, whatever bells name until then.
        self._next_look: asyncio.TimerHandle | None = None
        self._due = anyio.Event()
        self._claimed_last = anyio.Event()
        self._leaving = anyio.Event()
        # True when the last claim found as many runs as there were slots.
        self._more = False
        self._stopping = False
        self._grace = grace
        self._grace_scope: anyio.CancelScope | None = None

    async def run(
        self,
        stopping: anyio.Event,
        registered: Callable[[], None],
        claimed_last: Callable[[], None],
    ) -> None:
        """Work until told to stop, or until the lease is lost.

        `claimed_last` is called when, told to stop, it executes all that it ever will.
        """
        lease = await self._register(stopping)
        if lease is None:
            return
        registered()
        async with anyio.create_task_group() as tasks:

            async def keep() -> None:
                await lease.run()
                # At once: the statements that are cancelled below may take their time.
                self.executor.close()
                tasks.cancel_scope.cancel()

            tasks.start_soon(keep)
            async with anyio.create_task_group() as loops:
                for loop in (self._promote, self._heed, self._reconcile, self._claim):
                    loops.start_soon(loop)
                await stopping.wait()
                await self._wind_down(claimed_last)
                self._leaving.set()
                self._due.set()
                # Each loop ends between two statements; a stuck one is cut off.
                loops.cancel_scope.deadline = anyio.current_time() + _LEAVE_WITHIN
            tasks.cancel_scope.cancel()

    def shorten_grace(self, grace: float) -> None:
        """Release in so many seconds what still executes, if that is sooner."""
        self._grace = min(grace, self._grace)
        if self._grace_scope is not None:
            deadline = anyio.current_time() + self._grace
            self._grace_scope.deadline = min(deadline, self._grace_scope.deadline)

    def rang(self, bell: Bell) -> None:
        """Act on a bell: claim when there is work, cancel what shall be canceled."""
        if bell.work or bell.scan:
            self._want(None if bell.scan else bell.lone_run)
        for control in bell.control:
            match control.kind:
                case "cancel":
                    self.executor.interrupt(control.target, Interruption.CANCEL)
                case "wake":
                    self.executor.look_at_waits_of(control.target)
                case _:
                    pass

    def wake(self) -> None:
        """Look for work now."""
        self._want(None)

    def _want(self, lone_run: str | None) -> None:
        """Look for work now, or for the only run there is; of two that are wanted, for all."""
        self._lone_run = None if self._wanted.is_set() else lone_run
        self._wanted.set()

    def _freed(self) -> None:
        """Note a free slot: claim at once if there was more work than slots."""
        if self._more:
            self.wake()

    async def _register(self, stopping: anyio.Event) -> Lease | None:
        lease = Lease(
            self._around.engine.workers,
            self.worker_id,
            seconds=self._settings.lease,
            heartbeat=self._settings.heartbeat,
        )
        wait, longest = BACK_OFF
        while not stopping.is_set():
            asked_at = time.monotonic()
            try:
                await self._around.engine.workers.register(
                    self._around.environment_id, self.worker_id, declares=self._declares
                )
            except EngineError as error:
                logger.warning("the worker cannot register: %s", error)
                with anyio.move_on_after(wait):
                    await stopping.wait()
                wait = min(wait * 2, longest)
                continue
            lease.renewed(asked_at)
            return lease
        return None

    async def _claim(self) -> None:
        """Claim as many runs as there are free slots, when woken and every second."""
        wait, longest = BACK_OFF
        while not self._stopping:
            self._wanted.clear()
            slots = self._free_slots()
            if self._more and slots < self._portion:
                slots = await self._gather()
            if slots > 0:
                lone_run = self._taken_alone()
                try:
                    found = await self._claim_once(slots, lone_run)
                except EngineError as error:
                    logger.warning("runs cannot be claimed: %s", error)
                    self._look_in(wait)
                    await self._wanted.wait()
                    wait = min(wait * 2, longest)
                    continue
                wait, _ = BACK_OFF
                crowded = self._around.engine.claims.crowded
                self._more = found == slots or crowded
                if found == slots or (crowded and found):
                    continue
                if lone_run is None:
                    self._look_in(_CROWDED_PAUSE if crowded else self._settings.poll)
            else:
                self._more = True
                self._look_in(self._settings.poll)
            await self._wanted.wait()
        self._look_in(None)
        self._claimed_last.set()

    async def _gather(self) -> int:
        """Let slots become free for one claim, for a moment; return how many are."""
        with anyio.move_on_after(_GATHER):
            while not self._stopping and self._free_slots() < self._portion:
                await self._wanted.wait()
                self._wanted.clear()
        return self._free_slots()

    def _taken_alone(self) -> str | None:
        """Return the only run to claim; None where all that is ready is to be looked for."""
        lone_run, self._lone_run = self._lone_run, None
        if lone_run is None or self._more:
            self._look_in(None)
            return None
        return lone_run

    def _look_in(self, seconds: float | None) -> None:
        """Look for all that is ready in so many seconds, and not when it was said before."""
        if self._next_look is not None:
            self._next_look.cancel()
        loop = self._around.bridge.loop
        self._next_look = None if seconds is None else loop.call_later(seconds, self.wake)

    async def _claim_once(self, slots: int, lone_run: str | None) -> int:
        runs = await self._around.engine.claims.claim(
            self._around.environment_id,
            self.worker_id,
            self._max_attempts,
            slots,
            lone_run=lone_run,
        )
        if self._stopping:
            # Told to stop while it was claiming: none of these was begun.
            for run in runs:
                self._give_back(run.id, run.execution)
        else:
            self.executor.start(runs)
        return len(runs)

    def _give_back(self, run_id: str, execution: int) -> None:
        """Have a run queued again that does not execute here."""
        self._around.engine.outcomes.submit_nowait(
            self._around.environment_id, Released(run_id, execution)
        ).add_done_callback(_looked_at)

    def _free_slots(self) -> int:
        """Return how many runs may be claimed now.

        A slot is free once its function has ended; but outcomes that are not committed yet are
        bounded too.
        """
        limit = self._settings.concurrency
        free = min(limit - self.executor.executing, _HELD * limit - self.executor.holding)
        return min(free, self._portion)

    async def _promote(self) -> None:
        """Queue delayed runs and retries when they are due."""
        expected = False
        while not self._leaving.is_set():
            self._due = anyio.Event()
            due = await self._promote_once()
            if expected:
                self.wake()
            poll = self._settings.poll
            pause = poll if due is None else min(poll, max(due, _LEAST_PAUSE))
            with anyio.move_on_after(pause) as pausing:
                await self._due.wait()
            expected = pause < poll or not pausing.cancelled_caught

    async def _promote_once(self) -> float | None:
        engine, environment_id = self._around.engine, self._around.environment_id
        try:
            due = await engine.claims.promote_due(environment_id, self._max_attempts)
            waking = await engine.waits.wake_due(environment_id)
            timing_out = await engine.waitpoints.time_out_due(environment_id)
        except EngineError as error:
            logger.warning("delayed runs cannot be queued: %s", error)
            return None
        return min((each for each in (due, waking, timing_out) if each is not None), default=None)

    def _due_in(self, seconds: float) -> None:
        """Look for due runs in so many seconds, besides looking every second."""
        if seconds < self._settings.poll:
            self._around.bridge.loop.call_later(seconds, lambda: self._due.set())

    async def _heed(self) -> None:
        """Ask what bells said that may have been lost: who shall be canceled, whose waits are over,
        which runs are parked here for nothing.
        """
        while not await self._left_within(self._settings.poll):
            try:
                if self.executor.holding:
                    await self._heed_cancels()
                if self.executor.parked:
                    await self._heed_parked()
            except EngineError:
                continue  # the heartbeats say so

    async def _heed_cancels(self) -> None:
        for run_id in await self._around.engine.workers.cancel_requests(self.worker_id):
            self.executor.interrupt(run_id, Interruption.CANCEL)
        self.executor.look_at_waits()

    async def _heed_parked(self) -> None:
        before = dict(self.executor.parked)
        still = await self._around.engine.waits.still_parked(
            self._around.environment_id, self.worker_id, before
        )
        for run_id, execution in before.items():
            if run_id not in still and self.executor.parked.get(run_id) == execution:
                self.executor.interrupt(run_id, Interruption.LOST)

    async def _reconcile(self) -> None:
        """Compare what is held here with what the database says, and mend what differs."""
        strange: Mapping[str, int] = {}
        while not await self._left_within(self._settings.heartbeat):
            before = self.executor.held
            try:
                theirs = await self._around.engine.workers.held(self.worker_id)
            except EngineError:
                continue
            ours = self.executor.held
            for run_id, execution in before.items():
                if ours.get(run_id) == execution != theirs.get(run_id):
                    self.executor.interrupt(run_id, Interruption.LOST)
            unknown = {
                r: e
                for r, e in theirs.items()
                if r not in before and r not in ours and not self.executor.holds(r)
            }
            # Twice in a row: a claim whose answer is on its way looks like this for a moment.
            for run_id in [r for r, e in unknown.items() if strange.get(r) == e]:
                logger.error("run %s is held but not executed; it is given back", run_id)
                self._give_back(run_id, unknown[run_id])
            strange = unknown

    async def _left_within(self, seconds: float) -> bool:
        """Wait; say whether it is time to end."""
        with anyio.move_on_after(seconds):
            await self._leaving.wait()
        return self._leaving.is_set()

    async def _wind_down(self, claimed_last: Callable[[], None]) -> None:
        """Let tasks finish, then release what is left, and leave."""
        self._stopping = True
        self.wake()
        with anyio.move_on_after(_CLAIMED_WITHIN):
            await self._claimed_last.wait()
        claimed_last()
        self.executor.unwind_parked()
        with anyio.move_on_after(self._grace) as self._grace_scope:
            await self._claimed_last.wait()
            await self.executor.idle()
        self.executor.interrupt_all(Interruption.RELEASE)
        with anyio.move_on_after(_UNWIND_WITHIN):
            await self.executor.idle()
        self.executor.give_up_all()
        with anyio.move_on_after(_COMMIT_WITHIN):
            await self.executor.idle()
            # Of runs that were given back without being held as well.
            await self._around.engine.outcomes.drain()
            await self._leave()

    async def _leave(self) -> None:
        try:
            await self._around.engine.workers.stop(self.worker_id)
        except EngineError as error:
            logger.warning("the lease is left to run out: %s", error)


def _looked_at(promise: "asyncio.Future[Finished]") -> None:
    if not promise.cancelled():
        promise.exception()
