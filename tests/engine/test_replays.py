"""Runs that waited and whose code runs again: what it did before is not done twice."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import orjson
import pytest

from runwire import _context
from runwire._context import Context, Runtime
from runwire.requests import BatchItem, TriggerOptions
from runwire.tasks import AnyTask
from runwire_engine.outcomes import Lost
from tests.support.working import Bench, defined, error_of, opened_bench

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        yield opened


def here() -> Runtime:
    return _context.require("this test")


def item(made: AnyTask, payload: object = None, index: int = 0) -> BatchItem:
    return BatchItem(index=index, task=made.id, payload=orjson.dumps(payload).decode())


def increment(key: str) -> dict[str, Any]:
    return {"type": "increment", "key": key, "value": 1}


async def children(bench: Bench, run_id: str) -> int:
    """Count the children of a run."""
    async with bench.engine.database.transaction() as tx:
        cursor = await tx.connection.execute(
            "select count(*) as children from runwire.runs where parent_id = %s", (run_id,)
        )
        row = await cursor.fetchone()
    assert row is not None
    return int(row["children"])


async def test_a_run_goes_on_in_another_worker_without_doing_anything_twice(bench: Bench) -> None:
    async def answering(payload: int) -> int:
        return payload

    child = defined(answering)
    times = 0

    async def twice(ctx: Context) -> Any:
        nonlocal times
        times += 1
        runtime = here()
        runtime.metadata_apply("self", increment("before"))
        await runtime.stream_write("self", "log", '"before"')
        handle = await runtime.trigger(child.id, "7", TriggerOptions(), f"key {times}")
        results = await runtime.trigger_and_wait([item(child, 1)], batch=False)
        runtime.metadata_apply("self", increment("between"))
        next_seq = await runtime.stream_append("self", "log", ['"between"'])
        await runtime.wait_until(60.0)
        runtime.metadata_apply("self", increment("after"))
        await runtime.stream_write("self", "log", '"after"')
        return [handle.id, results.runs[0].output, next_seq, ctx.attempt.number]

    parent = defined(twice)
    async with bench.worker(parent, child):
        run_id = await bench.start(parent)
        await until_sleeping(bench, run_id)
    await bench.sql("update runwire.runs set wake_at = now() where id = %(id)s", id=run_id)
    await bench.sql("update runwire.waits set due_at = now() where due_at is not null")
    async with bench.worker(parent, child):
        row = await bench.until(run_id)
    assert (row.status, row.attempt, times) == ("COMPLETED", 1, 2)
    # One less where its child had ended before it could wait.
    assert row.execution in (2, 3)
    assert row.output is not None
    child_id, output, next_seq, attempt = orjson.loads(row.output)
    assert (output, next_seq, attempt) == ("1", 2, 1)
    assert (await bench.row(child_id)).parent_id == run_id
    assert await children(bench, run_id) == 2
    assert await bench.metadata(run_id) == {"before": 1, "between": 1, "after": 1}
    assert await bench.chunks(run_id, "log") == ["before", "between", "after"]
    (stream,) = await bench.engine.streams.streams_of(bench.env, run_id)
    assert [(mark.attempt, mark.execution) for mark in stream.attempts] == [(1, 1)]


async def test_a_crash_after_a_wait_does_only_what_came_after_it_again(bench: Bench) -> None:
    reached = anyio.Event()

    async def crashing(ctx: Context) -> int:
        runtime = here()
        await runtime.stream_write("self", "log", '"first"')
        runtime.metadata_apply("self", increment("first"))
        await runtime.wait_until(0.01)
        await runtime.stream_append("self", "log", [f'"second of {ctx.attempt.number}"'])
        if ctx.attempt.number == 1:
            reached.set()
            await anyio.sleep_forever()
        return ctx.attempt.number

    made = defined(crashing, retry={"max_attempts": 2})
    async with bench.worker(made):
        run_id = await bench.start(made)
        await reached.wait()
        row = await bench.row(run_id)
        await bench.engine.outcomes.finish(bench.env, Lost(run_id, row.execution))
        row = await bench.until(run_id)
    assert (row.status, row.output, row.attempt) == ("COMPLETED", "2", 2)
    assert await bench.metadata(run_id) == {"first": 1}
    assert await bench.chunks(run_id, "log") == ["first", "second of 1", "second of 2"]
    (stream,) = await bench.engine.streams.streams_of(bench.env, run_id)
    assert [(mark.attempt, mark.from_seq) for mark in stream.attempts] == [(1, 0), (2, 2)]


async def test_a_wait_that_was_over_before_it_began_is_in_the_journal_as_well(
    bench: Bench,
) -> None:
    reached = anyio.Event()

    async def hasty(ctx: Context) -> None:
        here().metadata_apply("self", increment("first"))
        await here().wait_until(0.0)
        if ctx.attempt.number == 1:
            reached.set()
            await anyio.sleep_forever()

    made = defined(hasty, retry={"max_attempts": 2})
    async with bench.worker(made):
        run_id = await bench.start(made)
        await reached.wait()
        await bench.engine.outcomes.finish(bench.env, Lost(run_id, 1))
        row = await bench.until(run_id)
    assert (row.status, row.execution) == ("COMPLETED", 2)
    assert await bench.metadata(run_id) == {"first": 1}


async def test_an_exception_of_the_task_starts_over(bench: Bench) -> None:
    async def stubborn(ctx: Context) -> int:
        here().metadata_apply("self", increment("tries"))
        await here().wait_until(0.01)
        if ctx.attempt.number == 1:
            raise ValueError("once more")
        return ctx.attempt.number

    made = defined(stubborn, retry={"max_attempts": 2, "min_timeout": 0.01})
    async with bench.worker(made):
        row = await bench.finished(made)
    assert (row.output, row.generation) == ("2", 1)
    assert await bench.metadata(row.id) == {"tries": 2}


async def test_branches_are_found_again_whatever_order_they_wait_in(bench: Bench) -> None:
    async def answering(payload: int) -> int:
        return payload

    child = defined(answering)
    times = 0

    async def gathering() -> Any:
        nonlocal times
        times += 1

        async def one(number: int) -> Any:
            # The second time, the other way around.
            await anyio.sleep(0.01 * (number if times == 1 else 5 - number))
            here().metadata_apply("self", increment(f"n{number}"))
            results = await here().trigger_and_wait([item(child, number)], batch=False)
            return results.runs[0].output

        outputs = await asyncio.gather(*(one(number) for number in range(5)))
        await here().wait_until(60.0)
        return outputs

    parent = defined(gathering)
    async with bench.worker(parent, child):
        run_id = await bench.start(parent)
        await until_sleeping(bench, run_id)
    await bench.sql("update runwire.runs set wake_at = now() where id = %(id)s", id=run_id)
    await bench.sql("update runwire.waits set due_at = now() where due_at is not null")
    async with bench.worker(parent, child):
        row = await bench.until(run_id)
    assert row.output is not None
    assert (orjson.loads(row.output), times) == (["0", "1", "2", "3", "4"], 2)
    assert await children(bench, run_id) == 5
    assert await bench.metadata(run_id) == {f"n{number}": 1 for number in range(5)}


async def test_a_replay_that_takes_another_way_fails_and_names_the_line(bench: Bench) -> None:
    times = 0

    async def whimsical() -> None:
        nonlocal times
        times += 1
        if times == 1:
            await here().wait_until(60.0)
        else:
            try:
                await here().trigger_and_wait([item(made)], batch=False)
            except Exception:
                return  # what it catches changes nothing

    made = defined(whimsical, retry={"max_attempts": 5})
    async with bench.worker(made):
        run_id = await bench.start(made)
        await until_sleeping(bench, run_id)
    await bench.engine.waits.resume(bench.env, run_id)
    async with bench.worker(made):
        row = await bench.until(run_id)
    error = error_of(row)
    assert (row.status, row.attempt, error["code"]) == ("FAILED", 1, "NON_DETERMINISTIC")
    assert "test_replays.py:" in error["message"] and "asked for run" in error["message"]


async def test_beyond_its_bound_a_worker_unwinds_the_oldest_and_replays_it(bench: Bench) -> None:
    begun: list[str] = []

    async def sleeper(payload: float, ctx: Context) -> str:
        begun.append(ctx.run.id)
        await here().wait_until(payload)
        return "slept"

    made = defined(sleeper)
    async with bench.worker(made, parked=1):
        first = await bench.start(made, 0.4)
        await bench.until(first, "WAITING")
        second = await bench.start(made, 0.4)
        for run_id in (first, second):
            assert (await bench.until(run_id)).output == '"slept"'
    assert sorted(begun) == sorted([first, first, second])


async def until_sleeping(bench: Bench, run_id: str) -> None:
    """Wait until a run waits for a time that does not come by itself."""
    with anyio.fail_after(60):
        while True:
            async with bench.engine.database.transaction() as tx:
                cursor = await tx.connection.execute(
                    "select from runwire.runs where id = %s and status = 'WAITING'"
                    " and wake_at > now() + interval '30 s'",
                    (run_id,),
                )
                if cursor.rowcount:
                    return
            await anyio.sleep(0.01)  # polls the database
