"""One connection, whatever carries it: writes frames as the outbox has them.

There is one writer for each connection and nobody else sends, so that a socket that is slow waits
for itself alone. The websocket and the event stream are two carriers of this.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final, TypeAlias

import anyio
from anyio.abc import TaskGroup

from runwire.wire import CloseCode, ErrorCode, Subscribe
from runwire_engine.errors import EngineError
from runwire_realtime.errors import RefusedError
from runwire_realtime.feed_loading import FeedLoading
from runwire_realtime.feed_members import FeedMembers
from runwire_realtime.frames import Frame, Frames
from runwire_realtime.hub import Hub
from runwire_realtime.outbox import Outbox
from runwire_realtime.run_view import wire_time
from runwire_realtime.scope import Grant
from runwire_realtime.subscriber import Phase, Subscriber

Authenticate: TypeAlias = Callable[[str], Awaitable[Grant]]
# What the client sent next; None: it is gone.
Receive: TypeAlias = Callable[[], Awaitable[str | bytes | None]]
Send: TypeAlias = Callable[[Frame], Awaitable[None]]
Closing: TypeAlias = tuple[int, str]

# Seconds between two ticks.
TICK: Final = 0.25


class Connection:
    """Drives one subscriber."""

    def __init__(
        self,
        hub: Hub,
        frames: Frames,
        loading: FeedLoading,
        authenticate: Authenticate,
        *,
        is_browser: bool = False,
    ) -> None:
        self.outbox = Outbox(self.wake, hub.limits)
        self.subscriber = Subscriber(
            hub, self.outbox, self._load, time.monotonic(), is_browser=is_browser
        )
        # When the writer has to look again though nothing happened.
        self._due_at = 0.0
        # For how many ticks a frame has been being sent; None: none is. Counted in ticks, so that a
        # loop that was held up does not blame the sockets.
        self._ticks_sending: int | None = None
        self._limits = hub.limits
        self._frames = frames
        self._loading = loading
        self._authenticate = authenticate
        self._tasks: TaskGroup | None = None
        # Of asyncio, as they are cleared and used again with every frame.
        self._woken = asyncio.Event()
        self._room = asyncio.Event()
        self._paging = asyncio.Lock()

    @property
    def subscriptions(self) -> int:
        follower = self.subscriber.follower
        return 0 if follower is None else len(follower.subscriptions)

    async def serve(
        self,
        receive: Receive,
        send: Send,
        *,
        token: str | None = None,
        subscribe: Sequence[Subscribe] = (),
        ends_when_done: bool = False,
    ) -> Closing | None:
        """Serve to the end. Return why it is to be closed; None: the client is gone.

        `token` and `subscribe` are what came with the request. `ends_when_done`: end, without a
        code to speak of, once there are no subscriptions.
        """
        closing: Closing | None = None
        is_gone = False
        try:
            async with anyio.create_task_group() as self._tasks:
                if token is not None:
                    await self.authenticate(token)
                # The credential may have ended since the request was answered.
                for message in subscribe if self.subscriber.phase is Phase.READY else ():
                    self.subscriber.subscribe(message, time.monotonic())
                self._tasks.start_soon(self._read, receive)
                closing = await self._write(send, ends_when_done=ends_when_done)
                self._tasks.cancel_scope.cancel()
        except* OSError:
            is_gone = True
        finally:
            self.subscriber.close()
            self._room.set()
        return None if is_gone else closing or self.outbox.closing

    async def authenticate(self, token: str) -> None:
        """Verify a credential and go on with it."""
        try:
            grant = await self._authenticate(token)
        except RefusedError as error:
            self.subscriber.refused(ErrorCode.UNAUTHORIZED, error.message)
        except EngineError:
            # The database is away: the client comes back.
            self.outbox.close(CloseCode.OVERLOADED, "the credential cannot be checked now")
        else:
            self.subscriber.authenticated(grant, time.monotonic(), time.time())

    def close(self, code: int, reason: str) -> None:
        """Close it from this side."""
        self.outbox.close(code, reason)

    def end(self, code: int, reason: str) -> None:
        """Close it once everything that can be said was said."""
        self.outbox.end(code, reason)

    def cut_off(self, code: int, reason: str) -> None:
        """Close it now, whatever it is doing."""
        self.outbox.close(code, reason)
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def wake(self) -> None:
        """Have the writer look."""
        self._woken.set()

    def tick(self, now: float) -> None:
        """Wake the writer when something is due, and end what has been stuck for too long."""
        if now >= self._due_at:
            self.wake()
        if self._ticks_sending is not None:
            self._ticks_sending += 1
            if (self._ticks_sending - 1) * TICK >= self._limits.send_seconds:
                self.cut_off(CloseCode.SLOW, "the socket does not drain")

    async def _read(self, receive: Receive) -> None:
        assert self._tasks is not None
        while True:
            frame = await receive()
            if frame is None:
                self._tasks.cancel_scope.cancel()
                return
            token = self.subscriber.receive(frame, time.monotonic())
            if token is not None:
                await self.authenticate(token)
            # One message a turn: a burst of one client is not everybody's.
            await asyncio.sleep(0)

    async def _write(self, send: Send, *, ends_when_done: bool) -> Closing:
        while True:
            self._woken.clear()
            now = time.monotonic()
            messages = self.outbox.frame() or self._due(now)
            if messages:
                self._ticks_sending = 0
                await send(self._frames.frame(messages))
                self._ticks_sending = None
                self.subscriber.wrote(now)
                if self.outbox.has_room:
                    self._room.set()
                # One frame a turn: what comes in meanwhile leaves with the next.
                await asyncio.sleep(0)
            elif self.outbox.closing is not None:
                return self.outbox.closing
            elif ends_when_done and self.subscriptions == 0:
                return CloseCode.GOING_AWAY, ""
            else:
                await self._woken.wait()

    def _due(self, now: float) -> list[bytes]:
        """Return what the time has come for, unless nothing can have changed about that."""
        if now < self._due_at and not self.subscriber.is_restless:
            return []
        self.subscriber.tick(now, _wall)
        messages = self.outbox.frame()
        self._due_at = self.subscriber.next_tick()
        return messages

    def _load(self, feed: FeedMembers) -> None:
        self._loading.begin(feed, self._page_turn)

    @asynccontextmanager
    async def _page_turn(self) -> AsyncGenerator[None]:
        """Wait for room for a page. One at a time: many feeds would all see the same room."""
        async with self._paging:
            while not self.outbox.has_room and self.subscriber.phase is not Phase.CLOSED:
                self._room.clear()
                await self._room.wait()
            yield


def _wall() -> str:
    return wire_time(datetime.now(UTC))
