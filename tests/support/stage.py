"""A server, and runs that a test moves by hand."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import orjson

from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.outcomes import Completed
from runwire_engine.run_metadata import MetadataWrite
from runwire_engine.runs import NewRun
from runwire_engine.streams import Append
from tests.support.server import TestRealtime, running_realtime


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
