"""Real workers that are killed, stalled, stopped and poisoned: what they held goes on elsewhere."""

import os
import signal
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import orjson
import psycopg
import pytest

from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.environments import Environments
from runwire_engine.errors import EngineError
from runwire_engine.wanted_runs import NewRun, Parent
from tests.support.faultproxy import fault_proxy
from tests.support.history import check, read_ledger
from tests.support.parts import SPANS, own_postgres, server_on, worker_on
from tests.support.processes import Process, free_port, running, until, until_async
from tests.support.server import SECRET
from tests.support.sockets import chunks_of, of_type, open_socket
from tests.support.working import Bench, error_of, opened_bench

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

TASKS = "tests/faults/programs/stubborn_tasks.py"
# Where what holds it must not lose it by itself, however busy the machine is.
LONG = 4.0
LONG_LEASE = {"RUNWIRE_LEASE": str(LONG)}
SHORT_LEASE = {"RUNWIRE_LEASE": "1", "RUNWIRE_HEARTBEAT": "0.2"}


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        await announce(opened)
        yield opened


async def announce(bench: Bench) -> None:
    """Make the tasks known before any worker is, so that runs can wait for one."""
    known = ("hang-once", "zombie", "late-write", "gated", "clock", "count", "quick", "poison")
    tasks = [TaskAnnouncement(task, f"task/{task}") for task in (*known, "sleep", "keeper")]
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
    async with worker_on(bench.database_url, TASKS, environment=LONG_LEASE) as first:
        await until_written(bench, run_id, "log", 5)
        async with worker_on(bench.database_url, TASKS, environment=LONG_LEASE):
            first.kill()
            killed_at = anyio.current_time()
            await first.wait()
            with anyio.fail_after(60):
                while (await bench.row(run_id)).execution < 2:
                    await anyio.sleep(0.02)
            taken_after = anyio.current_time() - killed_at
            row = await bench.until(run_id)

    assert taken_after >= LONG / 2, "nobody may have it while the lease holds"
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


KINDS = (
    "chunk",
    "new stream",
    "parent's stream",
    "metadata",
    "parent's metadata",
    "child",
    "batch",
    "tags",
    "completion",
)


async def test_no_kind_of_write_of_a_worker_that_comes_back_too_late_is_taken(
    bench: Bench, tmp_path: Path
) -> None:
    parent = await _held_parent(bench)
    notes = {kind: tmp_path / kind.replace(" ", "-") for kind in KINDS}
    waits = {kind: tmp_path / f"{note.name}-waits" for kind, note in notes.items()}
    ids: list[str] = []
    for kind in KINDS:
        payload = {"kind": kind, "waits": str(waits[kind]), "file": str(notes[kind])}
        ids.append(await start(bench, "late-write", payload, parent=parent))
    async with worker_on(bench.database_url, TASKS) as late:
        await until(lambda: all(file.exists() for file in waits.values()))
        late.stall()
        executions = {(await bench.row(run_id)).execution for run_id in ids}
        assert executions == {1}, "it had lost its lease before it was stalled"
        async with worker_on(bench.database_url, TASKS) as other:
            rows = [await bench.until(run_id) for run_id in ids]
            assert {(row.status, row.output, row.attempt) for row in rows} == {
                ("COMPLETED", '"second"', 2)
            }
            before = await _stored(bench)
            late.resume()
            await until(lambda: all(note.exists() and note.read_text() for note in notes.values()))
            told = {kind: note.read_text() for kind, note in notes.items()}
            assert told == {kind: "fenced" for kind in KINDS[:-1]} | {"completion": "returned"}
            # It works again, under a new id: then what it did late has long arrived.
            await _until_leased(bench, 3)
            other.terminate()
            assert await other.wait() == 0
            sent = await start(bench, "quick", 7)
            assert (await bench.until(sent)).output == "7"
    after = await _stored(bench)
    assert {key: value for key, value in after.items() if key[1] != sent} == before
    await assert_clean(bench)


