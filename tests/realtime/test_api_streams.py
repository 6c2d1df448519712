"""Streams and metadata over HTTP."""

import json
from collections.abc import AsyncGenerator

import httpx
import pytest

from tests.support.server import TestRealtime

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server(shared: TestRealtime) -> TestRealtime:
    return await shared.tenant("echo")


@pytest.fixture
async def http(server: TestRealtime) -> AsyncGenerator[httpx.AsyncClient]:
    async with server.client() as client:
        yield client


@pytest.fixture
async def run_id(http: httpx.AsyncClient) -> str:
    return str((await http.post("/api/v1/tasks/echo/trigger", json={})).json()["id"])


async def test_appended_chunks_are_read_back_in_order_and_by_page(
    http: httpx.AsyncClient, run_id: str
) -> None:
    path = f"/realtime/v1/streams/{run_id}/self/text/append"
    for n, text in enumerate(("Hello", ', "world"\n', "")):
        answer = await http.post(path, content=text)
        assert (answer.status_code, answer.json()) == (200, {"ok": True, "next": n + 1})
    lines = b'{"n":1}\n[2]\n"three"\n'
    headers = {"content-type": "application/x-ndjson"}
    assert (await http.post(path, content=lines, headers=headers)).json()["next"] == 6
    page = (await http.get(f"/api/v1/runs/{run_id}/streams/text?from=1&limit=3")).json()
    assert [(c["seq"], c["data"]) for c in page["chunks"]] == [
        (1, ', "world"\n'),
        (2, ""),
        (3, {"n": 1}),
    ]
    assert page["next"] == 6 and "eof" not in page and page["chunks"][0]["writer"] == "api"
    run = (await http.get(f"/api/v3/runs/{run_id}")).json()
    assert run["realtimeStreams"] == ["text"]


async def test_a_repeated_part_is_appended_once(http: httpx.AsyncClient, run_id: str) -> None:
    path = f"/realtime/v1/streams/{run_id}/self/text/append"
    for _ in range(2):
        answer = await http.post(path, content="once", headers={"x-part-id": "p1"})
        assert answer.json()["next"] == 1


async def test_a_stream_key_may_hold_slashes(http: httpx.AsyncClient, run_id: str) -> None:
    path = f"/realtime/v1/streams/{run_id}/self/logs%2Fa%20b/append"
    assert (await http.post(path, content="x")).status_code == 200
    assert (await http.get(f"/api/v1/runs/{run_id}/streams/logs%2Fa%20b")).json()["next"] == 1


async def test_a_run_that_is_over_takes_no_chunks(http: httpx.AsyncClient, run_id: str) -> None:
    path = f"/realtime/v1/streams/{run_id}/self/text/append"
    await http.post(path, content="x")
    await http.post(f"/api/v2/runs/{run_id}/cancel")
    answer = await http.post(path, content="late")
    assert (answer.status_code, answer.json()["code"]) == (422, "conflict")
    page = (await http.get(f"/api/v1/runs/{run_id}/streams/text")).json()
    assert page["eof"] == "canceled" and page["next"] == 1


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"\xff", "text/plain", 400),
        (b"a\x00b", "text/plain", 400),
        (b"", "application/x-ndjson", 400),
        (b"NaN\n", "application/x-ndjson", 400),
        (b"[\n", "application/x-ndjson", 400),
        (b"x" * (1024 * 1024 + 1), "text/plain", 413),
    ],
)
async def test_what_cannot_be_a_chunk_is_refused(
    http: httpx.AsyncClient, run_id: str, content: bytes, kind: str, status: int
) -> None:
    path = f"/realtime/v1/streams/{run_id}/self/text/append"
    answer = await http.post(path, content=content, headers={"content-type": kind})
    assert answer.status_code == status, answer.text


async def test_who_may_append(server: TestRealtime, http: httpx.AsyncClient, run_id: str) -> None:
    path = f"/realtime/v1/streams/{run_id}/self/text/append"
    for scope, status in (
        (f"write:streams:{run_id}", 200),
        (f"write:runs:{run_id}", 200),
        (f"read:runs:{run_id}", 403),
        (f"write:streams:{run_id}x", 403),
    ):
        async with server.client(await server.token(scope)) as writer:
            assert (await writer.post(path, content="x")).status_code == status, scope
    assert (await http.post(path.replace("self", "child"), content="x")).status_code == 404


async def test_metadata_is_replaced_or_changed_by_operations(
    http: httpx.AsyncClient, run_id: str
) -> None:
    path = f"/api/v1/runs/{run_id}/metadata"
    assert (await http.get(path)).json() == {"metadata": {}}
    assert (await http.put(path, json={"metadata": {"n": 1, "log": ["a"]}})).status_code == 200
    operations = [
        {"type": "increment", "key": "n", "value": 2},
        {"type": "append", "key": "log", "value": "b"},
        {"type": "set", "key": "$.deep.er", "value": True},
    ]
    answer = await http.put(path, json={"operations": operations})
    expected = {"n": 3, "log": ["a", "b"], "deep": {"er": True}}
    assert answer.json() == {"metadata": expected} == (await http.get(path)).json()
    run = (await http.get(f"/api/v3/runs/{run_id}")).json()
    assert run["metadata"] == expected and run["revision"] == 3


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"metadata": {}, "operations": []}, 400),
        ({"metadata": [1]}, 400),
        ({"operations": [{"type": "explode", "key": "a"}]}, 400),
        ({"operations": [{"type": "set", "key": "__proto__", "value": 1}]}, 400),
        ({"metadata": {"big": "x" * 262_200}}, 413),
        ({"operations": [{"type": "delete", "key": "a"}] * 1001}, 413),
    ],
)
async def test_metadata_that_cannot_be_is_refused(
    http: httpx.AsyncClient, run_id: str, body: object, status: int
) -> None:
    answer = await http.put(f"/api/v1/runs/{run_id}/metadata", content=json.dumps(body))
    assert answer.status_code == status, answer.text
