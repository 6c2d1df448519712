"""The fixtures for users' tests, and that a project of theirs runs as the how-to writes it."""

import os
import re
import subprocess
import sys
from collections.abc import Generator
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import anyio
import pytest

from runwire import (
    InvalidValueError,
    ScheduledTaskPayload,
    logger,
    metadata,
    runs,
    schedules,
    streams,
    sync,
    task,
    tasks,
    wait,
)
from runwire.tasks import AnyTask
from runwire.testing import Clock, RunTask, TaskFailedError
from runwire_realtime.testing.databases import borrowed_databases
from tests.support.postgres import TestServer

ROOT = Path(__file__).parents[2]
HOWTO = ROOT / "docs" / "howto" / "test-your-tasks.md"
_FILE = re.compile(r"<!-- file: (\w+\.py) -->\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


# In this process --------------------------------------------------------------------------------


@task(id="testing-echo", retry={"max_attempts": 2, "min_timeout": "2d", "max_timeout": "2d"})
async def echo(payload: dict[str, int]) -> int:
    metadata.set("n", payload["n"]).increment("count")
    logger.info("counting", {"to": payload["n"]})
    for number in range(payload["n"]):
        await streams.append("numbers", number)
    if payload["n"] == 7:
        raise ValueError("seven")
    return payload["n"]


@task(id="testing-parent")
def parent() -> str:
    return echo.sync.trigger({"n": 1}).id


@task(id="testing-sleeper")
async def sleeper() -> None:
    await anyio.sleep(60)


@task(id="testing-patient")
async def patient() -> str:
    await wait.for_("3d")
    metadata.set("waited", True)
    await wait.for_("30d")
    return "done"


@task(id="testing-blocking-patient")
def blocking_patient() -> str:
    wait.sync.for_("3d")
    return "done"


@schedules.task(id="testing-daily", cron={"pattern": "0 9 * * *", "missed": "all"})
async def daily(payload: ScheduledTaskPayload) -> str:
    return payload.timestamp.isoformat()


@pytest.fixture(scope="session")
def runwire_databases(postgres: TestServer) -> Generator[object]:
    """The session's own Postgres instead of another one."""
    with borrowed_databases(postgres.admin_dsn) as databases:
        yield databases


def test_a_run_is_returned_whole(run_task: RunTask) -> None:
    result = run_task.sync(echo, {"n": 3}, tags=["a"], metadata={"from": "the start"})
    assert (result.status, result.ok, result.output, result.error) == ("COMPLETED", True, 3, None)
    assert result.unwrap() == 3 and result.attempts == 1 and result.tags == ("a",)
    assert result.streams == {"numbers": (0, 1, 2)}
    [line] = result.logs
    assert (line.level, line.message, line.attributes) == ("info", "counting", {"to": 3})
    assert result.metadata == {"from": "the start", "n": 3, "count": 1}
    first = {"from": "the start"}
    assert result.metadata_history == (first, {**first, "n": 3}, {**first, "n": 3, "count": 1})


def test_a_run_that_fails_tells_why(run_task: RunTask, clock: Clock) -> None:
    before = clock.now()
    result = run_task.sync(echo, {"n": 7})
    assert (result.status, result.attempts, result.output) == ("FAILED", 2, None)
    assert result.error is not None and result.error.message == "seven"
    with pytest.raises(TaskFailedError, match="seven") as caught:
        result.unwrap()
    assert caught.value.result is result and "Traceback" in str(caught.value)
    # Two days of back-off were skipped.
    assert timedelta(days=2) <= clock.now() - before < timedelta(days=3)


def test_children_come_along(run_task: RunTask) -> None:
    result = run_task.sync(parent)
    run_task.sync.runs(echo)
    [child] = result.children
    assert child.id == result.output and child.task == "testing-echo"


@pytest.mark.anyio
async def test_async_tests_await(run_task: RunTask) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await anyio.sleep(0.001)  # the test's own loop goes on meanwhile

    outputs: list[int | None] = []
    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        outputs.append((await run_task(echo, {"n": 2})).output)
        group.cancel_scope.cancel()
    assert outputs == [2] and ticks > 3
    started = await run_task.start(echo, {"n": 1}, delay="1d")
    assert await started.status() == "DELAYED"
    assert (await started.result()).ok


def test_time_is_left_to_the_test_where_it_says_so(run_task: RunTask, clock: Clock) -> None:
    run = run_task.sync.start(echo, {"n": 1}, delay="3d")
    with pytest.raises(TimeoutError, match="DELAYED.*goes on at"):
        run.result(skip_waits=False, timeout=0.2)
    clock.advance("2d")
    assert run.status() == "DELAYED"
    clock.advance("1d")
    assert run.until("COMPLETED") == "COMPLETED"
    with pytest.raises(ValueError, match="forward"):
        clock.advance_to(clock.now() - timedelta(seconds=1))
    with pytest.raises(ValueError, match="forward"):
        clock.advance(-1)


@pytest.mark.parametrize("made", [patient, blocking_patient])
def test_waits_take_milliseconds(run_task: RunTask, clock: Clock, made: AnyTask) -> None:
    before = clock.now()
    assert run_task.sync(made).unwrap() == "done"
    assert clock.now() - before >= timedelta(days=3)
    # Schedules do not tick on the way.
    assert run_task.sync.runs(daily) == []


def test_a_wait_is_over_when_the_test_moves_time(run_task: RunTask, clock: Clock) -> None:
    run = run_task.sync.start(patient)
    assert run.until("WAITING") == "WAITING"
    clock.advance("2d")
    assert run.status() == "WAITING"
    clock.advance("1d")
    with pytest.raises(TimeoutError, match="WAITING.*goes on at"):
        run.result(skip_waits=False, timeout=0.3)
    assert run.result().metadata == {"waited": True}


def test_schedules_tick_as_time_is_moved(run_task: RunTask, clock: Clock) -> None:
    clock.advance("3d")
    found = run_task.sync.runs(daily)
    assert len(found) == 3 and all(run.output and "T09:00" in run.output for run in found)
    assert len({run.output for run in found}) == 3


@pytest.mark.anyio
async def test_code_that_calls_the_api_is_served(run_task: RunTask, runwire_api: str) -> None:
    handle = await tasks.trigger("testing-echo", {"n": 2})
    async for run in runs.subscribe_to_run(handle):
        if run.is_completed:
            assert run.output == 2
    [result] = await run_task.runs(echo)
    assert result.id == handle.id and runwire_api.startswith("http://127.0.0.1:")


def test_blocking_code_is_served_too(run_task: RunTask, runwire_api: str) -> None:
    handle = sync.tasks.trigger(patient)
    assert run_task.sync.runs(patient) == []  # it waits, and is not over
    assert sync.runs.retrieve(handle).is_waiting


def test_tests_do_not_see_each_other(run_task: RunTask) -> None:
    assert run_task.sync.runs(echo) == []


def test_what_takes_too_long_is_told(run_task: RunTask) -> None:
    with pytest.raises(TimeoutError, match="EXECUTING after 0.3 s"):
        run_task.sync(sleeper, timeout=0.3)


def test_a_task_defined_in_a_test_is_known(run_task: RunTask) -> None:
    assert run_task.sync(echo, {"n": 1}).ok

    @task(id="testing-late")
    def late() -> str:
        return "here"

    assert run_task.sync(late).output == "here"
    wrong: Any = {"n": "x"}
    with pytest.raises(InvalidValueError):
        run_task.sync(echo, wrong)


# As a project of a user -------------------------------------------------------------------------


def test_the_how_to_runs_as_written(tmp_path: Path, postgres: TestServer) -> None:
    """On a Postgres of its own with RUNWIRE_TEST_EMBEDDED, as `make faults` sets it."""
    files = dict(_FILE.findall(HOWTO.read_text(encoding="utf-8")))
    assert set(files) == {"stories.py", "test_stories.py", "test_async.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    borrowed = None if os.environ.get("RUNWIRE_TEST_EMBEDDED") else postgres.admin_dsn
    ran = _pytest(tmp_path, borrowed=borrowed)
    assert ran.returncode == 0, ran.stdout
    assert "8 passed" in ran.stdout


def test_the_plugin_comes_with_the_package_imports_nothing_before_it_is_used_and_names_an_extra(
    tmp_path: Path,
) -> None:
    [found] = [each for each in entry_points(group="pytest11") if each.name == "runwire"]
    assert found.value == "runwire_realtime.pytest_plugin"
    (tmp_path / "conftest.py").write_text(
        "from runwire_realtime import pytest_plugin\n"
        "pytest_plugin.find_spec = lambda name: None if name == 'cronsim' else object()\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import sys\n\n\ndef test_nothing():\n"
        "    assert not {'runwire', 'psycopg', 'pydantic', 'starlette'} & set(sys.modules)\n"
        "\n\ndef test_something(run_task): ...\n"
    )
    ran = _pytest(tmp_path, "-p", "no:anyio", "-p", "no:schemathesis", "-p", "no:hypothesispytest")
    assert "1 passed" in ran.stdout and "1 error" in ran.stdout, ran.stdout
    assert 'need cronsim; install them with: pip install "runwire[server' in ran.stdout


def _pytest(
    folder: Path, *options: str, borrowed: str | None = None
) -> "subprocess.CompletedProcess[str]":
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RUNWIRE_")
    }
    if borrowed is not None:
        environment["RUNWIRE_TEST_DATABASE_URL"] = borrowed
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
