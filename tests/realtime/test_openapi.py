"""The description is true: schemathesis derives requests from it and judges the answers."""

import os
import re
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
import httpx
import orjson
import pytest

from runwire.wire import JsonObject
from runwire_realtime.app import OPERATIONS
from runwire_realtime.openapi import describe
from tests.support.server import TestRealtime, running_realtime
from tests.support.tasks import announce

pytestmark = pytest.mark.anyio
# How many requests are made up for each operation; where it is said, answers are followed as well.
EXAMPLES = os.environ.get("RUNWIRE_OPENAPI_EXAMPLES")


@pytest.fixture
async def server(database_url: str, anyio_backend: str) -> AsyncGenerator[TestRealtime]:
    async with running_realtime(database_url) as realtime:
        await announce(realtime.services, "echo", "ask")
        yield realtime


def test_every_operation_is_described_once() -> None:
    paths: dict[str, Any] = describe(OPERATIONS)["paths"]
    names = [part["operationId"] for path in paths.values() for part in path.values()]
    assert len(names) == len(set(names)) == len(OPERATIONS)


async def test_the_description_is_served_as_it_is_made(server: TestRealtime) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as anybody:
        answer = await anybody.get("/openapi.json")
    assert answer.status_code == 200 and answer.json() == describe(OPERATIONS)


async def _things_that_are_there(server: TestRealtime) -> str:
    """Return a configuration that names a run, a batch and a stream, so that they are met."""
    async with server.client() as http:
        run = (await http.post("/api/v1/tasks/echo/trigger", json={})).json()["id"]
        batch = (await http.post("/api/v3/batches", json={"runCount": 3})).json()["id"]
        await http.post(f"/realtime/v1/streams/{run}/self/text/append", content="x")
        wanted = {"task": "echo", "cron": "0 0 1 1 *", "deduplicationKey": "there"}
        schedule = (await http.post("/api/v1/schedules", json=wanted)).json()["id"]
        held = {"options": {"idempotencyKey": "text"}}
        await http.post("/api/v1/tasks/ask/trigger", json=held)
    names = {"runId": run, "batchId": batch, "taskId": "echo", "key": "text", "target": "self"}
    names["scheduleId"] = schedule
    async with server.client() as http:
        names["queue"] = (await http.get("/api/v1/queues")).json()["data"][0]["id"]
    lines = [f'"path.{name}" = "{value}"' for name, value in names.items()]
    return "\n".join(["[parameters]", *lines]) + "\n"


# What a credential can be: everything, one task's runs, or nothing at all.
CREDENTIALS = ("key", "token", "none")
# For the dashboard's own page: they need its origin, a one-time code or its cookie.
# And a run cannot both wait for its time and be open to what the others do with it.
# Nor does one that was canceled on the way take input. No wait token is there to be completed, and
# the address of a callback has a part that is signed.
NOT_REACHED = {
    *("signIn", "renewSession", "signOut", "rescheduleRun", "sendInput"),
    *("completeWaitToken", "callBackWaitToken"),
}


async def _credential(server: TestRealtime, kind: str) -> list[str]:
    if kind == "none":
        return []
    scopes = ("read:tasks:echo", "trigger:tasks:echo", "write:tasks:echo")
    secret = server.key if kind == "key" else await server.token(*scopes)
    return ["--header", f"Authorization: Bearer {secret}"]


@pytest.mark.parametrize("kind", CREDENTIALS)
@pytest.mark.timeout(900)
async def test_schemathesis_finds_nothing_that_the_description_does_not_say(
    server: TestRealtime, tmp_path: Path, kind: str
) -> None:
    config, report = tmp_path / "schemathesis.toml", tmp_path / "report.har"
    config.write_text(await _things_that_are_there(server))
    # What JSON Schema cannot say of a body (that a payload is JSON in a string, what a scope or a
    # duration looks like) is refused with 400, so that one check would cry wolf.
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config)]
    target = ["run", f"{server.url}/openapi.json"]
    excluded = "positive_data_acceptance"
    # Whoever has no credential is refused before anything else is looked at.
    phases = "examples,fuzzing" if kind == "none" else "examples,coverage,fuzzing"
    if EXAMPLES:
        # A batch that was just made answers 404 for an item whose task nobody has announced.
        excluded += ",ensure_resource_availability"
        phases += ",stateful"
    options = ["--checks", "all", "--exclude-checks", excluded, "--mode", "all", "--phases", phases]
    bounds = ["--max-examples", EXAMPLES or "5", "--seed", "7", "--no-color"]
    written = ["--report", "har", "--report-har-path", str(report)]
    result = await anyio.run_process(
        [
            *command,
            *target,
            *options,
            *bounds,
            *written,
            *await _credential(server, kind),
        ],
        check=False,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks"},
    )
    assert result.returncode == 0, result.stdout.decode()[-8000:]
    answered = _answered(report)
    assert not [status for _, _, status in answered if status >= 500]
    if kind == "key":
        assert _names(answered) >= {operation.name for operation in OPERATIONS} - NOT_REACHED


def _answered(report: Path) -> list[tuple[str, str, int]]:
    """Return method, path and status of every exchange."""
    entries: list[JsonObject] = orjson.loads(report.read_bytes())["log"]["entries"]
    return [
        (
            entry["request"]["method"],
            unquote(urlsplit(str(entry["request"]["url"])).path),
            entry["response"]["status"],
        )
        for entry in entries
    ]


def _names(answered: list[tuple[str, str, int]]) -> set[str]:
    """Return the operations that have succeeded."""
    patterns = {
        operation.name: (
            operation.method,
            re.compile(re.sub(r"\{[^}]+\}", "[^/]+", operation.path)),
        )
        for operation in OPERATIONS
    }
    return {
        name
        for name, (method, path) in patterns.items()
        for used, at, status in answered
        if used == method and 200 <= status < 300 and path.fullmatch(at)
    }
