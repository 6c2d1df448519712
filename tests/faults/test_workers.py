"""Real workers that are killed, stalled, stopped and poisoned: what they held goes on elsewhere."""

import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import orjson
import psycopg
import pytest

from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.errors import EngineError
from runwire_engine.runs import NewRun
from tests.support.history import check, read_ledger
from tests.support.parts import LEASE, SPANS, SWEEP, own_postgres, worker_on
from tests.support.processes import Process, running, until, until_async
from tests.support.working import Bench, error_of, opened_bench

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

TASKS = "tests/faults/programs/stubborn_tasks.py"
SHORT_LEASE = {"RUNWIRE_LEASE": "1", "RUNWIRE_HEARTBEAT": "0.2"}


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        await announce(opened)
        yield opened


async def announce(bench: Bench) -> None:
    """Make the tasks known before any worker is, so that runs can wait for one."""
    known = ("hang-once", "zombie", "count", "quick", "poison", "sleep")
    tasks = [TaskAnnouncement(task, f"task/{task}") for task in known]
    await bench.engine.catalogue.announce(bench.env, tasks)


async def start(bench: Bench, task: str, payload: object = None, **options: Any) -> str:
    text = None if payload is None else orjson.dumps(payload).decode()
    return (await bench.engine.runs.trigger(bench.env, NewRun(task, text, **options))).id


async def until_written(bench: Bench, run_id: str, key: str, chunks: int) -> None:
    """Wait until a stream has so many chunks."""

    async def look() -> bool:
        streams = await bench.engine.streams.streams_of(bench.env, run_id)
        return any(stream.key == key and stream.next_seq >= chunks for stream in streams)

    await until_async(look)


async def assert_clean(bench: Bench) -> None:
    """The ledger by itself has no hole, no second end, no stream left open."""
    assert check(await read_ledger(bench.database_url, bench.env)) == []


async def attempts(bench: Bench, run_id: str, key: str = "log") -> list[tuple[int | None, Any]]:
    """Return each chunk of a stream with the attempt that wrote it."""
    page = await bench.engine.streams.read(bench.env, run_id, key)
    return [(chunk.attempt, orjson.loads(chunk.body)) for chunk in page.chunks]


async def test_a_killed_workers_run_is_taken_over_when_its_lease_ends(bench: Bench) -> None:
    run_id = await start(bench, "hang-once")
    async with worker_on(bench.database_url, TASKS) as first:
        await until_written(bench, run_id, "log", 5)
        async with worker_on(bench.database_url, TASKS):
            first.kill()
            killed_at = anyio.current_time()
            await first.wait()
            with anyio.fail_after(LEASE + SWEEP + 1.0):
                while (await bench.row(run_id)).execution < 2:
                    await anyio.sleep(0.02)
            taken_after = anyio.current_time() - killed_at
            row = await bench.until(run_id)

    assert taken_after >= LEASE - 1.0, "nobody may have it while the lease holds"
    assert (row.status, row.attempt, row.execution) == ("COMPLETED", 2, 2)
    assert row.output == '"attempt 2"'
    written = await attempts(bench, run_id)
    assert [chunk for chunk in written if chunk[0] == 2] == [(2, f"2.{n}") for n in range(3)]
    kept = [chunk for chunk in written if chunk[0] == 1]
    assert kept == [(1, f"1.{n}") for n in range(len(kept))] and len(kept) >= 5
    assert written == [*kept, *written[-3:]]
    await assert_clean(bench)


async def test_a_run_whose_workers_die_comes_back_until_no_attempt_is_left(bench: Bench) -> None:
    run_id = await start(bench, "sleep", 60.0, max_attempts=3)
    for execution in (1, 2, 3):
        async with worker_on(bench.database_url, TASKS, environment=SHORT_LEASE) as worker:
            assert (await bench.until(run_id, "EXECUTING")).execution == execution
            worker.kill()
            await worker.wait()

            async def lost() -> bool:
                return (await bench.row(run_id)).status != "EXECUTING"

            await until_async(lost)

    row = await bench.row(run_id)
    assert (row.status, row.attempt) == ("CRASHED", 3)
    assert error_of(row)["code"] == "WORKER_LOST"
    events = await bench.engine.runs.events(bench.env, run_id)
    # The second loss makes it suspect: it comes back at a time of its own.
    expected = "created executing queued executing retrying queued executing final"
    assert [event.type for event in events if event.type != "metadata"] == expected.split()
    await assert_clean(bench)