async def _held_parent(bench: Bench) -> Parent:
    """Return a run that executes for as long as the test takes."""
    run_id = await start(bench, "keeper")
    await bench.engine.workers.register(bench.env, "keeper")
    await bench.sql(
        "update runwire.workers set expires_at = now() + interval '1 hour' where id = 'keeper'"
    )
    (run,) = await bench.engine.claims.claim(bench.env, "keeper", {"keeper": 1}, 1)
    assert run.id == run_id
    return Parent(run.id, run.execution)


async def _stored(bench: Bench) -> dict[tuple[str, str], str]:
    """Return every row that belongs to a run, a stream or a batch."""
    tables = {
        "runs": "id",
        "run_events": "run_id",
        "run_metadata": "run_id",
        "run_tags": "run_id",
        "streams": "run_id",
        "stream_chunks": "stream_id::text",
        "batches": "id",
        "batch_items": "run_id",
        "idempotency_keys": "run_id",
    }
    found: dict[tuple[str, str], str] = {}
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        for table, column in tables.items():
            statement = (
                f"select {column}, string_agg(t::text, '|' order by t::text)"
                f" from runwire.{table} t group by 1"
            )
            cursor = await connection.execute(statement.encode())
            async for key, text in cursor:
                found[table, key] = text
    return found


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


