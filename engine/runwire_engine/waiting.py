"""What one attempt's code waits for, and when its run gives up its place for that.

Waits are handed in on any thread; what follows happens on the engine's loop. As long as something
of the run goes on beside its waits, they are only written down. Once every branch waits, all that
the code wrote is committed, and the run becomes WAITING. Its code stays where it is, in memory,
until the run is claimed again: by this worker, then it goes on in place; or by another one, then it
is unwound here and replayed there.
"""

import logging
from asyncio import CancelledError
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import anyio
import orjson

from runwire.errors import FencedError
from runwire_engine.branches import Branches
from runwire_engine.bridge import Bridge, pending_promise
from runwire_engine.claims import ClaimedRun
from runwire_engine.errors import EngineError
from runwire_engine.journal import Branch, Mark, Place, Step, dump_marks
from runwire_engine.patience import patiently
from runwire_engine.waits import Entered, Entry, Waits

logger = logging.getLogger("runwire.worker")


class Host(Protocol):
    """What an attempt lends to its waits. Everything but `run` is for the engine's loop."""

    @property
    def run(self) -> ClaimedRun: ...

    async def settle(self) -> None:
        """Commit all that was written so far."""
        ...

    def begin_parking(self) -> bool:
        """Prepare to give up the place; False when the attempt is over or shall stop."""
        ...

    def cancel_parking(self) -> None:
        """Go on after all."""
        ...

    def park(self, due_in: float | None) -> None:
        """Free the place; a wait ends by time in so many seconds."""
        ...

    def fenced(self, error: FencedError) -> None:
        """Note that another execution holds the run."""
        ...


@dataclass(eq=False)
class _Pending:
    step: Step
    branch: Branch
    promise: "Future[None]"
    is_written: bool = False


