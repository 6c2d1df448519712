"""Cancels that race completions over HTTP, heartbeats beside very many runs, claims by many.

RUNWIRE_RACES, RUNWIRE_HELD_RUNS and RUNWIRE_CLAIMED_RUNS make it larger (100 races, 200 runs held,
800 runs claimed).
"""

import logging
import os
import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.wanted_runs import NewRun
from tests.support.engines import query
from tests.support.history import check, read_ledger
from tests.support.parts import worker_on
from tests.support.processes import until_async
from tests.support.server import running_realtime
from tests.support.working import Bench, defined, opened_bench

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

# Shown with: pytest -o log_cli=true --log-cli-level=INFO
measured = logging.getLogger("runwire.measured")

RACES = int(os.environ.get("RUNWIRE_RACES", "100"))
HELD = int(os.environ.get("RUNWIRE_HELD_RUNS", "200"))
CLAIMED = int(os.environ.get("RUNWIRE_CLAIMED_RUNS", "800"))
WORKERS = 4
AT_ONCE = 50
HEARTBEATS = 20
TASKS = "tests/faults/programs/stubborn_tasks.py"


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        announced = [TaskAnnouncement(task, f"task/{task}") for task in ("sleep", "noted")]
        await opened.engine.catalogue.announce(opened.env, announced)
        yield opened


async def assert_clean(bench: Bench) -> None:
    assert check(await read_ledger(bench.database_url, bench.env)) == []


async def _deadlocks(bench: Bench) -> int:
    rows = await query(
        bench.engine.database,
        "select deadlocks as n from pg_stat_database where datname = current_database()",
    )
    return int(rows[0]["n"])


@pytest.mark.timeout(60 + RACES // 5)
async def test_cancels_over_http_that_race_completions_leave_one_end_and_no_server_error(
    bench: Bench,
) -> None:
    async def short(payload: float) -> int:
        await anyio.sleep(payload)
        return 1

    # Some are done before they can be canceled, some are not: the first and the second surely.
    sleeps = [0.0, 60.0, *(random.uniform(0, 0.2) for _ in range(AT_ONCE - 2))]
    made = defined(short)
    answers: Counter[int] = Counter()
    statuses: Counter[str] = Counter()
    async with (
        running_realtime(bench.database_url) as server,
        server.client() as http,
        bench.worker(made, concurrency=AT_ONCE),
    ):

        async def cancel(run_id: str, seconds: float) -> None:
            if seconds:
                await anyio.sleep(random.uniform(0, 0.1))
            else:
                await bench.until(run_id)
            answers[(await http.post(f"/api/v2/runs/{run_id}/cancel")).status_code] += 1

        for _ in range(RACES // AT_ONCE):
            new = [NewRun(made.id, str(seconds)) for seconds in sleeps]
            results = await bench.engine.runs.trigger_many(bench.env, new)
            ids = [result.id for result in results if not isinstance(result, Exception)]
            async with anyio.create_task_group() as cancels:
                for run_id, seconds in zip(ids, sleeps, strict=True):
                    cancels.start_soon(cancel, run_id, seconds)
            for run_id in ids:
                row = await bench.until(run_id)
                statuses[row.status] += 1
                assert (row.output is not None) == (row.status == "COMPLETED")
    measured.info("%d races: %s, answered %s", RACES, dict(statuses), dict(answers))
    assert set(answers) == {200}
    assert statuses.total() == RACES and set(statuses) == {"COMPLETED", "CANCELED"}
    assert await _deadlocks(bench) == 0
    ends = await query(
        bench.engine.database,
        "select run_id, count(*) as n from runwire.run_events where type = 'final' group by 1",
    )
    assert {row["n"] for row in ends} == {1} and len(ends) == RACES
    await assert_clean(bench)


async def _versions(bench: Bench) -> tuple[int, str, int]:
    """Return how many runs there are, where each row stands and who wrote it, and their bytes."""
    rows = await query(
        bench.engine.database,
        "select count(*) as n, md5(string_agg(concat(ctid, ' ', xmin), ',' order by id)) as rows,"
        # Of the rows alone: Postgres draws its maps beside them when it likes.
        " pg_relation_size('runwire.runs') as bytes from runwire.runs",
    )
    return rows[0]["n"], rows[0]["rows"], rows[0]["bytes"]


@pytest.mark.timeout(60 + HELD // 20)
async def test_heartbeats_of_many_running_runs_touch_no_row_of_them(bench: Bench) -> None:
    await bench.engine.runs.trigger_many(bench.env, [NewRun("sleep", "600")] * HELD)
    environment = {
        "RUNWIRE_CONCURRENCY": str(HELD),
        "RUNWIRE_HEARTBEAT": "0.1",
        "RUNWIRE_GRACE": "0",
        "RUNWIRE_SWEEP": "0.1",
    }
    async with worker_on(bench.database_url, TASKS, environment=environment):

        async def all_asleep() -> bool:
            rows = await query(
                bench.engine.database,
                "select count(*) as n from runwire.run_metadata"
                " where position('asleep' in body) > 0",
            )
            return bool(rows[0]["n"] == HELD)

        await until_async(all_asleep)
        before = await _versions(bench)
        seen: set[object] = set()

        async def beaten() -> bool:
            rows = await query(bench.engine.database, "select expires_at from runwire.workers")
            seen.update(row["expires_at"] for row in rows)
            return len(seen) > HEARTBEATS

        await until_async(beaten)
        after = await _versions(bench)
        assert after[:2] == before[:2] and after[2] <= before[2]
        assert before[0] == HELD
        rows = await query(
            bench.engine.database,
            "select n_dead_tup as n from pg_stat_user_tables where relname = 'workers'",
        )
        measured.info(
            "%d runs, %d heartbeats: %d dead rows of workers", *before[:1], HEARTBEATS, rows[0]["n"]
        )


@pytest.mark.timeout(90 + CLAIMED // 50)
async def test_four_worker_processes_start_every_run_once(bench: Bench, tmp_path: Path) -> None:
    notes = [tmp_path / str(number) for number in range(WORKERS)]
    async with AsyncExitStack() as stack:
        for note in notes:
            environment = {"RUNWIRE_CONCURRENCY": "20", "NOTES": str(note)}
            await stack.enter_async_context(
                worker_on(bench.database_url, TASKS, environment=environment)
            )
        ids: list[str] = []
        for start in range(0, CLAIMED, 200):
            new = [NewRun("noted")] * min(200, CLAIMED - start)
            results = await bench.engine.runs.trigger_many(bench.env, new)
            ids += [result.id for result in results if not isinstance(result, Exception)]

        async def over() -> bool:
            await anyio.sleep(0.05)
            rows = await query(
                bench.engine.database, "select count(finished_at) as n from runwire.runs"
            )
            return bool(rows[0]["n"] == CLAIMED)

        await until_async(over, 60.0 + CLAIMED / 50)
    started = [note.read_text().split() for note in notes]
    measured.info("%d runs, started by each worker: %s", CLAIMED, [len(each) for each in started])
    assert Counter(run_id for each in started for run_id in each) == Counter(ids)
    assert all(started), "each worker had its share"
    claims = await query(
        bench.engine.database,
        "select run_id, count(*) as n, min(delta::json -> 'set' ->> 'attempt') as attempt"
        " from runwire.run_events where type = 'executing' group by 1",
    )
    assert {(row["n"], row["attempt"]) for row in claims} == {(1, "1")}
    workers = await query(bench.engine.database, "select id from runwire.workers")
    assert len({row["id"] for row in workers}) == WORKERS
    await assert_clean(bench)
