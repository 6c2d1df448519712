"""Very many retries that are due in one moment: fresh runs do not wait for them.

RUNWIRE_DUE_RUNS makes it larger (8 000).
"""

import logging
import os
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.wanted_runs import NewRun
from tests.support.engines import query
from tests.support.parts import worker_on
from tests.support.working import Bench, opened_bench

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

# Shown with: pytest -o log_cli=true --log-cli-level=INFO
measured = logging.getLogger("runwire.measured")

DUE = int(os.environ.get("RUNWIRE_DUE_RUNS", "8000"))
AT_ONCE = 1_000
TASKS = "tests/faults/programs/stubborn_tasks.py"
# So rare that only the worker makes runs ready, as with the default of 5 s.
SPANS = {"RUNWIRE_CONCURRENCY": "50", "RUNWIRE_SWEEP": "60", "RUNWIRE_LEASE": "30"}


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url, sweep=60.0) as opened:
        await opened.engine.catalogue.announce(
            opened.env, [TaskAnnouncement("quick", "task/quick")]
        )
        yield opened


async def _delayed(bench: Bench) -> None:
    """Make retries that wait, and let all of them be due at once."""
    for _ in range(DUE // AT_ONCE):
        new = [NewRun("quick", "1", delay=3600.0, tags=("due",))] * AT_ONCE
        await bench.engine.runs.trigger_many(bench.env, new)
    await query(bench.engine.database, "analyze runwire.runs")


async def _open(bench: Bench) -> int:
    rows = await query(
        bench.engine.database,
        "select count(*) as n from runwire.runs where finished_at is null",
    )
    return int(rows[0]["n"])


@pytest.mark.timeout(120 + DUE // 100)
async def test_a_fresh_run_does_not_wait_for_all_retries_that_are_due_at_once(
    bench: Bench,
) -> None:
    await _delayed(bench)
    fresh: list[str] = []
    async with worker_on(bench.database_url, TASKS, environment=SPANS):
        await query(bench.engine.database, "update runwire.runs set delayed_until = now()")
        began = anyio.current_time()
        with anyio.fail_after(60 + DUE / 100):
            while await _open(bench) > DUE // 10:
                fresh.append((await bench.engine.runs.trigger(bench.env, NewRun("quick", "2"))).id)
                await anyio.sleep(0.1)  # the pace of fresh runs
            took = anyio.current_time() - began
            for run_id in fresh:
                await bench.until(run_id)
            while await _open(bench) > 0:
                await anyio.sleep(0.05)
    rows = await bench.engine.runs.retrieve_many(bench.env, fresh)
    never = datetime.max.replace(tzinfo=UTC)
    waited = sorted((row.started_at or never) - row.created_at for row in rows)
    measured.info(
        "%d due at once, %d fresh meanwhile: median %.3f s, last %.3f s; %.0f runs a second",
        DUE,
        len(waited),
        waited[len(waited) // 2].total_seconds(),
        waited[-1].total_seconds(),
        DUE / took,
    )
    assert len(waited) > 3
    # Not all of the others; a second where nothing else runs.
    assert waited[-1] < timedelta(seconds=max(1.0, took / 2))
    assert {(row.status, row.execution) for row in rows} == {("COMPLETED", 1)}


async def test_a_sweep_makes_a_bounded_number_ready(bench: Bench) -> None:
    await _delayed(bench)
    await query(bench.engine.database, "update runwire.runs set delayed_until = now()")
    for _ in range(3):
        assert (await bench.engine.workers.sweep()).promoted == 500
