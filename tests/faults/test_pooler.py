"""Behind PgBouncer in transaction mode: no LISTEN, so poll-only; all of it, only later.

`make faults` runs more of the suite behind it (RUNWIRE_TEST_POOLER).
"""

import logging
from collections.abc import Callable

import pytest
from pydantic import SecretStr

from runwire_engine.wanted_runs import NewRun
from tests.support.engines import until_status
from tests.support.parts import worker_on
from tests.support.pooler import pooler
from tests.support.postgres import opened_database
from tests.support.processes import until, until_async
from tests.support.stage import Stage, open_stage
from tests.support.watching import watched_traffic

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

# Promised: the poll of 1 s and the read; a busy machine takes longer.
POLL_WITHIN = 15.0
TASKS = "tests/faults/programs/stubborn_tasks.py"
Record = Callable[[str, object], None]


async def notifications(stage: Stage) -> str:
    async with stage.server.client() as http:
        said = (await http.get("/readyz")).json()
    assert said["ready"], said
    return str(said["notifications"])


@pytest.mark.parametrize("drops_options", [False, True], ids=["refuses options", "drops options"])
async def test_a_pooler_is_recognised_and_nothing_is_asked_that_it_cannot_do(
    database_url: str, drops_options: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with pooler(database_url, drops_options=drops_options) as dsn:
        async with opened_database(dsn) as database:
            for _ in range(10):
                async with database.transaction(), database.transaction() as tx:
                    await tx.together(("changes.epoch", None), ("changes.now", None))
                assert await database.one("changes.epoch") is not None
    told = [line for line in caplog.messages if "start-up options" in line]
    assert told == [
        f"a pooler {'drops' if drops_options else 'refuses'} start-up options;"
        " time limits are the role's"
    ]


async def test_behind_a_pooler_the_start_says_poll_only_and_everything_comes_with_the_poll(
    database_url: str, caplog: pytest.LogCaptureFixture, record_property: Record
) -> None:
    with pooler(database_url) as dsn, caplog.at_level(logging.WARNING):
        async with open_stage(dsn) as stage:
            await until(lambda: "poll-only" in caplog.text)
            assert await notifications(stage) == "poll-only"
            async with watched_traffic(stage) as traffic:
                await traffic.until_flowing(40)
                record_property("p50", round(traffic.delays()[len(traffic.delays()) // 2], 2))
                record_property("longest_delay", round(traffic.delays()[-1], 2))
                assert traffic.delays()[-1] < POLL_WITHIN
            assert await notifications(stage) == "poll-only"
    assert caplog.text.count("poll-only") == 1
    assert "lost its connection" not in caplog.text


async def test_a_connection_of_its_own_lets_bells_go_around_the_pooler(
    database_url: str, record_property: Record
) -> None:
    with pooler(database_url) as dsn:
        async with open_stage(dsn, listen_database_url=SecretStr(database_url)) as stage:

            async def is_heard() -> bool:
                return await notifications(stage) == "listening"

            await until_async(is_heard)
            async with watched_traffic(stage) as traffic:
                await traffic.until_flowing(40)
                middle = traffic.delays()[len(traffic.delays()) // 2]
            record_property("p50", round(middle, 3))
            assert middle < 0.45, "this is the poll's pace (0.5 in the middle), not the bells'"


async def test_a_worker_behind_a_pooler_executes(database_url: str) -> None:
    with pooler(database_url) as dsn:
        async with open_stage(dsn) as stage, worker_on(dsn, TASKS) as worker:
            run = await stage.engine.runs.trigger(stage.env, NewRun("count", '{"count":50}'))
            await until_status(stage.engine, stage.env, run.id, "COMPLETED")
            page = await stage.engine.streams.read(stage.env, run.id, "numbers")
            assert len(page.chunks) == 50
            await worker.until_line("poll-only")
