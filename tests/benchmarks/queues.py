"""The queues that runs are measured against, and DBOS's streams: one script each in `peers/`.

A script makes its own tables, does what it is told and prints one line of JSON:

    SCRIPT URL throughput COUNT CONCURRENCY          {"runs": per second}
    SCRIPT URL start PER_SECOND COUNT CONCURRENCY    {"latencies": [milliseconds, …]}

What they count with is `pace.py`.
"""

import contextlib
import json
from collections.abc import Generator, Sequence

import psycopg

from tests.benchmarks.comparison import Figures
from tests.benchmarks.cores import REST, SERVER_CORES
from tests.benchmarks.environment import python, redis_server
from tests.benchmarks.program import next_line, program
from tests.benchmarks.stand import Stand

PGQUEUER = "pgqueuer"
PROCRASTINATE = "procrastinate"
DBOS = "dbos"
CELERY = "celery on redis"
SCRIPTS = {
    PGQUEUER: "pgqueuer_runs",
    PROCRASTINATE: "procrastinate_runs",
    DBOS: "dbos_runs",
    CELERY: "celery_runs",
}


def throughput(stand: Stand, name: str, count: int, concurrency: int) -> Figures:
    """Return how many no-op runs a second a peer does. Raises UnavailableError."""
    with _store(stand, name) as url:
        line = _said(SCRIPTS[name], url, "throughput", count, concurrency)
    return {"runs": float(json.loads(line)["runs"])}


def start(
    stand: Stand, name: str, per_second: int, count: int, concurrency: int, *, warm: int
) -> Figures:
    """Return how long a peer takes from trigger to start, the first so many left out.

    Raises UnavailableError.
    """
    with _store(stand, name) as url:
        line = _said(SCRIPTS[name], url, "start", per_second, warm + count, concurrency)
    latencies = json.loads(line)["latencies"]
    if len(latencies) != warm + count:
        raise AssertionError(f"{len(latencies)} of {warm + count} runs")
    return percentiles(latencies[warm:])


def stream(stand: Stand, per_second: int, count: int) -> Figures:
    """Return how long a value takes from DBOS's writer to its reader. Raises UnavailableError."""
    with database(stand, "peer") as url:
        line = _said("dbos_stream", url, "write", per_second, count)
    latencies = json.loads(line)["latencies"]
    return {**percentiles(latencies), "max": max(latencies)}


def _said(script: str, url: str, *told: object) -> str:
    command = python(script, url, *map(str, told))
    with program(command, {}, SERVER_CORES) as it:
        return next_line(it, 90)


@contextlib.contextmanager
def _store(stand: Stand, name: str) -> Generator[str]:
    """Make a database of its own for a peer, or start its Redis."""
    if name == CELERY:
        with redis_server(REST) as port:
            yield f"redis://127.0.0.1:{port}/0"
        return
    with database(stand, "peer") as dsn:
        yield dsn


@contextlib.contextmanager
def database(stand: Stand, name: str) -> Generator[str]:
    """Make a database beside ours, and yield its URL."""
    url = stand.dsn.replace("/postgres?", f"/{name}?").replace("/runwire?", f"/{name}?")
    if url == stand.dsn:
        raise RuntimeError(f"no name of a database in {stand.dsn}")
    with psycopg.connect(stand.dsn, autocommit=True) as connection:
        connection.execute(f"drop database if exists {name} with (force)".encode())
        connection.execute(f"create database {name}".encode())
        try:
            yield url
        finally:
            connection.execute(f"drop database if exists {name} with (force)".encode())


def percentiles(values: Sequence[float]) -> Figures:
    """Return p50 and p99."""
    ordered = sorted(values)
    return {
        f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)]
        for share in (50, 99)
    }
