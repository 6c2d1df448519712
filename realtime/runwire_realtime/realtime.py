"""The running hub of one process: the feed, the readers behind it, and the connections.

    async with Realtime(engine, authenticate, allowed_origins=…) as realtime:
        …
        await realtime.websocket_endpoint(websocket)     # in a route
        response = await realtime.events_endpoint(request)
        …
        await realtime.drain()                           # before the server stops

It has a few connections to Postgres of its own, so that requests and subscribers do not wait for
each other.
"""

import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, TypeVar

import anyio
from starlette.requests import Request
from starlette.websockets import WebSocket

from runwire.wire import CloseCode, ErrorCode
from runwire_engine.database import Database, Transaction
from runwire_engine.engine import Engine
from runwire_engine.following import Following
from runwire_realtime import sse, websocket
from runwire_realtime.admission import Admission
from runwire_realtime.asgi_connection import AsgiConnection
from runwire_realtime.connection import TICK, Authenticate, Connection
from runwire_realtime.credentials import bearer
from runwire_realtime.delivery import Delivery
from runwire_realtime.direct_connection import DirectConnection, Handover, handover_of
from runwire_realtime.errors import ForbiddenError, RefusedError
from runwire_realtime.feed import Feed, Notifications
from runwire_realtime.feed_loading import FeedLoading
from runwire_realtime.frames import Frames
from runwire_realtime.hub import Hub
from runwire_realtime.limits import HubLimits
from runwire_realtime.reads import Reads
from runwire_realtime.watchdog import Watchdog

logger = logging.getLogger("runwire.realtime")
AnyConnection = TypeVar("AnyConnection", bound=Connection)

# Catch-up reads, and the tail, the rows, the heads and the rings beside them.
_POOL_SIZE: Final = 12
# Connections whose time is looked at in one turn of the loop, a fifth of a millisecond; and the
# most turns that are made of all of them.
_TICKED: Final = 100
_TURNS: Final = 50
# Before a service that failed starts again.
_PAUSE: Final = 0.2
# Few connections are no herd: they need not be sent away more slowly than that, a second.
_SLOWEST_FAREWELLS: Final = 20.0
# Of the time to drain; the rest is for the last ones to hear of it.
_FAREWELLS: Final = 0.8


@dataclass(frozen=True)
class Statistics:
    """What the hub does now."""

    connections: int
    subscriptions: int
    runs: int
    streams: int
    # The snapshot up to which events were applied.
    position: str
    # How far the log of Postgres was on disk when it was last looked at, in bytes.
    flushed: int
    is_stale: bool
    notifications: Notifications
    is_draining: bool


