"""Fixtures of the tests of the server."""

from collections.abc import AsyncGenerator

import pytest

from tests.support.postgres import TestServer
from tests.support.server import TestRealtime, running_realtime
from tests.support.stage import Stage, open_stage


@pytest.fixture
async def stage(database_url: str, anyio_backend: str) -> AsyncGenerator[Stage]:
    """A running server, and runs that a test moves by hand."""
    async with open_stage(database_url) as opened:
        yield opened


@pytest.fixture(scope="module")
async def shared(postgres: TestServer, anyio_backend: str) -> AsyncGenerator[TestRealtime]:
    """A server for all the tests of a module; each takes a tenant of its own of it."""
    dsn = postgres.create_database()
    async with running_realtime(dsn) as realtime:
        yield realtime
    postgres.drop_database(dsn)
