"""What our figures are measured on: an embedded Postgres, a server on a core of its own, a key."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import httpx

from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.database import Database
from runwire_engine.embedded import EmbeddedPostgres
from runwire_engine.engine import open_engine
from runwire_engine.environments import Environments, new_key
from runwire_engine.migrations import migrate
from runwire_engine.settings import EngineSettings
from runwire_engine.wanted_runs import NewRun
from tests.benchmarks.cores import REST, SERVER_CORES, cores
from tests.benchmarks.environment import DISK
from tests.benchmarks.program import program
from tests.support.processes import free_port

# Under which our defaults hold for admission, too.
AS_IT_COMES = {"RUNWIRE_CONNECT_RATE": "", "RUNWIRE_CONNECT_BURST": ""}
_OWNER = "owner"
RUNWIRE = str(Path(sys.executable).parent / "runwire")
_PLAIN = [
    *(sys.executable, "-m", "uvicorn", "--factory", "runwire_realtime.mounted:runwire_app"),
    *("--loop", "uvloop", "--ws", "websockets-sansio", "--ws-per-message-deflate", "false"),
    *("--no-access-log", "--log-level", "warning"),
]
# What is measured is the work, not how strangers are let in.
ADMISSION = {
    "RUNWIRE_MAX_ENVIRONMENT_CONNECTIONS": "20000",
    "RUNWIRE_MAX_CONNECTIONS": "20000",
    "RUNWIRE_CONNECT_RATE": "20000",
    "RUNWIRE_CONNECT_BURST": "20000",
}


@dataclass(frozen=True)
class Stand:
    dsn: str
    key: str
    environment_id: int
    port: int = 0
    server: int = 0  # process id

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a server, a worker or a client process needs to know."""
        return {
            "RUNWIRE_DATABASE_URL": self.dsn,
            "RUNWIRE_API_URL": self.url,
            "RUNWIRE_API_KEY": self.key,
            "RUNWIRE_SECRET": "benchmark-benchmark-benchmark-benchmark",
        }

    def new_run(self) -> str:
        """Queue a run that no worker will take, since it is due in a day: it only owns streams."""
        return self.trigger(NewRun(task=_OWNER, payload=None, delay=86_400.0))

    def trigger(self, new: NewRun) -> str:
        """Make a run's task known, which may be before its worker does, and trigger the run."""
        return anyio.run(self._trigger, new)

    async def _trigger(self, new: NewRun) -> str:
        async with open_engine(EngineSettings(database_url=self.dsn), sweeping=False) as engine:
            task = TaskAnnouncement(new.task, f"task/{new.task}")
            await engine.catalogue.announce(self.environment_id, [task])
            return (await engine.runs.trigger(self.environment_id, new)).id


@contextlib.contextmanager
def standing() -> Generator[Stand]:
    """Start Postgres; it is gone afterwards."""
    DISK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DISK) as data, cores(REST):
        os.chmod(data, 0o755)
        postgres = EmbeddedPostgres(Path(data))
        anyio.run(postgres.start)
        try:
            key = new_key()
            yield Stand(postgres.dsn, key, anyio.run(_prepare, postgres.dsn, key))
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
def serving(
    stand: Stand,
    settings: Mapping[str, str] | None = None,
    *,
    on: set[int] = SERVER_CORES,
    is_plain: bool = False,
    command: Sequence[str] = (RUNWIRE, "server"),
) -> Generator[Stand]:
    """Run `runwire server` on its core, or others, for the length of a block.

    A plain one is our ASGI application under uvicorn as it comes, as under any other server: it
    hands no sockets out, so that every frame goes through ASGI.
    """
    stand = replace(stand, port=free_port())
    environment = {**stand.environment, **ADMISSION, **(settings or {})}
    words = [*(_PLAIN if is_plain else command), "--port", str(stand.port)]
    with program(words, environment, on) as it:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{stand.url}/readyz", trust_env=False).status_code == 200:
                    break
            if it.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server did not start; run `runwire server` to see why")
            time.sleep(0.05)
        yield replace(stand, server=it.pid)
