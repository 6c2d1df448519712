"""Fixtures every test may ask for."""

import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Generator
from functools import partial
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings

from runwire import AsyncRunwire
from runwire.tasks import registry
from runwire_engine.database import Database
from runwire_engine.environments import Environments
from tests.support.bounds import pytest_runtest_protocol as pytest_runtest_protocol
from tests.support.bounds import pytest_timeout_set_timer as pytest_timeout_set_timer
from tests.support.groups import Groups
from tests.support.pooler import pooler
from tests.support.postgres import ENVIRONMENT, TestServer, opened_database, running_server
from tests.support.server import TestRealtime, running_realtime
from tests.support.working import Bench

# Every day the same examples; with RUNWIRE_EXAMPLES=random (`make faults`) others each time. A busy
# machine is no fault of theirs.
settings.register_profile(
    "runwire",
    derandomize=os.environ.get("RUNWIRE_EXAMPLES") != "random",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("runwire")

_ALONE: Final = "alone:"
_LARGE: Final = (
    ("faults", "tests/faults/"),
    ("faults", "tests/soak/"),
    ("pages", "tests/end_to_end/"),
    ("pages", "tests/autobahn/"),
    ("pages", "tests/realtime/test_dev.py"),
)
# What computes in one process, or looks at its tools.
_SMALL: Final = {f"tests/faults/test_{name}.py" for name in ("history", "model", "mutants")}


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Have this session's temporary folders in one of its own.

    Each new session of pytest, as some tests start them, closes the usual place to other users, and
    where tests run as root Postgres is one.
    """
    if not hasattr(config, "workerinput") and config.option.basetemp is None:
        folder = tempfile.mkdtemp(prefix="runwire-pytest-")
        config.option.basetemp = folder
        config.add_cleanup(partial(shutil.rmtree, folder, ignore_errors=True))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests, begin with those that take longest."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not _group(item.nodeid).startswith(_ALONE))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    """Say which tests one of several processes runs, one after the other."""
    return Groups(config, log, _group)


def _group(test: str) -> str:
    """Return the group that one process runs: a file, for what its tests share.

    Those that need many processes are one group, and those that need a browser: two of a kind at
    once would measure each other.
    """
    file, _, _ = test.partition("::")
    if file in _SMALL:
        return file
    return next((f"{_ALONE} {kind}" for kind, start in _LARGE if file.startswith(start)), file)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _own_tasks() -> Generator[None]:
    """Forget the tasks that were defined within a test: another may use their ids."""
    before = set(registry())
    yield
    defined = list(registry().items())
    registry().clear()
    for id, each in defined:
        if id in before or "<locals>" not in getattr(each.function, "__qualname__", ""):
            registry().add(each)


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


# A module that wants these has a `bench` of its own, which names the tasks of its worker.


@pytest.fixture
async def server(bench: Bench, anyio_backend: str) -> AsyncGenerator[TestRealtime]:
    """A server on the database of the module's bench."""
    async with running_realtime(bench.database_url) as running:
        yield running


@pytest.fixture
async def client(server: TestRealtime, anyio_backend: str) -> AsyncGenerator[AsyncRunwire]:
    """A client of that server, with its API key."""
    async with AsyncRunwire(api_url=server.url, access_token=server.key) as opened:
        yield opened
