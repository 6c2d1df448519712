"""One connection, whatever carries it: what its outbox has goes out as frames.

A socket that is slow waits for itself alone. How frames leave is one of two: `direct_connection`
hands them to the socket at once, `asgi_connection` waits for the server that sends them.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final, TypeAlias

from runwire.wire import CloseCode, ErrorCode
from runwire_engine.errors import EngineError
from runwire_realtime.errors import RefusedError
from runwire_realtime.feed_loading import FeedLoading
from runwire_realtime.feed_members import FeedMembers
from runwire_realtime.frames import Frames
from runwire_realtime.hub import Hub
from runwire_realtime.outbox import Outbox
from runwire_realtime.run_view import wire_time
from runwire_realtime.scope import Grant
from runwire_realtime.subscriber import Phase, Subscriber

Authenticate: TypeAlias = Callable[[str], Awaitable[Grant]]
# What the client sent next; None: it is gone.
Receive: TypeAlias = Callable[[], Awaitable[str | bytes | None]]
Closing: TypeAlias = tuple[int, str]

# Seconds between two ticks.
TICK: Final = 0.25


class Connection(ABC):
    """Drives one subscriber."""

    # Many of them: no dict beside it, where a carrier needs none.
    __slots__ = (
        "_authenticate",
        "_due_at",
        "_frames",
        "_limits",
        "_loading",
        "_paging",
        "_room",
        "outbox",
        "subscriber",
    )

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
        self._limits = hub.limits
        self._frames = frames
        self._loading = loading
        self._authenticate = authenticate
        # Made when a feed is followed.
        self._room: asyncio.Event | None = None
        self._paging: asyncio.Lock | None = None

    @property
    def subscriptions(self) -> int:
        follower = self.subscriber.follower
        return 0 if follower is None else len(follower.subscriptions)

    @abstractmethod
    def wake(self) -> None:
        """Look whether something is to be written."""

    @abstractmethod
    def cut_off(self, code: int, reason: str) -> None:
        """Close it now, whatever it is doing."""

    def fail(self) -> None:
        """Cut it off after a fault of ours: its client resumes."""
        self.cut_off(CloseCode.INSUFFICIENT_STATE, "the server lost its place")

    @abstractmethod
    def tick(self, now: float) -> None:
        """Look when something is due, and end what has been stuck for too long."""

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

    def _wrote(self, now: float) -> None:
        self.subscriber.wrote(now)
        if self._room is not None and self.outbox.has_room:
            self._room.set()

    def _closed(self) -> None:
        self.subscriber.close()
        if self._room is not None:
            self._room.set()

    def _next_frame(self, now: float) -> list[bytes]:
        """Return what there is to say, and then what the time has come for.

        Also where there is always something to say.
        """
        messages = self.outbox.frame()
        if now < self._due_at and not self.subscriber.is_restless:
            return messages
        if messages:
            self.subscriber.wrote(now)  # it is no silence that a heartbeat would have to break
        self.subscriber.tick(now, _wall)
        self._due_at = self.subscriber.next_tick()
        return self.outbox.frame(messages)

    def _load(self, feed: FeedMembers) -> None:
        self._loading.begin(feed, self._page_turn)

    @asynccontextmanager
    async def _page_turn(self) -> AsyncGenerator[None]:
        """Wait for room for a page. One at a time: many feeds would all see the same room."""
        self._room = self._room or asyncio.Event()
        self._paging = self._paging or asyncio.Lock()
        async with self._paging:
            while not self.outbox.has_room and self.subscriber.phase is not Phase.CLOSED:
                self._room.clear()
                await self._room.wait()
            yield


def _wall() -> str:
    return wire_time(datetime.now(UTC))