async def test_a_reader_sees_one_order_and_is_told_of_the_attempt_while_a_zombie_writes(
    bench: Bench, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    key = await Environments(bench.engine.database).create_key(bench.env, "tests")
    port = free_port()
    run_id = await start(bench, "zombie", {"file": str(notes)})
    async with (
        server_on(bench.database_url, port, SECRET),
        worker_on(bench.database_url, TASKS) as late,
        open_socket(f"http://127.0.0.1:{port}", key) as socket,
    ):
        await socket.subscribe("s", {"run": run_id}, mode="every", streams={"*": {}})
        await socket.until("chunks")
        late.stall()
        async with worker_on(bench.database_url, TASKS):
            await socket.until("attempt")
            late.resume()
            await until(lambda: notes.exists() and len(notes.read_text().splitlines()) == 4)
            assert notes.read_text().splitlines() == ["fenced"] * 4
            if not of_type(socket.messages, "done"):
                await socket.until("done")
            # Whatever were still to come would come before the answer.
            await socket.send({"type": "ping"})
            after = await socket.until("pong")
    assert [message["type"] for message in after] == ["pong"]
    written = await attempts(bench, run_id)
    chunks = chunks_of(socket.messages, "log")
    assert chunks == [text for _, text in written]
    assert set(chunks) == {"of the first", "of the second"} and chunks[-1] == "of the second"
    (told,) = of_type(socket.messages, "attempt")
    assert (told["attempt"], told["fromSeq"]) == (2, len(chunks) - 1)
    assert of_type(socket.messages, "gap") == []


async def test_a_run_whose_worker_dies_before_its_completion_arrives_is_done_again_and_ends_once(
    bench: Bench, tmp_path: Path
) -> None:
    gate = {"go": str(tmp_path / "go"), "gone": str(tmp_path / "gone")}
    run_id = await start(bench, "gated", gate)
    async with fault_proxy(bench.database_url) as proxy:
        async with worker_on(proxy.dsn(bench.database_url), TASKS) as first:
            await until_written(bench, run_id, "log", 1)
            proxy.stall()
            (tmp_path / "go").touch()
            await until((tmp_path / "gone").exists)
            first.kill()
            await first.wait()
        async with worker_on(bench.database_url, TASKS):
            row = await bench.until(run_id)
            assert (row.status, row.attempt, row.output) == ("COMPLETED", 2, '"attempt 2"')
            # Now what the dead worker had sent arrives as well.
            proxy.flow()
            await until(lambda: proxy.connections == 0)
            assert await bench.row(run_id) == row
    await assert_clean(bench)


async def test_a_run_whose_worker_dies_while_its_completion_waits_in_postgres_ends_once(
    bench: Bench, tmp_path: Path
) -> None:
    gate = {"go": str(tmp_path / "go"), "gone": str(tmp_path / "gone")}
    run_id = await start(bench, "gated", gate)
    async with worker_on(bench.database_url, TASKS) as first:
        await until_written(bench, run_id, "log", 1)
        async with await psycopg.AsyncConnection.connect(bench.database_url) as locked:
            await locked.execute("select from runwire.runs where id = %s for update", (run_id,))
            (tmp_path / "go").touch()
            await until_async(lambda: _somebody_waits(bench))
            first.kill()
            await first.wait()
    async with worker_on(bench.database_url, TASKS):
        row = await bench.until(run_id)
    assert row.status == "COMPLETED"
    assert (row.attempt, row.output) in {(1, '"attempt 1"'), (2, '"attempt 2"')}
    await assert_clean(bench)


async def _somebody_waits(bench: Bench) -> bool:
    """Say whether a statement waits for a lock."""
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        cursor = await connection.execute(
            "select from pg_stat_activity"
            " where datname = current_database() and wait_event_type = 'Lock'"
        )
        return await cursor.fetchone() is not None


# A clock that is wrong --------------------------------------------------------------------------

HOUR = 3600


def wrong_clock(seconds: int) -> dict[str, str]:
    """Return what makes a process believe that it is earlier or later; skip without libfaketime."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("libfaketime is not installed (on Debian: apt install faketime)")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{seconds:+d}s",
        # Durations are right also where the time of day is wrong.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


@pytest.mark.parametrize("skew", [HOUR, -HOUR], ids=["fast", "slow"])
async def test_a_workers_wrong_clock_changes_neither_leases_nor_order(
    bench: Bench, skew: int
) -> None:
    one_by_one = {**LONG_LEASE, **wrong_clock(skew), "RUNWIRE_CONCURRENCY": "1"}
    ids = [await start(bench, "clock") for _ in range(5)]
    delayed = await start(bench, "clock", delay=1.5)
    async with worker_on(bench.database_url, TASKS, environment=one_by_one) as worker:
        rows = [await bench.until(run_id) for run_id in ids]
        late = await bench.until(delayed)
        now = time.time()
        shown = [float(row.output or 0) for row in (*rows, late)]
        assert all(abs(at - now - skew) < 60 for at in shown), "its clock is not wrong"
        assert [row.id for row in sorted(rows, key=lambda row: row.claimed_at or never)] == ids
        assert late.started_at is not None and late.delayed_until is not None
        assert late.started_at >= late.delayed_until
        assert (late.started_at - late.delayed_until).total_seconds() < 600
        assert abs(late.started_at.timestamp() - now) < 60
        # A worker that was held up for too long has begun anew, with another lease.
        assert 0 < max(await _leases(bench)) <= LONG

        hanging = await start(bench, "hang-once")
        await until_written(bench, hanging, "log", 1)
        other = {**LONG_LEASE, **wrong_clock(-skew)}
        async with worker_on(bench.database_url, TASKS, environment=other):
            # A machine that was held up for longer than the lease has taken it away by itself.
            is_first = (await bench.row(hanging)).execution == 1
            worker.kill()
            killed_at = anyio.current_time()
            with anyio.fail_after(60):
                while (await bench.row(hanging)).execution < 2:
                    await anyio.sleep(0.02)
            taken_after = anyio.current_time() - killed_at
            row = await bench.until(hanging)
    assert row.status == "COMPLETED"
    assert not is_first or (row.attempt == 2 and taken_after >= LONG / 2)
    await assert_clean(bench)


never = datetime.max.replace(tzinfo=UTC)


async def _leases(bench: Bench) -> list[float]:
    """Return how many seconds are left of each lease, by the clock of Postgres."""
    async with await psycopg.AsyncConnection.connect(bench.database_url) as connection:
        cursor = await connection.execute(
            "select extract(epoch from expires_at - now())::float from runwire.workers"
            " where stopped_at is null"
        )
        return [row[0] for row in await cursor.fetchall()]


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

            await until_async(dead_or_done)
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
