"""Waiting for input with the slot free."""

import asyncio
import os
import random
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import orjson
import pytest

from runwire import InvalidValueError, logger, streams
from runwire._stream_keys import LOG_KEY, input_key
from runwire_engine.streams import Append
from tests.support.working import Bench, defined, opened_bench

pytestmark = pytest.mark.anyio

answers = streams.input[Any]("answers")


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        yield opened


async def send(bench: Bench, run_id: str, *values: object) -> None:
    bodies = tuple(orjson.dumps(value).decode() for value in values)
    append = Append(run_id, input_key("answers"), bodies, writer="api", reserved=True)
    await bench.engine.streams.append(bench.env, append)


async def waiting_after(bench: Bench, run_id: str, said: str) -> None:
    """Wait until a run has logged a line and is WAITING then."""
    with anyio.fail_after(30):
        while said not in [line["message"] for line in await bench.chunks(run_id, LOG_KEY)]:
            await anyio.sleep(0.01)  # polls the database
        while (await bench.row(run_id)).status != "WAITING":
            await anyio.sleep(0.01)  # polls the database


async def kinds(bench: Bench, run_id: str) -> list[str]:
    return [event.type for event in await bench.engine.runs.events(bench.env, run_id)]


async def test_a_run_that_waits_for_input_gives_up_its_slot_and_goes_on_with_what_comes(
    bench: Bench,
) -> None:
    async def asking() -> Any:
        first = await answers.wait()
        second = await answers.wait()
        return [first.ok, first.unwrap(), second.output]

    async def other() -> str:
        return "had the slot"

    made, beside = defined(asking), defined(other)
    async with bench.worker(made, beside, concurrency=1):
        run_id = await bench.start(made)
        await bench.until(run_id, "WAITING")
        assert (await bench.finished(beside)).status == "COMPLETED"
        await send(bench, run_id, {"n": 1})
        await bench.until(run_id, "WAITING")
        await send(bench, run_id, 2)
        row = await bench.until(run_id)
    assert row.output == '[true,{"n":1},2]' and row.attempt == 1


async def test_a_def_task_waits_in_its_thread(bench: Bench) -> None:
    def asking() -> Any:
        return answers.sync.wait().unwrap()

    made = defined(asking)
    async with bench.worker(made):
        run_id = await bench.start(made)
        await bench.until(run_id, "WAITING")
        await send(bench, run_id, "yes")
        assert (await bench.until(run_id)).output == '"yes"'


async def test_what_is_there_already_is_not_waited_for(bench: Bench) -> None:
    async def asking() -> Any:
        return [(await answers.wait()).output, await answers.once(), (await answers.wait()).output]

    made = defined(asking)
    async with bench.worker():
        pass
    async with bench.worker(made):
        run_id = await bench.start(made, delay=None)
        await send(bench, run_id, 1, 2, 3)
        row = await bench.until(run_id)
    assert row.output == "[1,2,3]"


async def test_a_wait_that_nothing_comes_for_times_out(bench: Bench) -> None:
    async def asking() -> Any:
        result = await answers.wait(timeout=0.05)
        with pytest.raises(TimeoutError, match="'answers' within 0.05"):
            result.unwrap()
        logger.info("timed out")
        late = await answers.wait()
        return [result.ok, late.output]

    made = defined(asking)
    async with bench.worker(made):
        run_id = await bench.start(made)
        await waiting_after(bench, run_id, "timed out")
        await send(bench, run_id, "late")
        row = await bench.until(run_id)
    assert row.output == '[false,"late"]'


async def test_a_value_that_comes_soon_finds_the_run_where_it_was(bench: Bench) -> None:
    asking_now = anyio.Event()

    async def asking() -> Any:
        asking_now.set()
        soon = await answers.wait_with_idle_timeout(idle_timeout=30)
        late = await answers.wait_with_idle_timeout(idle_timeout=0.01)
        return [soon.output, late.output]

    made = defined(asking)
    async with bench.worker(made):
        run_id = await bench.start(made)
        await asking_now.wait()
        await send(bench, run_id, 1)
        await bench.until(run_id, "WAITING")
        await send(bench, run_id, 2)
        row = await bench.until(run_id)
    assert row.output == "[1,2]" and (await kinds(bench, run_id)).count("waiting") == 1