async def test_nothing_of_a_worker_that_comes_back_too_late_is_stored(
    bench: Bench, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    run_id = await start(bench, "zombie", {"file": str(notes)})
    async with worker_on(bench.database_url, TASKS) as late:
        await until_written(bench, run_id, "log", 5)
        late.stall()
        async with worker_on(bench.database_url, TASKS):
            row = await bench.until(run_id)
            assert (row.status, row.output, row.attempt) == ("COMPLETED", '"second"', 2)
            written = await attempts(bench, run_id)
            assert written[-1] == (2, "of the second")

            late.resume()
            await until(notes.exists)
            await until(lambda: len(notes.read_text().splitlines()) == 4)
            assert notes.read_text().splitlines() == ["fenced"] * 4
            # It works again, under a new id, and finishes what it is given from now on.
            await _until_leased(bench, 2)

    after = await bench.row(run_id)
    assert (after.revision, after.output, after.status) == (row.revision, row.output, row.status)
    assert await attempts(bench, run_id) == written
    assert after.stream_keys == ("log",)
    assert await bench.metadata(run_id) is None
    await assert_clean(bench)


async def _until_leased(bench: Bench, workers: int) -> None:
    """Wait until so many workers hold a lease."""

    async def look() -> bool:
        async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
            cursor = await connection.execute(
                "select count(*) from runwire.workers"
                " where stopped_at is null and expires_at > now()"
            )
            row = await cursor.fetchone()
            return row is not None and row[0] == workers

    await until_async(look)


async def test_a_terminated_worker_finishes_what_it_has_and_claims_nothing_more(
    bench: Bench,
) -> None:
    one_at_a_time = {"RUNWIRE_CONCURRENCY": "1"}
    executing = await start(bench, "sleep", 1.0)
    waiting = [await start(bench, "sleep", 1.0) for _ in range(3)]
    async with worker_on(bench.database_url, TASKS, environment=one_at_a_time) as worker:
        await bench.until(executing, "EXECUTING")
        worker.terminate()
        assert await worker.wait() == 0

    row = await bench.row(executing)
    assert (row.status, row.attempt, row.output) == ("COMPLETED", 1, '"slept"')
    for run_id in waiting:
        row = await bench.row(run_id)
        assert (row.status, row.execution, row.attempt) == ("QUEUED", 0, 0)
    await assert_clean(bench)


async def test_what_a_terminated_worker_cannot_finish_is_given_back_uncounted(
    bench: Bench,
) -> None:
    run_id = await start(bench, "sleep", 60.0, max_attempts=1)
    async with worker_on(bench.database_url, TASKS, environment={"RUNWIRE_GRACE": "0.3"}) as worker:
        await bench.until(run_id, "EXECUTING")
        worker.terminate()
        assert await worker.wait() == 0
        row = await bench.row(run_id)
        assert (row.status, row.attempt, row.execution) == ("QUEUED", 0, 1)

    async with worker_on(bench.database_url, TASKS, environment={"RUNWIRE_GRACE": "0.3"}) as next_:
        row = await bench.until(run_id, "EXECUTING")
        assert (row.attempt, row.execution) == (1, 2)
        next_.terminate()
        assert await next_.wait() == 0
    await assert_clean(bench)


async def test_a_poison_run_crashes_after_its_attempts_while_others_flow(bench: Bench) -> None:
    poison = await start(bench, "poison")
    others: list[str] = []
    deaths = 0
    while (await bench.row(poison)).finished_at is None:
        # Some die with it in the same process, which costs them an attempt as well.
        others += [await start(bench, "quick", n, max_attempts=10) for n in range(5)]
        command = ("runwire", "worker", TASKS)
        spans = {**SPANS, **SHORT_LEASE, "RUNWIRE_DATABASE_URL": bench.database_url}
        async with running(*command, environment=spans) as worker:

            async def dead_or_done(process: Process = worker) -> bool:
                is_over = (await bench.row(poison)).finished_at is not None
                return process.exit_code is not None or is_over

            await until_async(dead_or_done, 30.0)
            deaths += worker.exit_code == -signal.SIGKILL
    async with worker_on(bench.database_url, TASKS):
        rows = [await bench.until(run_id) for run_id in others]

    row = await bench.row(poison)
    assert (row.status, row.attempt, deaths) == ("CRASHED", 3, 3)
    assert error_of(row)["code"] == "WORKER_LOST"
    assert [row.status for row in rows] == ["COMPLETED"] * len(others)
    await assert_clean(bench)


async def test_a_killed_postgres_costs_no_chunk_no_operation_and_no_attempt() -> None:
    async with own_postgres() as postgres, opened_bench(postgres.dsn) as bench:
        await announce(bench)
        run_id = await start(bench, "count", {"count": 200})
        # A lease that outlasts the recovery: nothing is lost, so nothing need be repeated.
        async with worker_on(postgres.dsn, TASKS, environment={"RUNWIRE_LEASE": "60"}) as worker:
            await until_written(bench, run_id, "numbers", 20)
            assert postgres.process_id is not None
            os.kill(postgres.process_id, signal.SIGKILL)

            await until_async(lambda: _is_over(bench, run_id), 60.0)
            assert worker.exit_code is None
        row = await bench.row(run_id)
        assert (row.status, row.attempt, row.output) == ("COMPLETED", 1, "200")
        assert await bench.chunks(run_id, "numbers") == list(range(200))
        assert await bench.metadata(run_id) == {"count": 200}
        await assert_clean(bench)


async def _is_over(bench: Bench, run_id: str) -> bool:
    try:
        return (await bench.row(run_id)).finished_at is not None
    except EngineError:
        return False  # Postgres is away
