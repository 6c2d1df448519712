"""The chunks that one attempt writes to one stream: in order, bounded, one append in flight.

Producers (the task's loop, its threads) put chunks in; the engine's loop takes all that has
gathered while the last append was in flight. So a producer wakes the engine only when nothing is
in flight, and an append never overtakes the one before it.
"""

import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from runwire_engine.bridge import Bridge, pending_promise

# What waits beside the append in flight; a producer beyond it waits. A thousand tokens of a model
# are some 20 s of its output, and a chunk may be a mebibyte by itself.
MAX_CHUNKS = 1000
MAX_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Batch:
    """What one append writes."""

    bodies: tuple[str, ...]
    end: bool
    # (how many of the bodies come before it, the promise of the seq after them)
    receipts: tuple[tuple[int, "Future[int]"], ...]


class StreamWriter:
    """One stream's chunks on their way to the database."""

    def __init__(
        self, bridge: Bridge, send: Callable[[tuple[str, ...], bool], Awaitable[int]]
    ) -> None:
        """Take the engine's loop and what appends there, answering with the stream's next seq."""
        self._bridge = bridge
        self._send = send
        self._lock = threading.Lock()
        self._bodies: list[str] = []
        self._bytes = 0
        self._end = False
        self._receipts: list[tuple[int, Future[int]]] = []
        self._waiting: list[Future[None]] = []
        # True while the engine's loop is sending, or has been told to.
        self._busy = False
        # True when something was sent after the last end.
        self._open = False
        # As the last append answered; 0 before the first.
        self._next_seq = 0
        self._failure: Exception | None = None
        # Whoever wrote what was dropped then waited for it, and has heard of it.
        self._is_failure_told = False

    def offer(
        self, bodies: Sequence[str], receipt: "Future[int] | None" = None
    ) -> "Future[None] | None":
        """Queue chunks and return None; or, where there is no room, the promise of some.

        Raises what an earlier append failed with.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            size = sum(map(len, bodies))
            if bodies and self._bodies and not self._fits(len(bodies), size):
                room: Future[None] = pending_promise()
                self._waiting.append(room)
                return room
            self._bodies.extend(bodies)
            self._bytes += size
            if receipt is not None:
                self._receipts.append((len(self._bodies), receipt))
            wake = self._claim_busy()
        if wake:
            self._bridge.post(self._start)
        return None

    def end(self) -> "Future[int]":
        """Say that this attempt writes no more; kept once that and all before it is committed."""
        receipt: Future[int] = pending_promise()
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._end = True
            self._receipts.append((len(self._bodies), receipt))
            wake = self._claim_busy()
        if wake:
            self._bridge.post(self._start)
        return receipt

    def finish(self, *, end: bool) -> "Future[int] | None":
        """Return the promise that all is committed, and ended; None when it already is.

        What failed is raised once more, unless it was an append that somebody waited for.
        """
        with self._lock:
            if self._is_failure_told:
                return None
            done = not self._busy and not self._bodies and not (end and self._open)
            if done and self._failure is None:
                return None
        if end:
            return self.end()
        receipt: Future[int] = pending_promise()
        self.offer((), receipt)
        return receipt

    def fail(self, error: Exception, *, is_told: bool = False) -> None:
        """Drop what waits and raise this from now on; `is_told`: whoever wrote hears of it."""
        with self._lock:
            if self._failure is None:
                self._failure = error
                self._is_failure_told = is_told and _are_awaited(self._bodies, self._receipts)
            receipts, waiting = self._receipts, self._waiting
            self._bodies, self._bytes, self._end = [], 0, False
            self._receipts, self._waiting = [], []
        for _, receipt in receipts:
            receipt.set_exception(error)
        for room in waiting:
            room.set_exception(error)

    def _fits(self, count: int, size: int) -> bool:
        return len(self._bodies) + count <= MAX_CHUNKS and self._bytes + size <= MAX_BYTES

    def _claim_busy(self) -> bool:
        wake, self._busy = not self._busy, True
        return wake

    def _start(self) -> None:
        self._bridge.start(self._run)

    async def _run(self) -> None:
        """Send until nothing waits."""
        while (batch := self._take()) is not None:
            try:
                if batch.bodies or batch.end:
                    self._next_seq = await self._send(batch.bodies, batch.end)
            except Exception as error:
                _break(batch, error)
                self.fail(error, is_told=_are_awaited(batch.bodies, batch.receipts))
                return
            _keep(batch, self._next_seq)

    def _take(self) -> Batch | None:
        with self._lock:
            if not (self._bodies or self._receipts or self._end):
                self._busy = False
                return None
            batch = Batch(tuple(self._bodies), self._end, tuple(self._receipts))
            self._open = (self._open or bool(batch.bodies)) and not batch.end
            room, self._waiting = self._waiting, []
            self._bodies, self._bytes, self._end, self._receipts = [], 0, False, []
        for promise in room:
            promise.set_result(None)
        return batch


def _are_awaited(bodies: Sequence[str], receipts: Sequence[tuple[int, "Future[int]"]]) -> bool:
    """Whether somebody waits for the last of these, and so for all of them."""
    return len(bodies) <= max((count for count, _ in receipts), default=0)


def _keep(batch: Batch, next_seq: int) -> None:
    first = next_seq - len(batch.bodies)
    for count, receipt in batch.receipts:
        receipt.set_result(first + count)


def _break(batch: Batch, error: Exception) -> None:
    for _, receipt in batch.receipts:
        receipt.set_exception(error)
