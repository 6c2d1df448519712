"""Schedules over HTTP and at the command line, as official clients and people use them."""

import os
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio.to_thread
import httpx
import orjson
import pytest
from rich.console import Console
from typer.testing import CliRunner

from runwire_engine.schedules import ScheduleSpec
from runwire_realtime.commands import app, schedules
from tests.support.engines import query
from tests.support.server import TestRealtime

pytestmark = pytest.mark.anyio

PATH = "/api/v1/schedules"
DIGEST = {"task": "digest", "cron": "0 9 * * 1", "deduplicationKey": "digest:user_42"}


@pytest.fixture
async def server(shared: TestRealtime) -> TestRealtime:
    return await shared.tenant("digest", "report")


@pytest.fixture
async def http(server: TestRealtime) -> AsyncGenerator[httpx.AsyncClient]:
    async with server.client() as client:
        yield client


async def make(http: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    answer = await http.post(PATH, json={**DIGEST, **changes})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_a_schedule_is_shown_as_official_clients_require(http: httpx.AsyncClient) -> None:
    made = await make(http, timezone="Europe/Berlin", externalId="user_42", window="30m")
    assert made["id"].startswith("sched_") and made["type"] == "IMPERATIVE" and made["active"]
    assert made["task"] == "digest" and made["deduplicationKey"] == "digest:user_42"
    assert made["externalId"] == "user_42" and made["timezone"] == "Europe/Berlin"
    assert made["generator"]["type"] == "CRON" and made["generator"]["expression"] == "0 9 * * 1"
    assert "Monday" in made["generator"]["description"]
    next_run = datetime.fromisoformat(made["nextRun"])
    assert timedelta() < next_run - datetime.now(UTC) < timedelta(days=8)
    [environment] = made["environments"]
    assert isinstance(environment["id"], str) and environment["type"]
    assert (made["window"], made["missed"], made["suspended"]) == ("30m", "newest", False)
    assert None not in made.values()
    assert (await http.get(f"{PATH}/{made['id']}")).json() == made


async def test_a_schedule_is_changed_switched_and_deleted(http: httpx.AsyncClient) -> None:
    made = await make(http, externalId="user_42", window="30m")
    path = f"{PATH}/{made['id']}"
    # Official clients send the task and the cron each time.
    changed = await http.put(path, json={"task": "report", "cron": "0 10 * * 1"})
    assert changed.status_code == 200, changed.text
    assert changed.json()["task"] == "report" and changed.json()["externalId"] == "user_42"
    assert changed.json()["generator"]["expression"] == "0 10 * * 1"
    changed = await http.put(path, json={"externalId": None, "window": None, "cron": None})
    assert {"externalId", "window"}.isdisjoint(changed.json())
    assert changed.json()["generator"]["expression"] == "0 10 * * 1"
    still = (await http.post(f"{path}/deactivate")).json()
    assert not still["active"] and "nextRun" not in still
    awake = (await http.post(f"{path}/activate")).json()
    assert awake["active"] and "nextRun" in awake
    assert (await http.delete(path)).json() == {"id": made["id"]}
    assert (await http.get(path)).status_code == 404
    assert (await http.delete(path)).status_code == 404


async def test_the_same_key_changes_the_same_schedule(http: httpx.AsyncClient) -> None:
    made = await make(http)
    again = await make(http, cron="0 10 * * 1")
    assert again["id"] == made["id"] and again["generator"]["expression"] == "0 10 * * 1"


async def test_schedules_are_listed_in_pages(http: httpx.AsyncClient) -> None:
    ids = [(await make(http, deduplicationKey=f"key {n}"))["id"] for n in range(3)]
    first = (await http.get(PATH, params={"page": 1, "perPage": 2})).json()
    second = (await http.get(PATH, params={"page": 2, "perPage": 2})).json()
    assert [each["id"] for each in first["data"] + second["data"]] == ids
    assert second["pagination"] == {"currentPage": 2, "totalPages": 2, "count": 3}
    assert (await http.get(PATH, params={"perPage": 101})).status_code == 400


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"cron": "* * * * * *"}, 400, "five fields"),
        ({"cron": "0 0 31 2 *"}, 400, "day-of-month"),
        ({"timezone": "Mars/Olympus"}, 400, "IANA"),
        ({"window": "25h"}, 400, "window"),
        ({"missed": "some"}, 400, "missed"),
        ({"deduplicationKey": None}, 400, "deduplicationKey"),
        ({"externalId": "a\x00b"}, 400, ""),
        ({"task": "unheard-of"}, 404, "unheard-of"),
    ],
)
async def test_what_cannot_be_is_refused_and_named(
    http: httpx.AsyncClient, changes: dict[str, Any], status: int, words: str
) -> None:
    answer = await http.post(PATH, json={**DIGEST, **changes})
    assert answer.status_code == status and words in answer.json()["error"], answer.text
    assert (await http.get(PATH)).json()["data"] == []


