"""A server on one test's database, for code that calls the API."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import anyio
from pydantic import SecretStr

from runwire_realtime.app import create_app
from runwire_realtime.server import bind, port_of, serve
from runwire_realtime.services import Services
from runwire_realtime.settings import ServerSettings
from runwire_realtime.testing.databases import ENVIRONMENT

# Not a secret of anybody: it signs tokens of a database that lives for one test.
_SECRET: Final = "of a test's own server, long enough"
_HOST: Final = "127.0.0.1"
_DRAIN_SECONDS: Final = 0.2


@asynccontextmanager
async def serving(database_url: str) -> AsyncGenerator[tuple[str, str]]:
    """Serve for the length of a block; yields the address and an API key."""
    settings = ServerSettings(
        database_url=SecretStr(database_url),
        listen_database_url=None,
        secret=SecretStr(_SECRET),
        environment=ENVIRONMENT,
        host=_HOST,
        pool_size=4,
    )
    app = create_app(settings)
    listener = bind(_HOST, 0)
    try:
        async with app.router.lifespan_context(app), anyio.create_task_group() as tasks:
            services: Services = app.state.services
            stop = anyio.Event()
            drain = partial(services.realtime.drain, _DRAIN_SECONDS)
            tasks.start_soon(serve, app, listener, stop, drain)
            key = await services.environments.create_key(services.environment_id, "tests")
            try:
                yield f"http://{_HOST}:{port_of(listener)}", key
            finally:
                stop.set()
    finally:
        listener.close()