class Realtime:
    """Serves subscribers. `authenticate` turns a credential into a Grant or raises RefusedError."""

    def __init__(
        self,
        engine: Engine,
        authenticate: Authenticate,
        *,
        allowed_origins: Sequence[str] = (),
        limits: HubLimits = HubLimits(),  # noqa: B008 -- frozen
    ) -> None:
        self._authenticate = authenticate
        self._origins = allowed_origins
        self._limits = limits
        self._database = Database(
            engine.database.dsn,
            max_size=_POOL_SIZE,
            name="runwire-hub",
            statement_timeout="10s",
            connected=self._connected,
        )
        following = Following(self._database)
        self.hub = Hub(limits)
        self._reads = Reads(self.hub, following)
        self._feed = Feed(
            self.hub, self._reads, self._database, listen_dsn=engine.settings.listen_dsn
        )
        self._loading = FeedLoading(self.hub, following)
        self._frames = Frames()
        self._delivery = Delivery(self.hub, self._frames)
        self._connections: set[Connection] = set()
        self._admission = Admission(limits, time.monotonic())
        self._running = AsyncExitStack()

    async def __aenter__(self) -> "Realtime":
        """Start. Raises EngineError when the database cannot be read."""
        await self._running.enter_async_context(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return await self._running.__aexit__(kind, error, trace)

    async def _connected(self, session: Transaction) -> None:
        await self._feed.connected(session)

    @asynccontextmanager
    async def _run(self) -> AsyncGenerator[None]:
        await self._database.open()
        try:
            await self._feed.start()
            async with anyio.create_task_group() as tasks:
                for service in (self._reads.run, self._loading.run, self._feed.run):
                    tasks.start_soon(self._keep, service)
                tasks.start_soon(self._tick)
                delivering = anyio.CancelScope(shield=True)
                tasks.start_soon(self._deliver, delivering)
                try:
                    yield
                finally:
                    with anyio.CancelScope(shield=True):
                        await self.drain()
                    delivering.cancel()
                    tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._database.close()

    async def _deliver(self, scope: anyio.CancelScope) -> None:
        """Write to sockets until the scope is cancelled: who is sent away is told so by this."""
        with scope:
            await self._keep(self._delivery.run)

    async def _keep(self, service: Callable[[], Awaitable[None]]) -> None:
        """Run a service for ever. When it fails for reasons nobody foresaw, everybody resumes."""
        while True:
            try:
                await service()
            except Exception:
                logger.exception("the hub failed; its subscribers are told to resume")
            for connection in list(self._connections):
                connection.close(CloseCode.INSUFFICIENT_STATE, "the server lost its place")
            await anyio.sleep(_PAUSE)

    async def drain(self, seconds: float | None = None) -> None:
        """Take no more connections, and send those there are elsewhere, one after the other.

        Each is told what there is to be told before it is closed. Whoever has not gone when the
        time is over is cut off; none given: the time of the settings.
        """
        self._admission.is_draining = True
        seconds = self._limits.drain_seconds if seconds is None else seconds
        with anyio.move_on_after(seconds):
            await self._send_away(seconds * _FAREWELLS)
            while self._connections:  # noqa: ASYNC110 -- once in a process
                await anyio.sleep(0.02)
        for connection in list(self._connections):
            connection.cut_off(CloseCode.GOING_AWAY, "the server stops")

    async def _send_away(self, seconds: float) -> None:
        """Spread over the time, so that they do not all arrive at the next server at once."""
        connections = list(self._connections)
        random.shuffle(connections)
        pace = min(seconds / max(1, len(connections)), 1 / _SLOWEST_FAREWELLS)
        began = anyio.current_time()
        for count, connection in enumerate(connections):
            await anyio.sleep_until(began + count * pace)
            connection.end(CloseCode.GOING_AWAY, "the server stops")

    def statistics(self) -> Statistics:
        """Return what /readyz and the metrics tell."""
        hub = self.hub
        return Statistics(
            connections=len(self._connections),
            subscriptions=sum(each.subscriptions for each in self._connections),
            runs=len(hub.runs),
            streams=len(hub.streams.topics),
            position=hub.position,
            flushed=self._feed.flushed,
            is_stale=hub.stale_since is not None,
            notifications=self._feed.notifications,
            is_draining=self._admission.is_draining,
        )

    async def websocket_endpoint(self, socket: WebSocket) -> None:
        """Serve a websocket."""
        if not websocket.is_welcome(socket, self._origins):
            await socket.close()  # 403, before anything is accepted
        elif not websocket.speaks_protocol(socket):
            await websocket.refuse(socket, CloseCode.UNSUPPORTED_PROTOCOL, "speak runwire.v1")
        else:
            try:
                self._admission.admit(len(self._connections), time.monotonic())
            except RefusedError as error:
                await websocket.turn_away(socket, error)
                return
            await websocket.accept(socket)
            if (handover := handover_of(socket.scope)) is not None:
                self._take_over(handover, socket)
                return
            is_browser = "origin" in socket.headers
            with self._kept(self._connection(is_browser=is_browser)) as connection:
                await websocket.serve(socket, connection)

    async def events_endpoint(self, request: Request) -> sse.EventStream:
        """Return the response to a request for server-sent events. Raises RefusedError."""
        self._admission.admit(len(self._connections), time.monotonic())
        token = bearer(request.headers.get("authorization"))
        grant = await self._authenticate(token)
        if grant.api_key and "origin" in request.headers:
            raise ForbiddenError("an API key does not belong into a browser; use a public token")
        if not self.hub.has_room_for(grant, None):
            raise RefusedError(ErrorCode.UNAVAILABLE, "too many connections with this credential")
        asked = await sse.read_requests(request, self._limits)
        return sse.EventStream(lambda: self._kept(self._connection()), token, asked)

    def _take_over(self, handover: Handover, request: WebSocket) -> None:
        """Serve an accepted websocket from here, until it is closed or lost."""
        socket = handover.hand_over()
        if socket is None:
            return
        connection = DirectConnection(
            socket,
            self._delivery,
            self.hub,
            self._frames,
            self._loading,
            self._authenticate,
            self._connections.discard,
            token=websocket.token_of(request),
            is_browser="origin" in request.headers,
        )
        self._connections.add(connection)

    def _connection(self, *, is_browser: bool = False) -> AsgiConnection:
        return AsgiConnection(
            self.hub, self._frames, self._loading, self._authenticate, is_browser=is_browser
        )

    @contextmanager
    def _kept(self, connection: AnyConnection) -> Generator[AnyConnection]:
        self._connections.add(connection)
        try:
            yield connection
        finally:
            self._connections.discard(connection)
            # Its carrier may have failed before it was served.
            connection.subscriber.close()

    async def _tick(self) -> None:
        """Keep the time for every connection: one timer instead of one for each.

        Many of them have their turns one after the other: all at once would hold everybody up.
        """
        with Watchdog() as watchdog:
            while True:
                connections = list(self._connections)
                turns = min(len(connections) // _TICKED + 1, _TURNS)
                for turn in range(turns):
                    await anyio.sleep(TICK / turns)
                    watchdog.beat()
                    now = time.monotonic()
                    for connection in connections[turn::turns]:
                        try:
                            connection.tick(now)
                        except Exception:
                            logger.exception("the time of a connection cannot be kept; it resumes")
                            connection.fail()
