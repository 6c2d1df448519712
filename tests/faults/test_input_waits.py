"""Workers killed around an input wait: each value that was sent is given once, in order.

RUNWIRE_INPUT_KILLS=40    more of each (2)
"""

import os
import random
from collections.abc import AsyncGenerator

import anyio
import orjson
import pytest

from runwire._stream_keys import input_key
from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.streams import Append
from runwire_engine.wanted_runs import NewRun
from tests.support.history import check, read_ledger
from tests.support.parts import worker_on
from tests.support.processes import until_async
from tests.support.working import WAIT, Bench, opened_bench

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

TASKS = "tests/faults/programs/asking_tasks.py"
SHORT_LEASE = {"RUNWIRE_LEASE": "1", "RUNWIRE_HEARTBEAT": "0.2", "RUNWIRE_POLL": "0.1"}
KILLS = int(os.environ.get("RUNWIRE_INPUT_KILLS", "2"))
# From a send on: before, while and after its run goes on.
_LATEST = 0.05


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        known = [TaskAnnouncement("asks", "task/asks")]
        await opened.engine.catalogue.announce(opened.env, known)
        yield opened


async def ask(bench: Bench, count: int) -> str:
    payload = orjson.dumps({"count": count}).decode()
    return (await bench.engine.runs.trigger(bench.env, NewRun("asks", payload))).id


async def given_values(bench: Bench, run_id: str) -> list[int]:
    """Return what the run was given, as its stream says, each time another value.

    What an execution wrote after its last wait is written again when its worker dies, under
    another attempt: no value twice under one.
    """
    page = await bench.engine.streams.read(bench.env, run_id, "given")
    written = [(chunk.attempt, int(chunk.body)) for chunk in page.chunks]
    assert len(set(written)) == len(written)
    return list(dict.fromkeys(value for _, value in written))


async def until_it_waits(bench: Bench, run_id: str, given: int) -> None:
    """Wait until a run has been given so many values, and waits for the next one."""

    async def look() -> bool:
        values = await given_values(bench, run_id) if given else []
        return len(values) == given and (await bench.row(run_id)).status == "WAITING"

    await until_async(look, WAIT)


async def send(bench: Bench, run_id: str, value: int) -> None:
    append = Append(run_id, input_key("answers"), (str(value),), writer="api", reserved=True)
    await bench.engine.streams.append(bench.env, append)


async def assert_each_once(bench: Bench, run_id: str, count: int) -> None:
    row = await bench.until(run_id)
    every = list(range(count))
    assert row.status == "COMPLETED" and orjson.loads(row.output or "") == every
    assert await given_values(bench, run_id) == every
    assert await bench.chunks(run_id, input_key("answers")) == every
    assert check(await read_ledger(bench.database_url, bench.env)) == []


async def test_what_is_sent_while_no_worker_lives_is_given_once(bench: Bench) -> None:
    kills = -(-KILLS // 2)
    run_id = await ask(bench, kills)
    for value in range(kills):
        async with worker_on(bench.database_url, TASKS, environment=SHORT_LEASE) as worker:
            await until_it_waits(bench, run_id, value)
            worker.kill()
            await worker.wait()
        await send(bench, run_id, value)
    async with worker_on(bench.database_url, TASKS, environment=SHORT_LEASE):
        await assert_each_once(bench, run_id, kills)


async def test_a_worker_killed_right_after_a_send_loses_and_repeats_nothing(bench: Bench) -> None:
    dice = random.Random(11)
    run_id = await ask(bench, KILLS)
    for value in range(KILLS):
        async with worker_on(bench.database_url, TASKS, environment=SHORT_LEASE) as worker:
            await until_it_waits(bench, run_id, value)
            await send(bench, run_id, value)
            await anyio.sleep(dice.uniform(0, _LATEST))  # meets what the send sets off anywhere
            worker.kill()
            await worker.wait()
    async with worker_on(bench.database_url, TASKS, environment=SHORT_LEASE):
        await assert_each_once(bench, run_id, KILLS)