class Waiting:
    """The waits of one attempt."""

    def __init__(
        self,
        waits: Waits,
        environment_id: int,
        bridge: Bridge,
        branches: Branches,
        notes: list[Step],
        host: Host,
    ) -> None:
        """Take also the steps that nobody waits for, to be written with the next wait."""
        self._waits = waits
        self._environment_id = environment_id
        self._bridge = bridge
        self._branches = branches
        self._host = host
        self._pending: dict[Place, _Pending] = {}
        self._notes = notes
        # What the engine's loop is at, and what it shall look at then.
        self._busy = False
        self._considered = False
        self._look_wanted = False
        self._closed = False
        # Shut while the run is not EXECUTING: what is written meanwhile waits here.
        self._gate: anyio.Event | None = None
        self._gate_wanted = False

    @property
    def has_waits(self) -> bool:
        return bool(self._pending)

    # On any thread -----------------------------------------------------------------------------

    def add(self, step: Step, branch: Branch, *, is_written: bool = False) -> "Future[None]":
        """Return the promise that a wait is over; `is_written`: by an earlier execution."""
        promise: Future[None] = pending_promise()
        with self._branches.lock:
            if self._closed:
                promise.set_exception(_stopped())
                return promise
            branch.waits += 1
            self._pending[step.place] = _Pending(step, branch, promise, is_written)
        self.consider()
        return promise

    def withdraw(self, step: Step) -> None:
        """Wait for something no longer: the code goes on without it."""
        with self._branches.lock:
            self._drop(step.place)
        self.consider()

    def consider(self) -> None:
        """Look soon whether there is something to write, or a place to give up."""
        self._bridge.post(self._begin)

    def look(self) -> None:
        """Look soon whether a wait is over."""
        self._look_wanted = True
        self.consider()

    def close(self) -> None:
        """Wait for nothing more: what waits is cancelled."""
        with self._branches.lock:
            self._closed = True
            pending = [wait for place in tuple(self._pending) if (wait := self._drop(place))]
        for wait in pending:
            wait.promise.set_exception(_stopped())
        self._bridge.post(self._open)

    # On the engine's loop ----------------------------------------------------------------------

    async def pass_gate(self) -> None:
        """Wait until the run is EXECUTING; have it go on where it is not."""
        while self._gate is not None:
            self._gate_wanted = True
            self.consider()
            await self._gate.wait()

    def resumed(self) -> None:
        """Go on in place: the run was claimed again."""
        self._open()
        self.look()

    def _open(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.set()

    def _begin(self) -> None:
        self._considered = True
        if not self._busy:
            self._busy = True
            self._bridge.start(self._work)

    async def _work(self) -> None:
        try:
            while self._considered and not self._closed:
                self._considered = False
                await self._step()
        except Exception as error:
            self._fail(error)
        finally:
            self._busy = False

    async def _step(self) -> None:
        """Do what is due."""
        with self._branches.lock:
            fresh = any(not wait.is_written for wait in self._pending.values())
            idle = bool(self._pending) and self._branches.main.is_waiting()
        if self._gate is not None:
            if self._gate_wanted or not idle:
                await self._go_on()
        elif idle and self._host.begin_parking():
            await self._give_up_place()
        elif fresh:
            await self._write_down()
        elif self._look_wanted and self._pending:
            await self._look()

    async def _look(self) -> None:
        self._look_wanted = False
        run_id = self._host.run.id
        over = await patiently(lambda: self._waits.over(self._environment_id, [run_id]))
        self._deliver(over.get(run_id, ()))

    async def _give_up_place(self) -> None:
        """Make the run WAITING, if nothing comes in between."""
        entered: Entered | None = None
        try:
            marks, places = self._branches.marks(), set(self._pending)
            await self._host.settle()
            with self._branches.lock:
                idle = self._branches.main.is_waiting() and places == set(self._pending)
            if idle:
                self._gate, self._gate_wanted = anyio.Event(), False
                entered = await self._enter(marks, park=True)
            else:
                self.consider()
        finally:
            if entered is None or not entered.is_parked:
                self._open()
                self._host.cancel_parking()
        if entered is not None and entered.is_parked:
            self._host.park(entered.due_in)
        elif entered is not None:
            self._deliver(entered.over)

    async def _write_down(self) -> None:
        """Write what is waited for while something of the run goes on."""
        marks = self._branches.marks()
        await self._host.settle()
        self._deliver((await self._enter(marks, park=False)).over)

    async def _enter(self, marks: Mapping[str, Mark], *, park: bool) -> Entered:
        run = self._host.run
        self._look_wanted = False
        with self._branches.lock:
            fresh = [wait for wait in self._pending.values() if not wait.is_written]
            notes = list(self._notes)
            self._notes.clear()
            entry = Entry(
                run.id,
                run.execution,
                run.generation,
                run.worker_id or "",
                steps=[*notes, *(wait.step for wait in fresh)],
                open=list(self._pending),
                marks=orjson.dumps(dump_marks(marks)).decode(),
                park=park,
            )
        try:
            entered = await patiently(lambda: self._waits.enter(self._environment_id, entry))
        except BaseException:
            with self._branches.lock:
                self._notes[:0] = notes
            raise
        for wait in fresh:
            wait.is_written = True
        return entered

    async def _go_on(self) -> None:
        """Have the run queued again: something of it goes on beside its waits."""
        run_id = self._host.run.id
        await patiently(lambda: self._waits.resume(self._environment_id, run_id))

    def _deliver(self, over: Iterable[Place]) -> None:
        """Keep the promises of waits that are over."""
        with self._branches.lock:
            kept = [wait for place in over if (wait := self._drop(place)) is not None]
        for wait in kept:
            wait.promise.set_result(None)

    def _drop(self, place: Place) -> _Pending | None:
        wait = self._pending.pop(place, None)
        if wait is not None:
            wait.branch.waits -= 1
        return wait

    def _fail(self, error: Exception) -> None:
        """Raise what went wrong where the code waits."""
        if isinstance(error, FencedError) and error.run_id == self._host.run.id:
            self._host.fenced(error)
        elif not isinstance(error, EngineError | FencedError):
            logger.error("a wait of %s failed", self._host.run.id, exc_info=error)
        with self._branches.lock:
            failed = [wait for place in tuple(self._pending) if (wait := self._drop(place))]
        for wait in failed:
            wait.promise.set_exception(error)


def _stopped() -> CancelledError:
    return CancelledError("the run was asked to stop")
