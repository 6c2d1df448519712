"""The connection under every subscription of a credential: what `_session` decides, carried out.

There is no task behind it. Whoever waits for its next item reads the link, for everybody; when it
leaves, one of those who still wait reads on. So nothing runs while nobody waits, and nothing is
left behind when the last subscription ends: the link is closed then. Only what must not be canceled
with a reader has a task, which ends with the link at the latest: a fresh token being fetched, and
the response that an event link reads.
"""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Final

import anyio
import httpx

from runwire._connection import TOKEN_TIMEOUT, Act, Carrier, Phase
from runwire._event_link import EventLink
from runwire._http import Http
from runwire._items import Item, Request
from runwire._link import ABNORMAL, Link, LostError
from runwire._session import Session
from runwire._settings import Settings, token_of
from runwire._states import State
from runwire._subscription import Subscription
from runwire._websocket import open_websocket
from runwire.errors import ApiError, ConfigurationError, RunwireError, UnreachableError
from runwire.wire import MAX_SUBSCRIPTIONS, CloseCode, JsonObject

# A frame may be here already although nobody has read for long: look before calling it silence.
SHORTEST_WAIT: Final = 0.05
SEND_TIMEOUT: Final = 10.0
# Who wakes so much later than asked for was asleep, with the whole process.
SLEPT: Final = 5.0


