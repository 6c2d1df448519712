"""A real server for tests: the composed application on a real port, and clients for it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import anyio
import httpx
from pydantic import SecretStr

from runwire_engine.catalogue import TaskAnnouncement
from runwire_realtime.app import create_app
from runwire_realtime.server import bind, port_of, serve
from runwire_realtime.services import Services
from runwire_realtime.settings import ServerSettings

_numbers = count(1)
SECRET = "a secret of the tests, forty bytes long.."


@dataclass(frozen=True)
class TestRealtime:
    """A server that answers at `url`; `key` opens everything in its environment."""

    __test__ = False  # not a test class, whatever its name says

    url: str
    key: str
    environment_id: int
    services: Services

    def client(self, credential: str | None = None, **options: Any) -> httpx.AsyncClient:
        """Return a client that carries the API key, or another credential."""
        headers = {"authorization": f"Bearer {self.key if credential is None else credential}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60, **options)

    async def tenant(self, *tasks: str) -> "TestRealtime":
        """Return the same server as a new environment sees it, which knows these tasks."""
        environments, catalogue = self.services.environments, self.services.engine.catalogue
        environment_id = await environments.ensure(f"tenant-{next(_numbers)}")
        known = [TaskAnnouncement(id=task, queue=f"task/{task}") for task in tasks]
        await catalogue.announce(environment_id, known)
        key = await environments.create_key(environment_id)
        return replace(self, key=key, environment_id=environment_id)

    async def token(self, *scopes: str, **options: Any) -> str:
        """Mint a public token over HTTP."""
        async with self.client() as http:
            body = {"scopes": list(scopes), **options}
            answer = await http.post("/api/v1/auth/public-tokens", json=body)
            assert answer.status_code == 200, answer.text
            return str(answer.json()["token"])


def server_settings(dsn: str, **changes: Any) -> ServerSettings:
    """Return settings for a server of a test's own."""
    given: dict[str, Any] = {
        "database_url": SecretStr(dsn),
        "secret": SecretStr(SECRET),
        "port": 0,
        "pool_size": 4,
    }
    return ServerSettings(**{**given, **changes})


@asynccontextmanager
async def running_realtime(dsn: str, **changes: Any) -> AsyncGenerator[TestRealtime]:
    """Run a server on a free port for the length of a block."""
    settings = server_settings(dsn, **changes)
    app = create_app(settings)
    listener = bind("127.0.0.1", settings.port)
    try:
        async with app.router.lifespan_context(app), anyio.create_task_group() as tasks:
            services: Services = app.state.services
            stop = anyio.Event()
            tasks.start_soon(serve, app, listener, stop, services.realtime.drain)
            environment_id = services.environment_id
            key = await services.environments.create_key(environment_id, "tests")
            try:
                url = f"http://127.0.0.1:{port_of(listener)}"
                yield TestRealtime(url, key, environment_id, services)
            finally:
                stop.set()
    finally:
        listener.close()
