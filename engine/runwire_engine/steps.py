"""The steps of one attempt's code: children it triggers, and what it waits for.

Each step has a place in the code (see `journal`). A replay asks for the same steps at the same
places and is answered from what is stored of them, without doing anything twice.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol, TypeVar

import runwire
from runwire._context import (
    ChildResults,
    CreatedToken,
    TokenRequest,
    Triggered,
    TriggeredBatch,
    WaitInfo,
    WaitResult,
)
from runwire.errors import NonDeterministicError
from runwire.requests import BatchItem, TriggerOptions
from runwire_engine.branches import Branches
from runwire_engine.bridge import arrival, pending_promise
from runwire_engine.claims import ClaimedRun
from runwire_engine.journal import Branch, DivergedError, Kind, Place, Step, key_of
from runwire_engine.patience import patiently
from runwire_engine.surroundings import Surroundings
from runwire_engine.waiting import Host, Waiting

T = TypeVar("T")

# Calls that may be repeated under the name they came with.
_CALLS: Final = 1_000
# A replay may compute another one from its clock: that it waits for one is what must be the same.
_TIME: Final = "a time"
_PACKAGES: Final = (str(Path(__file__).parent), str(Path(runwire.__file__).parent))


class StepHost(Host, Protocol):
    """What an attempt lends to its steps."""

    def check_open(self) -> None:
        """Raise what every further call raises, once there is something."""
        ...

    def call(self, work: Callable[[], Awaitable[T]]) -> "Future[T]":
        """Do on the engine's loop what this execution may do only while it holds the run."""
        ...

    def diverged(self, error: NonDeterministicError) -> None:
        """Note that the replay took another way: the attempt can only fail."""
        ...

    @property
    def wait_hooks(self) -> "WaitHooks | None":
        """Who is told of waits."""
        ...


class WaitHooks(Protocol):
    """Calls the hooks around a wait, where the code waits."""

    async def told(self, kind: str, wait: WaitInfo) -> None: ...

    def told_blocking(self, kind: str, wait: WaitInfo) -> None: ...


@dataclass(frozen=True, slots=True)
class Taken:
    """A step that was taken: where, and what an earlier execution made of it."""

    branch: Branch
    place: Place
    earlier: Step | None
    is_over: bool


