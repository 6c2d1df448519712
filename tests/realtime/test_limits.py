"""The bounds of connections on a real server: who is turned away, and that others are served."""

import time
from contextlib import AsyncExitStack

import anyio
import pytest
from websockets.exceptions import InvalidStatus

from runwire import AsyncRunwire
from runwire.wire import CloseCode, JsonObject
from runwire_engine.wanted_runs import NewRun
from runwire_realtime.direct_connection import DirectConnection
from tests.support.raw_socket import CLOSE, RawSocket, raw_socket
from tests.support.server import TestRealtime, running_realtime
from tests.support.sockets import Socket, of_type, open_socket, until_true
from tests.support.stage import open_stage

pytestmark = pytest.mark.anyio


async def turned_away(server: TestRealtime) -> InvalidStatus:
    """Return how the next handshake is refused."""
    with pytest.raises(InvalidStatus) as refused:
        async with open_socket(server.url):
            pass
    response = refused.value.response
    assert response.status_code == 503
    assert 1 <= int(response.headers["retry-after"]) <= 5
    assert b"unavailable" in (response.body or b"")
    return refused.value


async def test_beyond_its_connections_a_server_answers_503(database_url: str) -> None:
    async with (
        running_realtime(database_url, max_connections=3) as server,
        AsyncExitStack() as stack,
    ):
        sockets = [
            await stack.enter_async_context(open_socket(server.url, server.key)) for _ in range(3)
        ]
        await turned_away(server)
        async with server.client() as http:
            body: list[JsonObject] = [{"type": "subscribe", "sub": "a", "to": {"runs": {}}}]
            answer = await http.post("/realtime/v1/events", json=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert answer.headers["retry-after"]
        await sockets[0].connection.close()
        statistics = server.services.realtime.statistics
        await until_true(lambda: statistics().connections < 3)
        async with open_socket(server.url, server.key):
            pass


async def test_who_comes_too_fast_is_told_to_come_back_and_gets_in(database_url: str) -> None:
    async with open_stage(database_url, connect_rate=2, connect_burst=3) as stage:
        server = stage.server
        for _ in range(3):
            async with open_socket(server.url, server.key):
                pass
        await turned_away(server)
        # A client of ours takes that as a server that is not there yet.
        async with AsyncRunwire(api_url=server.url, access_token=server.key) as client:
            run_id = await stage.trigger("t")
            with anyio.fail_after(60):
                async for run in client.runs.subscribe_to_runs_with_tag("t"):
                    assert run.id == run_id
                    break


async def test_an_environment_has_its_share_and_no_more(database_url: str) -> None:
    async with running_realtime(database_url, max_environment_connections=2) as server:
        other = await server.tenant()
        async with open_socket(server.url, server.key), open_socket(server.url, server.key):
            async with open_socket(server.url) as third:
                await third.send({"type": "auth", "token": server.key})
                assert await third.closed() == 4009
            async with open_socket(server.url, other.key):
                pass
        async with open_socket(server.url, server.key):
            pass


async def test_a_public_token_opens_so_many_connections(database_url: str) -> None:
    async with running_realtime(database_url, max_token_connections=2) as server:
        one, two = await server.token("read:runs"), await server.token("read:runs")
        async with open_socket(server.url, one), open_socket(server.url, one) as second:
            async with open_socket(server.url) as third:
                await third.send({"type": "auth", "token": one})
                assert await third.closed() == 4009
            async with open_socket(server.url, two) as changed:
                # Neither does one come in by way of another token; its own is no other.
                assert (await second.authenticate(one))["type"] == "ready"
                await changed.send({"type": "auth", "token": one})
                assert await changed.closed() == 4009
            async with server.client() as http:
                answer = await http.post(
                    "/realtime/v1/events",
                    json=[{"type": "subscribe", "sub": "a", "to": {"runs": {}}}],
                    headers={"authorization": f"Bearer {one}"},
                )
                assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            # A token that was changed for another is free again.
            assert (await second.authenticate(two))["type"] == "ready"
            async with open_socket(server.url, one), open_socket(server.url, server.key):
                pass


async def test_strangers_make_room_for_whoever_shows_a_credential(database_url: str) -> None:
    # Nobody's time is over here: who goes makes room.
    limits: dict[str, float] = {"max_strangers": 10, "auth_timeout": 60}
    async with running_realtime(database_url, **limits) as server, AsyncExitStack() as stack:
        strangers = [await stack.enter_async_context(open_socket(server.url)) for _ in range(40)]
        for _ in range(5):
            async with open_socket(server.url, server.key):
                pass
        # Those who waited longest went first; the others may still show theirs.
        assert [await stranger.closed() for stranger in strangers[:30]] == [4009] * 30
        for stranger in strangers[35:]:
            assert (await stranger.authenticate(server.key))["type"] == "ready"


async def test_a_heartbeat_comes_as_often_as_the_server_says(database_url: str) -> None:
    async with (
        running_realtime(database_url, hub_heartbeat=0.5) as server,
        open_socket(server.url) as socket,
    ):
        assert (await socket.authenticate(server.key))["heartbeat"] == 0.5
        assert (await socket.next())["type"] == "hb"


async def test_each_of_many_sockets_gets_its_heartbeat_though_the_time_of_one_cannot_be_kept(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_time, broken = DirectConnection.tick, list[DirectConnection]()

    def tick(connection: DirectConnection, now: float) -> None:
        if not broken:
            broken.append(connection)
        if connection is broken[0]:
            raise ZeroDivisionError
        keep_time(connection, now)

    async with running_realtime(database_url, hub_heartbeat=0.5) as server, AsyncExitStack() as s:
        bearer = f"authorization: Bearer {server.key}"
        # In turns of a hundred.
        monkeypatch.setattr(DirectConnection, "tick", tick)
        sockets = [await s.enter_async_context(raw_socket(server.url, bearer)) for _ in range(250)]
        ended = [await _until_heartbeat(socket) for socket in sockets]
    assert sorted(ended, key=str) == [CloseCode.INSUFFICIENT_STATE, *[None] * 249]


async def _until_heartbeat(socket: RawSocket) -> int | None:
    """Return None once a heartbeat has come, or the code with which the socket was closed."""
    with anyio.fail_after(60):
        while (found := await socket.frame()) is not None:
            opcode, payload = found
            if opcode == CLOSE:
                return int.from_bytes(payload[:2], "big")
            if b'"hb"' in payload:
                return None
    raise AssertionError("it was lost without a word")


# Draining


async def closed_at(socket: Socket, times: list[float]) -> None:
    assert await socket.closed() == 4001
    times.append(time.monotonic())


async def test_a_stopping_server_sends_its_clients_away_one_by_one_having_told_them_all(
    database_url: str,
) -> None:
    async with open_stage(database_url, drain=2) as stage, AsyncExitStack() as stack:
        server = stage.server
        run_id = await stage.trigger("t")
        sockets = [
            await stack.enter_async_context(open_socket(server.url, server.key)) for _ in range(30)
        ]
        for socket in sockets:
            await socket.subscribe("a", {"run": run_id})
            await socket.until("live")
        times: list[float] = []
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for socket in sockets:
                tasks.start_soon(closed_at, socket, times)
            # What was committed before the end is told before the close.
            await stage.engine.runs.cancel(stage.env, run_id)
            tasks.start_soon(server.services.realtime.drain)
            await until_true(lambda: server.services.realtime.statistics().is_draining)
            await turned_away(server)
            async with server.client() as http:
                ready = await http.get("/readyz")
                assert (ready.status_code, ready.json()["reasons"]) == (503, ["the server stops"])
        spread = [at - began for at in times]
        # 30 over 0.8 of two seconds; a busy machine may be late, never early.
        assert max(spread) - min(spread) > 0.5
        assert len([at for at in spread if at < 0.8]) < 20
        told = [of_type(socket.messages, "done") for socket in sockets]
        assert sum(map(bool, told)) >= 20


async def test_a_client_that_sleeps_does_not_hold_up_the_end(database_url: str) -> None:
    async with open_stage(database_url, drain=1) as stage:
        realtime = stage.server.services.realtime
        for number in range(60):
            new = NewRun("task", f'"{number}{"x" * 15_000}"')
            await stage.engine.runs.trigger(stage.env, new)
        async with open_socket(stage.url, stage.key, max_queue=1) as sleeper:
            for number in range(40):
                await sleeper.subscribe(f"s{number}", {"runs": {}})
            await until_true(lambda: realtime.statistics().subscriptions == 40)
            began = time.monotonic()
            await realtime.drain()
            # Not the ten seconds that a sleeper has.
            assert time.monotonic() - began < 8
            await until_true(lambda: realtime.statistics().subscriptions == 0)
