"""Group commit that clocks itself: what arrived while the last flush was in flight goes next.

A lone item leaves at once; under load the flushes grow by themselves, up to the bounds, beyond
which producers wait. Every item gets an answer or an exception of its own: nothing is dropped
silently. A Flusher belongs to the event loop that first uses it and lives as long as its `run`.

A numbered flush gets a number that rises with every flush and is the *same* when a flush is
repeated after a COMMIT whose answer was lost. The flush function writes the number in its own
transaction (runwire.writers) and, finding it there already, returns what was answered then.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Generic, TypeVar

import anyio

from runwire_engine.errors import (
    DatabaseUnavailableError,
    DataRefusedError,
    EngineError,
    StatementError,
)

logger = logging.getLogger("runwire.flusher")

Item = TypeVar("Item")
Answer = TypeVar("Answer")

# One flush of 500 rows costs Postgres about 2 us a row; larger ones gain nothing and answer later.
MAX_ITEMS = 500
MAX_BYTES = 4 * 1024 * 1024
# A restart of Postgres takes under ten seconds; after this long the producer decides.
RETRY_FOR = 30.0
_BACK_OFF = (0.05, 2.0)  # the first wait and the longest, in seconds
_TRIES = 5  # after a deadlock, as Database.retrying


class FlusherClosedError(EngineError):
    """The flusher is closed (or was stopped): the item was not, or not surely, flushed."""


class FlusherFullError(EngineError):
    """There is no room now; `put` waits for it."""


class _Pending(Generic[Item, Answer]):
    """One item, what it weighs, and the promise of its answer."""

    __slots__ = ("answer", "item", "size")

    def __init__(self, item: Item, size: int, answer: "asyncio.Future[Answer]") -> None:
        self.item = item
        self.size = size
        self.answer = answer

    def resolve(self, answer: Answer | Exception) -> None:
        """Give the item its answer, unless its producer has gone."""
        if self.answer.done():
            return
        if isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


class Flusher(Generic[Item, Answer]):
    """Collects items and flushes them in groups, one flush in flight."""

    def __init__(
        self,
        name: str,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]] | None = None,
        *,
        numbered: Callable[[int, Sequence[Item]], Awaitable[Sequence[Answer | Exception]]]
        | None = None,
        max_items: int = MAX_ITEMS,
        max_bytes: int = MAX_BYTES,
        size: Callable[[Item], int] | None = None,
        retry_for: float = RETRY_FOR,
    ) -> None:
        """Take `flush(items)` or `numbered(number, items)`, which returns an answer per item.

        The bounds are of what waits, so of one flush too; an item heavier than `max_bytes` goes
        alone. A flush that finds the database away is repeated for `retry_for` seconds.
        """
        if (flush is None) == (numbered is None):
            raise ValueError("a flusher takes either flush or numbered")
        self.name = name
        self._flush = flush
        self._numbered = numbered
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._size = size
        self._retry_for = retry_for
        self._number = 0
        self._queue: deque[_Pending[Item, Answer]] = deque()
        self._queued_bytes = 0
        # Producers for whom there is no room yet, in the order they came; each gate opens once.
        self._waiting: deque[tuple[_Pending[Item, Answer], asyncio.Future[None]]] = deque()
        self._flying: Sequence[_Pending[Item, Answer]] = ()
        self._arrived = asyncio.Event()
        self._closing = False
        self._stopped = False

    async def submit(self, item: Item) -> Answer:
        """Flush an item and return its answer; waits while there is no room.

        Cancelled before its flush began, the item is withdrawn; afterwards it is flushed.
        """
        return await (await self.put(item))

    async def put(self, item: Item) -> "asyncio.Future[Answer]":
        """Queue an item, in order, and return the promise of its answer; waits for room."""
        pending = self._pending(item)
        if not self._waiting and self._fits(pending):
            self._admit(pending)
            return pending.answer
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (pending, gate)
        self._waiting.append(place)
        try:
            await gate
        except asyncio.CancelledError:
            pending.answer.cancel()
            if place in self._waiting:
                self._waiting.remove(place)
            raise
        return pending.answer

    def submit_nowait(self, item: Item) -> "asyncio.Future[Answer]":
        """Queue an item and return the promise of its answer. Raises FlusherFullError."""
        pending = self._pending(item)
        if self._waiting or not self._fits(pending):
            raise FlusherFullError(f"the {self.name} flusher has no room")
        self._admit(pending)
        return pending.answer

    @property
    def idle(self) -> bool:
        """Whether everything handed in has been answered."""
        return not (self._flying or self._queue or self._waiting)

    async def drain(self) -> None:
        """Wait until everything handed in so far has been answered, well or badly."""
        waiting = (pending for pending, _ in tuple(self._waiting))
        promises = [pending.answer for pending in (*self._flying, *self._queue, *waiting)]
        if promises:
            await asyncio.wait(promises)

    def close(self) -> None:
        """Take nothing more; `run` returns once everything handed in is answered."""
        self._closing = True
        self._arrived.set()

    async def run(self) -> None:
        """Flush until closed; cancelled, answer what is left with FlusherClosedError."""
        try:
            while not (self._closing and not self._queue):
                await self._arrived.wait()
                self._arrived.clear()
                await self._flush_queued()
        finally:
            self._stop()

    async def _flush_queued(self) -> None:
        while self._queue:
            self._flying = self._take()
            await self._settle(self._flying)
            self._flying = ()

    def _pending(self, item: Item) -> _Pending[Item, Answer]:
        if self._closing or self._stopped:
            raise FlusherClosedError(f"the {self.name} flusher is closed")
        size = self._size(item) if self._size else 0
        return _Pending(item, size, asyncio.get_running_loop().create_future())

    def _fits(self, pending: _Pending[Item, Answer]) -> bool:
        if not self._queue:
            return True
        few = len(self._queue) < self._max_items
        return few and self._queued_bytes + pending.size <= self._max_bytes

    def _admit(self, pending: _Pending[Item, Answer]) -> None:
        self._queue.append(pending)
        self._queued_bytes += pending.size
        self._arrived.set()

    def _take(self) -> list[_Pending[Item, Answer]]:
        # A cancelled promise is an item its producer withdrew.
        batch = [pending for pending in self._queue if not pending.answer.cancelled()]
        self._queue.clear()
        self._queued_bytes = 0
        while self._waiting and self._fits(self._waiting[0][0]):
            pending, gate = self._waiting.popleft()
            self._admit(pending)
            if not gate.done():
                gate.set_result(None)
        return batch

    async def _settle(self, batch: Sequence[_Pending[Item, Answer]]) -> None:
        """Flush a batch and answer its items; halve it when the database refuses a value."""
        if not batch:
            return
        self._number += 1
        try:
            answers = await self._attempt(self._number, [pending.item for pending in batch])
        except DataRefusedError as error:
            await self._bisect(batch, error)
        except Exception as error:
            if not isinstance(error, EngineError):
                logger.exception("the %s flush failed", self.name)
            _resolve(batch, [error] * len(batch))
        else:
            _resolve(batch, answers)

    async def _bisect(
        self, batch: Sequence[_Pending[Item, Answer]], error: DataRefusedError
    ) -> None:
        if len(batch) == 1:
            batch[0].resolve(error)
            return
        middle = len(batch) // 2
        await self._settle(batch[:middle])
        await self._settle(batch[middle:])

    async def _attempt(self, number: int, items: Sequence[Item]) -> Sequence[Answer | Exception]:
        """Flush under one number, again while the database is away or a deadlock was lost."""
        deadline = asyncio.get_running_loop().time() + self._retry_for
        tries = 0
        for wait in _back_offs():
            try:
                return await self._call(number, items)
            except DatabaseUnavailableError as error:
                if asyncio.get_running_loop().time() + wait > deadline:
                    raise
                logger.warning("the %s flush is repeated: %s", self.name, error)
                await anyio.sleep(wait)
            except StatementError as error:
                tries += 1
                if not error.repeatable or tries == _TRIES:
                    raise
        raise AssertionError("the back-off is endless")

    async def _call(self, number: int, items: Sequence[Item]) -> Sequence[Answer | Exception]:
        if self._numbered is not None:
            answers = await self._numbered(number, items)
        else:
            assert self._flush is not None
            answers = await self._flush(items)
        if len(answers) != len(items):
            raise RuntimeError(f"{self.name}: {len(answers)} answers for {len(items)} items")
        return answers

    def _stop(self) -> None:
        self._stopped = True
        left = [*self._flying, *self._queue, *(pending for pending, _ in self._waiting)]
        for pending in left:
            pending.resolve(FlusherClosedError(f"the {self.name} flusher was stopped"))
        for _, gate in self._waiting:
            if not gate.done():
                gate.set_result(None)
        self._queue.clear()
        self._waiting.clear()
        self._flying = ()


def _resolve(
    batch: Sequence[_Pending[Item, Answer]], answers: Sequence[Answer | Exception]
) -> None:
    for pending, answer in zip(batch, answers, strict=True):
        pending.resolve(answer)


def _back_offs() -> Iterator[float]:
    """Yield waits that double up to the longest, each with up to half of it taken off."""
    wait, longest = _BACK_OFF
    while True:
        yield wait * random.uniform(0.5, 1.0)
        wait = min(wait * 2, longest)