async def test_a_declared_schedule_is_refused_changes_but_can_be_switched_off(
    server: TestRealtime, http: httpx.AsyncClient
) -> None:
    spec = ScheduleSpec("digest", "0 9 * * 1", "digest")
    await server.services.engine.schedules.declare(server.environment_id, [spec], ["digest"])
    [row] = (await http.get(PATH)).json()["data"]
    assert row["type"] == "DECLARATIVE"
    for answer in (
        await http.put(f"{PATH}/{row['id']}", json={"cron": "0 10 * * 1"}),
        await http.delete(f"{PATH}/{row['id']}"),
    ):
        assert answer.status_code == 422 and "code of task" in answer.json()["error"]
    assert not (await http.post(f"{PATH}/{row['id']}/deactivate")).json()["active"]


async def test_schedules_need_an_api_key(server: TestRealtime) -> None:
    async with server.client(await server.token("read:runs", "trigger:tasks:digest")) as reader:
        assert (await reader.get(PATH)).status_code == 403
        assert (await reader.post(PATH, json=DIGEST)).status_code == 403


async def test_a_server_makes_the_run_and_tells_where_it_came_from(
    server: TestRealtime, http: httpx.AsyncClient
) -> None:
    made = await make(http, externalId="user_42")
    text = (
        "update runwire.schedules set next_at = date_trunc('minute', now()),"
        " due_at = date_trunc('minute', now()) where id = %s"
    )
    await query(server.services.engine.database, text, made["id"])
    with anyio.fail_after(60):
        while not (found := (await http.get("/api/v1/runs")).json()["data"]):
            await anyio.sleep(0.02)
    run = (await http.get(f"/api/v3/runs/{found[0]['id']}")).json()
    assert run["taskIdentifier"] == "digest" and run["payload"]["scheduleId"] == made["id"]
    assert len(run["payload"]["upcoming"]) == 5
    assert run["schedule"] == {
        "id": made["id"],
        "externalId": "user_42",
        "deduplicationKey": "digest:user_42",
        "generator": made["generator"],
    }
    assert "lastRun" in (await http.get(f"{PATH}/{made['id']}")).json()
    # The run stays when its schedule goes.
    await http.delete(f"{PATH}/{made['id']}")
    assert "schedule" not in (await http.get(f"/api/v3/runs/{found[0]['id']}")).json()


async def test_time_zones_are_listed_to_everybody(server: TestRealtime) -> None:
    async with httpx.AsyncClient(base_url=server.url) as nobody:
        zones = (await nobody.get("/api/v1/timezones")).json()["timezones"]
        assert zones[0] == "UTC" and "America/New_York" in zones
        params = {"excludeUtc": "true"}
        without = (await nobody.get("/api/v1/timezones", params=params)).json()["timezones"]
    assert without == zones[1:]


async def test_the_command_line_makes_lists_and_deletes_schedules(
    server: TestRealtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Narrow, but no terminal: what is read by programs is whole.
    monkeypatch.setattr(schedules, "_out", Console(width=60))

    async def run(*arguments: str) -> str:
        environment = {
            **os.environ,
            "RUNWIRE_API_URL": server.url,
            "RUNWIRE_API_KEY": server.key,
        }
        result = await anyio.to_thread.run_sync(
            lambda: CliRunner().invoke(
                app, ["schedules", *arguments], env=environment, catch_exceptions=False
            )
        )
        return result.output

    assert "no schedules" in await run("list")
    options = ["--key", "k", "--timezone", "Europe/Berlin", "--window", "30m"]
    schedule = (await run("create", "digest", "0 9 * * 1", *options)).strip()
    listed = await run("list")
    row = next(line for line in listed.splitlines() if schedule in line)
    assert "0 9 * * 1" in row and "Europe/Berlin" in row
    assert orjson.loads(await run("show", schedule))["window"] == "30m"
    assert "stands still" in await run("deactivate", schedule)
    assert "inactive" in await run("list")
    assert "next run" in await run("activate", schedule)
    assert "deleted" in await run("delete", schedule)
    assert "no schedules" in await run("list")
