"""Pipes of a run that nobody reads: the end of the attempt waits for them."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator

import anyio
import pytest

from runwire import streams
from runwire_engine.pipes import Pipes
from tests.support.working import Bench, defined, error_of, opened_bench

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        yield opened


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number


async def test_a_run_is_over_once_its_unread_pipes_are_written(bench: Bench) -> None:
    async def returning() -> str:
        streams.pipe("a", numbers(100))
        streams.pipe("b", numbers(50), target="root")
        return "at once"

    def returning_blocking() -> str:
        streams.sync.pipe("a", range(100))
        return "at once"

    first, second = defined(returning), defined(returning_blocking)
    async with bench.worker(first, second):
        row, other = await bench.finished(first), await bench.finished(second)
    assert (row.output, other.output) == ('"at once"', '"at once"')
    assert await bench.chunks(row.id, "a") == list(range(100))
    assert await bench.chunks(row.id, "b") == list(range(50))
    assert await bench.chunks(other.id, "a") == list(range(100))
    heads = await bench.engine.streams.streams_of(bench.env, row.id)
    assert [head.ended_execution for head in heads] == [1, 1]


async def test_an_unread_pipe_whose_source_fails_fails_the_run(bench: Bench) -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise RuntimeError("the model went away")

    async def careless() -> str:
        streams.pipe("a", broken())
        return "at once"

    made = defined(careless)
    async with bench.worker(made):
        row = await bench.finished(made)
    assert (row.status, error_of(row)["message"]) == ("FAILED", "the model went away")
    assert await bench.chunks(row.id, "a") == [1]


async def test_pipes_of_a_run_that_failed_are_not_waited_for(bench: Bench) -> None:
    async def endless() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async def failing() -> None:
        streams.pipe("a", endless())
        raise RuntimeError("half way")

    made = defined(failing)
    async with bench.worker(made):
        row = await bench.finished(made)
    assert error_of(row)["message"] == "half way"


async def test_a_run_that_waits_for_its_pipes_can_be_canceled(bench: Bench) -> None:
    closed = anyio.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def returning() -> None:
        streams.pipe("a", endless())

    made = defined(returning)
    async with bench.worker(made):
        run_id = await bench.start(made)
        with anyio.fail_after(60):
            while not await bench.chunks(run_id, "a"):
                await anyio.sleep(0.01)  # polls the database
            await bench.engine.runs.cancel(bench.env, run_id)
            await bench.until(run_id, "CANCELED")
            await closed.wait()


async def test_a_pipe_that_does_not_end_is_cut_off_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Endless:
        is_open = True
        ended = False

        async def finish(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                self.ended = True

        def abort(self) -> None:
            self.is_open = False

    pipes, endless = Pipes("run_a", wait=0.01), Endless()
    pipes.add(endless)
    with caplog.at_level(logging.WARNING):
        await pipes.finish()
    assert endless.ended and not endless.is_open
    assert "run_a returned, but 1 of its pipes" in caplog.text


async def test_a_blocking_pipe_that_does_not_end_is_cut_off_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Endless:
        is_open = True

        def finish_blocking(self, is_late: object) -> bool:
            return False

    pipes = Pipes("run_a", wait=0.0)
    pipes.add_blocking(Endless())
    with caplog.at_level(logging.WARNING):
        pipes.finish_blocking()
    assert "run_a returned, but 1 of its pipes" in caplog.text


async def test_many_finished_pipes_are_not_kept() -> None:
    class Over:
        is_open = False

        async def finish(self) -> None: ...

        def abort(self) -> None: ...

    pipes = Pipes("run_a")
    for _ in range(1000):
        pipes.add(Over())
    assert len(vars(pipes)["_open"]) == 1
