"""Freeing idempotency keys over HTTP."""

import httpx
import pytest

from tests.support.server import TestRealtime

pytestmark = pytest.mark.anyio

KEY = "a key/with: everything %"


@pytest.fixture
async def server(shared: TestRealtime) -> TestRealtime:
    return await shared.tenant("echo", "other")


async def _trigger(http: httpx.AsyncClient, task: str = "echo") -> tuple[str, bool]:
    body = {"options": {"idempotencyKey": KEY}}
    answer = (await http.post(f"/api/v1/tasks/{task}/trigger", json=body)).json()
    return answer["id"], answer["isCached"]


async def _reset(http: httpx.AsyncClient, task: str = "echo", key: str = KEY) -> httpx.Response:
    path = f"/api/v1/idempotencyKeys/{httpx.URL(path='/' + key).raw_path[1:].decode()}/reset"
    return await http.post(path.replace("%2F", "/"), json={"taskIdentifier": task})


async def test_a_key_that_was_reset_leads_to_a_new_run(server: TestRealtime) -> None:
    async with server.client() as http:
        first, _ = await _trigger(http)
        other, _ = await _trigger(http, "other")
        assert await _trigger(http) == (first, True)
        answer = await _reset(http)
        assert (answer.status_code, answer.json()) == (200, {"id": KEY})
        second, is_cached = await _trigger(http)
        assert second != first and not is_cached
        assert await _trigger(http, "other") == (other, True)
        assert (await http.get(f"/api/v3/runs/{first}")).status_code == 200


async def test_a_key_that_is_not_held_is_not_found(
    shared: TestRealtime, server: TestRealtime
) -> None:
    async with server.client() as http:
        assert (await _reset(http)).status_code == 404
        await _trigger(http)
        assert (await _reset(http, "other")).status_code == 404
        assert (await _reset(http, key="k" * 2049)).status_code == 404
        assert (await http.post("/api/v1/idempotencyKeys/k/reset", json={})).status_code == 400
        stranger = await shared.tenant("echo")
        async with stranger.client() as elsewhere:
            assert (await _reset(elsewhere)).status_code == 404
        assert (await _reset(http)).status_code == 200
        assert (await _reset(http)).status_code == 404


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        ("write:runs", 200),
        ("write:tasks:echo", 200),
        ("write:tasks:other", 403),
        ("write:runs:run_1", 403),
        ("trigger:tasks:echo", 403),
    ],
)
async def test_a_token_needs_a_scope_for_all_runs_of_the_task(
    server: TestRealtime, scope: str, status: int
) -> None:
    async with server.client() as http, server.client(await server.token(scope)) as narrow:
        await _trigger(http)
        assert (await _reset(narrow)).status_code == status
