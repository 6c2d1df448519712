"""Queues over HTTP, as the official SDK asks for them, on a real server."""

from collections.abc import AsyncGenerator

import httpx
import pytest

from runwire_engine.catalogue import TaskAnnouncement
from tests.support.server import TestRealtime

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server(shared: TestRealtime) -> TestRealtime:
    tenant = await shared.tenant("echo")
    await tenant.services.engine.catalogue.announce(
        tenant.environment_id, [TaskAnnouncement("mail", "e/mails", 5)]
    )
    return tenant


@pytest.fixture
async def http(server: TestRealtime) -> AsyncGenerator[httpx.AsyncClient]:
    async with server.client() as client:
        yield client


async def test_queues_are_listed_in_pages(http: httpx.AsyncClient) -> None:
    await http.post("/api/v1/tasks/echo/trigger", json={})
    whole = (await http.get("/api/v1/queues")).json()
    assert whole["pagination"] == {"currentPage": 1, "totalPages": 1, "count": 2}
    mail, echo = whole["data"]
    assert mail == {
        "id": mail["id"],
        "name": "e/mails",
        "type": "custom",
        "running": 0,
        "queued": 0,
        "paused": False,
        "concurrencyLimit": 5,
        "releaseConcurrencyOnWaitpoint": True,
        "concurrency": {
            "current": 5,
            "base": 5,
            "override": None,
            "overriddenAt": None,
            "overriddenBy": None,
        },
    }
    assert (echo["name"], echo["type"], echo["queued"]) == ("echo", "task", 1)
    assert echo["concurrencyLimit"] is None
    second = (await http.get("/api/v1/queues?page=2&perPage=1")).json()
    assert second["data"] == [echo]
    assert second["pagination"] == {"currentPage": 2, "totalPages": 2, "count": 2}
    assert (await http.get("/api/v1/queues?perPage=0")).status_code == 400


async def test_a_queue_is_found_by_id_task_or_name(http: httpx.AsyncClient) -> None:
    mail, echo = (await http.get("/api/v1/queues")).json()["data"]
    for path, found in (
        (f"/api/v1/queues/{mail['id']}?type=id", mail),
        (f"/api/v1/queues/{mail['id']}", mail),
        ("/api/v1/queues/e%252Fmails?type=custom", mail),
        ("/api/v1/queues/echo?type=task", echo),
        ("/api/v1/queues/task%252Fecho?type=custom", echo),
    ):
        answer = await http.get(path)
        assert (answer.status_code, answer.json()) == (200, found), path
    for path in ("/api/v1/queues/echo", "/api/v1/queues/echo?type=custom"):
        assert (await http.get(path)).status_code == 404, path
    assert (await http.get("/api/v1/queues/echo?type=other")).status_code == 400


async def test_a_queue_is_paused_and_resumed(http: httpx.AsyncClient) -> None:
    path = "/api/v1/queues/echo/pause"
    paused = await http.post(path, json={"type": "task", "action": "pause"})
    assert (paused.status_code, paused.json()["paused"]) == (200, True)
    resumed = await http.post(path, json={"type": "task", "action": "resume"})
    assert (resumed.status_code, resumed.json()["paused"]) == (200, False)
    for body, status in (
        ({"type": "task", "action": "stop"}, 400),
        ({"type": "task"}, 400),
        ({"type": "custom", "action": "pause"}, 404),
    ):
        assert (await http.post(path, json=body)).status_code == status, body


async def test_a_limit_is_overridden_and_reset(http: httpx.AsyncClient) -> None:
    path = "/api/v1/queues/e%252Fmails/concurrency"
    body = {"type": "custom", "concurrencyLimit": 9}
    changed = (await http.post(f"{path}/override", json=body)).json()
    assert changed["concurrencyLimit"] == 9
    limits = changed["concurrency"]
    assert (limits["current"], limits["base"], limits["override"]) == (9, 5, 9)
    assert limits["overriddenAt"] is not None
    reset = await http.post(f"{path}/reset", json={"type": "custom"})
    assert reset.json()["concurrency"]["override"] is None
    again = await http.post(f"{path}/reset", json={"type": "custom"})
    assert again.status_code == 400 and "not overridden" in again.json()["error"]
    for limit in (-1, 100_001, "3", None):
        refused = await http.post(f"{path}/override", json={**body, "concurrencyLimit": limit})
        assert refused.status_code == 400, limit


async def test_queues_need_an_api_key(server: TestRealtime) -> None:
    token = await server.token("read:runs", "write:runs")
    async with server.client(token) as http:
        assert (await http.get("/api/v1/queues")).status_code == 403
        paused = await http.post(
            "/api/v1/queues/echo/pause", json={"type": "task", "action": "pause"}
        )
        assert paused.status_code == 403


async def test_a_delayed_run_is_rescheduled(http: httpx.AsyncClient, server: TestRealtime) -> None:
    made = await http.post("/api/v1/tasks/echo/trigger", json={"options": {"delay": "1h"}})
    path = f"/api/v1/runs/{made.json()['id']}/reschedule"
    at = await http.post(path, json={"delay": "2999-01-01T00:00:00.000Z"})
    assert at.status_code == 400 and "at most a year" in at.json()["error"]
    moved = await http.post(path, json={"delay": "2h"})
    assert (moved.status_code, moved.json()["status"]) == (200, "DELAYED")
    assert (await http.post(path, json={})).status_code == 400
    queued = await http.post("/api/v1/tasks/echo/trigger", json={})
    refused = await http.post(
        f"/api/v1/runs/{queued.json()['id']}/reschedule", json={"delay": "1s"}
    )
    assert refused.status_code == 422 and "QUEUED" in refused.json()["error"]
    token = await server.token("write:runs")
    async with server.client(token) as holder:
        assert (await holder.post(path, json={"delay": "1h"})).status_code == 403


async def test_a_debounce_is_honoured(http: httpx.AsyncClient) -> None:
    body = {"options": {"debounce": {"key": "k", "delay": "1h", "mode": "trailing"}}}
    first = (await http.post("/api/v1/tasks/echo/trigger", json={**body, "payload": "1"})).json()
    second = (await http.post("/api/v1/tasks/echo/trigger", json={**body, "payload": "2"})).json()
    assert second == {"id": first["id"], "isCached": True}
    run = (await http.get(f"/api/v3/runs/{first['id']}")).json()
    assert (run["status"], run["payload"]) == ("DELAYED", 2)
    wrong = {"options": {"debounce": {"key": "k", "delay": "1h", "maxDelay": "1m"}}}
    assert (await http.post("/api/v1/tasks/echo/trigger", json=wrong)).status_code == 400
