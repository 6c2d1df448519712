"""What the code of one attempt asks of input streams; on its loop or in a thread.

What is offered is settled by whoever asked: a call that was cancelled while its value came declines
it, so that the next call gets it.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from typing import Protocol, TypeVar

from runwire._stream_keys import input_key
from runwire.errors import FencedError
from runwire_engine.bridge import arrival
from runwire_engine.claims import ClaimedRun
from runwire_engine.errors import RunFinalError
from runwire_engine.inputs import Inputs, Offer
from runwire_engine.journal import Step
from runwire_engine.patience import patiently
from runwire_engine.steps import Steps, Taken
from runwire_engine.streams import Append, AppendAnswer
from runwire_engine.surroundings import Surroundings

T = TypeVar("T")


class Host(Protocol):
    """What an attempt lends to its input."""

    @property
    def run(self) -> ClaimedRun: ...

    def check_open(self) -> None: ...

    def call(self, work: Callable[[], Awaitable[T]]) -> "Future[T]":
        """Do on the engine's loop what this execution may do only while it holds the run."""
        ...


class InputCalls:
    """The input of one attempt, and what it sends to others."""

    def __init__(self, around: Surroundings, steps: Steps, host: Host) -> None:
        self._around = around
        self._steps = steps
        self._host = host
        self._lock = threading.Lock()
        # None until something is read.
        self._inputs: Inputs | None = None
        # What ends waiting.
        self._stops: set[Callable[[], None]] = set()
        self._is_interrupted = False

    async def take(self, key: str, timeout: float | None) -> str | None:
        """Return what was sent next, waiting for it; None: nothing in time."""
        offering, stop = self._offering(key, timeout)
        try:
            offer = await arrival(offering)
        except asyncio.CancelledError:
            stop()
            offering.add_done_callback(self._decline)
            raise
        return self._accepted(offer)

    def take_blocking(self, key: str, timeout: float | None) -> str | None:
        offer = self._offering(key, timeout)[0].result()
        if offer is None and self._is_interrupted:
            raise asyncio.CancelledError("the run was asked to stop")
        return self._accepted(offer)

    async def wait(self, key: str, timeout: float | None, idle: float) -> str | None:
        """As `take`, but the run gives up its place after `idle` seconds."""
        taken = self._steps.take("input", key)
        if taken.earlier is None:
            body = await self.take(key, idle)
            if body is not None:
                return body
        step = taken.earlier or self._step(taken, key, timeout)
        await self._steps.wait(taken, step)
        return await arrival(self._answer(key, step))

    def wait_blocking(self, key: str, timeout: float | None, idle: float) -> str | None:
        taken = self._steps.take("input", key)
        if taken.earlier is None:
            body = self.take_blocking(key, idle)
            if body is not None:
                return body
        step = taken.earlier or self._step(taken, key, timeout)
        self._steps.wait_blocking(taken, step)
        return self._answer(key, step).result()

    async def peek(self, key: str) -> str | None:
        """Return what `take` would return at once, and leave it there."""
        return await arrival(self._peeking(key))

    def peek_blocking(self, key: str) -> str | None:
        return self._peeking(key).result()

    async def send(self, run_id: str, key: str, body: str) -> None:
        """Send to a run. Raises FencedError when it is over."""
        if not self._admits(run_id, key):
            return
        try:
            await arrival(self._sending(run_id, key, body))
        except RunFinalError as error:
            raise FencedError(str(error), run_id=run_id) from error

    def send_blocking(self, run_id: str, key: str, body: str) -> None:
        if not self._admits(run_id, key):
            return
        try:
            self._sending(run_id, key, body).result()
        except RunFinalError as error:
            raise FencedError(str(error), run_id=run_id) from error

    def close(self, *, interrupted: bool = False) -> None:
        """End what somebody waits for; `interrupted`: the function shall stop."""
        self._is_interrupted = self._is_interrupted or interrupted
        for stop in tuple(self._stops):
            stop()

    # ---------------------------------------------------------------------------------------------

    def _reading(self) -> Inputs:
        self._host.check_open()
        with self._lock:
            if self._inputs is None:
                engine = self._around.engine
                self._inputs = Inputs(
                    self._host.run.id,
                    self._around.environment_id,
                    engine.streams,
                    self._around.inputs,
                    engine.settings.poll,
                )
            return self._inputs

    def _offering(
        self, key: str, timeout: float | None
    ) -> "tuple[Future[Offer | None], Callable[[], None]]":
        """Return the promise of what is sent next, and what stops waiting for it."""
        inputs, stopped = self._reading(), asyncio.Event()

        async def offer() -> Offer | None:
            offered = await inputs.offer(key, timeout, stopped)
            if offered is None:
                self._host.check_open()
            return offered

        def stop() -> None:
            self._around.bridge.post(stopped.set)

        self._stops.add(stop)
        offering = self._host.call(offer)
        offering.add_done_callback(lambda _: self._stops.discard(stop))
        return offering, stop

    def _accepted(self, offer: Offer | None) -> str | None:
        if offer is None:
            return None
        self._around.bridge.post(partial(offer.settle, taken=True))
        return offer.body

    def _decline(self, offering: "Future[Offer | None]") -> None:
        offer = None if offering.exception() is not None else offering.result()
        if offer is not None:
            self._around.bridge.post(partial(offer.settle, taken=False))

    def _step(self, taken: Taken, key: str, timeout: float | None) -> Step:
        """Return the wait for what comes after all that was taken."""
        seq = self._reading().next_seq(key)
        return Step(*taken.place, "input", key, stream_key=input_key(key), seq=seq, due_in=timeout)

    def _answer(self, key: str, step: Step) -> "Future[str | None]":
        inputs, waits = self._reading(), self._around.engine.waits
        environment_id = self._around.environment_id

        async def answer() -> str | None:
            run = self._host.run
            body = await patiently(
                lambda: waits.input(environment_id, run.id, run.generation, step.place)
            )
            if body is not None and step.seq is not None:
                inputs.skip_to(key, step.seq + 1)
            return body

        return self._host.call(answer)

    def _peeking(self, key: str) -> "Future[str | None]":
        inputs = self._reading()
        return self._host.call(lambda: inputs.peek(key))

    def _admits(self, run_id: str, key: str) -> bool:
        """Count what is sent; False when an earlier execution has sent it."""
        self._host.check_open()
        return self._steps.admits(f"input/{run_id}/{key}")

    def _sending(self, run_id: str, key: str, body: str) -> "Future[AppendAnswer]":
        streams, environment_id = self._around.engine.streams, self._around.environment_id

        def send() -> Awaitable[AppendAnswer]:
            run = self._host.run
            append = Append(
                run_id,
                input_key(key),
                (body,),
                execution=run.execution,
                writer=run.id,
                reserved=True,
            )
            return streams.append(environment_id, append)

        return self._host.call(send)
