"""The command line against a real server and a real database."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import anyio.to_thread
import orjson
import pytest
from typer.testing import CliRunner

from runwire_realtime import cli
from runwire_realtime.commands import app, processes
from runwire_realtime.commands.failure import one_line
from runwire_realtime.commands.terminal import plain
from runwire_realtime.errors import StartError
from tests.support.server import TestRealtime

pytestmark = pytest.mark.anyio

# Set, but to nothing: as good as unset.
NO_DATABASE = {"RUNWIRE_DATABASE_URL": ""}


@pytest.fixture
async def server(shared: TestRealtime) -> TestRealtime:
    return await shared.tenant("echo")


async def _run(server: TestRealtime, *arguments: str, stdin: str | None = None) -> str:
    """Run a command as a shell would and return what it printed."""
    environment = {
        "RUNWIRE_API_URL": server.url,
        "RUNWIRE_API_KEY": server.key,
        "RUNWIRE_DATABASE_URL": server.services.settings.database_url.get_secret_value(),
        "COLUMNS": "200",
    }
    result = await anyio.to_thread.run_sync(
        lambda: CliRunner().invoke(
            app, arguments, env=environment, input=stdin, catch_exceptions=False
        )
    )
    return result.output


async def test_a_run_is_triggered_listed_shown_canceled_and_repeated(server: TestRealtime) -> None:
    run_id = (await _run(server, "trigger", "echo", '{"n": 1}', "--tag", "a", "--tag", "b")).strip()
    listed = await _run(server, "runs", "list", "--tag", "a", "--status", "queued")
    assert run_id in listed and "QUEUED" in listed and "a b" in listed
    shown = orjson.loads(await _run(server, "runs", "show", run_id))
    assert shown["payload"] == {"n": 1} and shown["tags"] == ["a", "b"]
    assert run_id in await _run(server, "runs", "cancel", run_id)
    again = (await _run(server, "runs", "replay", run_id, "--payload", "[2]")).strip()
    assert orjson.loads(await _run(server, "runs", "show", again))["payload"] == [2]
    assert "no runs" in await _run(server, "runs", "list", "--task", "other")
    assert "no runs" in await _run(server, "runs", "list", "--parent", run_id)
    assert "no runs" in await _run(server, "runs", "list", "--schedule", "sched_1")


async def test_a_payload_may_come_from_standard_input(server: TestRealtime) -> None:
    run_id = (await _run(server, "trigger", "echo", "-", stdin='{"from": "stdin"}')).strip()
    shown = orjson.loads(await _run(server, "runs", "show", run_id))
    assert shown["payload"] == {"from": "stdin"}


async def test_a_token_is_minted_with_the_scopes_given(server: TestRealtime) -> None:
    token = (await _run(server, "token", "read:runs", "--expires", "1h")).strip()
    async with server.client(token) as reader:
        assert (await reader.get("/api/v1/runs")).status_code == 200
        assert (await reader.post("/api/v1/tasks/echo/trigger", json={})).status_code == 403


async def test_keys_are_created_listed_and_revoked(server: TestRealtime) -> None:
    key = (await _run(server, "keys", "create", "for tests", "-e", "keys")).strip()
    listed = await _run(server, "keys", "list", "-e", "keys")
    assert "for tests" in listed and key[:14] in listed and key not in listed
    number = next(line.split()[0] for line in listed.splitlines() if "for tests" in line)
    assert "revoked" in await _run(server, "keys", "revoke", number, "-e", "keys")
    async with server.client(key) as revoked:
        assert (await revoked.get("/api/v1/runs")).status_code == 401


async def test_migrate_says_what_it_did(server: TestRealtime) -> None:
    assert "up to date" in await _run(server, "migrate")


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["runs", "show", "run_x"], {"RUNWIRE_API_URL": "http://127.0.0.1:1"}, "runwire: "),
        (["server"], {"RUNWIRE_SECRET": "s" * 32}, "RUNWIRE_DATABASE_URL is not set"),
        (["server"], {"RUNWIRE_DATABASE_URL": "postgresql:///x"}, "RUNWIRE_SECRET is not set"),
        (
            ["server"],
            {**NO_DATABASE, "RUNWIRE_SECRET": "s" * 32},
            "RUNWIRE_DATABASE_URL is not set",
        ),
        (["worker", "docs.examples.ask"], {}, "RUNWIRE_DATABASE_URL is not set"),
        (["worker", "docs.examples.ask"], NO_DATABASE, "RUNWIRE_DATABASE_URL is not set"),
        (["keys", "list"], NO_DATABASE, "RUNWIRE_DATABASE_URL is not set"),
        (["migrate"], NO_DATABASE, "RUNWIRE_DATABASE_URL is not set"),
        (["worker", "x"], {}, "there is no module 'x'"),
        (["worker"], {}, "name the modules"),
        (["migrate"], {}, "RUNWIRE_DATABASE_URL is not set"),
        (["trigger", "echo", "not json"], {}, "payload is not valid JSON"),
    ],
)
def test_a_foreseen_failure_is_one_line_and_exit_code_1(
    arguments: list[str],
    environment: dict[str, str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in [name for name in os.environ if name.startswith("RUNWIRE_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["runwire", *arguments])
    # The test run's own logging stays as it is.
    monkeypatch.setattr(processes, "configure_logging", lambda: None)
    # In a thread: the loop of this module's fixtures counts as running in this one.
    with ThreadPoolExecutor(1) as other, pytest.raises(SystemExit) as ended:
        other.submit(cli.main).result()
    assert ended.value.code == 1
    printed = capfd.readouterr()
    assert expected in printed.err and len(printed.err.strip().splitlines()) == 1
    assert printed.out == ""


def test_the_module_is_the_console_script() -> None:
    command = [sys.executable, "-m", "runwire_realtime.cli", "runs", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "tail" in result.stdout


def test_errors_in_groups_are_told_too_and_bugs_are_not_hidden() -> None:
    group = BaseExceptionGroup("g", [ExceptionGroup("h", [StartError("the reason")])])
    assert one_line(group) == "the reason"
    assert one_line(ZeroDivisionError()) is None


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find_spec(name: str) -> object:
        return None if name == "uvicorn" else object()

    monkeypatch.setattr(cli, "find_spec", find_spec)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert 'needs uvicorn; install it with: pip install "runwire[server' in capsys.readouterr().err


def test_text_of_others_cannot_steer_the_terminal() -> None:
    assert plain("a\x1b[2Jb\x1b]0;title\x07c\r\n\td\x9b1m") == "ab]0;titlec\n\td1m"


async def test_queues_are_listed_paused_and_limited(server: TestRealtime) -> None:
    await _run(server, "trigger", "echo")
    assert "paused task/echo" in await _run(server, "queues", "pause", "task/echo")
    listed = await _run(server, "queues", "list")
    assert "task/echo" in listed and "paused" in listed
    limited = await _run(server, "queues", "limit", "task/echo", "3")
    assert "task/echo: 3 (in code none)" in limited
    assert "task/echo: none" in await _run(server, "queues", "limit", "task/echo", "--reset")
    assert "resumed task/echo" in await _run(server, "queues", "resume", "task/echo")
    assert "paused" not in await _run(server, "queues", "list")
    assert "give a limit" in await _run(server, "queues", "limit", "task/echo")


async def test_a_delayed_run_is_rescheduled(server: TestRealtime) -> None:
    run_id = (await _run(server, "trigger", "echo", "--delay", "1h")).strip()
    assert f"{run_id} waits until 20" in await _run(server, "runs", "reschedule", run_id, "2h")
