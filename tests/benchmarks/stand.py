"""What the benchmarks run on: an embedded Postgres, the server on a core of its own, a key."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import anyio
import httpx

from runwire_engine.database import Database
from runwire_engine.embedded import EmbeddedPostgres
from runwire_engine.environments import Environments, new_key
from runwire_engine.migrations import migrate
from tests.support.processes import CHECKOUT, free_port

# The server under test has core 0 alone; the generator, the writers and Postgres share the other.
SERVER_CORES = {0}
REST = set(range(1, os.cpu_count() or 1)) or {0}
PEERS = CHECKOUT / "tests" / "benchmarks" / "peers"


@dataclass(frozen=True)
class Stand:
    dsn: str
    port: int
    key: str
    environment_id: int
    server: int  # process id

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a worker or a client process needs to know."""
        return {
            "RUNWIRE_DATABASE_URL": self.dsn,
            "RUNWIRE_API_URL": self.url,
            "RUNWIRE_API_KEY": self.key,
            "RUNWIRE_SECRET": "benchmark-benchmark-benchmark-benchmark",
        }


@contextlib.contextmanager
def cores(wanted: set[int]) -> Generator[None]:
    """Run what starts in this block on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, wanted & before or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def program(
    command: Sequence[str], environment: Mapping[str, str], wanted: set[int]
) -> Generator[subprocess.Popen[str]]:
    """Run a program on these cores for the length of a block; its input and output are pipes."""
    with cores(wanted):
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def first_line(process: subprocess.Popen[str]) -> str:
    """Return the next line a program prints, without its newline."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def feed(process: subprocess.Popen[str]) -> IO[str]:
    """Return the pipe a program reads."""
    assert process.stdin is not None
    return process.stdin


@contextlib.contextmanager
def standing() -> Generator[Stand]:
    """Start Postgres and the server; both are gone afterwards."""
    folder = CHECKOUT / ".runwire" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as data, cores(REST):
        os.chmod(data, 0o755)
        postgres = EmbeddedPostgres(Path(data))
        anyio.run(postgres.start)
        try:
            key = new_key()
            environment_id = anyio.run(_prepare, postgres.dsn, key)
            with _server(postgres.dsn, key, environment_id) as stand:
                yield stand
        finally:
            anyio.run(postgres.stop)


async def _prepare(dsn: str, key: str) -> int:
    await migrate(dsn)
    database = Database(dsn)
    await database.open()
    try:
        environments = Environments(database)
        environment_id = await environments.ensure("dev")
        await environments.ensure_key(environment_id, key)
        return environment_id
    finally:
        await database.close()


@contextlib.contextmanager
def _server(dsn: str, key: str, environment_id: int) -> Generator[Stand]:
    port = free_port()
    runwire = str(Path(sys.executable).parent / "runwire")
    stand = Stand(dsn, port, key, environment_id, 0)
    with program([runwire, "server", "--port", str(port)], stand.environment, SERVER_CORES) as it:
        stand = Stand(dsn, port, key, environment_id, it.pid)
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{stand.url}/readyz", trust_env=False).status_code == 200:
                    break
            if it.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server did not start; run `runwire server` to see why")
            time.sleep(0.05)
        yield stand


def cpu_seconds(pid: int) -> float:
    """Return the processor time a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