class Steps:
    """Takes the steps of one attempt; any thread may ask."""

    def __init__(self, around: Surroundings, host: StepHost) -> None:
        self.branches = Branches(self._branch_ended)
        self._around = around
        self._host = host
        # What was triggered and nobody waits for, to be written with the next wait.
        self._notes: list[Step] = []
        # Steps of calls, by what names them: the last ones, for whoever repeats a call.
        self._calls: dict[str, Taken] = {}
        # None until the code waits for the first time.
        self._waiting: Waiting | None = None
        self._closed = False

    # On any thread -------------------------------------------------------------------------------

    def trigger(
        self, task: str, payload: str | None, options: TriggerOptions, request_key: str
    ) -> "Future[Triggered]":
        """Start a child that nobody waits for."""
        taken = self._named(request_key, "trigger", task)
        children = self._around.children
        earlier = taken.earlier
        if earlier is not None:
            return _kept(children.triggered(earlier))

        async def start() -> Triggered:
            run = self._host.run
            key = key_of(run.id, run.generation, taken.place, task, payload or "")
            triggered = await children.trigger(run, task, payload, options, key)
            cached = (triggered.id,) if triggered.is_cached else ()
            self._note(Step(*taken.place, "trigger", task, (triggered.id,), cached))
            return triggered

        return self._host.call(start)

    def trigger_batch(
        self, items: Sequence[BatchItem], idempotency_key: str | None, request_key: str
    ) -> "Future[TriggeredBatch]":
        """Start a batch of children that nobody waits for."""
        target = f"a batch of {_target(items)}"
        taken = self._named(request_key, "trigger", target)
        children = self._around.children
        earlier = taken.earlier
        if earlier is not None:
            return _kept(children.triggered_batch(earlier))

        async def start() -> TriggeredBatch:
            batch = await children.trigger_batch(
                self._host.run, taken.place, items, idempotency_key
            )
            cached = batch.run_ids if batch.is_cached else ()
            self._note(Step(*taken.place, "trigger", target, batch.run_ids, cached, batch.id))
            return batch

        return self._host.call(start)

    async def trigger_and_wait(
        self, items: Sequence[BatchItem], batch: bool, idempotency_key: str | None
    ) -> ChildResults:
        """Start children and wait for them."""
        taken = self.take("batch" if batch else "run", _target(items))
        step = taken.earlier
        if step is None:
            step = await arrival(self._start(taken, items, batch, idempotency_key))
        await self.wait(taken, step)
        return await arrival(self._results(step))

    def trigger_and_wait_blocking(
        self, items: Sequence[BatchItem], batch: bool, idempotency_key: str | None
    ) -> ChildResults:
        taken = self.take("batch" if batch else "run", _target(items))
        step = taken.earlier
        if step is None:
            step = self._start(taken, items, batch, idempotency_key).result()
        self.wait_blocking(taken, step)
        return self._results(step).result()

    async def wait_until(self, due: datetime | float) -> None:
        """Wait for a time, or so many seconds."""
        taken = self.take("time", _TIME)
        await self.wait(taken, taken.earlier or _sleep(taken.place, due))

    def wait_until_blocking(self, due: datetime | float) -> None:
        taken = self.take("time", _TIME)
        self.wait_blocking(taken, taken.earlier or _sleep(taken.place, due))

    def create_token(self, request: TokenRequest) -> "Future[CreatedToken]":
        """Create a token, once for a place."""
        taken = self.take("trigger", "a token")
        tokens = self._around.tokens
        earlier = taken.earlier
        if earlier is not None:
            return _kept(tokens.created(earlier))

        async def create() -> CreatedToken:
            created = await tokens.create(self._host.run, taken.place, request)
            point = created.id
            cached = (point,) if created.is_cached else ()
            self._note(
                Step(*taken.place, "trigger", "a token", cached_ids=cached, waitpoint_id=point)
            )
            return created

        return self._host.call(create)

    async def wait_for_token(self, token_id: str) -> WaitResult:
        """Wait until a token is completed or has timed out."""
        taken, step = await arrival(self._awaiting_token(token_id))
        await self.wait(taken, step)
        return await arrival(self._token_result(step))

    def wait_for_token_blocking(self, token_id: str) -> WaitResult:
        taken, step = self._awaiting_token(token_id).result()
        self.wait_blocking(taken, step)
        return self._token_result(step).result()

    def complete_token(self, token_id: str, body: str | None) -> "Future[None]":
        """Complete a token."""
        tokens = self._around.tokens
        return self._host.call(lambda: tokens.complete(token_id, body))

    def _awaiting_token(self, token_id: str) -> "Future[tuple[Taken, Step]]":
        """Take the step, once it is known that there is such a token."""
        taken = self.take("token", token_id)
        step = taken.earlier or Step(*taken.place, "token", token_id, waitpoint_id=token_id)
        tokens = self._around.tokens

        async def check() -> tuple[Taken, Step]:
            await tokens.require(step.waitpoint_id or "")
            return taken, step

        return self._host.call(check)

    def _token_result(self, step: Step) -> "Future[WaitResult]":
        tokens = self._around.tokens
        return self._host.call(lambda: tokens.result(step.waitpoint_id or ""))

    def admits(self, target: str) -> bool:
        """Count an operation; False when an earlier execution has done it."""
        return self.branches.admits(target)

    def close(self) -> None:
        """Cancel every wait, those to come included."""
        with self.branches.lock:
            self._closed = True
            waiting = self._waiting
        if waiting is not None:
            waiting.close()

    @property
    def has_waits(self) -> bool:
        return self._waiting is not None and self._waiting.has_waits

    def look(self) -> None:
        """Look soon whether a wait is over."""
        if self._waiting is not None:
            self._waiting.look()

    # On the engine's loop ------------------------------------------------------------------------

    async def load(self) -> None:
        """Read what earlier executions of this generation have done, before the code begins."""
        waits, run = self._around.engine.waits, self._host.run
        journal = await patiently(
            lambda: waits.journal(self._around.environment_id, run.id, run.generation)
        )
        self.branches.replay(journal.steps, journal.marks)

    def resumed(self) -> None:
        """Go on in place: the run was claimed again."""
        if self._waiting is not None:
            self._waiting.resumed()

    async def pass_gate(self) -> None:
        """Wait until the run is EXECUTING."""
        if self._waiting is not None:
            await self._waiting.pass_gate()

    # ---------------------------------------------------------------------------------------------

    def take(self, kind: Kind, target: str) -> Taken:
        """Take the next step here. Raises NonDeterministicError in a replay that diverges."""
        self._host.check_open()
        try:
            return Taken(*self.branches.next_step(kind, target))
        except DivergedError as error:
            raised = _non_deterministic(self._host.run, error)
            self._host.diverged(raised)
            raise raised from None

    def _named(self, request_key: str, kind: Kind, target: str) -> Taken:
        """Take the step of a call, which may be repeated."""
        taken = self._calls.get(request_key)
        if taken is None:
            taken = self._calls[request_key] = self.take(kind, target)
            if len(self._calls) > _CALLS:
                del self._calls[next(iter(self._calls))]
        return taken

    def _note(self, step: Step) -> None:
        with self.branches.lock:
            self._notes.append(step)

    def _start(
        self, taken: Taken, items: Sequence[BatchItem], batch: bool, idempotency_key: str | None
    ) -> "Future[Step]":
        children = self._around.children

        def start() -> Awaitable[Step]:
            return children.start(self._host.run, taken.place, items, batch, idempotency_key)

        return self._host.call(start)

    def _results(self, step: Step) -> "Future[ChildResults]":
        children = self._around.children
        return self._host.call(lambda: patiently(lambda: children.results(step)))

    async def wait(self, taken: Taken, step: Step) -> None:
        """Wait for what a step that was taken asks for."""
        if taken.is_over:
            return
        waiting, hooks = self._waits(), self._host.wait_hooks
        if hooks is not None:
            await hooks.told("on_wait", _info(step))
        try:
            await arrival(waiting.add(step, taken.branch, is_written=taken.earlier is not None))
        except asyncio.CancelledError:
            waiting.withdraw(step)
            raise
        if hooks is not None:
            await hooks.told("on_resume", _info(step))

    def wait_blocking(self, taken: Taken, step: Step) -> None:
        if taken.is_over:
            return
        hooks, is_written = self._host.wait_hooks, taken.earlier is not None
        if hooks is not None:
            hooks.told_blocking("on_wait", _info(step))
        self._waits().add(step, taken.branch, is_written=is_written).result()
        if hooks is not None:
            hooks.told_blocking("on_resume", _info(step))

    def _waits(self) -> Waiting:
        with self.branches.lock:
            if self._waiting is None:
                around = self._around
                self._waiting = Waiting(
                    around.engine.waits,
                    around.environment_id,
                    around.bridge,
                    self.branches,
                    self._notes,
                    self._host,
                )
            waiting, closed = self._waiting, self._closed
        if closed:
            waiting.close()
        return waiting

    def _branch_ended(self) -> None:
        if self._waiting is not None:
            self._waiting.consider()