class Socket:
    """Carries any number of subscriptions over one link, and over those that replace it."""

    def __init__(self, settings: Settings, http: Http) -> None:
        self._settings = settings
        self._http = http
        self._session = Session(is_refreshable=callable(settings.access_token))
        self._link: Link | None = None
        self._reader: Subscription | None = None
        # What the reader is at, whatever it is; and only while it waits for something to happen.
        self._stepping = anyio.CancelScope()
        self._resting = anyio.CancelScope()
        self._waiting: dict[Subscription, anyio.Event] = {}
        self._sending = anyio.Lock()
        self._refreshing: asyncio.Task[None] | None = None

    async def follow(self, request: Request) -> AsyncGenerator[tuple[Item, Subscription]]:
        """Yield what the server says; end when it is done, raise when it refuses."""
        subscription = self._session.add(request, anyio.current_time())
        self._interrupt()
        try:
            while True:
                item = await self._next(subscription)
                if item is None:
                    return
                yield item, subscription
        finally:
            with anyio.CancelScope(shield=True):
                await self._leave(subscription)

    @property
    def is_full(self) -> bool:
        """Whether the server would refuse another subscription here."""
        return len(self._session.subscriptions) >= MAX_SUBSCRIPTIONS

    async def aclose(self) -> None:
        """End every subscription with ConfigurationError, and close the link."""
        self._session.close(ConfigurationError("this client was closed"), anyio.current_time())
        self._stepping.cancel()
        self._wake()
        with anyio.CancelScope(shield=True):
            await self._hang_up()

    async def _leave(self, subscription: Subscription) -> None:
        self._session.remove(subscription, anyio.current_time())
        if self._session.subscriptions:
            await self._flush()
        else:
            await self._hang_up()

    async def _next(self, subscription: Subscription) -> Item | None:
        try:
            while True:
                item = subscription.take()
                if item is not None:
                    return item
                if subscription.state is State.CLOSED:
                    if subscription.error is not None:
                        raise subscription.error
                    return None
                self._session.drained(subscription, anyio.current_time())
                if self._reader in (None, subscription):
                    self._reader = subscription
                    with anyio.CancelScope() as self._stepping:
                        await self._step()
                    self._wake()
                else:
                    await self._wait(subscription)
        finally:
            if self._reader in (None, subscription):
                self._reader = None
                self._wake_one()

    async def _wait(self, subscription: Subscription) -> None:
        event = self._waiting[subscription] = anyio.Event()
        try:
            self._interrupt()
            await self._flush()
            with anyio.move_on_after(_until(subscription.gives_up_at)):
                await event.wait()
                return
            # After a sleep it is the reader who knows, and who comes first.
            await anyio.sleep(SHORTEST_WAIT)
            self._session.expire(subscription, anyio.current_time())
        finally:
            del self._waiting[subscription]

    def _interrupt(self) -> None:
        """Have the reader look at what is to be done, or at a new time to be kept."""
        self._resting.cancel()

    def _wake(self) -> None:
        for subscription, event in self._waiting.items():
            if subscription.has_items or subscription.state is State.CLOSED:
                event.set()

    def _wake_one(self) -> None:
        for event in self._waiting.values():
            event.set()
            return

    async def _step(self) -> None:
        """Do the one thing that is due, or read a frame."""
        match self._session.order:
            case Act.HANG_UP:
                await self._hang_up()
            case Act.FETCH_TOKEN if self._session.connection.phase is Phase.TOKEN:
                with anyio.move_on_after(self._left()):
                    await self._fetch_token()
                self._tick()
            case Act.FETCH_TOKEN:
                self._session.did(Act.FETCH_TOKEN)
                self._refreshing = asyncio.create_task(self._refresh())
            case Act.OPEN:
                with anyio.move_on_after(self._left()):
                    await self._open()
                self._tick()
            case _:
                await self._read()

    async def _fetch_token(self) -> None:
        try:
            token = await token_of(self._settings.access_token)
        except Exception as error:
            failure, is_final = _trouble_of(error)
            now = anyio.current_time()
            self._session.token_failed(failure, is_final=is_final, now=now, random=random.random())
        else:
            self._session.token(token, anyio.current_time())

    async def _refresh(self) -> None:
        """Get a fresh token while the link goes on. Without one, the server ends it in time."""
        with anyio.move_on_after(TOKEN_TIMEOUT):
            await self._fetch_token()
        self._interrupt()
        await self._flush()

    async def _open(self) -> None:
        session = self._session
        try:
            if session.connection.carrier is Carrier.SOCKET:
                self._link = await open_websocket(self._settings.api_url)
            else:
                self._link = EventLink(self._http)
        except LostError as error:
            self._lost(error)
        except RunwireError as error:
            session.refuse(error, anyio.current_time())
        else:
            session.opened(anyio.current_time())
            await self._flush()

    async def _read(self) -> None:
        await self._flush()
        if self._session.order is not None:
            return
        frame: list[JsonObject] | None = None
        with anyio.CancelScope() as self._resting:
            try:
                frame = await self._frame(max(SHORTEST_WAIT, self._left()))
                if frame is None:
                    frame = await self._frame(SHORTEST_WAIT)
            except LostError as error:
                self._lost(error)
                return
        if frame is None:
            self._tick()
        elif self._session.receive(frame, anyio.current_time(), random.random()):
            self._lost(LostError(CloseCode.INSUFFICIENT_STATE, ""))

    async def _frame(self, seconds: float) -> list[JsonObject] | None:
        """Return the next frame, or None when none comes in time."""
        with anyio.move_on_after(seconds):
            if self._link is not None:
                return await self._link.receive()
            await anyio.sleep_forever()
        return None

    def _left(self) -> float:
        """Return the seconds until something is due."""
        return _until(self._session.next_tick())

    def _tick(self) -> None:
        now, due = anyio.current_time(), self._session.next_tick()
        if due is not None and now >= due:
            late = now - due
            self._session.tick(now, random.random(), slept=late if late >= SLEPT else 0.0)

    def _lost(self, error: LostError) -> None:
        now = anyio.current_time()
        self._session.lost(error.code, error.reason, now, random.random())

    async def _flush(self) -> None:
        async with self._sending:
            if self._link is None:
                return
            # Half of what is to be sent would be a subscription that never begins.
            with anyio.move_on_after(SEND_TIMEOUT, shield=True) as sending:
                await self._link.send(self._session.outgoing())
            if sending.cancelled_caught:
                self._lost(LostError(ABNORMAL, "the server takes nothing"))

    async def _hang_up(self) -> None:
        self._session.did(Act.HANG_UP)
        link, self._link = self._link, None
        refreshing, self._refreshing = self._refreshing, None
        if refreshing is not None:
            refreshing.cancel()
            with suppress(asyncio.CancelledError):
                await refreshing
        if link is not None:
            with anyio.CancelScope(shield=True):
                await link.close()


def _until(time: float | None) -> float:
    return float("inf") if time is None else max(0.0, time - anyio.current_time())


def _trouble_of(error: Exception) -> tuple[RunwireError, bool]:
    """Return why there is no token, and whether asking again cannot help.

    What the network is to blame for passes. Anything else the application must be told at once.
    """
    passes = isinstance(error, (OSError, httpx.TransportError, UnreachableError))
    if isinstance(error, ApiError):
        passes = error.status >= 500 or error.status == 429
    if isinstance(error, RunwireError):
        return error, not passes
    trouble = ConfigurationError(
        f"the access token callable failed: {type(error).__name__}: {error}"
    )
    trouble.__cause__ = error
    return trouble, not passes
