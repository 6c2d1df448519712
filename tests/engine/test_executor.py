"""Every way an attempt can end."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from runwire import _context
from runwire._context import Context
from runwire.errors import AbortTaskRunError
from tests.support.working import Bench, defined, error_of, opened_bench

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        yield opened


class Order(BaseModel):
    city: str
    count: int = 1


async def test_an_async_task_gets_its_payload_and_completes_with_its_output(bench: Bench) -> None:
    async def async_order(payload: Order) -> dict[str, Any]:
        return {"to": payload.city, "count": payload.count + 1}

    made = defined(async_order)
    async with bench.worker(made):
        row = await bench.finished(made, {"city": "Oslo"})
    assert (row.status, row.output) == ("COMPLETED", '{"to":"Oslo","count":2}')
    assert (row.attempt, row.execution, row.worker_id) == (1, 1, None)


async def test_a_def_task_runs_in_a_thread_with_its_context(bench: Bench) -> None:
    def def_order(payload: Order, ctx: Context) -> list[object]:
        runtime = _context.current()
        assert runtime is not None and runtime.ctx is ctx
        return [payload.city, ctx.run.id, ctx.attempt.number, ctx.task.id, ctx.environment]

    made = defined(def_order)
    async with bench.worker(made):
        row = await bench.finished(made, {"city": "Oslo"})
    assert row.status == "COMPLETED"
    assert row.output == f'["Oslo","{row.id}",1,"{made.id}","dev"]'


async def test_a_payload_that_does_not_fit_fails_the_run_without_a_retry(bench: Bench) -> None:
    async def strict(payload: Order) -> None:
        raise AssertionError("not reached")

    made = defined(strict, retry={"max_attempts": 5, "min_timeout": 0.01})
    async with bench.worker(made):
        for payload in ('{"count": 1}', "[]", '"x"', None):
            row = await bench.until(await bench.start_text(made, payload))
            assert (row.status, row.attempt) == ("FAILED", 1)
            assert error_of(row)["code"] == "PAYLOAD_INVALID"
            assert "payload does not fit" in error_of(row)["message"]


async def test_an_error_is_retried_with_back_off_until_it_works(bench: Bench) -> None:
    seen: list[tuple[int, float]] = []

    async def flaky(ctx: Context) -> int:
        seen.append((ctx.attempt.number, anyio.current_time()))
        if ctx.attempt.number < 3:
            raise ValueError("not yet")
        return ctx.attempt.number

    made = defined(
        flaky, retry={"max_attempts": 5, "min_timeout": 0.1, "factor": 2, "randomize": False}
    )
    # With a poll this long, the worker must wake for the retry by itself.
    async with bench.worker(made, poll=600.0):
        row = await bench.finished(made)
    assert (row.status, row.attempt, row.execution, row.error) == ("COMPLETED", 3, 3, None)
    assert [number for number, _ in seen] == [1, 2, 3]
    gaps = [after - before for (_, before), (_, after) in zip(seen, seen[1:], strict=False)]
    assert gaps[0] >= 0.09 and gaps[1] >= 0.19


async def test_attempts_used_up_fail_the_run_with_its_last_error(bench: Bench) -> None:
    def hopeless(ctx: Context) -> None:
        raise LookupError(f"attempt {ctx.attempt.number}")

    made = defined(hopeless, retry={"max_attempts": 2, "min_timeout": 0.01})
    async with bench.worker(made):
        row = await bench.finished(made)
    error = error_of(row)
    assert (row.status, row.attempt) == ("FAILED", 2)
    assert (error["name"], error["message"]) == ("LookupError", "attempt 2")
    assert error["code"] == "TASK_ERROR"
    assert "hopeless" in error["stackTrace"]
    assert "runwire_engine" not in error["stackTrace"]


async def test_the_runs_own_max_attempts_beats_the_tasks(bench: Bench) -> None:
    async def bounded() -> None:
        raise ValueError("no")

    made = defined(bounded, retry={"max_attempts": 10, "min_timeout": 0.01})
    async with bench.worker(made):
        row = await bench.finished(made, max_attempts=2)
    assert (row.status, row.attempt) == ("FAILED", 2)


async def test_an_abort_fails_the_run_without_a_retry(bench: Bench) -> None:
    async def aborting() -> None:
        raise AbortTaskRunError("no such account")

    made = defined(aborting, retry={"max_attempts": 5})
    async with bench.worker(made):
        row = await bench.finished(made)
    assert (row.status, row.attempt, error_of(row)["code"]) == ("FAILED", 1, "TASK_ABORTED")


async def test_an_error_text_that_cannot_be_stored_is_cleaned(bench: Bench) -> None:
    async def dirty() -> None:
        raise ValueError("a\x00b\ud800" + "x" * 100_000)

    made = defined(dirty)
    async with bench.worker(made):
        row = await bench.finished(made)
    assert row.status == "FAILED"
    assert error_of(row)["message"].startswith("a\N{REPLACEMENT CHARACTER}b?xx")


async def test_max_duration_times_a_run_out(bench: Bench) -> None:
    unwound = anyio.Event()

    async def slow() -> None:
        try:
            await anyio.sleep(60)
        finally:
            unwound.set()

    made = defined(slow, max_duration=0.1, retry={"max_attempts": 3})
    async with bench.worker(made):
        row = await bench.finished(made)
    assert (row.status, row.attempt, error_of(row)["code"]) == ("TIMED_OUT", 1, "MAX_DURATION")
    assert unwound.is_set()


async def test_a_def_task_is_told_by_its_signal_that_its_time_is_over(bench: Bench) -> None:
    def patient(signal: Any) -> None:
        signal.wait(10)
        signal.raise_if_set()

    made = defined(patient)
    async with bench.worker(made):
        row = await bench.finished(made, max_duration=0.1)
    assert row.status == "TIMED_OUT"


async def test_a_run_executes_its_variables_apart_from_others(bench: Bench) -> None:
    ids: set[str] = set()

    async def reading() -> bool:
        runtime = _context.require("this")
        await anyio.sleep(0.01)
        ids.add(runtime.ctx.run.id)
        return _context.require("this") is runtime

    made = defined(reading)
    async with bench.worker(made):
        rows = [await bench.start(made) for _ in range(5)]
        outputs = {(await bench.until(run_id)).output for run_id in rows}
    assert outputs == {"true"}
    assert ids == set(rows)
    assert _context.current() is None


async def test_a_def_task_may_run_loops_of_its_own(bench: Bench) -> None:
    async def append() -> int:
        return await _context.require("this").stream_append("self", "s", ["1"])

    def looping() -> list[int]:
        return [asyncio.run(append()), anyio.run(append)]

    made = defined(looping)
    async with bench.worker(made):
        row = await bench.finished(made)
    assert row.output == "[1,2]"
