"""Group commit that clocks itself: what arrived while the last flush was in flight goes next.

A lone item leaves at once; under load the flushes grow by themselves, up to the bounds, beyond
which producers wait. Every item gets an answer or an exception of its own: nothing is dropped
silently. A Flusher belongs to the event loop that first uses it and lives as long as its `run`.

A numbered flush gets a number that rises with every flush and is the *same* when a flush is
repeated after a COMMIT whose answer was lost. The flush function writes the number in its own
transaction (runwire.writers) and, finding it there already, returns what was answered then.

Where flushes can be begun without waiting for those before (`begin`), a few are under way, which
take effect in order. One that did nothing, and so those behind it, is flushed again, in order, one
after the other, before anything new is. As long as nothing has to be waited for, callbacks begin
and answer them: a task takes longer to wake, in a process that was idle longer than the rest of it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

import anyio

from runwire_engine.back_off import back_offs
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
# Begun and not answered: one that is executed, and one that waits behind it.
_UNDER_WAY = 2


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


# Answers to come; None: that nothing of the flush happened, nor will.
Promised: TypeAlias = "asyncio.Future[Sequence[Answer] | None]"


class Flusher(Generic[Item, Answer]):
    """Collects items and flushes them in groups, one flush in flight unless they can be begun."""

    def __init__(
        self,
        name: str,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]] | None = None,
        *,
        numbered: Callable[[int, Sequence[Item]], Awaitable[Sequence[Answer | Exception]]]
        | None = None,
        begin: "Callable[[int, Sequence[Item]], Promised[Answer] | None] | None" = None,
        alike: Callable[[Item], object] | None = None,
        max_items: int = MAX_ITEMS,
        max_bytes: int = MAX_BYTES,
        size: Callable[[Item], int] | None = None,
        retry_for: float = RETRY_FOR,
    ) -> None:
        """Take `flush(items)` or `numbered(number, items)`, which returns an answer per item.

        `begin` begins a flush behind those that were begun, and returns None where that is not
        possible now. The items of a flush are `alike`. The bounds are of what waits, so of one
        flush too; an item heavier than `max_bytes` goes alone. A flush that finds the database
        away is repeated for `retry_for` seconds.
        """
        if (flush is None) == (numbered is None):
            raise ValueError("a flusher takes either flush or numbered")
        self.name = name
        self._flush = flush
        self._numbered = numbered
        self._begin = begin
        self._alike = alike
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._size = size
        self._retry_for = retry_for
        self._number = 0
        self._queue: deque[_Pending[Item, Answer]] = deque()
        self._queued_bytes = 0
        # Producers for whom there is no room yet, in the order they came; each gate opens once.
        self._waiting: deque[tuple[_Pending[Item, Answer], asyncio.Future[None]]] = deque()
        # Taken from the queue, and not begun: `run` flushes them.
        self._flying: list[Sequence[_Pending[Item, Answer]]] = []
        # One of these that it does not know of yet.
        self._left: Sequence[_Pending[Item, Answer]] | None = None
        self._begun: deque[tuple[Sequence[_Pending[Item, Answer]], Promised[Answer]]] = deque()
        # There is something for `run` to do.
        self._arrived = asyncio.Event()
        # What arrives in one turn of the loop is begun in the next, together.
        self._is_due = False
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
        return not (self._flying or self._begun or self._queue or self._waiting)

    async def drain(self) -> None:
        """Wait until everything handed in so far has been answered, well or badly."""
        promises = [pending.answer for pending in self._unanswered()]
        if promises:
            await asyncio.wait(promises)

    def close(self) -> None:
        """Take nothing more; `run` returns once everything handed in is answered."""
        self._closing = True
        self._arrived.set()

    async def run(self) -> None:
        """Flush until closed; cancelled, answer what is left with FlusherClosedError."""
        try:
            while not (self._closing and self.idle):
                await self._arrived.wait()
                self._arrived.clear()
                await self._flush_queued()
        finally:
            self._stop()

    async def _flush_queued(self) -> None:
        await self._answer_begun()
        batch, self._left = self._left, None
        if batch is None:
            batch = self._begin_queued()
        while batch is not None:
            await self._flush_behind(batch)
            self._flying.remove(batch)
            batch = self._begin_queued()

    def _begin_queued(self) -> Sequence[_Pending[Item, Answer]] | None:
        """Begin what waits, as far as that is possible, and return what has to be flushed."""
        while self._queue and len(self._begun) < _UNDER_WAY:
            batch = self._take()
            if not self._has_begun(batch):
                self._flying.append(batch)
                return batch
        return None

    def _advance(self, _: object = None) -> None:
        """Answer and begin what can be without waiting, while `run` has nothing to do."""
        self._is_due = False
        if self._flying:
            return
        while self._begun and self._begun[0][1].done() and not _did_nothing(self._begun[0][1]):
            self._answer_first()
        if not (self._begun and self._begun[0][1].done()):
            self._left = self._begin_queued()
            if self._left is None and not self._closing:
                return
        self._arrived.set()

    async def _flush_behind(self, batch: Sequence[_Pending[Item, Answer]]) -> None:
        """Flush a batch that could not be begun, once what was begun is answered."""
        if self._begun:
            await asyncio.wait([promise for _, promise in self._begun])
            await self._answer_begun()
            if self._has_begun(batch):
                return
        await self._settle(batch)

    def _has_begun(self, batch: Sequence[_Pending[Item, Answer]]) -> bool:
        """Begin a batch if that is possible."""
        if self._begin is None or not batch:
            return False
        self._number += 1
        try:
            promise = self._begin(self._number, [pending.item for pending in batch])
        except Exception as error:
            logger.exception("the %s flush failed", self.name)
            _resolve(batch, [error] * len(batch))
            return True
        if promise is None:
            return False
        self._begun.append((batch, promise))
        promise.add_done_callback(self._advance)
        return True

    async def _answer_begun(self) -> None:
        """Answer the flushes that are answered, in order; flush again those that did nothing."""
        again: list[Sequence[_Pending[Item, Answer]]] = []
        while self._begun and (again or self._begun[0][1].done()):
            batch, promise = self._begun[0]
            if not promise.done():
                await asyncio.wait([promise])
            if not _did_nothing(promise):
                self._answer_first()
                continue
            self._begun.popleft()
            again.append(batch)
            self._flying.append(batch)
        for batch in again:
            await self._settle(batch)
            self._flying.remove(batch)

    def _answer_first(self) -> None:
        """Answer the first of what was begun, now that it is."""
        batch, promise = self._begun.popleft()
        answers = _outcome(promise, len(batch))
        _resolve(batch, answers)

    def _pending(self, item: Item) -> _Pending[Item, Answer]:
        if self._closing or self._stopped:
            raise FlusherClosedError(f"the {self.name} flusher is closed")
        size = self._size(item) if self._size is not None else 0
        return _Pending(item, size, asyncio.get_running_loop().create_future())

    def _fits(self, pending: _Pending[Item, Answer]) -> bool:
        if not self._queue:
            return True
        few = len(self._queue) < self._max_items
        return few and self._queued_bytes + pending.size <= self._max_bytes

    def _admit(self, pending: _Pending[Item, Answer]) -> None:
        self._queue.append(pending)
        self._queued_bytes += pending.size
        if self._begin is None:
            self._arrived.set()
        elif not self._is_due and len(self._begun) < _UNDER_WAY:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._advance)

    def _take(self) -> list[_Pending[Item, Answer]]:
        # A cancelled promise is an item its producer withdrew.
        batch = [pending for pending in self._queue if not pending.answer.cancelled()]
        self._queue.clear()
        self._queued_bytes = 0
        if self._alike is not None and batch:
            kinds = [self._alike(pending.item) for pending in batch]
            if any([kind != kinds[0] for kind in kinds]):
                sorted_out = list(zip(kinds, batch, strict=True))
                self._queue.extend([each for kind, each in sorted_out if kind != kinds[0]])
                self._queued_bytes = sum([pending.size for pending in self._queue])
                batch = [each for kind, each in sorted_out if kind == kinds[0]]
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
        for wait in back_offs(*_BACK_OFF):
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
        for pending in self._unanswered():
            pending.resolve(FlusherClosedError(f"the {self.name} flusher was stopped"))
        for _, gate in self._waiting:
            if not gate.done():
                gate.set_result(None)
        self._queue.clear()
        self._waiting.clear()
        self._begun.clear()
        self._flying.clear()

    def _unanswered(self) -> list[_Pending[Item, Answer]]:
        taken = [*(batch for batch, _ in self._begun), *self._flying]
        waiting = (pending for pending, _ in self._waiting)
        return [*(pending for batch in taken for pending in batch), *self._queue, *waiting]


def _resolve(
    batch: Sequence[_Pending[Item, Answer]], answers: Sequence[Answer | Exception]
) -> None:
    for pending, answer in zip(batch, answers, strict=True):
        pending.resolve(answer)


def _did_nothing(promise: "Promised[Answer]") -> bool:
    """Whether nothing of a flush that was begun happened."""
    return not promise.cancelled() and promise.exception() is None and promise.result() is None


def _outcome(promise: "Promised[Answer]", count: int) -> Sequence[Answer] | Sequence[Exception]:
    """Return what became of a flush that was begun, as an answer for each of its items."""
    if promise.cancelled():
        return [FlusherClosedError("the flush was given up")] * count
    if (error := promise.exception()) is not None:
        assert isinstance(error, Exception)
        return [error] * count
    answers = promise.result()
    assert answers is not None
    return answers
