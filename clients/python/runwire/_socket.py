"""The socket under every subscription of a credential: what `_session` decides, carried out.

There is no task behind it. Whoever waits for its next item reads the socket, for everybody; when it
leaves, one of those who still wait reads on. So nothing runs while nobody waits, and nothing is
left behind when the last subscription ends: the socket is closed then.
"""

import random
from collections.abc import AsyncGenerator
from typing import Any, Final, cast

import anyio
import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from runwire._items import Item, Request
from runwire._session import Session, encoded
from runwire._settings import Settings, token_of
from runwire._states import State
from runwire._subscription import Subscription
from runwire.errors import ConfigurationError, RunwireError, api_error
from runwire.wire import (
    MAX_MESSAGE_BYTES,
    MAX_SUBSCRIPTIONS,
    PROTOCOL,
    SOCKET_PATH,
    CloseCode,
    JsonObject,
)

OPEN_TIMEOUT: Final = 10.0  # seconds
CLOSE_TIMEOUT: Final = 1.0
# The longest frame is one message alone; some room for its array and for a newer server.
MAX_FRAME: Final = 2 * MAX_MESSAGE_BYTES
ABNORMAL: Final = 1006  # no close frame came
# A frame may be here already although nobody has read for long: look before calling it silence.
SHORTEST_WAIT: Final = 0.05

_WORD_OF_STATUS: Final = {401: "unauthorized", 403: "forbidden", 404: "not_found"}
_PASSING_STATUS: Final = frozenset({408, 425, 429})


