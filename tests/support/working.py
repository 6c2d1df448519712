"""A real worker inside a test: its task loop is the test's own, its engine runs in its thread."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, LiteralString, cast

import anyio
import orjson
import psycopg

from runwire.tasks import AnyTask, task
from runwire_engine.engine import Engine, open_engine
from runwire_engine.environments import Environments
from runwire_engine.run_row import RunRow
from runwire_engine.settings import EngineSettings
from runwire_engine.states import FINAL
from runwire_engine.wanted_runs import NewRun
from runwire_engine.worker import Worker

WAIT = 60.0


async def until(fact: Callable[[], bool]) -> None:
    """Wait until something is so."""
    with anyio.fail_after(WAIT):
        while True:
            if fact():
                return
            await anyio.sleep(0.002)  # polls


def settings_of(database_url: str, **changes: Any) -> EngineSettings:
    """Return settings whose spans fit a test."""
    values: dict[str, Any] = {
        "lease": 5.0,
        "heartbeat": 0.5,
        "sweep": 0.3,
        "poll": 0.2,
        "grace": 5.0,
        "concurrency": 20,
        "pool_size": 4,
    }
    return EngineSettings(database_url=database_url, **{**values, **changes})


def defined(function: Callable[..., Any], **options: Any) -> AnyTask:
    """Make a task of a function, with its name as the id."""
    retry = options.pop("retry", {"max_attempts": 1})
    # The overloads of `task` cannot be told apart by options that are not known here.
    decorate = cast(Any, task)(id=function.__qualname__[-128:], retry=retry, **options)
    return cast(AnyTask, decorate(function))


@dataclass
class Bench:
    """What a test of workers needs: the engine, as a server would have it, and its environment."""

    engine: Engine
    env: int
    database_url: str

    async def start(self, made: AnyTask, payload: object = None, **options: Any) -> str:
        """Trigger a run and return its id."""
        text = None if payload is None else orjson.dumps(payload).decode()
        return await self.start_text(made, text, **options)

    async def start_text(self, made: AnyTask, payload: str | None, **options: Any) -> str:
        result = await self.engine.runs.trigger(self.env, NewRun(made.id, payload, **options))
        return result.id

    async def row(self, run_id: str) -> RunRow:
        row = await self.engine.runs.retrieve(self.env, run_id)
        assert row is not None
        return row

    async def until(self, run_id: str, *statuses: str) -> RunRow:
        """Wait until a run has one of these statuses; none given: until it is over."""
        wanted = set(statuses) or {str(status) for status in FINAL}
        with anyio.fail_after(WAIT):
            while True:
                row = await self.row(run_id)
                if row.status in wanted:
                    return row
                await anyio.sleep(0.01)  # polls the database

    async def finished(self, made: AnyTask, payload: object = None, **options: Any) -> RunRow:
        """Trigger a run and wait until it is over."""
        return await self.until(await self.start(made, payload, **options))

    async def chunks(self, run_id: str, key: str) -> list[Any]:
        """Return every chunk of a stream, decoded, after checking that seq has no hole."""
        page = await self.engine.streams.read(self.env, run_id, key)
        assert [chunk.seq for chunk in page.chunks] == list(range(len(page.chunks)))
        return [orjson.loads(chunk.body) for chunk in page.chunks]

    async def metadata(self, run_id: str) -> Any:
        text = await self.engine.metadata.retrieve(self.env, run_id)
        return None if text is None else orjson.loads(text)

    async def sql(self, statement: LiteralString, **parameters: object) -> None:
        """Do to the database what no part of ours would."""
        async with await psycopg.AsyncConnection.connect(
            self.database_url, autocommit=True
        ) as connection:
            await connection.execute(statement, parameters)

    @asynccontextmanager
    async def worker(self, *tasks: AnyTask, **changes: Any) -> AsyncGenerator[Worker]:
        """Run a worker for the length of a block."""
        worker = Worker(
            settings_of(self.database_url, **changes), {made.id: made for made in tasks}
        )
        async with anyio.create_task_group() as group:
            with anyio.fail_after(WAIT):
                await group.start(worker.run)
            try:
                yield worker
            finally:
                worker.stop(grace=0.0)


def error_of(row: RunRow) -> dict[str, Any]:
    """Return a run's error, decoded."""
    assert row.error is not None
    error: dict[str, Any] = orjson.loads(row.error)
    return error


@asynccontextmanager
async def opened_bench(database_url: str, **changes: Any) -> AsyncGenerator[Bench]:
    """Open an engine on a test's database."""
    async with open_engine(settings_of(database_url, **changes)) as engine:
        env = await Environments(engine.database).ensure("dev")
        yield Bench(engine, env, database_url)


async def statuses(bench: Bench, ids: Sequence[str]) -> list[str]:
    """Return the statuses of runs, in order."""
    rows = await bench.engine.runs.retrieve_many(bench.env, ids)
    return [row.status for row in rows]
