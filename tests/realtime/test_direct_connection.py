"""A connection that writes to its socket itself, with socket and time moved by hand."""

import asyncio
import socket as sockets
from functools import partial
from typing import cast

import anyio
import orjson
import pytest

from runwire.wire import Json, JsonObject
from runwire_realtime.connection import TICK
from runwire_realtime.delivery import Delivery
from runwire_realtime.direct_connection import DirectConnection
from runwire_realtime.feed_loading import FeedLoading
from runwire_realtime.frames import Frames
from runwire_realtime.limits import HubLimits
from runwire_realtime.line import NOWHERE
from runwire_realtime.owned_socket import OwnedSocket
from runwire_realtime.scope import Grant
from tests.support.hub_world import ENV, World
from tests.support.pushing import send

pytestmark = pytest.mark.anyio
RUN = "run_a0000000"


class Socket:
    """Takes everything."""

    is_writable = True

    def __init__(self, descriptor: int = NOWHERE) -> None:
        self.descriptor = descriptor
        self.messages: list[JsonObject] = []
        self.written: list[bytes] = []

    def write_frame(self, frame: bytes) -> None:
        self.written.append(frame)
        if self.descriptor == NOWHERE:
            self.messages += orjson.loads(frame[frame.index(b"[") :])

    def give_to(self, owner: object) -> None: ...

    def beat(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def types(self) -> list[Json]:
        return [message["type"] for message in self.messages]


class Place:
    """A hub with a run that executes, and connections that follow it and its stream."""

    def __init__(self, limits: HubLimits) -> None:
        self.world = World(limits)
        self.world.create(RUN)
        self.world.status(RUN, "EXECUTING")
        self.frames = Frames()
        self.delivery = Delivery(self.world.hub, self.frames)
        self.now = self.delivery.now()
        self.append("a")

    def append(self, *bodies: str) -> None:
        self.world.hub.rang(self.world.append(RUN, "log", *(f'"{body}"' for body in bodies)))

    def follow(
        self, start: Json = "start", descriptor: int = NOWHERE
    ) -> tuple[DirectConnection, Socket]:
        """Return a connection that has got everything."""
        socket = Socket(descriptor)
        connection = DirectConnection(
            cast(OwnedSocket, socket),
            self.delivery,
            self.world.hub,
            self.frames,
            cast(FeedLoading, None),
            self._refuse,
            lambda connection: None,
        )
        connection.subscriber.authenticated(Grant(ENV, api_key=True), self.now, 0.0)
        subscribe: JsonObject = {
            "type": "subscribe",
            "sub": "s1",
            "to": {"run": RUN},
            "streams": {"log": {"from": start}},
        }
        connection.received(orjson.dumps(subscribe).decode())
        connection.read(self.now)
        for _ in range(3):
            self.world.settle()
            connection.write(self.now)
        return connection, socket

    def move(self) -> None:
        """Change the run, so that its cursor will be due in a second."""
        self.world.change(RUN, {"isTest": False})
        self.world.tail()

    async def _refuse(self, token: str) -> Grant:
        raise NotImplementedError

    def tick(self, connection: DirectConnection) -> None:
        """Let the time of a tick pass."""
        self.now += TICK
        connection.tick(self.now)


async def test_a_cursor_comes_though_there_is_always_more_of_a_stream() -> None:
    place = Place(HubLimits())
    connection, socket = place.follow()
    place.move()
    socket.messages.clear()
    for _ in range(8):
        connection.wake()
        place.append("b")
        place.world.push()
        connection.write(place.now)
        place.tick(connection)
    assert socket.types().count("cursor") == 1
    assert socket.types().count("chunks") == 8


async def test_a_cursor_comes_though_everything_never_fits() -> None:
    place = Place(HubLimits(frame_bytes=1_000))
    connection, socket = place.follow()
    place.move()
    socket.messages.clear()
    for _ in range(8):
        place.append(*("b" * 600 for _ in range(3)))
        place.world.push()
        connection.write(place.now)
        assert not connection.outbox.is_idle
        place.tick(connection)
    assert socket.types().count("cursor") == 1


async def test_no_cursor_comes_before_the_place_from_which_a_stream_is_read() -> None:
    place = Place(HubLimits(frame_bytes=200))
    connection, socket = place.follow("latest")
    # The run and the place do not fit into one frame.
    for _ in range(8):
        place.tick(connection)
        connection.write(place.now)
    assert socket.types().index("chunks") < socket.types().index("cursor")


async def test_who_was_written_to_lately_stays_in_step_when_its_heartbeat_would_be_due() -> None:
    place = Place(HubLimits(heartbeat_seconds=2.0))
    connection, socket = place.follow()
    for _ in range(6):
        place.tick(connection)
        connection.write(place.now)
    (cohort,) = place.world.hub.streams.topics[ENV, RUN, "log"].cohorts
    (line,) = cohort.members.values()
    socket.messages.clear()
    for _ in range(40):
        assert line.is_free
        place.append("b")
        cohort.push(
            lambda parts: place.frames.frame(parts).wire, HubLimits(), partial(send, place.now)
        )
        place.tick(connection)
    assert set(socket.types()) == {"chunks"}


async def test_a_heartbeat_comes_when_nothing_else_does() -> None:
    place = Place(HubLimits(heartbeat_seconds=2.0))
    connection, socket = place.follow()
    for _ in range(40):
        place.tick(connection)
        connection.write(place.now)
    assert socket.types().count("hb") in (3, 4)


async def test_what_the_kernel_takes_of_a_shared_frame_is_not_written_again() -> None:
    place = Place(HubLimits())
    near, far = sockets.socketpair()
    with near, far:
        near.setblocking(False)
        _, tight = place.follow(descriptor=near.fileno())
        _, plain = place.follow()
        for socket in (tight, plain):
            socket.written.clear()
        # More than the kernel holds for a socket.
        place.append("b" * 400_000)
        delivering = asyncio.create_task(place.delivery.run())
        with anyio.fail_after(30):
            while not (tight.written and plain.written):
                await asyncio.sleep(0)
        delivering.cancel()
        far.setblocking(False)
        taken = b"".join(iter(partial(_read, far), b""))
    (rest,), (whole,) = tight.written, plain.written
    assert 0 < len(rest) < len(whole)
    assert taken + rest == whole


def _read(socket: sockets.socket) -> bytes:
    try:
        return socket.recv(65_536)
    except BlockingIOError:
        return b""
