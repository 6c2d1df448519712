"""A server, and runs that a test moves by hand."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.engine import Engine, open_engine
from runwire_engine.environments import Environments
from runwire_engine.outcomes import Completed
from runwire_engine.run_metadata import MetadataWrite
from runwire_engine.settings import EngineSettings
from runwire_engine.streams import Append
from runwire_engine.wanted_runs import NewRun
from tests.support.parts import server_on
from tests.support.processes import Process, free_port
from tests.support.server import SECRET, TestRealtime, running_realtime


class Stage:
    """The server, its engine, and short ways through it; there is one task: "task"."""

    def __init__(self, server: TestRealtime) -> None:
        self.server = server
        self.url, self.key = server.url, server.key
        self.engine = server.services.engine
        self.env = server.environment_id

    async def trigger(self, *tags: str, **options: object) -> str:
        new = NewRun("task", '{"topic":"sea"}', tags=tags, **options)  # type: ignore[arg-type]
        return (await self.engine.runs.trigger(self.env, new)).id

    async def start(self, run_id: str) -> int:
        """Claim a run, which must be the only ready one, and return its execution."""
        claimed = await self.engine.claims.claim(self.env, "w1", {"task": 3}, 10)
        assert [run.id for run in claimed] == [run_id]
        return claimed[0].execution

    async def append(self, run_id: str, execution: int, *chunks: object, key: str = "text") -> None:
        bodies = tuple(orjson.dumps(chunk).decode() for chunk in chunks)
        append = Append(run_id, key, bodies, execution=execution, attempt=execution)
        await self.engine.streams.append(self.env, append)

    async def complete(self, run_id: str, execution: int, output: str = '"done"') -> None:
        await self.engine.outcomes.finish(self.env, Completed(run_id, execution, output))

    async def set_metadata(self, run_id: str, execution: int, **values: object) -> None:
        operations = [{"type": "set", "key": k, "value": v} for k, v in values.items()]
        await self.engine.metadata.apply(self.env, MetadataWrite(run_id, operations, execution))


@asynccontextmanager
async def open_stage(dsn: str, **settings: Any) -> AsyncGenerator[Stage]:
    """Run a server of a test's own, with a worker that only claims."""
    async with running_realtime(dsn, **settings) as server:
        stage = Stage(server)
        announcement = TaskAnnouncement(id="task", queue="task/task")
        await stage.engine.catalogue.announce(stage.env, [announcement])
        await stage.engine.workers.register(stage.env, "w1")
        yield stage


class Outside(Stage):
    """The same, with the server as a process of its own, so that it can be measured."""

    def __init__(self, url: str, key: str, engine: Engine, env: int, process: Process) -> None:
        self.url, self.key = url, key
        self.engine = engine
        self.env = env
        self.process = process

    def memory(self) -> int:
        """Return the server's resident memory, in bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def connections(self) -> int:
        """Return how many connections the server holds, in any state."""
        port = f":{int(self.url.rpartition(':')[2]):04X}"
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        # What a process has let go has no inode any more, though the kernel may still wait.
        listening, nobodys = "0A", "0"
        return sum(
            row[1].endswith(port) and row[3] != listening and row[9] != nobodys for row in rows
        )


@asynccontextmanager
async def open_outside(dsn: str, **environment: object) -> AsyncGenerator[Outside]:
    """Run `runwire server` with settings by their names, and an engine beside it."""
    port = free_port()
    given = {f"RUNWIRE_{name.upper()}": str(value) for name, value in environment.items()}
    async with (
        server_on(dsn, port, SECRET, given) as process,
        open_engine(EngineSettings(database_url=dsn, pool_size=4, lease=3600)) as engine,
    ):
        environments = Environments(engine.database)
        env = await environments.ensure("dev")
        key = await environments.create_key(env, "tests")
        await engine.catalogue.announce(env, [TaskAnnouncement(id="task", queue="task/task")])
        await engine.workers.register(env, "w1")
        yield Outside(f"http://127.0.0.1:{port}", key, engine, env, process)
