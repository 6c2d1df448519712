"""The server's edge: hosts, pages, bodies, errors, health; and what its log holds."""

import io
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any

import anyio
import httpx
import psycopg
import pytest

from runwire_realtime.logs import RedactingFormatter
from tests.support.postgres import TestServer
from tests.support.server import TestRealtime, running_realtime
from tests.support.tasks import announce

pytestmark = pytest.mark.anyio


_EDGE: dict[str, Any] = {
    "allowed_origins": ("https://app.example", "loopback"),
    "max_request_bytes": 100_000,
}


@pytest.fixture(scope="module")
async def server(postgres: TestServer, anyio_backend: str) -> AsyncGenerator[TestRealtime]:
    dsn = postgres.create_database()
    async with running_realtime(dsn, **_EDGE) as realtime:
        await announce(realtime.services, "echo")
        yield realtime
    postgres.drop_database(dsn)


@pytest.fixture
async def http(server: TestRealtime) -> AsyncGenerator[httpx.AsyncClient]:
    async with server.client() as client:
        yield client


@pytest.fixture
def log() -> Generator[io.StringIO]:
    """Everything this process logs, as a server would write it."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(RedactingFormatter())
    root = logging.getLogger()
    root.addHandler(handler)
    yield text
    root.removeHandler(handler)


async def test_a_server_with_its_database_is_healthy_and_ready(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).json() == {"ok": True}
    assert await _readiness(http, notifications="listening") == {
        "ready": True,
        "reasons": [],
        "notifications": "listening",
        "warnings": [],
    }


async def _readiness(http: httpx.AsyncClient, **wanted: object) -> dict[str, Any]:
    """Return what /readyz says, once it says this."""
    with anyio.fail_after(60):
        while True:
            answer = await http.get("/readyz")
            said: dict[str, Any] = answer.json()
            assert answer.status_code == (200 if said["ready"] else 503)
            if wanted.items() <= said.items():
                return said
            await anyio.sleep(0.02)


@pytest.mark.parametrize(
    "credential",
    [
        "x",
        "tr_dev_sk_" + "0" * 24,
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.",
        "a" * 10_000,
        "\u00e9".encode().decode("latin-1"),
    ],
)
async def test_a_wrong_credential_is_unauthorized(server: TestRealtime, credential: str) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as anybody:
        for header in (f"Bearer {credential}", f"Basic {credential}", credential):
            headers = {b"authorization": header.encode("latin-1")}
            answer = await anybody.get("/api/v1/runs", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert (await anybody.get("/api/v1/runs")).status_code == 401


async def test_a_foreign_host_is_refused(http: httpx.AsyncClient) -> None:
    for path in ("/", "/healthz", "/api/v1/runs"):
        answer = await http.get(path, headers={"host": "rebound.example"})
        assert answer.status_code == 400, path


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://app.example", True),
        ("http://localhost:5173", True),
        ("https://evil.example", False),
        ("https://app.example.evil.com", False),
        ("null", False),
    ],
)
async def test_pages_of_allowed_origins_may_read_answers_errors_too(
    http: httpx.AsyncClient, origin: str, allowed: bool
) -> None:
    for path, status in (("/api/v1/runs", 200), ("/api/v3/runs/run_x", 404), ("/api/nope", 404)):
        answer = await http.get(path, headers={"origin": origin})
        assert answer.status_code == status
        assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
        assert ("x-trigger-jwt" in answer.headers.get("access-control-expose-headers", "")) is (
            allowed
        )
        assert "access-control-allow-credentials" not in answer.headers
        assert "Origin" in answer.headers["vary"]


async def test_a_preflight_is_answered_with_the_headers_it_asks_for(server: TestRealtime) -> None:
    wanted = "authorization,content-type,x-trigger-api-version,last-event-id"
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as browser:
        answer = await browser.options(
            "/api/v1/tasks/echo/trigger",
            headers={
                "origin": "https://app.example",
                "access-control-request-method": "POST",
                "access-control-request-headers": wanted,
            },
        )
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-headers"] == wanted
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert int(answer.headers["access-control-max-age"]) > 0


async def test_a_wrong_method_or_path_is_told_in_json(http: httpx.AsyncClient) -> None:
    answer = await http.delete("/api/v1/runs/run_x/metadata")
    assert answer.status_code == 405 and answer.json()["code"] == "malformed"
    assert set(answer.headers["allow"].replace(" ", "").split(",")) == {"GET", "HEAD", "PUT"}
    for method in ("GET", "POST", "DELETE"):
        answer = await http.request(method, "/api/v9/nothing")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_head_answers_like_get_without_a_body(http: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/api/v1/runs", "/"):
        answer = await http.head(path)
        assert answer.status_code == 200 and answer.content == b""


async def test_a_body_is_refused_before_it_is_read(http: httpx.AsyncClient) -> None:
    async def trickle() -> AsyncGenerator[bytes]:
        for _ in range(50):
            yield b" " * 10_000

    path = "/api/v1/tasks/echo/trigger"
    announced = await http.post(path, content=b" " * 100_001)
    assert (announced.status_code, announced.json()["code"]) == (413, "too_large")
    trickled = await http.post(path, content=trickle())
    assert trickled.status_code == 413
    for encoding in ("gzip", "br", "deflate, gzip"):
        packed = await http.post(path, content=b"{}", headers={"content-encoding": encoding})
        assert packed.status_code == 415


async def _until_broken(send: Callable[[], Awaitable[None]]) -> None:
    with suppress(anyio.BrokenResourceError):
        await send()


async def test_who_sends_for_ever_is_answered_and_cut_off(server: TestRealtime) -> None:
    port = httpx.URL(server.url).port or 0
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(
            b"POST /api/v1/tasks/echo/trigger HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        answer = b""
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:

                async def send() -> None:
                    while True:
                        await stream.send(b"400\r\n" + b" " * 0x400 + b"\r\n")
                        await anyio.sleep(0.001)  # a sender that is slower than we read

                tasks.start_soon(_until_broken, send)
                with suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                    while True:
                        answer += await stream.receive()
                tasks.cancel_scope.cancel()
        assert b"401 Unauthorized" in answer and b"connection: close" in answer


async def test_the_dashboard_runs_no_foreign_script(http: httpx.AsyncClient) -> None:
    for path in ("/", "/runs/run_x"):
        page = await http.get(path)
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "script-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert page.headers["x-content-type-options"] == "nosniff"
    for path in ("/assets/none.js", "/assets/..%2f..%2fapp.py", "/assets/%00"):
        assert (await http.get(path)).status_code == 404
    escaped = await http.get("/..%2f..%2fapp.py")
    assert "create_app" not in escaped.text


async def test_a_failure_of_ours_tells_nothing_and_logs_no_secret(
    server: TestRealtime, http: httpx.AsyncClient, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ValueError("-".join(("canary", "in", "an", "error")))

    monkeypatch.setattr(server.services.engine.runs, "trigger", broken)
    answer = await http.post(
        "/api/v1/tasks/echo/trigger",
        json={"payload": '"canary-payload"'},
        headers={"origin": "https://app.example"},
    )
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "canary" not in answer.text
    written = log.getvalue()
    assert "a request failed" in written and "ValueError" in written
    assert (
        "canary-in" not in written and "canary-payload" not in written and server.key not in written
    )


async def test_without_its_database_it_is_healthy_but_not_ready(database_url: str) -> None:
    async with running_realtime(database_url) as server, server.client() as http:
        await server.services.engine.database.close()
        assert (await http.get("/healthz")).status_code == 200
        ready = await http.get("/readyz")
        assert ready.status_code == 503 and ready.json()["reasons"]
        answer = await http.get("/api/v1/runs")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"]


async def test_every_session_with_postgres_is_bounded_in_time(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: dict[str, str] = {}
    connect = psycopg.AsyncConnection.connect

    async def recorded(*where: Any, **how: Any) -> Any:
        sessions[how["application_name"]] = how.get("options", "")
        return await connect(*where, **how)

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", recorded)
    async with running_realtime(database_url) as server, server.client() as http:
        await _readiness(http, notifications="listening")
        assert (await http.get("/api/v1/runs")).status_code == 200
    assert sessions.keys() >= {"runwire", "runwire-bell", "runwire-listen", "runwire-ping"}
    for name, options in sessions.items():
        for bound in ("statement", "lock", "idle_in_transaction_session"):
            assert f"-c {bound}_timeout=" in options, name
