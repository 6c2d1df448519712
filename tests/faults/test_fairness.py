"""Limits and keys under load: four workers, queues that let 1, 3 and 10 runs of a key execute.

With few slots it is claims that decide whose turn is next. With many a key is held by its limit
alone, and how often it starts is up to its own runs; there the limits are what is tried.

RUNWIRE_FAIR_RUNS makes it larger (300); from 2 000 on each worker is a process of its own.
"""

import logging
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from runwire.tasks import AnyTask, task
from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.wanted_runs import NewRun
from tests.support.engines import query
from tests.support.fairness import Execution, by_key, most_at_once, widest_difference
from tests.support.parts import worker_on
from tests.support.working import Bench, opened_bench

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

# Shown with: pytest -o log_cli=true --log-cli-level=INFO
measured = logging.getLogger("runwire.measured")

RUNS = int(os.environ.get("RUNWIRE_FAIR_RUNS", "300"))
WORKERS = 4
FEW, MANY = 2, 24
LIMITS = {"fair-1": 1, "fair-3": 3, "fair-10": 10}
KEYS = [f"key-{n}" for n in range(5)]
STEP = 0.01
# Where a run takes many times its time, as a process was held up, its key is not back for its next
# turns: it catches up on three at most. Shorter delays cost one.
HELD_UP = timedelta(seconds=10 * STEP)
SPARE = {True: 3, False: 1}
PROGRAM = "tests/faults/programs/fair_tasks.py"


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        tasks = [TaskAnnouncement(name, name, limit) for name, limit in LIMITS.items()]
        await opened.engine.catalogue.announce(opened.env, tasks)
        yield opened


def made(name: str) -> AnyTask:
    async def step() -> None:
        await anyio.sleep(STEP)

    defined: AnyTask = task(id=name, queue={"name": name, "concurrency_limit": LIMITS[name]})(step)
    return defined


@pytest.mark.timeout(120 + RUNS // 20)
async def test_keys_with_a_backlog_start_as_often_as_each_other_and_within_their_limit(
    bench: Bench,
) -> None:
    for name, keys in (await _executed(bench, FEW)).items():
        assert len(keys) == len(KEYS)
        assert max(map(most_at_once, keys.values())) <= LIMITS[name]
        took = (run.ended - run.started for runs in keys.values() for run in runs)
        spare = SPARE[max(took) > HELD_UP]
        assert widest_difference(keys) <= LIMITS[name] + 1 + spare, name


@pytest.mark.timeout(120 + RUNS // 20)
async def test_no_limit_is_exceeded_where_there_are_slots_for_more(bench: Bench) -> None:
    executed = await _executed(bench, MANY)
    for name, keys in executed.items():
        assert max(map(most_at_once, keys.values())) <= LIMITS[name]
    assert max(map(most_at_once, executed["fair-3"].values())) > 1


async def _executed(bench: Bench, slots: int) -> Mapping[str, Mapping[str, list[Execution]]]:
    """Have four workers execute as many runs of each key; return what their events say."""
    new = [NewRun(name, concurrency_key=key) for name in LIMITS for key in KEYS]
    count = RUNS // len(new)
    for _ in range(count):
        await bench.engine.runs.trigger_many(bench.env, new)
    await _work(bench, slots)
    executions = await _executions(bench)
    assert len(executions) == count * len(new)
    took = max(each.ended for each in executions) - min(each.started for each in executions)
    grouped = by_key(executions)
    for name, keys in grouped.items():
        measured.info(
            "%d slots each, %s: %d runs of %d keys in %.1f s, at most %d of a key at once,"
            " starts differ by %d in 5 s",
            slots,
            name,
            count * len(KEYS),
            len(keys),
            took / timedelta(seconds=1),
            max(map(most_at_once, keys.values())),
            widest_difference(keys),
        )
    return grouped


async def _work(bench: Bench, slots: int) -> None:
    """Have four workers execute everything."""
    async with AsyncExitStack() as workers:
        tasks = [made(name) for name in LIMITS]
        for _ in range(WORKERS):
            if RUNS < 2_000:
                await workers.enter_async_context(bench.worker(*tasks, concurrency=slots))
            else:
                given = {"RUNWIRE_CONCURRENCY": str(slots), "RUNWIRE_LEASE": "30"}
                await workers.enter_async_context(
                    worker_on(bench.database_url, PROGRAM, environment=given)
                )
        with anyio.fail_after(60 + RUNS / 50):
            while await _open(bench):
                await anyio.sleep(0.05)  # polls


async def _open(bench: Bench) -> bool:
    rows = await query(
        bench.engine.database, "select 1 from runwire.runs where finished_at is null limit 1"
    )
    return bool(rows)


async def _executions(bench: Bench) -> list[Execution]:
    rows = await query(
        bench.engine.database,
        """
        select r.queue, r.concurrency_key as key, e.created_at as started, f.created_at as ended
          from runwire.run_events e
          join runwire.run_events f on f.run_id = e.run_id and f.type = 'final'
          join runwire.runs r on r.id = e.run_id
         where e.type = 'executing'
        """,
    )
    return [Execution(**row) for row in rows]


@pytest.mark.parametrize(("ends", "most"), [((1, 2), 1), ((2, 2), 2), ((3, 4), 2)])
def test_what_counts_executions_finds_those_that_overlap(ends: tuple[int, int], most: int) -> None:
    runs = [_at(start, end) for start, end in zip((0, 1), ends, strict=True)]
    assert most_at_once(runs) == most


def test_what_compares_keys_finds_one_that_is_favoured() -> None:
    fair = {"a": [_at(n, n) for n in range(0, 20, 2)], "b": [_at(n, n) for n in range(1, 20, 2)]}
    assert widest_difference(fair) == 1
    unfair = {"a": [_at(n, n) for n in range(8)], "b": [_at(n, n) for n in (0, 9)]}
    assert widest_difference(unfair, timedelta(seconds=4)) == 4


def _at(start: int, end: int) -> Execution:
    epoch = datetime(2026, 1, 1, tzinfo=UTC)
    return Execution("q", "k", epoch + timedelta(seconds=start), epoch + timedelta(seconds=end))
