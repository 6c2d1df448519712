"""Servers that make the runs of schedules are killed in the middle: one run for each tick.

RUNWIRE_TICKS and RUNWIRE_TICKS_KILLS make it larger (80 ticks of each schedule, 3 kills).
"""

import os
import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import anyio
import orjson
import pytest

from runwire_engine.database import Database
from runwire_engine.engine import Engine, open_engine
from runwire_engine.schedules import ScheduleSpec
from runwire_engine.settings import EngineSettings
from tests.support.engines import query
from tests.support.processes import Process, running

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

TICKS = int(os.environ.get("RUNWIRE_TICKS", "80"))
KILLS = int(os.environ.get("RUNWIRE_TICKS_KILLS", "3"))
SCHEDULES = 6
SERVERS = 2
PATIENCE = 60 + TICKS / 10
TICK = ("python", "tests/faults/programs/tick.py")


@pytest.fixture
async def engine(database_url: str, anyio_backend: str) -> AsyncGenerator[Engine]:
    async with open_engine(EngineSettings(database_url=database_url), sweeping=False) as opened:
        yield opened


async def made(database: Database) -> int:
    rows = await query(database, "select count(*) as n from runwire.runs")
    return int(rows[0]["n"])


@pytest.mark.timeout(600)
async def test_servers_that_are_killed_lose_and_double_no_tick(
    engine: Engine, env: int, database_url: str
) -> None:
    await query(
        engine.database,
        "insert into runwire.tasks (environment_id, id, queue) values (%s, 'plain', 'q')",
        env,
    )
    for n in range(SCHEDULES):
        spec = ScheduleSpec("plain", "* * * * *", f"key {n}", missed="all")
        await engine.schedules.create(env, spec)
    at = f"date_trunc('minute', now()) - interval '{TICKS} min'"
    await query(engine.database, f"update runwire.schedules set next_at = {at}, due_at = {at}")
    chance = random.Random(int(os.environ.get("RUNWIRE_FAULTS_SEED", "1")))
    thresholds = sorted(chance.randrange(1, SCHEDULES * TICKS) for _ in range(KILLS))
    async with AsyncExitStack() as stack:

        async def start() -> Process:
            environment = {"RUNWIRE_DATABASE_URL": database_url}
            return await stack.enter_async_context(running(*TICK, environment=environment))

        servers = [await start() for _ in range(SERVERS)]
        with anyio.fail_after(PATIENCE):
            for threshold in thresholds:
                while await made(engine.database) < threshold:
                    await anyio.sleep(0.002)
                victim = servers.pop(chance.randrange(len(servers)))
                victim.kill()
                servers.append(await start())
            while await made(engine.database) < SCHEDULES * TICKS:
                await anyio.sleep(0.02)
    rows = await query(
        engine.database, "select schedule_id, scheduled_at, payload from runwire.runs order by 1, 2"
    )
    ticks = Counter((row["schedule_id"], row["scheduled_at"]) for row in rows)
    assert set(ticks.values()) == {1}
    for schedule in {row["schedule_id"] for row in rows}:
        own = [row for row in rows if row["schedule_id"] == schedule]
        assert len(own) >= TICKS
        gaps = {
            (after["scheduled_at"] - before["scheduled_at"]).total_seconds()
            for before, after in zip(own, own[1:], strict=False)
        }
        assert gaps == {60.0}
        # Each was told of the one before it: the schedule and its runs moved together.
        told = [orjson.loads(row["payload"]) for row in own]
        for before, after in zip(told, told[1:], strict=False):
            assert after["lastTimestamp"] == before["timestamp"]
