"""Runwire mounted in FastAPI and Starlette, with and without a lifespan of the parent."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from runwire_engine.migrations import migrate
from runwire_realtime.mounted import MountedApp, runwire_app
from runwire_realtime.server import bind, port_of, serve
from tests.support.postgres import TestServer
from tests.support.server import server_settings

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def _served(app: ASGIApp) -> AsyncGenerator[httpx.AsyncClient]:
    listener = bind("127.0.0.1", 0)
    stop = anyio.Event()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, app, listener, stop)
            url = f"http://127.0.0.1:{port_of(listener)}"
            async with httpx.AsyncClient(base_url=url, timeout=20) as http:
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