class Socket:
    """Carries any number of subscriptions over one websocket, and over those that replace it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session: Session | None = None
        self._connection: ClientConnection | None = None
        self._reader: Subscription | None = None
        self._waiting: dict[Subscription, anyio.Event] = {}
        self._sending = anyio.Lock()

    async def follow(self, request: Request) -> AsyncGenerator[tuple[Item, Subscription]]:
        """Yield what the server says; end when it is done, raise when it refuses."""
        session, subscription = self._begin(request)
        try:
            while True:
                item = await self._next(session, subscription)
                if item is None:
                    return
                yield item, subscription
        finally:
            with anyio.CancelScope(shield=True):
                await self._leave(session, subscription)

    @property
    def is_full(self) -> bool:
        """Whether the server would refuse another subscription here."""
        session = self._session
        return session is not None and len(session.subscriptions) >= MAX_SUBSCRIPTIONS

    async def aclose(self) -> None:
        """End every subscription with ConfigurationError, and close the socket."""
        if self._session is not None:
            self._session.refuse(ConfigurationError("this client was closed"))
        self._wake()
        await self._hang_up()

    def _begin(self, request: Request) -> tuple[Session, Subscription]:
        session = self._session
        if session is None or session.state is State.CLOSED:
            session = Session(is_refreshable=callable(self._settings.access_token))
            self._session = session
        return session, session.add(request, anyio.current_time())

    async def _leave(self, session: Session, subscription: Subscription) -> None:
        session.remove(subscription)
        if session is not self._session:
            return
        if session.subscriptions:
            await self._flush(session)
            return
        self._session = None
        await self._hang_up()

    async def _next(self, session: Session, subscription: Subscription) -> Item | None:
        try:
            while True:
                item = subscription.take()
                if item is not None:
                    return item
                if subscription.state is State.CLOSED:
                    if subscription.error is not None:
                        raise subscription.error
                    return None
                session.drained(subscription)
                if self._reader in (None, subscription):
                    self._reader = subscription
                    await self._step(session)
                    self._wake()
                else:
                    await self._wait(session, subscription)
        finally:
            if self._reader in (None, subscription):
                self._reader = None
                self._wake_one()

    async def _wait(self, session: Session, subscription: Subscription) -> None:
        event = self._waiting[subscription] = anyio.Event()
        try:
            await self._flush(session)
            with anyio.move_on_after(_until(session.next_tick())):
                await event.wait()
                return
            session.tick(anyio.current_time(), random.random())
        finally:
            del self._waiting[subscription]

    def _wake(self) -> None:
        for subscription, event in self._waiting.items():
            if subscription.has_items or subscription.state is State.CLOSED:
                event.set()

    def _wake_one(self) -> None:
        for event in self._waiting.values():
            event.set()
            return

    async def _step(self, session: Session) -> None:
        """Do the one thing that is due: connect, wait, or read a frame."""
        match session.state:
            case State.CONNECTING:
                await self._open(session)
            case State.WAITING:
                await anyio.sleep(_until(session.next_tick()))
                session.tick(anyio.current_time(), random.random())
            case State.CLOSED:
                await self._hang_up()
            case _:
                await self._read(session)

    async def _open(self, session: Session) -> None:
        session.connecting(anyio.current_time())
        await self._hang_up()
        with anyio.move_on_after(min(OPEN_TIMEOUT, _until(session.next_tick()))):
            try:
                token = await token_of(self._settings.access_token)
                if token is None:
                    raise ConfigurationError(
                        "no credential: set RUNWIRE_API_KEY or RUNWIRE_ACCESS_TOKEN, or pass one"
                    )
                self._connection = await connect(
                    _address(self._settings.api_url),
                    subprotocols=[Subprotocol(PROTOCOL)],
                    compression=None,
                    open_timeout=None,
                    close_timeout=CLOSE_TIMEOUT,
                    ping_interval=None,  # `hb` tells both sides; see SILENCE
                    max_size=MAX_FRAME,
                )
            except InvalidStatus as error:
                self._refused(session, error.response.status_code)
                return
            except InvalidURI:
                session.refuse(ConfigurationError(f"{self._settings.api_url} is no address"))
                return
            except RunwireError as error:
                session.refuse(error)
                return
            except (OSError, InvalidHandshake, ConnectionClosed, EOFError) as error:
                self._lost(session, ABNORMAL, str(error))
                return
            session.opened(token, anyio.current_time())
            return
        self._lost(session, ABNORMAL, "the server did not answer in time")
        session.tick(anyio.current_time(), random.random())

    def _refused(self, session: Session, status: int) -> None:
        if status == 401 and session.reconnect.is_refreshable:
            self._lost(session, CloseCode.INVALID_TOKEN, "the server answered 401")
        elif 400 <= status < 500 and status not in _PASSING_STATUS:
            word = _WORD_OF_STATUS.get(status, "malformed")
            message = f"the server refused the socket with status {status}"
            session.refuse(api_error(status, message, word))
        else:
            self._lost(session, ABNORMAL, f"the server answered {status}")

    async def _read(self, session: Session) -> None:
        connection = self._connection
        if connection is None:
            self._lost(session, ABNORMAL, "the socket is gone")
            return
        if session.wants_token:
            session.authenticate(await token_of(self._settings.access_token))
        await self._flush(session)
        frame: str | bytes | None = None
        with anyio.move_on_after(max(SHORTEST_WAIT, _until(session.next_tick()))):
            try:
                frame = await connection.recv()
            except ConnectionClosed as error:
                code = error.rcvd.code if error.rcvd is not None else ABNORMAL
                self._lost(session, code, error.rcvd.reason if error.rcvd is not None else "")
                return
        now = anyio.current_time()
        if frame is not None and session.receive(_messages(frame), now, random.random()):
            await self._drop(session)
        elif session.tick(now, random.random()):
            await self._drop(session)

    async def _drop(self, session: Session) -> None:
        await self._hang_up()
        self._lost(session, CloseCode.INSUFFICIENT_STATE, "")

    def _lost(self, session: Session, code: int, reason: str) -> None:
        session.lost(code, reason, anyio.current_time(), random.random())

    async def _flush(self, session: Session) -> None:
        connection = self._connection
        if connection is None or session is not self._session:
            return
        async with self._sending:
            while (message := session.outgoing()) is not None:
                try:
                    await connection.send(encoded(message))
                except ConnectionClosed:
                    return  # the reader finds out and says why

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with anyio.CancelScope(shield=True):
                await connection.close()


def _until(time: float | None) -> float:
    return float("inf") if time is None else max(0.0, time - anyio.current_time())


def _address(api_url: str) -> str:
    scheme, separator, rest = api_url.partition("://")
    return f"{scheme.replace('http', 'ws', 1)}{separator}{rest}{SOCKET_PATH}"


def _messages(frame: str | bytes) -> list[JsonObject]:
    """Return the messages of a frame; a frame that is none counts as a broken promise."""
    try:
        messages: Any = orjson.loads(frame)
    except orjson.JSONDecodeError:
        return [{}]
    return cast(list[JsonObject], messages) if isinstance(messages, list) else [{}]
