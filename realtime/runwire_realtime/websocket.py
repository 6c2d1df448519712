"""The websocket: `GET /realtime/v1/socket`, subprotocol `runwire.v1`.

Plain ASGI, so that any server will do; frames go to the socket directly where the server hands it
out. A credential comes in the header, as a subprotocol or in the first
message, never in the URL.
"""

from collections.abc import Sequence
from typing import Final

import anyio
from starlette.websockets import WebSocket, WebSocketDisconnect

from runwire.wire import BEARER_PREFIX, PROTOCOL, CloseCode
from runwire_realtime.api.answer import refusal
from runwire_realtime.asgi_connection import AsgiConnection
from runwire_realtime.errors import RefusedError
from runwire_realtime.frames import Frame
from runwire_realtime.origins import may_use_origin, own_origin
from runwire_realtime.owned_socket import CLOSE_SECONDS, MAX_REASON

_HTTP: Final = {"ws": "http", "wss": "https"}


def is_welcome(websocket: WebSocket, allowed_origins: Sequence[str]) -> bool:
    """Say whether the page that opens a socket may; what is no page has no origin."""
    origin = websocket.headers.get("origin")
    if origin is None:
        return True
    scheme = _HTTP.get(websocket.url.scheme, websocket.url.scheme)
    own = own_origin(scheme, websocket.headers.get("host", ""))
    return may_use_origin(origin, allowed_origins, own=own)


def speaks_protocol(websocket: WebSocket) -> bool:
    """Say whether the client offers our protocol."""
    return PROTOCOL in _offered(websocket)


async def turn_away(websocket: WebSocket, error: RefusedError) -> None:
    """Answer the handshake with a status; accept and close where the server below us cannot."""
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(refusal(error))
    else:
        await refuse(websocket, CloseCode.OVERLOADED, error.message)


async def refuse(websocket: WebSocket, code: int, reason: str) -> None:
    """Accept and close at once: only so a client learns the code."""
    await websocket.accept(subprotocol=PROTOCOL if speaks_protocol(websocket) else None)
    await websocket.close(code, reason)


async def accept(websocket: WebSocket) -> None:
    """Accept a websocket that speaks our protocol."""
    await websocket.accept(subprotocol=PROTOCOL)


async def serve(websocket: WebSocket, connection: AsgiConnection) -> None:
    """Serve one accepted socket to its end."""

    async def receive() -> str | bytes | None:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        text: str | None = message.get("text")
        data: bytes | None = message.get("bytes")
        return text if text is not None else data or b""

    async def send(frame: Frame) -> None:
        try:
            await websocket.send({"type": "websocket.send", "text": frame.text})
        except WebSocketDisconnect:
            raise ConnectionResetError from None

    closing = await connection.serve(receive, send, token=token_of(websocket))
    if closing is None:
        return
    code, reason = closing
    with anyio.move_on_after(CLOSE_SECONDS, shield=True):
        try:
            await websocket.close(code, reason[:MAX_REASON])
        except (WebSocketDisconnect, OSError, RuntimeError):
            return  # the client was faster


def token_of(websocket: WebSocket) -> str | None:
    """Return the credential that came with the request, if one did."""
    scheme, _, credential = websocket.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credential.strip():
        return credential.strip()
    for protocol in _offered(websocket):
        if protocol.startswith(BEARER_PREFIX):
            return protocol.removeprefix(BEARER_PREFIX)
    return None


def _offered(websocket: WebSocket) -> list[str]:
    offered: list[str] = websocket.scope.get("subprotocols", [])
    return offered
