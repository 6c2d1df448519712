"""A socket that was handed over: what it reads, how it ends, and that nothing waits for it."""

import asyncio
import os
import select
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from itertools import count

import anyio
import orjson
import pytest
from anyio.abc import SocketAttribute
from starlette.types import Receive, Scope, Send
from websockets.frames import Frame, Opcode

from runwire.wire import PROTOCOL, CloseCode, JsonObject
from runwire_realtime.direct_connection import handover_of
from runwire_realtime.owned_socket import OwnedSocket
from runwire_realtime.server import bind, port_of, serve
from tests.support.raw_socket import CLOSE, CONTINUATION, PONG, RawSocket, frame, raw_socket
from tests.support.sockets import until_true
from tests.support.stage import Stage

pytestmark = pytest.mark.anyio
# More than any buffer on the way takes.
FLOOD = Frame(Opcode.BINARY, b"x" * 32 * 1024 * 1024).serialize(mask=False)


class Owner:
    """Keeps what it is told."""

    def __init__(self, socket: OwnedSocket) -> None:
        self.socket = socket
        self.messages: list[str | bytes] = []
        self.is_gone = False

    def received(self, message: str | bytes) -> None:
        self.messages.append(message)

    def changed(self) -> None:
        pass

    def gone(self) -> None:
        assert not self.is_gone
        self.is_gone = True


@asynccontextmanager
async def owned(
    ping_interval: float = 20.0, ping_timeout: float = 20.0
) -> AsyncGenerator[tuple[RawSocket, Owner]]:
    """Return a client, and the owner of its socket, on our server's own configuration."""
    owners: list[Owner] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept", "subprotocol": PROTOCOL})
        handover = handover_of(scope)
        assert handover is not None
        socket = handover.hand_over()
        assert socket is not None
        owners.append(Owner(socket))
        socket.give_to(owners[0])

    listener = bind("127.0.0.1", 0)
    stop = anyio.Event()
    run = partial(serve, ping_interval=ping_interval, ping_timeout=ping_timeout)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, app, listener, stop)
            async with raw_socket(f"http://127.0.0.1:{port_of(listener)}") as client:
                await until_true(lambda: bool(owners))
                yield client, owners[0]
            stop.set()
    finally:
        listener.close()


async def test_no_task_waits_for_a_socket(stage: Stage) -> None:
    run_id = await stage.trigger()
    subscribe: JsonObject = {
        "type": "subscribe",
        "sub": "a",
        "to": {"run": run_id},
        "streams": {"*": {}},
    }
    async with AsyncExitStack() as stack:

        async def follow() -> None:
            bearer = f"authorization: Bearer {stage.key}"
            client = await stack.enter_async_context(raw_socket(stage.url, bearer))
            await client.send(frame(orjson.dumps(subscribe)))
            while b'"live"' not in (await client.next() or b'"live"'):
                pass

        await follow()
        before = len(asyncio.all_tasks())
        for _ in range(5):
            await follow()
        await until_true(lambda: len(asyncio.all_tasks()) <= before)
        assert stage.server.services.realtime.statistics().subscriptions == 6


async def test_a_message_is_read_however_it_is_cut() -> None:
    async with owned() as (client, owner):
        whole = frame("größer".encode()) + frame()
        for byte in range(len(whole)):
            await client.send(whole[byte : byte + 1])
        await until_true(lambda: len(owner.messages) == 2)
        for head, last in ((b"a", b"b"), (b"c", b"d")):
            await client.send(frame(head, first=0))
            await client.send(frame(last, CONTINUATION))
        await client.send(frame(b"e") + frame(b"f") + frame(b"g")[:4])
        await until_true(lambda: len(owner.messages) == 6)
        await client.send(frame(b"g")[4:])
        await until_true(lambda: len(owner.messages) == 7)
        assert owner.messages == ["größer", "", "ab", "cd", "e", "f", "g"]


async def test_a_text_that_is_none_ends_it() -> None:
    async with owned() as (client, owner):
        await client.send(frame(b"\xff\xfe"))
        assert await client.close_code() == 1007
        assert owner.is_gone and not owner.socket.is_writable and owner.messages == []


async def test_a_close_frame_is_answered_with_its_code() -> None:
    async with owned() as (client, owner):
        await client.send(frame((3999).to_bytes(2), CLOSE))
        assert await client.close_code() == 3999
        assert owner.is_gone and not owner.socket.is_writable


async def test_it_is_closed_behind_what_the_peer_has_not_taken_yet() -> None:
    async with owned() as (client, owner):
        owner.socket.write_frame(FLOOD)
        assert not owner.socket.is_writable
        owner.socket.close(CloseCode.SLOW, "the socket does not drain")
        assert not owner.is_gone
        assert await client.close_code() == CloseCode.SLOW
        await until_true(lambda: owner.is_gone)


async def test_what_the_peer_does_not_take_at_once_comes_in_its_order() -> None:
    async with owned() as (client, owner):
        given = received = b""
        for number in count():
            frame_of_it = frame(str(number).ljust(200_000).encode(), masked=False)
            given += frame_of_it
            owner.socket.write_frame(frame_of_it)
            if not owner.socket.is_writable:
                break
        # There is room again, and what waits has not been told yet: it goes first all the same.
        peer = client.stream.extra(SocketAttribute.raw_socket).fileno()
        with suppress(BlockingIOError):
            while True:
                received += os.read(peer, 1 << 20)
        last = frame(b"last", masked=False)
        given += last
        owner.socket.write_frame(last)
        while len(received) < len(given):
            received += await client.stream.receive()
        assert received == given
        await until_true(lambda: owner.socket.is_writable)


async def test_a_frame_for_a_socket_that_was_lost_reaches_no_other() -> None:
    async with owned() as (client, owner):
        await client.stream.aclose()
        await until_true(lambda: owner.is_gone)
        # The lowest numbers that are free: one of them was the lost socket's.
        pairs = [socket.socketpair() for _ in range(20)]
        try:
            owner.socket.write_frame(frame(b"not for you", masked=False))
            sockets = [each for pair in pairs for each in pair]
            assert select.select(sockets, [], [], 0)[0] == []
        finally:
            for each in (each for pair in pairs for each in pair):
                each.close()


async def test_a_peer_that_answers_no_pings_is_given_up() -> None:
    async with owned(ping_interval=0.5, ping_timeout=0.5) as (client, owner):
        beats(owner, 2)
        ping = await client.stream.receive()
        assert ping[0] & 0x0F == Opcode.PING
        await client.send(frame(ping[2:], PONG) + frame(b"I am here"))
        await until_true(lambda: owner.messages == ["I am here"])
        beats(owner, 3)  # the second asks again
        assert not owner.is_gone
        beats(owner, 1)
        assert owner.is_gone


def beats(owner: Owner, count: int) -> None:
    for _ in range(count):
        owner.socket.beat()
