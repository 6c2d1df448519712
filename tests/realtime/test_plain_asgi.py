"""The same hub behind a server that keeps its sockets to itself: frames go through its `send`."""

import socket as sockets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from runwire.wire import SOCKET_PATH, CloseCode, JsonObject
from runwire_realtime.direct_connection import handover_of
from runwire_realtime.server import bind, port_of
from tests.support.sockets import Socket, chunks_of, of_type, open_socket
from tests.support.stage import Stage

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def plain_server(stage: Stage) -> AsyncGenerator[str]:
    """Serve the stage's hub with uvicorn as it comes."""

    async def endpoint(websocket: WebSocket) -> None:
        assert handover_of(websocket.scope) is None
        await stage.server.services.realtime.websocket_endpoint(websocket)

    app = Starlette(routes=[WebSocketRoute(SOCKET_PATH, endpoint)])
    listener: sockets.socket = bind("127.0.0.1", 0)
    config = uvicorn.Config(app, ws="websockets-sansio", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            yield f"http://127.0.0.1:{port_of(listener)}"
            server.should_exit = True
    finally:
        listener.close()


async def test_readers_on_both_carriers_are_told_the_same(stage: Stage) -> None:
    run_id = await stage.trigger()
    execution = await stage.start(run_id)
    async with (
        plain_server(stage) as plain,
        open_socket(plain, stage.key) as behind,
        open_socket(stage.url, stage.key) as direct,
    ):
        for socket in (behind, direct):
            await socket.subscribe("a", {"run": run_id}, streams={"*": {}})
            await socket.until("live")
        for count in range(20):
            await stage.append(run_id, execution, *(f"{count}.{n}" for n in range(3)))
        await stage.complete(run_id, execution)
        told = [await until_done(socket) for socket in (behind, direct)]
    expected = [f"{count}.{n}" for count in range(20) for n in range(3)]
    for messages in told:
        assert chunks_of(messages, "text") == expected
        assert of_type(messages, "eof")[0]["next"] == len(expected)


async def until_done(socket: Socket) -> list[JsonObject]:
    await socket.until("done")
    return socket.messages


async def test_it_is_closed_with_the_same_codes(stage: Stage) -> None:
    async with plain_server(stage) as plain, open_socket(plain, stage.key) as socket:
        await socket.send("no object")
        assert await socket.closed() == CloseCode.MALFORMED