async def test_a_replay_gets_the_same_input_and_does_nothing_twice(bench: Bench) -> None:
    times = 0

    async def asking() -> Any:
        nonlocal times
        times += 1
        logger.info("begun")
        first = await answers.once()
        second = await answers.wait()
        missed = await answers.wait(timeout=0.01)
        logger.info("nearly")
        third = await answers.wait()
        return [first, second.output, missed.ok, third.output]

    made = defined(asking)
    async with bench.worker(made):
        run_id = await bench.start(made)
        await send(bench, run_id, 1)
        await bench.until(run_id, "WAITING")
        await send(bench, run_id, 2)
        await waiting_after(bench, run_id, "nearly")
    # Its worker is gone; what comes meanwhile wakes it in the next one.
    await send(bench, run_id, 3)
    async with bench.worker(made):
        row = await bench.until(run_id)
    assert row.output == "[1,2,false,3]" and times == 2
    lines = [line["message"] for line in await bench.chunks(run_id, LOG_KEY)]
    assert lines == ["begun", "nearly"]


async def test_waiting_beside_something_else_keeps_the_slot_and_is_answered(bench: Bench) -> None:
    async def asking() -> Any:
        done = asyncio.Event()

        async def beside() -> None:
            await done.wait()

        task = asyncio.ensure_future(beside())
        result = await answers.wait()
        done.set()
        await task
        return result.output

    made = defined(asking)
    async with bench.worker(made):
        run_id = await bench.start(made)
        await bench.until(run_id, "EXECUTING")
        await anyio.sleep(0.05)  # lets the wait be written
        await send(bench, run_id, 5)
        row = await bench.until(run_id)
    assert row.output == "5" and "waiting" not in await kinds(bench, run_id)


async def test_no_answer_is_lost_however_it_meets_the_wait(bench: Bench) -> None:
    dice = random.Random(7)
    count = int(os.environ.get("RUNWIRE_INPUT_RUNS", "5"))

    async def asking(payload: int) -> list[Any]:
        return [(await answers.wait()).output for _ in range(payload)]

    made = defined(asking)
    async with bench.worker(made, concurrency=5):
        runs = [await bench.start(made, 2) for _ in range(count)]

        async def answer(run_id: str) -> None:
            for number in range(2):
                await anyio.sleep(dice.uniform(0, 0.1))  # meets it anywhere
                await send(bench, run_id, number)

        async with anyio.create_task_group() as tasks:
            for run_id in runs:
                tasks.start_soon(answer, run_id)
        outputs = [(await bench.until(run_id)).output for run_id in runs]
    assert outputs == ["[0,1]"] * count


async def test_a_wake_that_nobody_took_is_found_by_the_sweep(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asking() -> Any:
        return (await answers.wait()).output

    made = defined(asking)

    def forget(environment_id: int, ids: object) -> None: ...

    monkeypatch.setattr(bench.engine.waits, "ended", forget)
    async with bench.worker(made):
        run_id = await bench.start(made)
        await bench.until(run_id, "WAITING")
        await send(bench, run_id, "found")
        assert (await bench.until(run_id)).output == '"found"'


async def test_a_canceled_run_waits_no_longer(bench: Bench) -> None:
    async def asking() -> None:
        await answers.wait()

    made = defined(asking)
    async with bench.worker(made):
        run_id = await bench.start(made)
        await bench.until(run_id, "WAITING")
        await bench.engine.runs.cancel(bench.env, run_id)
        assert (await bench.until(run_id)).status == "CANCELED"


async def test_a_wait_lasts_a_year_at_most(bench: Bench) -> None:
    async def asking() -> None:
        for timeout in (-1, "400d"):
            with pytest.raises(InvalidValueError, match="366 days"):
                await answers.wait(timeout=timeout)

    made = defined(asking)
    async with bench.worker(made):
        assert (await bench.finished(made)).status == "COMPLETED"
