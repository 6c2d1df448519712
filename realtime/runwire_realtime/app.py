"""Composes the server: settings in, an ASGI application with its running parts out.

Nothing else builds the parts of a server process. `open_services` is the order in which they start
and, backwards, stop; `create_app` puts routes in front of them.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from runwire.wire import EVENTS_PATH, SOCKET_PATH, ErrorCode
from runwire_engine.engine import open_engine
from runwire_engine.environments import Environments
from runwire_engine.settings import EngineSettings
from runwire_realtime.api import (
    batches,
    health,
    idempotency_keys,
    inputs,
    metadata,
    queues,
    runs,
    schedules,
    session,
    streams,
    tags,
    tasks,
    timeline,
    tokens,
    triggers,
    waitpoints,
)
from runwire_realtime.api.answer import answer, refusal
from runwire_realtime.api.operation import Operation, running, services_of
from runwire_realtime.credentials import Credentials
from runwire_realtime.edge import Edge
from runwire_realtime.errors import RefusedError
from runwire_realtime.openapi import describe
from runwire_realtime.pages import dashboard
from runwire_realtime.realtime import Realtime
from runwire_realtime.schema import require_schema
from runwire_realtime.services import Services
from runwire_realtime.settings import ServerSettings
from runwire_realtime.sign_in import SignIn
from runwire_realtime.tokens import Tokens
from runwire_realtime.websocket import turn_away

OPERATIONS: Final[tuple[Operation, ...]] = (
    *health.OPERATIONS,
    *triggers.OPERATIONS,
    *runs.OPERATIONS,
    *timeline.OPERATIONS,
    *batches.OPERATIONS,
    *idempotency_keys.OPERATIONS,
    *metadata.OPERATIONS,
    *tags.OPERATIONS,
    # Before appends, whose keys may hold slashes: `input` is no target.
    *inputs.OPERATIONS,
    *streams.OPERATIONS,
    *tasks.OPERATIONS,
    *schedules.OPERATIONS,
    *queues.OPERATIONS,
    *waitpoints.OPERATIONS,
    *tokens.OPERATIONS,
    *session.OPERATIONS,
)

_AREAS: Final = ("api", "realtime")
_METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


def create_app(settings: ServerSettings) -> Starlette:
    """Return the server as an ASGI application; its lifespan starts and stops the parts."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        async with open_services(settings) as services:
            app.state.services = services
            try:
                yield
            finally:
                app.state.services = None

    return Starlette(
        routes=[*_api_routes(OPERATIONS), *_realtime_routes(), *_page_routes()],
        middleware=[
            Middleware(
                Edge,
                allowed_hosts=settings.hosts(),
                allowed_origins=settings.allowed_origins,
            )
        ],
        exception_handlers={HTTPException: _refused},
        lifespan=lifespan,
    )


@asynccontextmanager
async def open_services(settings: ServerSettings) -> AsyncGenerator[Services]:
    """Start the parts of a server, and stop them in reverse order."""
    previous = settings.previous_secret
    master = Tokens(
        settings.secret.get_secret_value(), previous.get_secret_value() if previous else None
    )
    await require_schema(settings.database_url.get_secret_value())
    async with open_engine(_engine_settings(settings), ticking=True) as engine:
        environments = Environments(engine.database)
        credentials = Credentials(master, environments.verify_key)
        environment_id = await environments.ensure(settings.environment)
        async with Realtime(
            engine,
            credentials.grant,
            allowed_origins=settings.allowed_origins,
            limits=settings.limits(),
        ) as realtime:
            yield Services(
                settings=settings,
                engine=engine,
                environments=environments,
                realtime=realtime,
                tokens=master,
                credentials=credentials,
                sign_in=SignIn(),
                environment_id=environment_id,
            )


def _engine_settings(settings: ServerSettings) -> EngineSettings:
    listen = settings.listen_database_url
    return EngineSettings(
        database_url=settings.database_url.get_secret_value(),
        listen_database_url=listen.get_secret_value() if listen else "",
        environment=settings.environment,
        pool_size=settings.pool_size,
    )


def _api_routes(operations: Sequence[Operation]) -> list[BaseRoute]:
    """Return one route per path: so that a wrong method is told all the right ones."""
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    return [_api_route(path, methods) for path, methods in by_path.items()]


def _api_route(path: str, methods: dict[str, Operation]) -> Route:
    allowed = sorted({*methods, *({"HEAD"} if "GET" in methods else ())})

    async def endpoint(request: Request) -> Response:
        operation = methods.get("GET" if request.method == "HEAD" else request.method)
        headers = {"allow": ", ".join(allowed)}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        if operation is None:
            return refusal(HTTPException(405, f"use {' or '.join(allowed)} here", headers))
        return await operation(request)

    return Route(path, endpoint, methods=_METHODS, name=next(iter(methods.values())).name)


def _realtime_routes() -> list[BaseRoute]:
    async def socket(websocket: WebSocket) -> None:
        services = services_of(websocket)
        if services is None:
            error = RefusedError(ErrorCode.UNAVAILABLE, "the server is not running")
            await turn_away(websocket, error)
            return
        await services.realtime.websocket_endpoint(websocket)

    async def events(request: Request) -> ASGIApp:
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"allow": "POST"})
        try:
            if request.method != "POST":
                raise HTTPException(405, "use POST here", {"allow": "POST"})
            return await running(request).realtime.events_endpoint(request)
        except Exception as error:
            return refusal(error)

    return [
        WebSocketRoute(SOCKET_PATH, socket, name="socket"),
        Route(EVENTS_PATH, events, methods=_METHODS, name="events"),
    ]


def _page_routes() -> list[BaseRoute]:
    description = describe(OPERATIONS)

    async def openapi(request: Request) -> Response:
        return answer(description, headers={"cache-control": "no-cache"})

    return [
        Route("/openapi.json", openapi, name="openapi"),
        # Before the pages: a wrong path of the API is a 404 in JSON, whatever its method.
        *(Route(f"/{area}/{{path:path}}", _nothing, methods=_METHODS) for area in _AREAS),
        Route("/", dashboard, name="dashboard"),
        Route("/{path:path}", dashboard, name="page"),
    ]


async def _nothing(request: Request) -> Response:
    raise HTTPException(404, "there is nothing by that path")


async def _refused(request: Request, error: Exception) -> Response:
    return refusal(error)
