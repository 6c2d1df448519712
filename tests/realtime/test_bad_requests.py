"""Whatever is wrong with a request: one JSON error with a sentence and a word, and nothing else."""

import gzip
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from tests.support.server import TestRealtime

pytestmark = pytest.mark.anyio

NOBODY = "run_0000000000000000000000000"
TRIGGER = "/api/v1/tasks/echo/trigger"
MB = 1024 * 1024
JSON = {"content-type": "application/json"}


@pytest.fixture
async def server(shared: TestRealtime) -> TestRealtime:
    return await shared.tenant("echo")


@pytest.fixture
async def run_id(server: TestRealtime) -> str:
    async with server.client() as http:
        return str((await http.post(TRIGGER, json={})).json()["id"])


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """Return the sentence of a refusal, which is shaped as every other."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/json"
    body: dict[str, Any] = answer.json()
    assert set(body) == {"error", "code"} and body["code"] == code, body
    sentence = str(body["error"])
    assert 3 < len(sentence) < 400 and "\n" not in sentence and "Traceback" not in sentence, body
    return sentence


# Every operation that takes a credential, with a body that would do.
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", TRIGGER, {}),
    ("GET", "/api/v1/runs", None),
    ("GET", "/api/v3/runs/{run}", None),
    ("POST", "/api/v2/runs/{run}/cancel", None),
    ("POST", "/api/v1/runs/{run}/replay", None),
    ("GET", "/api/v1/runs/{run}/metadata", None),
    ("PUT", "/api/v1/runs/{run}/metadata", {"metadata": {}}),
    ("POST", "/api/v1/runs/{run}/tags", {"tags": "a"}),
    ("GET", "/api/v1/runs/{run}/streams/text", None),
    ("POST", "/realtime/v1/streams/{run}/self/text/append", {}),
    ("POST", "/api/v3/batches", {"runCount": 1}),
    ("POST", "/api/v1/auth/public-tokens", {"scopes": ["read:runs"]}),
    ("POST", "/realtime/v1/events", {"subscribe": []}),
]
routes = pytest.mark.parametrize(("method", "path", "body"), ROUTES, ids=[r[1] for r in ROUTES])


@routes
async def test_a_wrong_credential(
    server: TestRealtime, run_id: str, method: str, path: str, body: Any
) -> None:
    expired = server.services.tokens.mint(
        server.environment_id, ["read:runs"], now=time.time() - 60, lifetime=30
    ).token
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        for authorization, word in (
            (None, ""),
            ("Bearer", ""),
            ("Basic dXNlcjpwYXNz", ""),
            ("Bearer tr_dev_sk_" + "x" * 24, ""),
            ("Bearer eyJ.eyJ.eyJ", ""),
            (f"Bearer {expired}", "expired"),
            (f"Bearer {server.key}é", ""),
        ):
            headers: dict[bytes, bytes] = {}
            if authorization is not None:
                headers[b"authorization"] = authorization.encode("latin-1")
            answer = await http.request(method, path.format(run=run_id), headers=headers, json=body)
            assert word in refused(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"


@routes
async def test_a_wrong_scope(
    server: TestRealtime, run_id: str, method: str, path: str, body: Any
) -> None:
    if path.endswith("/events"):
        pytest.skip("each subscription of it is authorised by itself")
    async with server.client(await server.token(f"read:runs:{NOBODY}")) as http:
        answer = await http.request(method, path.format(run=run_id), json=body)
        refused(answer, 403, "forbidden")


@pytest.mark.parametrize("name", [NOBODY, "nonsense", "run_%00", "r" * 200, "%F0%9F%A6%80", "'--"])
@pytest.mark.parametrize(("method", "path", "body"), [r for r in ROUTES if "{run}" in r[1]])
async def test_an_unknown_run(
    server: TestRealtime, method: str, path: str, body: Any, name: str
) -> None:
    async with server.client() as http:
        refused(await http.request(method, path.format(run=name), json=body), 404, "not_found")


MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "blanks": b"  \n",
    "half": b'{"payload": ',
    "two": b"{} {}",
    "array": b"[]",
    "null": b"null",
    "number": b"5",
    "text": b'"{}"',
    "nan": b'{"payload": NaN}',
    "infinity": b'{"options": {"metadata": {"a": -Infinity}}}',
    "nan in the payload": b'{"payload": "NaN"}',
    "nul": b'{"payload": "\\"\\\\u0000\\""}',
    "raw nul": b'{"payload": "\x00"}',
    "lone surrogate": b'{"payload": "\\"\\\\ud800\\""}',
    "lone surrogate outside": b'{"payload": "\\ud800"}',
    "nul in metadata": b'{"options": {"metadata": {"a": "\\u0000"}}}',
    "surrogate in a key": b'{"options": {"metadata": {"\\udfff": 1}}}',
    "nul in a tag": b'{"options": {"tags": ["a\\u0000"]}}',
    "not utf-8": b'{"payload": "\xff\xfe"}',
    "utf-16": '{"payload": "1"}'.encode("utf-16"),
    "deep": b'{"payload": "' + b"[" * 5000 + b"]" * 5000 + b'"}',
    "deep itself": b"[" * 30_000,
    "huge number": b'{"payload": "1e999"}',
    "wrong type": b'{"payload": {"a": 1}}',
    "wrong option": b'{"options": {"maxAttempts": "3"}}',
    "form": b"payload=1&options=2",
    "xml": b"<payload/>",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=list(MALFORMED))
async def test_a_malformed_body(server: TestRealtime, text: bytes) -> None:
    async with server.client() as http:
        for kind in ("application/json", "application/x-www-form-urlencoded", "text/xml", ""):
            answer = await http.post(TRIGGER, content=text, headers={"content-type": kind})
            refused(answer, 400, "malformed")
        listed = await http.get("/api/v1/runs")
        assert listed.json()["data"] == []


# What is wrong with these is the text inside of a trigger's payload: to a batch, whose size need
# not be told, it is a field that it does not know.
OF_A_PAYLOAD = {"nan in the payload", "nul", "lone surrogate", "deep", "huge number"}


@pytest.mark.parametrize("text", [t for n, t in MALFORMED.items() if "wrong" not in n])
async def test_a_malformed_body_elsewhere(server: TestRealtime, run_id: str, text: bytes) -> None:
    is_of_a_payload = text in {MALFORMED[name] for name in OF_A_PAYLOAD}
    async with server.client() as http:
        for method, path in (
            ("PUT", f"/api/v1/runs/{run_id}/metadata"),
            ("POST", f"/api/v1/runs/{run_id}/tags"),
            ("POST", "/api/v3/batches"),
            ("POST", "/api/v1/auth/public-tokens"),
            ("POST", "/realtime/v1/events"),
        ):
            if is_of_a_payload and path.endswith("/batches"):
                continue
            answer = await http.request(method, path, content=text, headers=JSON)
            refused(answer, 400, "malformed")


async def test_a_sign_in_that_is_none(server: TestRealtime) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        path = "/api/v1/auth/sign-in"
        for text in (b"", b"{", b"[]", b'{"code": 5}', b"\xff"):
            refused(await http.post(path, content=text, headers=JSON), 400, "malformed")
        answer = await http.post(path, json={"code": "g" * 32})
        assert "expired" in refused(answer, 401, "unauthorized")
        refused(await http.post(path, content=b"code=1"), 403, "forbidden")


async def test_a_multipart_body(server: TestRealtime) -> None:
    async with server.client() as http:
        answer = await http.post(TRIGGER, files={"payload": b"{}"})
        assert "JSON" in refused(answer, 400, "malformed")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
async def test_a_compressed_body(server: TestRealtime, encoding: str) -> None:
    async with server.client() as http:
        headers = {"content-encoding": encoding}
        answer = await http.post(TRIGGER, content=gzip.compress(b"{}"), headers=headers)
        assert "Content-Encoding" in refused(answer, 415, "malformed")


async def test_a_body_that_is_too_large(server: TestRealtime, run_id: str) -> None:
    text = json.dumps("x" * 4 * MB)
    metadata = {"a": "x" * MB}

    async def endless() -> AsyncGenerator[bytes]:
        for _ in range(20):
            yield b" " * MB

    stream = f"/realtime/v1/streams/{run_id}/self/text/append"
    async with server.client() as http:
        cases: list[tuple[str, str, dict[str, Any]]] = [
            ("POST", TRIGGER, {"json": {"payload": text}}),
            ("POST", TRIGGER, {"content": b" " * 9 * MB}),
            ("POST", TRIGGER, {"json": {"options": {"metadata": metadata}}}),
            ("PUT", f"/api/v1/runs/{run_id}/metadata", {"json": {"metadata": metadata}}),
            ("POST", stream, {"content": "x" * (MB + 1)}),
            ("POST", stream, {"content": "x" * 9 * MB}),
        ]
        for method, path, given in cases:
            refused(await http.request(method, path, **given), 413, "too_large")
    async with server.client() as http:
        refused(await http.post(TRIGGER, content=endless()), 413, "too_large")
    async with server.client() as http:  # what is large and allowed is taken
        body = {"payload": json.dumps("x" * 2 * MB)}
        assert (await http.post(TRIGGER, json=body)).status_code == 200


@pytest.mark.parametrize(
    "chunk",
    [b"NaN\n", b'"\\u0000"\n', b'"\\ud800"\n', b'"\xff"\n', b"{\n", b"[" * 50_000 + b"\n", b"\n"],
    ids=["nan", "nul", "surrogate", "bytes", "half", "deep", "none"],
)
async def test_a_chunk_that_cannot_be_stored(
    server: TestRealtime, run_id: str, chunk: bytes
) -> None:
    stream = f"/realtime/v1/streams/{run_id}/self/text/append"
    async with server.client() as http:
        headers = {"content-type": "application/x-ndjson"}
        refused(await http.post(stream, content=chunk, headers=headers), 400, "malformed")
        for text in (b"\x00", b"\xff"):
            refused(await http.post(stream, content=text), 400, "malformed")


@pytest.mark.parametrize(
    "query",
    [
        "page[size]=abc",
        "page[size]=0",
        "page[size]=1&page[size]=2",
        "page[after]=nonsense",
        "filter[status]=NOT_ONE",
        "filter[tag]=%00",
        "filter[createdAt][from]=soon",
        "filter[createdAt][period]=soon",
    ],
)
async def test_a_wrong_query(server: TestRealtime, query: str) -> None:
    async with server.client() as http:
        refused(await http.get(f"/api/v1/runs?{query}"), 400, "malformed")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("DELETE", TRIGGER, 405, "malformed"),
        ("GET", TRIGGER, 405, "malformed"),
        ("PATCH", "/api/v1/runs", 405, "malformed"),
        ("GET", "/realtime/v1/events", 405, "malformed"),
        ("GET", "/api/v9/nothing", 404, "not_found"),
        ("POST", "/realtime/v1/nothing", 404, "not_found"),
        ("POST", "/", 405, "malformed"),
        ("POST", "/nothing", 405, "malformed"),
        ("GET", "/realtime/v1/socket", 404, "not_found"),
    ],
)
async def test_a_wrong_method_or_path(
    server: TestRealtime, method: str, path: str, status: int, code: str
) -> None:
    async with server.client() as http:
        refused(await http.request(method, path), status, code)


async def test_an_unknown_task_and_batch(server: TestRealtime) -> None:
    async with server.client() as http:
        unknown = await http.post("/api/v1/tasks/nobody/trigger", json={})
        assert "nobody" in refused(unknown, 404, "not_found")
        refused(await http.post("/api/v1/tasks/%00/trigger", json={}), 400, "malformed")
        refused(await http.get("/api/v2/batches/batch_x"), 404, "not_found")
        refused(await http.post("/api/v3/batches/batch_x/items", content=b""), 404, "not_found")
        made = (await http.post("/api/v3/batches", json={"runCount": 1})).json()["id"]
        for line in (b"{", b'{"index": 5, "task": "echo"}', b'{"index": 0}', b"\xff", b"[]"):
            answer = await http.post(f"/api/v3/batches/{made}/items", content=line)
            refused(answer, 400, "malformed")
        line = b'{"index": 0, "task": "nobody"}'
        answer = await http.post(f"/api/v3/batches/{made}/items", content=line)
        refused(answer, 404, "not_found")
