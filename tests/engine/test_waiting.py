"""Runs that wait: their slot is free meanwhile, and they go on where they were."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import orjson
import pytest

from runwire import _context
from runwire._context import ChildResult, Runtime
from runwire.requests import BatchItem, TriggerOptions
from runwire.tasks import AnyTask
from runwire_engine.runs import RunQuery
from tests.support.working import Bench, defined, error_of, opened_bench, until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        yield opened


def here() -> Runtime:
    return _context.require("this test")


def item(made: AnyTask, payload: object = None, index: int = 0, **options: Any) -> BatchItem:
    text = None if payload is None else orjson.dumps(payload).decode()
    return BatchItem(
        index=index, task=made.id, payload=text, options=TriggerOptions.model_validate(options)
    )


async def ask(made: AnyTask, payload: object = None, **options: Any) -> ChildResult:
    results = await here().trigger_and_wait([item(made, payload, **options)], batch=False)
    return results.runs[0]


async def kinds(bench: Bench, run_id: str) -> list[str]:
    return [event.type for event in await bench.engine.runs.events(bench.env, run_id)]


async def test_a_parent_waits_for_its_child_and_goes_on_with_its_output(bench: Bench) -> None:
    async def doubling(payload: int) -> int:
        return payload * 2

    child = defined(doubling)
    called = 0

    async def parenting() -> Any:
        nonlocal called
        called += 1
        result = await ask(child, 21)
        return [result.ok, result.output, result.task]

    parent = defined(parenting)
    # One slot: the child has it only once the parent has given it up.
    async with bench.worker(parent, child, concurrency=1):
        row = await bench.finished(parent)
    assert (row.status, row.output) == ("COMPLETED", f'[true,"42","{child.id}"]')
    assert (row.attempt, row.execution, called) == (1, 2, 1)
    assert await kinds(bench, row.id) == [
        "created",
        "executing",
        "waiting",
        "queued",
        "executing",
        "final",
    ]


async def test_a_def_task_waits_in_its_thread(bench: Bench) -> None:
    def child_in_thread(payload: int) -> int:
        return payload + 1

    child = defined(child_in_thread)

    def parent_in_thread() -> Any:
        results = here().trigger_and_wait_blocking([item(child, 1)], batch=False)
        here().wait_until_blocking(0.01)
        return results.runs[0].output

    parent = defined(parent_in_thread)
    async with bench.worker(parent, child, concurrency=1):
        row = await bench.finished(parent)
    assert (row.status, row.output, row.execution) == ("COMPLETED", '"2"', 3)


async def test_a_queue_of_one_lets_a_parent_wait_for_a_child_in_it(bench: Bench) -> None:
    async def leaf() -> str:
        return "leaf"

    child = defined(leaf, queue={"name": "one-at-a-time", "concurrency_limit": 1})

    async def trunk() -> Any:
        return (await ask(child)).output

    parent = defined(trunk, queue={"name": "one-at-a-time", "concurrency_limit": 1})
    async with bench.worker(parent, child):
        row = await bench.finished(parent)
    assert (row.status, row.output) == ("COMPLETED", '"\\"leaf\\""')


async def test_children_that_end_badly_are_results_that_are_not_ok(bench: Bench) -> None:
    async def failing() -> None:
        raise ValueError("no luck")

    async def sleepy() -> None:
        await anyio.sleep_forever()

    failed, endless = defined(failing), defined(sleepy)

    async def hopeful() -> Any:
        first = await ask(failed)
        second = await ask(endless, delay="1h")
        return [first.ok, first.error, second.ok, second.status, second.error]

    parent = defined(hopeful)
    async with bench.worker(parent, failed, endless):
        run_id = await bench.start(parent)
        delayed = await child_of(bench, run_id, endless)
        await bench.engine.runs.cancel(bench.env, delayed)
        row = await bench.until(run_id)
    assert row.output is not None
    first_ok, first_error, second_ok, status, second_error = orjson.loads(row.output)
    assert (first_ok, first_error["message"]) == (False, "no luck")
    assert (second_ok, status) == (False, "CANCELED")
    assert second_error["message"].endswith("was canceled")


async def test_a_batch_is_waited_for_whole_and_in_order(bench: Bench) -> None:
    async def squaring(payload: int) -> int:
        return payload * payload

    child = defined(squaring)

    async def batching() -> Any:
        items = [item(child, number, number) for number in range(20)]
        results = await here().trigger_and_wait(items, batch=True)
        return [results.batch_id, [result.output for result in results.runs]]

    parent = defined(batching)
    async with bench.worker(parent, child):
        row = await bench.finished(parent)
    assert row.output is not None
    batch_id, outputs = orjson.loads(row.output)
    assert outputs == [str(number * number) for number in range(20)]
    batch = await bench.engine.batches.retrieve(bench.env, batch_id)
    assert batch is not None and (batch.status, batch.run_count) == ("COMPLETED", 20)


async def test_waits_in_parallel_each_get_their_own(bench: Bench) -> None:
    async def echoing(payload: int) -> int:
        return payload

    child = defined(echoing)

    async def gathering() -> Any:
        results = await asyncio.gather(*(ask(child, number) for number in range(10)))
        async with anyio.create_task_group() as group:
            group.start_soon(here().wait_until, 0.01)
            group.start_soon(here().wait_until, 0.02)
        return [result.output for result in results]

    parent = defined(gathering)
    async with bench.worker(parent, child):
        row = await bench.finished(parent)
    assert row.output is not None
    assert orjson.loads(row.output) == [str(number) for number in range(10)]


async def test_what_goes_on_beside_a_wait_keeps_the_run_executing(bench: Bench) -> None:
    stored, done = anyio.Event(), anyio.Event()

    async def busy() -> str:
        async def beside() -> None:
            stored.set()
            await done.wait()
            await here().stream_append("self", "beside", ["1"])

        task = asyncio.create_task(beside())
        await here().wait_until(0.3)
        await task
        return "both"

    parent = defined(busy)
    async with bench.worker(parent):
        run_id = await bench.start(parent)
        await stored.wait()
        assert (await bench.row(run_id)).status == "EXECUTING"
        done.set()
        row = await bench.until(run_id)
    assert (row.status, row.execution, row.output) == ("COMPLETED", 2, '"both"')
    assert await bench.chunks(run_id, "beside") == [1]


async def test_a_waiting_run_frees_its_slot_of_the_worker(bench: Bench) -> None:
    async def patient(payload: float) -> None:
        await here().wait_until(payload)

    async def quick() -> str:
        return "quick"

    waiting, other = defined(patient), defined(quick)
    async with bench.worker(waiting, other, concurrency=1):
        ids = [await bench.start(waiting, 60.0) for _ in range(3)]
        for run_id in ids:
            await bench.until(run_id, "WAITING")
        assert (await bench.finished(other)).output == '"quick"'


async def test_a_waiting_run_is_canceled_at_once_and_its_code_unwound(bench: Bench) -> None:
    unwound = anyio.Event()

    async def doomed() -> None:
        try:
            await here().wait_until(60.0)
        finally:
            unwound.set()

    made = defined(doomed)
    async with bench.worker(made) as worker:
        run_id = await bench.start(made)
        await bench.until(run_id, "WAITING")
        canceled = await bench.engine.runs.cancel(bench.env, run_id)
        assert canceled.status == "CANCELED"
        with anyio.fail_after(60):
            await unwound.wait()
        await until(lambda: not worker.held)


async def test_what_is_written_around_a_wait_is_one_piece_of_one_attempt(bench: Bench) -> None:
    async def writing() -> None:
        await here().stream_write("self", "story", '"before"')
        here().metadata_apply("self", {"type": "increment", "key": "n", "value": 1})
        await here().wait_until(0.01)
        await here().stream_write("self", "story", '"after"')
        here().metadata_apply("self", {"type": "increment", "key": "n", "value": 1})

    made = defined(writing)
    async with bench.worker(made):
        row = await bench.finished(made)
    assert row.status == "COMPLETED"
    assert await bench.chunks(row.id, "story") == ["before", "after"]
    (stream,) = await bench.engine.streams.streams_of(bench.env, row.id)
    assert [(mark.execution, mark.from_seq) for mark in stream.attempts] == [(1, 0)]
    assert await bench.metadata(row.id) == {"n": 2}


async def test_a_wait_does_not_count_against_max_duration(bench: Bench) -> None:
    async def sleeping_long() -> str:
        await here().wait_until(0.6)
        return "in time"

    async def computing_long() -> None:
        await here().wait_until(0.01)
        await anyio.sleep_forever()

    slow, stuck = (
        defined(sleeping_long, max_duration=0.5),
        defined(computing_long, max_duration=0.5),
    )
    async with bench.worker(slow, stuck):
        assert (await bench.finished(slow)).output == '"in time"'
        row = await bench.finished(stuck)
    assert (row.status, error_of(row)["code"]) == ("TIMED_OUT", "MAX_DURATION")


async def child_of(bench: Bench, parent_id: str, made: AnyTask) -> str:
    """Wait for a parent's child and return its id."""
    with anyio.fail_after(60):
        while True:
            page = await bench.engine.runs.list(bench.env, RunQuery(task=(made.id,)))
            for row in page.runs:
                if row.parent_id == parent_id:
                    return row.id
            await anyio.sleep(0.01)  # polls the database
