"""Server-sent events: `POST /realtime/v1/events`, the same messages where websockets do not pass.

The body is a list of `subscribe` messages, the answer their messages, a frame to an event. The
response ends cleanly only once every subscription is over; whatever else happens breaks it off, so
that the client knows to come back.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final

from pydantic import BaseModel, TypeAdapter
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from runwire.values import decode
from runwire.wire import ErrorCode, Json, Subscribe
from runwire_realtime.asgi_connection import AsgiConnection
from runwire_realtime.errors import RefusedError
from runwire_realtime.event_positions import positions_id, resumed
from runwire_realtime.frames import Frame
from runwire_realtime.limits import HubLimits

_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # A proxy that buffers would hold back what is live.
    (b"x-accel-buffering", b"no"),
)


class _Body(BaseModel):
    subscribe: list[Subscribe]


_LIST: Final = TypeAdapter(list[Subscribe])


async def read_requests(request: Request, limits: HubLimits) -> list[Subscribe]:
    """Return the subscriptions a request asks for. Raises RefusedError, InvalidValueError and
    pydantic's ValidationError for a body that asks for none.
    """
    text = b""
    async for part in request.stream():
        text += part
        if len(text) > limits.events_body_bytes:
            raise RefusedError(ErrorCode.TOO_LARGE, "the body is too large")
    body: Json = decode(text, what="body")
    is_list = isinstance(body, list)
    asked = _LIST.validate_python(body) if is_list else _Body.model_validate(body).subscribe
    if not 1 <= len(asked) <= limits.subscriptions:
        most = limits.subscriptions
        raise RefusedError(ErrorCode.MALFORMED, f"ask for one to {most} subscriptions")
    if len({each.sub for each in asked}) != len(asked):
        raise RefusedError(ErrorCode.CONFLICT, "two subscriptions have the same name")
    return resumed(asked, request.headers.get("last-event-id"))


class EventStream:
    """The response: an ASGI application that serves one connection."""

    def __init__(
        self,
        connecting: Callable[[], AbstractContextManager[AsgiConnection]],
        token: str,
        asked: Sequence[Subscribe],
    ) -> None:
        self._connecting = connecting
        self._token = token
        self._asked = asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._connecting() as connection:
            await self._serve(connection, receive, send)

    async def _serve(self, connection: AsgiConnection, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        async def send_event(frame: Frame) -> None:
            body = _event(connection, frame)
            await send({"type": "http.response.body", "body": body, "more_body": True})

        closing = await connection.serve(
            gone, send_event, token=self._token, subscribe=self._asked, ends_when_done=True
        )
        if closing is not None and connection.outbox.closing is None:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(connection: AsgiConnection, frame: Frame) -> bytes:
    follower = connection.subscriber.follower
    id = b"" if follower is None else b"id: " + positions_id(follower) + b"\n"
    return b"".join((id, b"data: ", frame.data, b"\n\n"))
