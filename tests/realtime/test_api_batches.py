"""Batches over HTTP: two phases, repeatable, refused item by item."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from tests.support.server import TestRealtime

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server(shared: TestRealtime) -> TestRealtime:
    return await shared.tenant("echo", "other")


@pytest.fixture
async def http(server: TestRealtime) -> AsyncGenerator[httpx.AsyncClient]:
    async with server.client() as client:
        yield client


def _lines(*items: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


def _items(*indexes: int, task: str = "echo") -> bytes:
    return _lines(*({"index": n, "task": task, "payload": str(n)} for n in indexes))


async def _send(http: httpx.AsyncClient, batch_id: str, body: bytes) -> httpx.Response:
    headers = {"content-type": "application/x-ndjson"}
    return await http.post(f"/api/v3/batches/{batch_id}/items", content=body, headers=headers)


async def test_a_batch_is_sealed_when_every_promised_item_came(
    server: TestRealtime, http: httpx.AsyncClient
) -> None:
    made = await http.post("/api/v3/batches", json={"runCount": 3, "taskIdentifiers": ["echo"]})
    assert made.status_code == 202
    batch_id = made.json()["id"]
    assert made.json() == {"id": batch_id, "runCount": 3, "isCached": False}
    first = (await _send(http, batch_id, _items(0, 1))).json()
    assert first["sealed"] is False
    assert (first["enqueuedCount"], first["expectedCount"]) == (2, 3)
    # The official client sends everything again.
    second = (await _send(http, batch_id, _items(0, 1, 2))).json()
    assert second["sealed"] is True
    assert (second["itemsAccepted"], second["itemsDeduplicated"]) == (1, 2)
    batch = (await http.get(f"/api/v2/batches/{batch_id}")).json()
    assert batch["runCount"] == 3 and len(set(batch["runs"])) == 3
    assert batch["status"] in {"PENDING", "PROCESSING"}
    async with server.client(made.headers["x-trigger-jwt"]) as reader:
        assert (await reader.get(f"/api/v2/batches/{batch_id}")).status_code == 200
        runs = await reader.get("/api/v1/runs", params={"filter[batch]": batch_id})
        assert {run["id"] for run in runs.json()["data"]} == set(batch["runs"])
        assert (await reader.get(f"/api/v3/runs/{batch['runs'][0]}")).status_code == 200


async def test_the_same_idempotency_key_is_the_same_batch(http: httpx.AsyncClient) -> None:
    body = {"runCount": 1, "idempotencyKey": "import-7"}
    first, second = [(await http.post("/api/v3/batches", json=body)).json() for _ in range(2)]
    # Not "cached" while items are missing, or the caller would never send them.
    assert (first["id"], False, False) == (second["id"], first["isCached"], second["isCached"])
    await _send(http, first["id"], _items(0))
    third = (await http.post("/api/v3/batches", json=body)).json()
    assert (first["id"], True) == (third["id"], third["isCached"])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"not json\n", 400),
        (b'{"index":0}\n', 400),
        (b'{"index":-1,"task":"echo"}\n', 400),
        (b'{"index":1000,"task":"echo"}\n', 400),
        (b'{"index":0,"task":"echo","payload":"NaN"}\n', 400),
        (b'{"index":7,"task":"echo"}\n', 400),
        (b'{"index":0,"task":"nobody"}\n', 404),
        (b"\xff\xfe\n", 400),
    ],
)
async def test_an_item_that_cannot_be_is_refused(
    http: httpx.AsyncClient, body: bytes, status: int
) -> None:
    batch_id = (await http.post("/api/v3/batches", json={"runCount": 2})).json()["id"]
    answer = await _send(http, batch_id, body)
    assert answer.status_code == status, answer.text


async def test_items_of_no_batch_are_not_found(http: httpx.AsyncClient) -> None:
    answer = await _send(http, "batch_0000000000000000000000000", _items(0))
    assert answer.status_code == 404


async def test_a_batch_token_starts_its_own_task_only(server: TestRealtime) -> None:
    token = await server.token("batchTrigger:tasks:echo")
    async with server.client(token) as narrow:
        batch_id = (await narrow.post("/api/v3/batches", json={"runCount": 2})).json()["id"]
        assert (await _send(narrow, batch_id, _items(0, task="other"))).status_code == 403
        assert (await _send(narrow, batch_id, _items(0, 1))).status_code == 200
        assert (await narrow.post("/api/v1/tasks/echo/trigger", json={})).status_code == 403
    async with server.client(await server.token("trigger:tasks:echo")) as single:
        assert (await single.post("/api/v3/batches", json={"runCount": 1})).status_code == 403


async def test_a_one_time_batch_token_makes_one_batch(server: TestRealtime) -> None:
    token = await server.token("batchTrigger:tasks:echo", oneTimeUse=True)
    async with server.client(token) as once, server.client() as http:
        batch_id = (await once.post("/api/v3/batches", json={"runCount": 1})).json()["id"]
        other = (await http.post("/api/v3/batches", json={"runCount": 1})).json()["id"]
        assert (await _send(once, other, _items(0))).status_code == 403
        assert (await _send(once, batch_id, _items(0))).json()["sealed"] is True
        again = (await once.post("/api/v3/batches", json={"runCount": 1})).json()
        assert again == {"id": batch_id, "runCount": 1, "isCached": True}


async def test_a_batch_token_reads_a_run_that_an_idempotency_key_brought_in(
    server: TestRealtime, http: httpx.AsyncClient
) -> None:
    options = {"idempotencyKey": "k"}
    run = (await http.post("/api/v1/tasks/echo/trigger", json={"options": options})).json()["id"]
    made = await http.post("/api/v3/batches", json={"runCount": 1})
    batch_id = made.json()["id"]
    await _send(http, batch_id, _lines({"index": 0, "task": "echo", "options": options}))
    async with server.client(made.headers["x-trigger-jwt"]) as reader:
        assert (await reader.get(f"/api/v2/batches/{batch_id}")).json()["runs"] == [run]
        assert (await reader.get(f"/api/v3/runs/{run}")).status_code == 200


async def test_a_batch_of_unknown_size_is_created_open_and_ended(http: httpx.AsyncClient) -> None:
    made = await http.post("/api/v3/batches", json={})
    assert (made.status_code, made.json()["runCount"]) == (202, 0)
    batch_id = made.json()["id"]
    for index in (0, 1):
        sent = (await _send(http, batch_id, _items(index))).json()
        assert (sent["itemsAccepted"], sent["sealed"]) == (1, False)
    ended = await http.post(f"/api/v3/batches/{batch_id}/items", params={"end": "true"})
    assert ended.json()["sealed"] is True
    batch = (await http.get(f"/api/v2/batches/{batch_id}")).json()
    assert (batch["runCount"], batch["sealed"], len(batch["runs"])) == (2, True, 2)


async def test_a_batch_tells_which_items_were_refused_and_can_be_given_up(
    http: httpx.AsyncClient,
) -> None:
    batch_id = (await http.post("/api/v3/batches", json={"runCount": 3})).json()["id"]
    await _send(http, batch_id, _items(0))
    options = {"delay": "for a while"}
    bad = _lines({"index": 1, "task": "echo", "options": options}, {"index": 2, "task": "nobody"})
    assert (await _send(http, batch_id, bad)).status_code == 400
    assert (await _send(http, batch_id, _items(2, task="nobody"))).status_code == 404
    errors = (await http.get(f"/api/v2/batches/{batch_id}")).json()["processing"]["errors"]
    assert [(each["index"], each["taskIdentifier"]) for each in errors] == [
        (1, "echo"),
        (2, "nobody"),
    ]
    assert all(each["error"] and each["errorCode"] for each in errors)
    given_up = await http.post(f"/api/v3/batches/{batch_id}/items", params={"abort": "true"})
    assert given_up.json()["sealed"] is True
    assert (await http.get(f"/api/v2/batches/{batch_id}")).json()["runCount"] == 1


async def test_a_creation_that_is_sent_again_is_the_same_batch(http: httpx.AsyncClient) -> None:
    headers = {"x-trigger-request-idempotency-key": "one call"}
    sent = [
        await http.post("/api/v3/batches", json={"runCount": 1}, headers=headers) for _ in range(2)
    ]
    assert sent[0].json() == sent[1].json()
    other = await http.post("/api/v3/batches", json={"runCount": 1})
    assert other.json()["id"] != sent[0].json()["id"]
