"""Runwire mounted in FastAPI and Starlette, with and without a lifespan of the parent."""

import runpy
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import httpx
import orjson
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from runwire.wire import PROTOCOL
from runwire_engine.migrations import migrate
from runwire_realtime.mounted import MountedApp, runwire_app
from runwire_realtime.server import bind, port_of, serve
from tests.support.postgres import TestServer
from tests.support.processes import CHECKOUT
from tests.support.server import SECRET, running_realtime, server_settings
from tests.support.tasks import announce

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def _served(
    app: ASGIApp, listener: socket.socket | None = None
) -> AsyncGenerator[httpx.AsyncClient]:
    listener = listener or bind("127.0.0.1", 0)
    stop = anyio.Event()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, app, listener, stop)
            url = f"http://127.0.0.1:{port_of(listener)}"
            async with httpx.AsyncClient(base_url=url, timeout=60) as http:
                yield http
            stop.set()
    finally:
        listener.close()


@pytest.fixture
def runwire(database_url: str) -> MountedApp:
    return runwire_app(server_settings(database_url))


async def test_inside_fastapi_it_starts_with_the_parents_lifespan(runwire: MountedApp) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with runwire.lifespan():
            yield

    parent = FastAPI(lifespan=lifespan)
    parent.mount("/runwire", runwire)

    @parent.get("/own")
    async def own() -> dict[str, bool]:  # pyright: ignore[reportUnusedFunction] (a route)
        return {"running": runwire.is_running}

    async with parent.router.lifespan_context(parent):
        assert runwire.is_running
        async with _served(parent) as http:
            assert (await http.get("/own")).json() == {"running": True}
            assert (await http.get("/runwire/readyz")).json()["ready"] is True
            assert (await http.get("/runwire/api/v1/runs")).status_code == 401
            assert (await http.get("/runwire/openapi.json")).status_code == 200
    assert not runwire.is_running


async def test_without_a_lifespan_it_starts_with_the_first_requests_and_once(
    runwire: MountedApp,
) -> None:
    parent = Starlette(routes=[Mount("/runwire", runwire)])
    async with _served(parent) as http:
        assert not runwire.is_running
        statuses: list[int] = []

        async def ask() -> None:
            statuses.append((await http.get("/runwire/readyz")).status_code)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask)
        assert statuses == [200] * 5
    await runwire.aclose()
    assert not runwire.is_running


async def test_a_start_that_fails_is_a_503_and_is_tried_again(postgres: TestServer) -> None:
    dsn = postgres.create_database("template1")
    runwire = runwire_app(server_settings(dsn))
    async with _served(Starlette(routes=[Mount("/", runwire)])) as http:
        answer = await http.get("/healthz")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        await migrate(dsn)
        assert (await http.get("/healthz")).status_code == 200
    await runwire.aclose()
    postgres.drop_database(dsn)


async def test_the_example_triggers_a_task_and_hands_out_a_token_for_that_run(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_realtime(database_url) as realtime:
        await announce(realtime.services, "ask")
    listener = bind("127.0.0.1", 0)
    monkeypatch.setenv("RUNWIRE_DATABASE_URL", database_url)
    monkeypatch.setenv("RUNWIRE_SECRET", SECRET)
    monkeypatch.setenv("RUNWIRE_API_KEY", realtime.key)
    url = f"http://127.0.0.1:{port_of(listener)}"
    monkeypatch.setenv("RUNWIRE_API_URL", f"{url}/runwire")
    parent: FastAPI = runpy.run_path(str(CHECKOUT / "docs/examples/fastapi_app.py"))["app"]
    async with parent.router.lifespan_context(parent), _served(parent, listener) as http:
        answer = (await http.post("/ask", params={"question": "why"})).json()
        headers = {"authorization": f"Bearer {answer['token']}"}
        run = await http.get(f"/runwire/api/v3/runs/{answer['run']}", headers=headers)
        assert run.json()["payload"] == {"question": "why"}
        # The socket is there, too, below the same prefix.
        address = f"ws{url.removeprefix('http')}/runwire/realtime/v1/socket"
        async with connect(
            address, subprotocols=[Subprotocol(PROTOCOL)], additional_headers=headers
        ) as connection:
            subscribe = {"type": "subscribe", "sub": "s", "to": {"run": answer["run"]}}
            await connection.send(orjson.dumps(subscribe).decode())
            seen: list[str] = []
            with anyio.fail_after(60):
                while "snapshot" not in seen:
                    seen += [each["type"] for each in orjson.loads(await connection.recv())]
            assert seen[0] == "ready"
