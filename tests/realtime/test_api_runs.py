"""Triggering, reading, listing, canceling and repeating runs over HTTP, on a real server."""

import json
import time
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.ids import new_run_id
from tests.support.server import TestRealtime

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server(shared: TestRealtime) -> TestRealtime:
    return await shared.tenant("echo", "a/b c:ü")


@pytest.fixture
async def http(server: TestRealtime) -> AsyncGenerator[httpx.AsyncClient]:
    async with server.client() as client:
        yield client


async def _trigger(http: httpx.AsyncClient, payload: object = None, **options: Any) -> str:
    body: dict[str, Any] = {"options": options}
    if payload is not None:
        body["payload"] = json.dumps(payload)
    answer = await http.post("/api/v1/tasks/echo/trigger", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def test_a_trigger_answers_with_an_id_and_a_token_that_reads_just_that_run(
    server: TestRealtime, http: httpx.AsyncClient
) -> None:
    answer = await http.post("/api/v1/tasks/echo/trigger", json={"payload": '{"n":1}'})
    assert answer.status_code == 200
    run_id = answer.json()["id"]
    assert answer.json() == {"id": run_id, "isCached": False}
    assert json.loads(answer.headers["x-trigger-jwt-claims"])["pub"] is True
    other = await _trigger(http)
    async with server.client(answer.headers["x-trigger-jwt"]) as reader:
        read = await reader.get(f"/api/v3/runs/{run_id}")
        assert read.status_code == 200 and read.json()["payload"] == {"n": 1}
        assert (await reader.get(f"/api/v3/runs/{other}")).status_code == 403
        assert (await reader.post(f"/api/v2/runs/{run_id}/cancel")).status_code == 403
        assert (await reader.post("/api/v1/tasks/echo/trigger", json={})).status_code == 403
        assert (await reader.get("/api/v1/runs")).status_code == 403


async def test_a_task_id_may_hold_slashes_spaces_and_colons(http: httpx.AsyncClient) -> None:
    answer = await http.post("/api/v1/tasks/a%2Fb%20c%3A%C3%BC/trigger", json={})
    assert answer.status_code == 200, answer.text
    read = await http.get(f"/api/v3/runs/{answer.json()['id']}")
    assert read.json()["taskIdentifier"] == "a/b c:ü"


async def test_a_run_is_shown_with_what_official_clients_require_and_without_nulls(
    http: httpx.AsyncClient,
) -> None:
    run_id = await _trigger(http, {"n": 1}, tags=["t1"], metadata={"step": 0}, priority=5)
    run = (await http.get(f"/api/v3/runs/{run_id}")).json()
    assert run["status"] == "QUEUED" and run["isQueued"] and not run["isCompleted"]
    assert run["tags"] == ["t1"] and run["metadata"] == {"step": 0} and run["payload"] == {"n": 1}
    assert run["costInCents"] == 0 and run["relatedRuns"] == {} and run["attemptCount"] == 0
    assert run["createdAt"].endswith("Z") and None not in run.values()


async def test_official_clients_payloads_are_understood(http: httpx.AsyncClient) -> None:
    body = {
        "payload": '{"json":{"n":4}}',
        "options": {"payloadType": "application/super+json", "payloadSize": 16, "tags": "one"},
    }
    run_id = (await http.post("/api/v1/tasks/echo/trigger", json=body)).json()["id"]
    run = (await http.get(f"/api/v3/runs/{run_id}")).json()
    assert run["payload"] == {"n": 4} and run["tags"] == ["one"]
    body = {"payload": "plain words", "options": {"payloadType": "text/plain"}}
    run_id = (await http.post("/api/v1/tasks/echo/trigger", json=body)).json()["id"]
    assert (await http.get(f"/api/v3/runs/{run_id}")).json()["payload"] == "plain words"


async def test_a_repeated_request_is_the_same_run_and_so_is_an_idempotency_key(
    http: httpx.AsyncClient,
) -> None:
    headers = {"x-trigger-request-idempotency-key": "call-1"}
    ids = {
        (await http.post("/api/v1/tasks/echo/trigger", json={}, headers=headers)).json()["id"]
        for _ in range(3)
    }
    assert len(ids) == 1
    options = {"options": {"idempotencyKey": "order-7"}}
    first = (await http.post("/api/v1/tasks/echo/trigger", json=options)).json()
    second = (await http.post("/api/v1/tasks/echo/trigger", json=options)).json()
    assert (first["id"], False, True) == (second["id"], first["isCached"], second["isCached"])


async def test_a_one_time_token_triggers_once_and_its_own_retry_gets_the_same_answer(
    server: TestRealtime,
) -> None:
    token = await server.token("trigger:tasks:echo", oneTimeUse=True)
    headers = {"x-trigger-request-idempotency-key": "retry-1"}
    async with server.client(token) as once:
        first = await once.post("/api/v1/tasks/echo/trigger", json={}, headers=headers)
        assert first.status_code == 200, first.text
        again = await once.post("/api/v1/tasks/echo/trigger", json={}, headers=headers)
        assert again.status_code == 200 and again.json()["id"] == first.json()["id"]
        second = await once.post("/api/v1/tasks/echo/trigger", json={})
        assert (second.status_code, second.json()["code"]) == (401, "unauthorized")
        assert (await once.post("/api/v1/tasks/other/trigger", json={})).status_code == 403


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", 400),
        ("not json", 400),
        ("[]", 400),
        ('{"payload": 5}', 400),
        ('{"payload": "not json"}', 400),
        ('{"payload": "NaN"}', 400),
        ('{"payload": "\\"\\\\u0000\\""}', 400),
        ('{"payload": "\\"\\\\ud800\\""}', 400),
        ('{"payload": "9007199254740993"}', 400),
        ('{"payload": "\\u0000"}', 400),
        ('{"payload": "\\ud800"}', 400),
        ('{"options": {"tags": [""]}}', 400),
        ('{"options": {"tags": ["1","2","3","4","5","6","7","8","9","10","11"]}}', 400),
        ('{"options": {"delay": "soon"}}', 400),
        ('{"options": {"delay": -5}}', 400),
        ('{"options": {"delay": "9999-01-01T00:00:00Z"}}', 400),
        ('{"options": {"ttl": 0}}', 400),
        ('{"options": {"ttl": "999999999999w"}}', 400),
        ('{"options": {"priority": 1e300}}', 400),
        ('{"options": {"maxAttempts": 0}}', 400),
        ('{"options": {"queue": ""}}', 400),
        ('{"options": {"idempotencyKey": ""}}', 400),
        ('{"options": {"payloadType": "application/store"}}', 400),
        ('{"options": {"payloadType": "image/png"}}', 400),
        ('{"options": {"payloadType": "application/super+json"}, "payload": "[]"}', 400),
        ('{"options": {"debounce": {"key": "k"}}}', 400),
        ('{"options": {"machine": "large-1x"}}', 400),
        ('{"options": {"region": "eu"}}', 400),
        ('{"options": {"lockToVersion": "1"}}', 400),
        ('{"options": {"metadata": {"big": "' + "x" * 270_000 + '"}}}', 413),
        ('{"payload": "' + "1" * 20 + '"}', 400),
        ('{"payload": "\\"' + "x" * (3 * 1024 * 1024) + '\\""}', 413),
        ("[" * 100_000, 400),
    ],
)
async def test_a_trigger_that_cannot_be_is_refused_with_a_sentence(
    http: httpx.AsyncClient, body: str, status: int
) -> None:
    answer = await http.post("/api/v1/tasks/echo/trigger", content=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["code"] == ("too_large" if status == 413 else "malformed")
    assert len(answer.json()["error"]) > 10 and "Traceback" not in answer.text


async def test_an_unknown_task_is_not_found(http: httpx.AsyncClient) -> None:
    answer = await http.post("/api/v1/tasks/nobody/trigger", json={})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_a_delayed_run_waits_and_a_date_is_a_delay_too(http: httpx.AsyncClient) -> None:
    for delay in ("1h", 3600, "2 hours", time.strftime("%Y-%m-%dT23:59:59Z", time.gmtime())):
        run_id = await _trigger(http, delay=delay)
        run = (await http.get(f"/api/v3/runs/{run_id}")).json()
        assert run["status"] == "DELAYED" and run["delayedUntil"] > run["createdAt"], delay


@pytest.mark.parametrize(
    "run_id", ["run_0000000000000000000000000", "nonsense", "x" * 500, "%00", "a%0Ab", "'; drop"]
)
async def test_what_is_not_there_is_not_found(http: httpx.AsyncClient, run_id: str) -> None:
    for method, path in (
        ("GET", "/api/v3/runs/{}"),
        ("POST", "/api/v2/runs/{}/cancel"),
        ("POST", "/api/v1/runs/{}/replay"),
        ("GET", "/api/v1/runs/{}/events"),
        ("GET", "/api/v1/runs/{}/metadata"),
        ("GET", "/api/v1/runs/{}/streams/text"),
        ("GET", "/api/v2/batches/{}"),
    ):
        answer = await http.request(method, path.format(run_id))
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path


async def test_another_environment_does_not_see_the_run(
    server: TestRealtime, http: httpx.AsyncClient
) -> None:
    run_id = await _trigger(http, tags=["same"])
    environments = server.services.environments
    foreign = await environments.create_key(await environments.ensure("other"))
    async with server.client(foreign) as stranger:
        for method, path in (
            ("GET", f"/api/v3/runs/{run_id}"),
            ("POST", f"/api/v2/runs/{run_id}/cancel"),
            ("GET", f"/api/v1/runs/{run_id}/events"),
        ):
            mine = await stranger.request(method, path)
            nobodys = await stranger.request(method, path.replace(run_id, new_run_id()))
            assert (mine.status_code, mine.json()) == (404, nobodys.json())
        assert (await stranger.get("/api/v1/runs")).json()["data"] == []
        assert (await stranger.get("/api/v1/tasks")).json()["data"] == []


async def test_a_list_pages_newest_first_and_back(http: httpx.AsyncClient) -> None:
    ids = [await _trigger(http, tags=[f"n:{n % 2}"]) for n in range(7)][::-1]
    seen: list[str] = []
    after = None
    pages = 0
    while True:
        params: dict[str, Any] = {"page[size]": 3} | ({"page[after]": after} if after else {})
        page = (await http.get("/api/v1/runs", params=params)).json()
        seen += [run["id"] for run in page["data"]]
        assert all(run["env"]["name"].startswith("tenant-") for run in page["data"])
        pages += 1
        if "next" not in page["pagination"]:
            break
        after = page["pagination"]["next"]
    assert seen == ids and pages == 3
    back = {"page[size]": 3, "page[before]": page["pagination"]["previous"]}
    assert [r["id"] for r in (await http.get("/api/v1/runs", params=back)).json()["data"]] == (
        ids[3:6]
    )
    tagged = (await http.get("/api/v1/runs", params={"filter[tag]": "n:1"})).json()
    assert len(tagged["data"]) == 3 and tagged["pagination"] == {}


@pytest.mark.parametrize(
    ("name", "value", "count"),
    [
        ("filter[status]", "QUEUED", 1),
        ("filter[status]", "QUEUED,DELAYED", 2),
        ("filter[status]", "COMPLETED", 0),
        ("filter[taskIdentifier]", "echo", 2),
        ("filter[taskIdentifier]", "ech", 0),
        ("filter[tag]", "user:1", 1),
        ("filter[tag]", "user:1,user:2", 2),
        ("filter[tag]", "%", 0),
        ("filter[createdAt][period]", "1h", 2),
        ("filter[createdAt][from]", "2020-01-01T00:00:00Z", 2),
        ("filter[createdAt][to]", "2020-01-01", 0),
        ("filter[createdAt][to]", "1577836800000", 0),
        ("filter[batch]", "batch_nowhere", 0),
        ("filter[parent]", "run_nowhere", 0),
        ("filter[schedule]", "sched_nowhere", 0),
    ],
)
async def test_filters_choose(http: httpx.AsyncClient, name: str, value: str, count: int) -> None:
    await _trigger(http, tags=["user:1"])
    await _trigger(http, tags=["user:2"], delay="1h")
    answer = await http.get("/api/v1/runs", params={name: value})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == count


async def test_a_time_that_a_run_told_includes_the_run(http: httpx.AsyncClient) -> None:
    run = await _trigger(http)
    created = (await http.get(f"/api/v3/runs/{run}")).json()["createdAt"]
    for end in ("from", "to"):
        listed = await http.get("/api/v1/runs", params={f"filter[createdAt][{end}]": created})
        assert [each["id"] for each in listed.json()["data"]] == [run], end


@pytest.mark.parametrize(
    "query",
    [
        "filter[status]=NOPE",
        "filter[isTest]=true",
        "filter[createdAt]=1h",
        "page[size]=0",
        "page[size]=101",
        "page[size]=x",
        "page[after]=garbage",
        "page[after]=%00",
        "page[after]=a&page[before]=b",
        "page[size]=1&page[size]=2",
        "filter[createdAt][from]=yesterday",
        "filter[createdAt][period]=1y",
        "filter[createdAt][period]=99999999w",
        "filter[tag]=" + ",".join(map(str, range(30))),
    ],
)
async def test_a_malformed_list_is_refused(http: httpx.AsyncClient, query: str) -> None:
    answer = await http.get(f"/api/v1/runs?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed"), answer.text


async def test_a_tag_token_lists_its_tag_and_nothing_else(
    server: TestRealtime, http: httpx.AsyncClient
) -> None:
    await _trigger(http, tags=["user:1", "shared"])
    await _trigger(http, tags=["user:2", "shared"])
    async with server.client(await server.token("read:tags:user:1")) as reader:
        mine = await reader.get("/api/v1/runs", params={"filter[tag]": "user:1"})
        assert len(mine.json()["data"]) == 1
        for tag in ("user:2", "user:1,user:2", "shared"):
            answer = await reader.get("/api/v1/runs", params={"filter[tag]": tag})
            assert answer.status_code == 403, tag


async def test_cancel_stops_a_waiting_run_and_leaves_a_final_one(http: httpx.AsyncClient) -> None:
    run_id = await _trigger(http)
    for _ in range(2):
        answer = await http.post(f"/api/v2/runs/{run_id}/cancel")
        assert (answer.status_code, answer.json()) == (200, {"id": run_id})
    run = (await http.get(f"/api/v3/runs/{run_id}")).json()
    assert run["status"] == "CANCELED" and run["isCancelled"] and run["isCompleted"]
    assert run["finishedAt"]


async def test_a_stop_button_token_cancels_its_run_only(
    server: TestRealtime, http: httpx.AsyncClient
) -> None:
    run_id, other = await _trigger(http), await _trigger(http)
    async with server.client(await server.token(f"write:runs:{run_id}")) as button:
        assert (await button.post(f"/api/v2/runs/{other}/cancel")).status_code == 403
        assert (await button.get(f"/api/v3/runs/{run_id}")).status_code == 403
        assert (await button.post(f"/api/v2/runs/{run_id}/cancel")).status_code == 200


async def test_replay_starts_a_new_run_with_the_old_payload_or_another(
    http: httpx.AsyncClient,
) -> None:
    run_id = await _trigger(http, {"n": 1}, tags=["t"])
    again = (await http.post(f"/api/v1/runs/{run_id}/replay")).json()["id"]
    assert again != run_id
    run = (await http.get(f"/api/v3/runs/{again}")).json()
    assert run["payload"] == {"n": 1} and run["tags"] == ["t"]
    changed = await http.post(f"/api/v1/runs/{run_id}/replay", json={"payload": '{"n":2}'})
    run = (await http.get(f"/api/v3/runs/{changed.json()['id']}")).json()
    assert run["payload"] == {"n": 2}
    bad = await http.post(f"/api/v1/runs/{run_id}/replay", json={"payload": "NaN"})
    assert bad.status_code == 400


async def test_the_timeline_tells_every_revision(http: httpx.AsyncClient) -> None:
    run_id = await _trigger(http, {"canary": 1})
    await http.post(f"/api/v1/runs/{run_id}/tags", json={"tags": "late"})
    await http.post(f"/api/v2/runs/{run_id}/cancel")
    events = (await http.get(f"/api/v1/runs/{run_id}/events")).json()["data"]
    assert [event["revision"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["type"] == "created" and events[-1]["type"] == "final"
    assert events[-1]["delta"]["set"]["status"] == "CANCELED"


async def test_a_narrow_token_sees_its_fields_everywhere(
    server: TestRealtime, http: httpx.AsyncClient
) -> None:
    run_id = await _trigger(http, "canary", tags=["t"], metadata={"canary": 1})
    token = await server.token(f"read:runs:{run_id}", "read:tags:t", fields=["tags"], streams=["a"])
    async with server.client(token) as reader:
        texts = [
            (await reader.get(f"/api/v3/runs/{run_id}")).text,
            (await reader.get("/api/v1/runs", params={"filter[tag]": "t"})).text,
            (await reader.get(f"/api/v1/runs/{run_id}/events")).text,
        ]
        assert all("QUEUED" in text or "created" in text for text in texts)
        assert all("canary" not in text for text in texts)
        assert (await reader.get(f"/api/v1/runs/{run_id}/metadata")).status_code == 403
        assert (await reader.get(f"/api/v1/runs/{run_id}/streams/b")).status_code == 403


async def test_tags_are_added_once_and_bounded(http: httpx.AsyncClient) -> None:
    run_id = await _trigger(http, tags=["a"])
    answer = await http.post(f"/api/v1/runs/{run_id}/tags", json={"tags": ["b", "a", "b"]})
    assert answer.status_code == 200 and answer.json()["tags"] == ["a", "b"]
    many = {"tags": [f"t{n}" for n in range(9)]}
    answer = await http.post(f"/api/v1/runs/{run_id}/tags", json=many)
    assert (answer.status_code, answer.json()["code"]) == (422, "conflict")
    assert (await http.post(f"/api/v1/runs/{run_id}/tags", json={"tags": []})).status_code == 400


async def test_tasks_are_listed_to_whom_they_concern(
    server: TestRealtime, http: httpx.AsyncClient
) -> None:
    assert [t["id"] for t in (await http.get("/api/v1/tasks")).json()["data"]] == [
        "a/b c:ü",
        "echo",
    ]
    catalogue = server.services.engine.catalogue
    retry = '{"max_attempts": 3, "factor": 2.0, "min_timeout": 1.0, "randomize": true}'
    await catalogue.announce(
        server.environment_id, [TaskAnnouncement(id="echo", queue="q", retry=retry)]
    )
    (*_, echo) = (await http.get("/api/v1/tasks")).json()["data"]
    assert echo["retry"] == {"maxAttempts": 3, "factor": 2.0, "minTimeout": 1.0, "randomize": True}
    async with server.client(await server.token("trigger:tasks:echo")) as narrow:
        assert [t["id"] for t in (await narrow.get("/api/v1/tasks")).json()["data"]] == ["echo"]
