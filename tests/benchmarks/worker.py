"""Our worker, with the tasks it is measured with: queue runs, start it, read how they ended."""

import contextlib
import errno
import json
import os
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import anyio
import psycopg

from runwire_engine.engine import open_engine
from runwire_engine.settings import EngineSettings
from runwire_engine.wanted_runs import NewRun
from tests.benchmarks.program import program
from tests.benchmarks.stand import RUNWIRE, Stand

TASKS = Path("tests/benchmarks/measured_tasks.py")
AT_ONCE = 500


@contextlib.contextmanager
def working(stand: Stand, concurrency: int, wanted: set[int]) -> Generator[None]:
    """Run one worker on these cores for the length of a block."""
    environment = {**stand.environment, "RUNWIRE_CONCURRENCY": str(concurrency)}
    with program([RUNWIRE, "worker", str(TASKS)], environment, wanted):
        yield


def announce(stand: Stand, wanted: set[int]) -> None:
    """Let a worker announce its tasks once: triggers of unknown tasks are refused."""
    with working(stand, 1, wanted), psycopg.connect(stand.dsn, autocommit=True) as connection:
        _await(connection, "select count(*) from runwire.tasks where id = 'noop'", 1, 30)


def queue(stand: Stand, count: int) -> None:
    """Trigger so many no-op runs; nothing runs yet."""
    anyio.run(_queue, stand, count)


async def _queue(stand: Stand, count: int) -> None:
    async with open_engine(EngineSettings(database_url=stand.dsn), sweeping=False) as engine:
        for start in range(0, count, AT_ONCE):
            new = [NewRun(task="noop", payload=None)] * min(AT_ONCE, count - start)
            await engine.runs.trigger_many(stand.environment_id, new)


@contextlib.contextmanager
def relaying(stand: Stand, wanted: set[int]) -> Generator[tuple[str, int]]:
    """Run a worker with one run that writes to its streams what it reads from a pipe.

    Yields the run's id and the end of the pipe to write to. The run ends with the block.
    """
    with tempfile.TemporaryDirectory() as folder, working(stand, 1, wanted):
        pipe = Path(folder) / "events"
        os.mkfifo(pipe)
        run_id = stand.trigger(NewRun(task="relay", payload=json.dumps(str(pipe))))
        end = _opened(pipe)
        try:
            yield run_id, end
        finally:
            os.close(end)
            with psycopg.connect(stand.dsn, autocommit=True) as connection:
                ended = "select count(*) from runwire.runs where status = 'COMPLETED' and id = "
                _await(connection, f"{ended}'{run_id}'", 1, 30)


def _opened(pipe: Path) -> int:
    """Open a named pipe for writing once somebody reads it. Raises TimeoutError."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            end = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            time.sleep(0.01)
        else:
            os.set_blocking(end, True)
            return end
    raise TimeoutError("the run that relays did not start within 30 s")


def finished(stand: Stand, task: str, count: int, seconds: float) -> tuple[float, list[float]]:
    """Wait until so many runs of a task are completed, and forget them.

    Returns the seconds from the first start to the last end, by the database's clock, and the
    numbers that the runs returned, if they did. Raises TimeoutError.
    """
    with psycopg.connect(stand.dsn, autocommit=True) as connection:
        done = f"select count(*) from runwire.runs where task = '{task}' and status = 'COMPLETED'"
        _await(connection, done, count, seconds)
        rows = connection.execute(
            "delete from runwire.runs where task = %s and status = 'COMPLETED'"
            " returning extract(epoch from started_at)::float8,"
            " extract(epoch from finished_at)::float8, nullif(output, 'null')::float8",
            [task],
        ).fetchall()
        # A peer's next round has new tables: ours is not to clean up after this one meanwhile.
        connection.execute("vacuum analyze runwire.runs")
    starts, ends = [row[0] for row in rows], [row[1] for row in rows]
    return max(ends) - min(starts), [row[2] for row in rows if row[2] is not None]


def _await(
    connection: psycopg.Connection[tuple[object, ...]], count: str, wanted: int, seconds: float
) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        row = connection.execute(count.encode()).fetchone()
        if row is not None and row[0] == wanted:
            return
        # Seldom: the look itself is work for the database that is measured.
        time.sleep(0.5)
    raise TimeoutError(f"{count} was not {wanted} within {seconds} s")
