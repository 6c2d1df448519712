"""The engine: no-op runs per second of one worker, and trigger → first line of the task.

Runs per second: RUNS runs are queued first, then one worker starts; the time is the database's,
from the first claim to the last completion, every state change with its event in the log. It is
given beside the round trips (`select 1`) that the same Postgres answers one client in a second, so
that figures from different machines can be compared.
"""

import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import anyio
import psycopg

from runwire import AsyncRunwire
from runwire_engine.engine import Engine, open_engine
from runwire_engine.environments import Environments
from runwire_engine.runs import NewRun
from runwire_engine.settings import EngineSettings
from tests.benchmarks.sockets import percentile
from tests.benchmarks.stand import REST, SERVER_CORES, Stand, program

RUNS = 10_000
LATENCY_RUNS = 300
PER_SECOND = 50


@dataclass(frozen=True)
class Throughput:
    runs_per_second: float
    round_trips_per_second: float


@dataclass(frozen=True)
class Latency:
    """Milliseconds: until the task's first line, and until the trigger call returned."""

    start_p50: float
    start_p99: float
    call_p50: float


def worker_command() -> list[str]:
    return [
        str(Path(sys.executable).parent / "runwire"),
        "worker",
        "tests/benchmarks/noop_tasks.py",
    ]


def throughput(stand: Stand) -> Throughput:
    """Queue RUNS runs, let one worker do them all, and read the time from the database."""
    anyio.run(_queue, stand)
    with psycopg.connect(stand.dsn, autocommit=True) as connection:
        trips = _round_trips(connection)
        # The server idles meanwhile: the worker may have its core.
        with program(worker_command(), stand.environment, SERVER_CORES):
            _await_all(connection, "noop", RUNS)
        row = connection.execute(
            "select extract(epoch from max(finished_at) - min(started_at))"
            " from runwire.runs where task = 'noop' and status = 'COMPLETED'"
        ).fetchone()
        assert row is not None
        took = float(row[0])
        connection.execute("delete from runwire.runs where task = 'noop'")
    return Throughput(RUNS / took, trips)


async def announce(stand: Stand) -> None:
    """Let a worker announce the tasks once: triggers of unknown tasks are refused."""
    with program(worker_command(), stand.environment, SERVER_CORES):
        async with await psycopg.AsyncConnection.connect(stand.dsn, autocommit=True) as connection:
            with anyio.fail_after(30):
                while True:
                    rows = await connection.execute("select 1 from runwire.tasks where id = 'noop'")
                    if await rows.fetchone():
                        return
                    await anyio.sleep(0.05)


async def _queue(stand: Stand) -> None:
    async with open_engine(EngineSettings(database_url=stand.dsn), sweeping=False) as engine:
        for _ in range(RUNS // 500):
            await engine.runs.trigger_many(
                await _environment(engine), [NewRun(task="noop", payload=None)] * 500
            )


async def _environment(engine: Engine) -> int:
    return await Environments(engine.database).ensure("dev")


def _await_all(connection: psycopg.Connection[tuple[object, ...]], task: str, count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        row = connection.execute(
            "select count(*) from runwire.runs where task = %s and status = 'COMPLETED'", [task]
        ).fetchone()
        if row is not None and row[0] == count:
            return
        time.sleep(0.2)
    raise TimeoutError("the worker did not finish its runs")


def _round_trips(connection: psycopg.Connection[tuple[object, ...]]) -> float:
    trips = 2000
    start = time.monotonic()
    for _ in range(trips):
        connection.execute("select 1", prepare=True)
    return trips / (time.monotonic() - start)


def latency(stand: Stand) -> Latency:
    """Trigger over HTTP at PER_SECOND to an idle worker, and read what the tasks returned."""
    with psycopg.connect(stand.dsn, autocommit=True) as connection:
        with program(worker_command(), stand.environment, REST):
            asyncio.run(_trigger(stand, 50))
            _outputs(connection, 50)
            calls = asyncio.run(_trigger(stand, LATENCY_RUNS))
            outputs = _outputs(connection, LATENCY_RUNS)
    return Latency(percentile(outputs, 0.5), percentile(outputs, 0.99), percentile(calls, 0.5))


async def _trigger(stand: Stand, count: int) -> list[float]:
    """Trigger runs at PER_SECOND; return how many milliseconds each call took."""
    calls: list[float] = []
    async with AsyncRunwire(api_url=stand.url, access_token=stand.key) as runwire:

        async def one() -> None:
            start = time.monotonic_ns()
            await runwire.tasks.trigger("stamp", start)
            calls.append((time.monotonic_ns() - start) / 1e6)

        async with anyio.create_task_group() as group:
            start = time.monotonic()
            for number in range(count):
                await anyio.sleep(max(0.0, start + number / PER_SECOND - time.monotonic()))
                group.start_soon(one)
    return calls


def _outputs(connection: psycopg.Connection[tuple[object, ...]], count: int) -> list[float]:
    """Return what `count` stamp runs returned, once there are so many, and forget them."""
    _await_all(connection, "stamp", count)
    rows = connection.execute(
        "delete from runwire.runs where task = 'stamp' returning output::double precision"
    ).fetchall()
    if len(rows) != count:
        raise AssertionError(f"{len(rows)} runs instead of {count}")
    return [row[0] for row in rows if isinstance(row[0], float)]
