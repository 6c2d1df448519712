"""Runwire inside another ASGI application: `app.mount("/runwire", runwire_app())`.

Starlette and FastAPI do not run the lifespan of what is mounted. So the parts start with the first
request, in a task of their own, and stop when the event loop does. To start with the application,
so that readiness means something and schedules run from the beginning, enter `lifespan` in its own:

    runwire = runwire_app()

    @asynccontextmanager
    async def lifespan(app):
        async with runwire.lifespan():
            yield

    app = FastAPI(lifespan=lifespan)
    app.mount("/runwire", runwire)

Run by itself (`uvicorn module:runwire`) it takes the server's lifespan messages as any app does.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.types import Receive, Scope, Send

from runwire_realtime.app import create_app
from runwire_realtime.origins import ANY
from runwire_realtime.settings import ServerSettings, read_settings

logger = logging.getLogger("runwire.mounted")


class MountedApp:
    """An ASGI application that starts its parts itself."""

    def __init__(self, settings: ServerSettings) -> None:
        self._app = create_app(settings)
        # Keeps the parts open; set by the first use, unless `lifespan` or the server was first.
        self._holder: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] | None = None

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Run the parts for the length of a block: enter it in the application's own lifespan."""
        async with self._app.router.lifespan_context(self._app):
            yield

    async def aclose(self) -> None:
        """Stop parts that a first request started; for a parent that ends before its loop does."""
        if self._holder is not None:
            self._holder.cancel()
            await asyncio.wait([self._holder])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and not self.is_running:
            await self._start()
        await self._app(scope, receive, send)

    @property
    def is_running(self) -> bool:
        """Whether the parts are up."""
        return getattr(self._app.state, "services", None) is not None

    async def _start(self) -> None:
        """Start once, however many first requests come together; a failed start is tried again."""
        if self._started is None or (self._started.done() and not self.is_running):
            self._started = asyncio.get_running_loop().create_future()
            # The one task nobody's group owns: the parent gives us no place to put it. The loop
            # cancels it when it closes, and so the parts are stopped in order.
            self._holder = asyncio.create_task(self._hold(self._started))
        try:
            await asyncio.shield(self._started)
        except Exception as error:
            # The app answers 503 by itself; the next request tries to start again.
            logger.error("Runwire did not start: %s", error)

    async def _hold(self, started: asyncio.Future[None]) -> None:
        try:
            async with self.lifespan():
                started.set_result(None)
                await asyncio.Event().wait()
        except Exception as error:
            if not started.done():
                started.set_exception(error)


def runwire_app(settings: ServerSettings | None = None) -> MountedApp:
    """Return Runwire as an ASGI application to mount; settings come from RUNWIRE_* variables.

    Which Host names are answered is the parent application's affair unless settings say otherwise.
    """
    if settings is None:
        settings = read_settings()
    if not settings.allowed_hosts:
        settings = settings.model_copy(update={"allowed_hosts": (ANY,)})
    return MountedApp(settings)
