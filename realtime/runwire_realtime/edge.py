"""The outermost layer: which hosts and pages are answered, and the headers every answer carries.

CORS never allows credentials of the browser: what opens anything is a header that a page must hold.
It is applied here, outside of everything that can fail, because a browser shows a page nothing of
an answer, not even its status, that lacks these headers.
"""

import logging
import re
from collections.abc import Sequence
from typing import Final

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runwire.wire import ErrorCode
from runwire_realtime.api.answer import refusal
from runwire_realtime.errors import RefusedError
from runwire_realtime.origins import ANY, may_use_host, may_use_origin, own_origin

logger = logging.getLogger("runwire.edge")

_EXPOSED: Final = ", ".join(
    (
        "x-trigger-jwt",
        "x-trigger-jwt-claims",
        "x-should-retry",
        "retry-after",
        "x-stream-version",
        "x-session-settled",
        "electric-offset",
        "electric-handle",
        "electric-schema",
        "electric-cursor",
        "electric-up-to-date",
    )
)
_METHODS: Final = "GET, HEAD, POST, PUT"
_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]{1,64}(?:\s{0,4},\s{0,4}[A-Za-z0-9-]{1,64}){0,63}")
_LINGER_SECONDS: Final = 2.0
# What comes with the head of a request, or right behind it.
_SMALL_BODY: Final = 64 * 1024
_PREFLIGHT_SECONDS: Final = "7200"  # the most that Chromium keeps


class Edge:
    """Wraps the application."""

    def __init__(
        self, app: ASGIApp, *, allowed_hosts: Sequence[str], allowed_origins: Sequence[str]
    ) -> None:
        self._app = app
        self._hosts = allowed_hosts
        self._origins = allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not may_use_host(headers.get("host", ""), self._hosts):
            await _refuse_host(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._app(scope, receive, send)
        else:
            await self._http(scope, receive, send, headers)

    async def _http(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        exchange = _Exchange(receive, send, self._cors(scope, headers), _has_large_body(headers))
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _preflight(headers)(scope, exchange.receive, exchange.send)
            return
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            # With the answer begun nothing can be said any more but by breaking it off.
            if exchange.is_answered:
                logger.error("an answer broke off", exc_info=error)
                raise ConnectionAbortedError from None
            await refusal(error)(scope, exchange.receive, exchange.send)

    def _cors(self, scope: Scope, headers: Headers) -> dict[str, str]:
        added = {"x-content-type-options": "nosniff"}
        origin = headers.get("origin")
        if ANY in self._origins:
            added["access-control-allow-origin"] = ANY
            added["access-control-expose-headers"] = _EXPOSED
        elif origin is not None:
            added["vary"] = "Origin"
            own = own_origin(scope["scheme"], headers.get("host", ""))
            if may_use_origin(origin, self._origins, own=own):
                added["access-control-allow-origin"] = origin
                added["access-control-expose-headers"] = _EXPOSED
        return added


class _Exchange:
    """One request and its answer, with the headers that every answer carries.

    A request that is refused before its body was read is answered, then read on for a moment and
    dropped: closing at once would cost the sender the answer, reading on for ever would cost us.
    """

    def __init__(
        self, receive: Receive, send: Send, headers: dict[str, str], is_unread: bool
    ) -> None:
        self.is_answered = False
        self._receive = receive
        self._send = send
        self._headers = headers
        self._is_unread = is_unread

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._is_unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_answered = True
            closing = {"connection": "close"} if self._is_unread else {}
            _add(MutableHeaders(scope=message), {**self._headers, **closing})
        elif self._is_unread and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _linger(self) -> None:
        with anyio.move_on_after(_LINGER_SECONDS):
            while self._is_unread:
                await self.receive()


def _has_large_body(headers: Headers) -> bool:
    """Say whether a body may come that did not come with the head of the request."""
    length = headers.get("content-length", "")
    if not length:
        return "transfer-encoding" in headers
    return not (length.isascii() and length.isdigit() and int(length[:18]) <= _SMALL_BODY)


def _add(headers: MutableHeaders, added: dict[str, str]) -> None:
    for name, value in added.items():
        headers[name] = value


def _preflight(headers: Headers) -> Response:
    wanted = headers.get("access-control-request-headers", "")
    answered = {
        "access-control-allow-methods": _METHODS,
        "access-control-max-age": _PREFLIGHT_SECONDS,
    }
    if _HEADER_NAMES.fullmatch(wanted):
        answered["access-control-allow-headers"] = wanted
    return Response(status_code=204, headers=answered)


async def _refuse_host(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    error = RefusedError(ErrorCode.MALFORMED, "the server does not answer to this Host")
    await refusal(error)(scope, receive, send)
