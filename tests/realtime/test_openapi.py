"""The description is true: schemathesis derives requests from it and judges the answers."""

import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from runwire_realtime.app import OPERATIONS
from runwire_realtime.openapi import describe
from tests.support.server import TestRealtime, running_realtime
from tests.support.tasks import announce

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server(database_url: str, anyio_backend: str) -> AsyncGenerator[TestRealtime]:
    async with running_realtime(database_url) as realtime:
        await announce(realtime.services, "echo")
        yield realtime


def test_every_operation_is_described_once() -> None:
    paths: dict[str, Any] = describe(OPERATIONS)["paths"]
    names = [part["operationId"] for path in paths.values() for part in path.values()]
    assert len(names) == len(set(names)) == len(OPERATIONS)


async def test_the_description_is_served_as_it_is_made(server: TestRealtime) -> None:
    async with httpx.AsyncClient(base_url=server.url) as anybody:
        answer = await anybody.get("/openapi.json")
    assert answer.status_code == 200 and answer.json() == describe(OPERATIONS)


async def _things_that_are_there(server: TestRealtime) -> str:
    """Return a configuration that names a run, a batch and a stream, so that they are met."""
    async with server.client() as http:
        run = (await http.post("/api/v1/tasks/echo/trigger", json={})).json()["id"]
        batch = (await http.post("/api/v3/batches", json={"runCount": 3})).json()["id"]
        await http.post(f"/realtime/v1/streams/{run}/self/text/append", content="x")
    names = {"runId": run, "batchId": batch, "taskId": "echo", "key": "text", "target": "self"}
    lines = [f'"path.{name}" = "{value}"' for name, value in names.items()]
    return "\n".join(["[parameters]", *lines]) + "\n"


async def test_schemathesis_finds_nothing_that_the_description_does_not_say(
    server: TestRealtime, tmp_path: Path
) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(await _things_that_are_there(server))
    # What JSON Schema cannot say of a body (that a payload is JSON in a string, what a scope or a
    # duration looks like) is refused with 400, so that one check would cry wolf.
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config)]
    target = ["run", f"{server.url}/openapi.json"]
    options = ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]
    bounds = ["--phases", "examples,coverage,fuzzing", "--max-examples", "5", "--seed", "7"]
    key = ["--header", f"Authorization: Bearer {server.key}", "--no-color"]
    result = await anyio.run_process(
        [*command, *target, *options, *bounds, *key],
        check=False,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks"},
    )
    assert result.returncode == 0, result.stdout.decode()[-8000:]