def _target(items: Sequence[BatchItem]) -> str:
    return " ".join(dict.fromkeys(item.task for item in items))


def _sleep(place: Place, due: datetime | float) -> Step:
    if isinstance(due, datetime):
        return Step(*place, "time", _TIME, due_at=due)
    return Step(*place, "time", _TIME, due_in=due)


def _info(step: Step) -> WaitInfo:
    due = step.due_at
    if step.due_in is not None:
        due = datetime.now(UTC) + timedelta(seconds=step.due_in)
    return WaitInfo(step.kind, due, step.run_ids, step.batch_id, step.waitpoint_id)


def _kept(value: T) -> "Future[T]":
    promise: Future[T] = pending_promise()
    promise.set_result(value)
    return promise


def _non_deterministic(run: ClaimedRun, error: DivergedError) -> NonDeterministicError:
    return NonDeterministicError(
        f"{_caller()} asked for {error.kind} ({error.target}) where the earlier execution of"
        f" {run.id} asked for {error.step.kind} ({error.step.target}). Code that waits runs again"
        " up to its last wait when its worker goes away, and must come the same way: move what"
        " depends on time, chance or the outside into a child task, or behind the last wait.",
        run_id=run.id,
    )


def _caller() -> str:
    """Name the line of the task that asks."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_back is not None and _is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    return "the task" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _is_ours(filename: str) -> bool:
    return filename.startswith(_PACKAGES)
