"""Group commit: order, bounds, and an answer for every item."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from runwire_engine import flusher as flusher_module
from runwire_engine.errors import (
    CommitUnknownError,
    DatabaseUnavailableError,
    DataRefusedError,
    StatementError,
)
from runwire_engine.flusher import Flusher, FlusherClosedError, FlusherFullError, Promised

pytestmark = pytest.mark.anyio


class Sink:
    """Takes flushes, one at a time when told to hold them."""

    def __init__(self) -> None:
        self.flushes: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.flushes.append(list(items))
        await self.gate.wait()
        if any(item < 0 for item in items):
            raise DataRefusedError("negative")
        return [ValueError(item) if item == 13 else item * 10 for item in items]


@asynccontextmanager
async def running(flusher: Flusher[int, int]) -> AsyncGenerator[Flusher[int, int]]:
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flusher.run)
            yield flusher
            flusher.close()


async def test_what_arrives_while_a_flush_is_in_flight_goes_together() -> None:
    sink = Sink()
    async with running(Flusher("test", sink)) as flusher:
        sink.gate.clear()
        first = flusher.submit_nowait(1)
        await wait_all_tasks_blocked()
        rest = [flusher.submit_nowait(n) for n in (2, 3, 4)]
        sink.gate.set()
        assert [await promise for promise in (first, *rest)] == [10, 20, 30, 40]
    assert sink.flushes == [[1], [2, 3, 4]]


async def test_producers_wait_for_room_and_keep_their_order() -> None:
    sink = Sink()
    answers: list[int] = []

    async def produce(n: int) -> None:
        answers.append(await flusher.submit(n))

    async with running(Flusher("test", sink, max_items=3)) as flusher:
        sink.gate.clear()
        async with anyio.create_task_group() as tasks:
            for n in range(9):
                tasks.start_soon(produce, n)
                await wait_all_tasks_blocked()
            with pytest.raises(FlusherFullError):
                flusher.submit_nowait(99)
            sink.gate.set()
    assert sorted(answers) == [n * 10 for n in range(9)]
    assert [n for flush in sink.flushes for n in flush] == list(range(9))
    assert max(map(len, sink.flushes)) == 3


async def test_bytes_bound_a_flush_and_a_heavy_item_goes_alone() -> None:
    sink = Sink()
    async with running(Flusher("test", sink, max_bytes=10, size=lambda n: n)) as flusher:
        sink.gate.clear()
        first = flusher.submit_nowait(1)
        await wait_all_tasks_blocked()
        promises = [first, flusher.submit_nowait(4), flusher.submit_nowait(5)]
        async with anyio.create_task_group() as tasks:
            for n in (100, 6):
                tasks.start_soon(flusher.submit, n)
                await wait_all_tasks_blocked()
            sink.gate.set()
        await asyncio.wait(promises)
    assert sink.flushes == [[1], [4, 5], [100], [6]]


async def test_every_item_gets_its_own_answer_or_error() -> None:
    sink = Sink()
    async with running(Flusher("test", sink)) as flusher:
        promises = [flusher.submit_nowait(n) for n in (1, 13, 2, -1, 3)]
        answers = await asyncio.gather(*promises, return_exceptions=True)
    assert [str(answer) for answer in answers] == ["10", "13", "20", "negative", "30"]
    assert isinstance(answers[1], ValueError) and isinstance(answers[3], DataRefusedError)


async def test_a_flush_that_breaks_answers_its_items_and_the_next_one_works() -> None:
    broken = True

    async def flush(items: Sequence[int]) -> Sequence[int | Exception]:
        if broken:
            raise ZeroDivisionError
        return list(items)

    async with running(Flusher("test", flush)) as flusher:
        with pytest.raises(ZeroDivisionError):
            await flusher.submit(1)
        broken = False
        assert await flusher.submit(2) == 2


async def test_an_absent_database_is_waited_for_under_the_same_number() -> None:
    calls: list[tuple[int, list[int]]] = []
    errors: list[Exception] = [
        DatabaseUnavailableError("away"),
        CommitUnknownError("lost"),
        StatementError("deadlock", sqlstate="40P01", repeatable=True),
    ]

    async def flush(number: int, items: Sequence[int]) -> Sequence[int | Exception]:
        calls.append((number, list(items)))
        if errors:
            raise errors.pop(0)
        return list(items)

    async with running(Flusher("test", numbered=flush)) as flusher:
        assert await flusher.submit(7) == 7
        assert await flusher.submit(8) == 8
    assert calls == [(1, [7])] * 4 + [(2, [8])]


async def test_a_database_that_stays_away_fails_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher_module, "_BACK_OFF", (0.001, 0.001))
    tries = 0

    async def flush(items: Sequence[int]) -> Sequence[int | Exception]:
        nonlocal tries
        tries += 1
        raise DatabaseUnavailableError("away")

    async with running(Flusher("test", flush, retry_for=0.05)) as flusher:
        with pytest.raises(DatabaseUnavailableError):
            await flusher.submit(1)
    assert tries > 3


async def test_draining_waits_for_everything_handed_in() -> None:
    sink = Sink()
    async with running(Flusher("test", sink, max_items=2)) as flusher:
        async with anyio.create_task_group() as tasks:
            for n in range(7):
                tasks.start_soon(flusher.submit, n)
            await wait_all_tasks_blocked()
            await flusher.drain()
            assert flusher.idle
    assert sorted(n for flush in sink.flushes for n in flush) == list(range(7))


async def test_closing_flushes_what_is_left_and_takes_nothing_more() -> None:
    sink = Sink()
    flusher = Flusher("test", sink, max_items=2)
    promises = [flusher.submit_nowait(n) for n in (1, 2)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flusher.submit, 3)
        await wait_all_tasks_blocked()
        flusher.close()
        with pytest.raises(FlusherClosedError):
            await flusher.submit(4)
        tasks.start_soon(flusher.run)
    assert [await promise for promise in promises] == [10, 20]
    assert sink.flushes == [[1, 2], [3]]


async def test_a_flusher_that_is_stopped_answers_what_is_left() -> None:
    sink = Sink()
    sink.gate.clear()
    flusher = Flusher("test", sink, max_items=1)
    refused = 0

    async def produce(n: int) -> None:
        nonlocal refused
        try:
            await flusher.submit(n)
        except FlusherClosedError:
            refused += 1

    async with anyio.create_task_group() as producers:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flusher.run)
            for n in range(4):
                producers.start_soon(produce, n)
                await wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
    assert refused == 4


async def test_a_producer_that_gives_up_withdraws_its_item() -> None:
    sink = Sink()
    async with running(Flusher("test", sink, max_items=1)) as flusher:
        sink.gate.clear()
        first = flusher.submit_nowait(1)
        await wait_all_tasks_blocked()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flusher.submit, 2)
            await wait_all_tasks_blocked()
            tasks.start_soon(flusher.submit, 3)  # waits for room
            await wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        sink.gate.set()
        assert await first == 10
        assert await flusher.submit(4) == 40
    assert sink.flushes == [[1], [4]]


class Pipe:
    """Begins flushes while it is open, and keeps the promises of their answers."""

    def __init__(self) -> None:
        self.is_open = True
        self.begun: list[list[int]] = []
        self.promises: list[asyncio.Future[Sequence[int] | None]] = []

    def __call__(self, _: int, items: Sequence[int]) -> asyncio.Future[Sequence[int] | None] | None:
        if not self.is_open:
            return None
        self.begun.append(list(items))
        self.promises.append(asyncio.get_running_loop().create_future())
        return self.promises[-1]

    def answer(self, at: int, *, well: bool = True) -> None:
        self.promises[at].set_result([n * 10 for n in self.begun[at]] if well else None)


def piped(sink: Sink, pipe: Pipe) -> Flusher[int, int]:
    async def flush(_: int, items: Sequence[int]) -> Sequence[int | Exception]:
        return await sink(items)

    return Flusher("test", numbered=flush, begin=pipe, alike=lambda n: n // 100)


async def put(flusher: Flusher[int, int], *items: int) -> list[asyncio.Future[int]]:
    """Queue items as flushes of their own, as far as those may be begun."""
    promises: list[asyncio.Future[int]] = []
    for item in items:
        promises.append(flusher.submit_nowait(item))
        await wait_all_tasks_blocked()
    return promises


async def test_one_flush_is_begun_behind_another_and_what_then_arrives_goes_together() -> None:
    sink, pipe = Sink(), Pipe()
    async with running(piped(sink, pipe)) as flusher:
        promises = await put(flusher, 1, 2, 3, 4, 100)
        assert pipe.begun == [[1], [2]]
        pipe.answer(1)
        await wait_all_tasks_blocked()
        assert not promises[1].done()
        pipe.answer(0)
        assert [await promise for promise in promises[:2]] == [10, 20]
        await wait_all_tasks_blocked()
        assert pipe.begun == [[1], [2], [3, 4], [100]]
        assert not flusher.idle
        pipe.answer(2)
        pipe.answer(3)
        assert [await promise for promise in promises[2:]] == [30, 40, 1000]
    assert sink.flushes == []


async def test_flushes_that_did_nothing_are_flushed_again_in_order_before_anything_new() -> None:
    sink, pipe = Sink(), Pipe()
    async with running(piped(sink, pipe)) as flusher:
        promises = await put(flusher, 1, -2, 3)
        pipe.answer(0, well=False)
        await wait_all_tasks_blocked()
        assert pipe.begun == [[1], [-2]]
        pipe.is_open = False
        pipe.answer(1, well=False)
        answers = await asyncio.gather(*promises, return_exceptions=True)
    assert [str(answer) for answer in answers] == ["10", "negative", "30"]
    assert sink.flushes == [[1], [-2], [3]]


async def test_what_cannot_be_begun_waits_for_what_was() -> None:
    sink, pipe = Sink(), Pipe()
    async with running(piped(sink, pipe)) as flusher:
        (first,) = await put(flusher, 1)
        pipe.is_open = False
        (second,) = await put(flusher, 2)
        assert sink.flushes == []
        pipe.answer(0)
        assert [await first, await second] == [10, 20]
    assert sink.flushes == [[2]]


async def test_stopped_it_answers_what_was_begun() -> None:
    pipe = Pipe()
    flusher = piped(Sink(), pipe)
    begun: list[asyncio.Future[int]] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flusher.run)
        begun += await put(flusher, 1, 2)
        pipe.promises[0].set_exception(DatabaseUnavailableError("away"))
        with pytest.raises(DatabaseUnavailableError):
            await begun[0]
        tasks.cancel_scope.cancel()
    with pytest.raises(FlusherClosedError):
        await begun[1]


async def test_what_arrives_in_one_turn_of_the_loop_is_begun_together() -> None:
    sink, pipe = Sink(), Pipe()
    async with running(piped(sink, pipe)) as flusher:
        promises = [flusher.submit_nowait(n) for n in (1, 2, 100)]
        await wait_all_tasks_blocked()
        assert pipe.begun == [[1, 2], [100]]
        pipe.answer(0)
        pipe.answer(1)
        assert [await promise for promise in promises] == [10, 20, 1000]


async def test_a_beginning_that_breaks_answers_its_items_and_the_next_one_works() -> None:
    class Broken(Pipe):
        def __call__(self, number: int, items: Sequence[int]) -> "Promised[int] | None":
            if 13 in items:
                raise ZeroDivisionError
            return super().__call__(number, items)

    sink, pipe = Sink(), Broken()
    async with running(piped(sink, pipe)) as flusher:
        with pytest.raises(ZeroDivisionError):
            await flusher.submit(13)
        (promise,) = await put(flusher, 1)
        pipe.answer(0)
        assert await promise == 10


async def test_an_item_that_is_withdrawn_before_its_flush_keeps_nothing_open() -> None:
    async with running(piped(Sink(), Pipe())) as flusher:
        flusher.submit_nowait(1).cancel()
        await wait_all_tasks_blocked()
        assert flusher.idle
