"""One route of the HTTP API and all that is true about it: router and OpenAPI are made of it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import anyio
from pydantic import BaseModel
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from runwire.wire import ErrorCode
from runwire_realtime.api.answer import refusal
from runwire_realtime.api.call import Call
from runwire_realtime.credentials import bearer
from runwire_realtime.errors import ForbiddenError, RefusedError
from runwire_realtime.scope import Grant
from runwire_realtime.services import Services

Handle: TypeAlias = Callable[[Call], Awaitable[Response]]
# grant: an API key or a token. key: an API key only. open: whatever the handler itself asks for.
Credential: TypeAlias = Literal["grant", "key", "open"]

# For operations that need no credential; opens nothing.
_NOBODY = Grant(environment_id=0)


@dataclass(frozen=True)
class Operation:
    """A method on a path: what it takes, what it answers, who may call it."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    # In Starlette's form; names in braces are camelCase, as in the documentation.
    path: str
    name: str
    summary: str
    handle: Handle
    answer: type[BaseModel]
    status: int = 200
    credential: Credential = "grant"
    # Which scopes let a public token through, in words.
    scopes: str = ""
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    body_required: bool = True
    body_type: str = "application/json"
    request_key: bool = False
    # Names of the response headers that carry a token for what was made.
    answer_headers: Sequence[str] = ()
    # Statuses besides 400, 401, 403 and 503 that the operation may answer with.
    errors: Sequence[int] = field(default=())

    async def __call__(self, request: Request) -> Response:
        """Answer a request; every failure becomes an answer here, so that CORS headers reach it."""
        try:
            return await self._answered(request)
        except Exception as error:
            return refusal(error)

    async def _answered(self, request: Request) -> Response:
        services = running(request)
        grant = await self._authorised(request, services)
        # Longer than any wait inside for the database or the body; a caller gets an answer.
        with anyio.move_on_after(60.0):
            return await self.handle(Call(request, services, grant))
        raise RefusedError(ErrorCode.UNAVAILABLE, "the request took too long")

    async def _authorised(self, request: Request, services: Services) -> Grant:
        if self.credential == "open":
            return _NOBODY
        grant = await services.credentials.grant(bearer(request.headers.get("authorization")))
        if self.credential == "key" and not grant.api_key:
            raise ForbiddenError("this needs an API key; a public token does not open it")
        return grant


def running(request: Request) -> Services:
    """Return the services behind a request. Raises RefusedError while there are none."""
    services = services_of(request)
    if services is None:
        raise RefusedError(ErrorCode.UNAVAILABLE, "the server is starting or stopping")
    return services


def services_of(connection: HTTPConnection) -> Services | None:
    """Return the services behind a request or a websocket; None before their start."""
    services: object = getattr(connection.app.state, "services", None)
    return services if isinstance(services, Services) else None
