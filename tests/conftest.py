"""Fixtures every test may ask for."""

import os
from collections.abc import AsyncGenerator, Generator
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

from runwire_engine.database import Database
from runwire_engine.environments import Environments
from tests.support.pooler import pooler
from tests.support.postgres import ENVIRONMENT, TestServer, opened_database, running_server

# Every day the same examples; with RUNWIRE_EXAMPLES=random (`make faults`) others each time. A busy
# machine is no fault of theirs.
settings.register_profile(
    "runwire",
    derandomize=os.environ.get("RUNWIRE_EXAMPLES") != "random",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("runwire")

# The group of tests that should have no other of their kind beside them.
_ALONE: Final = "alone"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests: which of them one process runs, one by one.

    A file is one's, for what its tests share. Tests that start processes of their own, or a
    browser, are all one's: two of them at once would measure each other. They come first, for they
    take longest.
    """
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=lambda item: _group(item) != _ALONE)


def _group(item: pytest.Item) -> str:
    is_large = any(item.get_closest_marker(name) for name in ("faults", "browser", "autobahn"))
    return _ALONE if is_large else item.nodeid.partition("::")[0]


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
