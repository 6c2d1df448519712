"""Fixtures every test may ask for."""

import os
from collections.abc import AsyncGenerator, Generator

import pytest

from runwire_engine.database import Database
from runwire_engine.environments import Environments
from tests.support.pooler import pooler
from tests.support.postgres import ENVIRONMENT, TestServer, opened_database, running_server


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres() -> Generator[TestServer]:
    """The test session's Postgres server."""
    with running_server() as server:
        yield server


@pytest.fixture
def database_url(postgres: TestServer) -> Generator[str]:
    """A database of the test's own, with all migrations and the environment "dev".

    With RUNWIRE_TEST_POOLER set, it is reached through PgBouncer in transaction mode.
    """
    dsn = postgres.create_database()
    if os.environ.get("RUNWIRE_TEST_POOLER"):
        with pooler(dsn) as through:
            yield through
    else:
        yield dsn
    postgres.drop_database(dsn)


@pytest.fixture
async def database(database_url: str, anyio_backend: str) -> AsyncGenerator[Database]:
    """The test's own database, opened."""
    async with opened_database(database_url) as opened:
        yield opened


@pytest.fixture
async def env(database: Database, anyio_backend: str) -> int:
    """The id of the environment "dev" in the test's own database."""
    return await Environments(database).ensure(ENVIRONMENT)
