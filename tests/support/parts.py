"""The parts of Runwire as processes of their own, on a database of a test's, made to be killed.

async with worker_on(dsn, "tests/faults/programs/stubborn_tasks.py") as worker:
    worker.kill()
"""

import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio

from runwire_engine.embedded import EmbeddedPostgres
from runwire_engine.environments import Environments
from runwire_engine.migrations import migrate
from tests.support.postgres import TestServer, opened_database
from tests.support.processes import Process, free_port, running

# Spans that fit a test; those of a worker's lease are told where it matters.
LEASE: Final = 2.0
SWEEP: Final = 0.3
SPANS: Final[Mapping[str, str]] = {
    "RUNWIRE_LEASE": str(LEASE),
    "RUNWIRE_HEARTBEAT": "0.5",
    "RUNWIRE_SWEEP": str(SWEEP),
    "RUNWIRE_POLL": "0.5",
    "RUNWIRE_GRACE": "5",
    "RUNWIRE_POOL_SIZE": "4",
}
_COMMAND: Final = ("runwire",)
_START_SECONDS: Final = 40.0  # Python imports slowly on a machine that is busy with other tests


@asynccontextmanager
async def worker_on(
    dsn: str,
    *modules: str,
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] = _COMMAND,
) -> AsyncGenerator[Process]:
    """Run `runwire worker`, from the moment it claims."""
    given = {**SPANS, "RUNWIRE_DATABASE_URL": dsn, **(environment or {})}
    async with running(*command, "worker", *modules, environment=given) as worker:
        await worker.until_line("executing", _START_SECONDS)
        yield worker


@asynccontextmanager
async def server_on(
    dsn: str,
    port: int,
    secret: str,
    environment: Mapping[str, str] | None = None,
    *,
    command: Sequence[str] = _COMMAND,
) -> AsyncGenerator[Process]:
    """Run `runwire server`, from the moment it is ready."""
    given = {
        **SPANS,
        "RUNWIRE_DATABASE_URL": dsn,
        "RUNWIRE_SECRET": secret,
        **(environment or {}),
    }
    async with running(*command, "server", "--port", str(port), environment=given) as server:
        await server.until_ready(f"http://127.0.0.1:{port}/readyz", _START_SECONDS)
        yield server


@dataclass(frozen=True)
class Served:
    """A server, and what a worker or a client needs to know."""

    dsn: str
    environment: dict[str, str]


@asynccontextmanager
async def serving(postgres: TestServer) -> AsyncGenerator[Served]:
    """Run a server on a database of its own, with a key."""
    dsn = postgres.create_database()
    async with opened_database(dsn, max_size=1) as database:
        environments = Environments(database)
        key = await environments.create_key(await environments.ensure("dev"), "tests")
    port = free_port()
    environment = {
        "RUNWIRE_API_URL": f"http://127.0.0.1:{port}",
        "RUNWIRE_API_KEY": key,
        "OPENAI_API_KEY": "",
    }
    async with server_on(dsn, port, "a secret of the tests, forty bytes long.."):
        yield Served(dsn, environment)
    postgres.drop_database(dsn)


@asynccontextmanager
async def own_postgres(
    settings: Mapping[str, str] | None = None,
) -> AsyncGenerator[EmbeddedPostgres]:
    """Run a migrated Postgres of a test's own, brought back whenever it dies.

    Not in pytest's `tmp_path`: each new session of pytest closes that to other users, and as root
    Postgres is one.
    """
    with tempfile.TemporaryDirectory(prefix="runwire-postgres-") as folder:
        async with supervised(EmbeddedPostgres(folder, settings=settings)) as postgres:
            yield postgres


@asynccontextmanager
async def supervised(postgres: EmbeddedPostgres) -> AsyncGenerator[EmbeddedPostgres]:
    """Run a Postgres, migrated and brought back whenever it dies."""
    await postgres.start()
    try:
        await migrate(postgres.dsn)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(postgres.supervise)
            yield postgres
            tasks.cancel_scope.cancel()
    finally:
        await postgres.stop()
