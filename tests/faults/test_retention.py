"""Old days are dropped while everybody reads."""

import sys
import time
from collections.abc import AsyncGenerator
from datetime import date, timedelta

import anyio
import pytest
from anyio.abc import TaskStatus

from runwire_engine.database import Database
from runwire_engine.following import Following
from runwire_engine.retention import Retention
from tests.engine.test_retention import OLD, make_days, make_old, partitions
from tests.support.engines import query
from tests.support.sockets import open_socket
from tests.support.stage import Stage, open_stage


@pytest.fixture
async def stage(database_url: str, anyio_backend: str) -> AsyncGenerator[Stage]:
    async with open_stage(database_url) as opened:
        yield opened


pytestmark = [pytest.mark.anyio, pytest.mark.faults]

READERS = 100
DAYS = 6
CHUNKS = 60
# Generous, for a machine that is busy with other things; the bar is 500 ms on a quiet one.
LONGEST_STALL = 5.0
# A reader that waits so long for a lock gets an error; the bar is the same.
LONGEST_WAIT = "5s"


async def test_a_hundred_readers_do_not_stall_while_days_are_made_and_dropped(
    database_url: str, database: Database, env: int
) -> None:
    days = [OLD + timedelta(days=n) for n in range(DAYS)]
    await make_days(database, days[0], days[-1])
    runs = [await make_old(database, env, day) for day in days]
    readers = Database(database_url, max_size=30, lock_timeout=LONGEST_WAIT)
    await readers.open()
    following, slowest, reads = Following(readers), 0.0, 0

    async def read(number: int) -> None:
        nonlocal slowest, reads
        run_id = runs[number % DAYS]
        while not is_over.is_set():
            began = time.monotonic()
            events = await following.events(env, run_id, 0, 10)
            [head] = await following.heads(env, [(run_id, None)])
            await following.chunks([(head.id, head.bucket, 0)], 1000, 10)
            slowest, reads = max(slowest, time.monotonic() - began), reads + 1
            assert len(events) in {0, 1}

    is_over = anyio.Event()
    retention = Retention(database, history=timedelta(days=7), runs=timedelta(days=30_000))
    try:
        async with anyio.create_task_group() as tasks:
            for number in range(READERS):
                tasks.start_soon(read, number)
            with anyio.fail_after(60):
                while reads < READERS:  # connections are open, plans are made
                    await anyio.sleep(0.01)
                slowest = 0.0
                for ahead in range(30):
                    await retention.once()
                    await make_days(database, date(2031, 1, 1), date(2031, 1, 1 + ahead))
                    if not [name for day in days for name in await partitions(database, day)]:
                        break
            is_over.set()
    finally:
        await readers.close()
    assert [await partitions(database, day) for day in days] == [[]] * DAYS
    dropped = "select bucket from runwire.closed_days where dropped_at is not null"
    assert len(await query(database, dropped)) == DAYS
    sys.stdout.write(f"{reads} reads, the slowest took {slowest * 1000:.0f} ms\n")


async def test_a_hundred_sockets_are_served_while_days_are_dropped(
    stage: Stage, env: int, database: Database
) -> None:
    """They follow a run of today, chunk by chunk, and a feed."""
    days = [OLD + timedelta(days=n) for n in range(DAYS)]
    await make_days(database, days[0], days[-1])
    for day in days:
        await make_old(database, env, day)
    run_id = await stage.trigger("t")
    execution = await stage.start(run_id)
    sent: dict[int, float] = {}
    delays: list[float] = []

    async def watch(*, task_status: TaskStatus[None]) -> None:
        async with open_socket(stage.url, stage.key) as socket:
            await socket.subscribe("run", {"run": run_id}, streams={"*": {}})
            await socket.subscribe("tag", {"tags": ["t"]})
            await socket.until("live", sub="tag")
            task_status.started()
            while True:
                message = await socket.next()
                if message["type"] == "chunks":
                    now = time.monotonic()
                    delays.extend(now - sent[number] for number in message["data"])
                elif message["type"] == "done":
                    return

    async with anyio.create_task_group() as tasks:
        for _ in range(READERS):
            await tasks.start(watch)
        retention = Retention(database, history=timedelta(days=7), runs=timedelta(days=30_000))
        for number in range(CHUNKS):
            sent[number] = time.monotonic()
            await stage.append(run_id, execution, number)
            if number % 5 == 0:
                tasks.start_soon(retention.once)
        await retention.once()
        await stage.complete(run_id, execution)
    assert [await partitions(database, day) for day in days] == [[]] * DAYS
    assert len(delays) == READERS * CHUNKS
    assert max(delays) < LONGEST_STALL
    sys.stdout.write(f"the slowest of {len(delays)} chunks took {max(delays) * 1000:.0f} ms\n")
