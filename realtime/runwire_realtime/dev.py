"""`runwire dev`: Postgres, server and worker of one folder, started and stopped together."""

import os
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

import anyio
from pydantic import SecretStr
from starlette.applications import Starlette

from runwire.values import decode
from runwire_engine.catalogue import TaskRow
from runwire_engine.embedded import EmbeddedPostgres
from runwire_engine.migrations import migrate
from runwire_realtime.app import create_app
from runwire_realtime.data_folder import DataFolder
from runwire_realtime.origins import LOOPBACK
from runwire_realtime.sample_payload import sample_payload
from runwire_realtime.server import bind, port_of, serve
from runwire_realtime.services import Services
from runwire_realtime.settings import ServerSettings
from runwire_realtime.watch import Watch, folders_of
from runwire_realtime.worker_process import WorkerProcess

ENVIRONMENT: Final = "dev"
# Everything is to stop within five seconds.
_DRAIN_SECONDS: Final = 1.0
_GRACE: Final = "1"
# A worker writes all its tasks down in one statement; the one before it ended longer ago.
_ANNOUNCED_TOGETHER: Final = timedelta(seconds=1)
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True)
class DevOptions:
    """What the command line says."""

    modules: Sequence[str]
    host: str
    port: int
    folder: Path
    # An external Postgres instead of the embedded one.
    database_url: str | None = None
    # A fixed API key instead of a kept one.
    api_key: str | None = None
    secret: str | None = None
    reload: bool = True


@dataclass(frozen=True)
class Example:
    """A task with a payload that fits it, as JSON; None where it takes none."""

    task: str
    payload: str | None


@dataclass(frozen=True)
class Running:
    """What is up, for the person at the terminal."""

    address: str
    sign_in_link: str
    api_key: str
    database_url: str
    # One of the tasks, to be tried.
    example: Example | None


async def run_dev(
    options: DevOptions, say: Callable[[str], None], show: Callable[[Running], None]
) -> None:
    """Run everything until SIGINT or SIGTERM. Raises StartError or EngineError, one line each."""
    folder = DataFolder(options.folder)
    folder.make()
    # Before anything slow: a port in use is told at once.
    listener = bind(options.host, options.port)
    try:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with anyio.create_task_group() as tasks:

                async def stop_on_signal() -> None:
                    async for _ in signals:
                        tasks.cancel_scope.cancel()
                        return

                tasks.start_soon(stop_on_signal)
                async with _postgres(options, folder) as dsn:
                    await _run_on(dsn, options, folder, listener, say, show)
    finally:
        listener.close()


@asynccontextmanager
async def _postgres(options: DevOptions, folder: DataFolder) -> AsyncGenerator[str]:
    """Provide a migrated database: the one given, or the folder's, brought back when it dies."""
    if options.database_url is not None:
        await migrate(options.database_url)
        yield options.database_url
        return
    postgres = EmbeddedPostgres(folder.path)
    await postgres.start()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(postgres.supervise)
            await migrate(postgres.dsn)
            yield postgres.dsn
            tasks.cancel_scope.cancel()
    finally:
        await postgres.stop()


async def _run_on(
    dsn: str,
    options: DevOptions,
    folder: DataFolder,
    listener: socket.socket,
    say: Callable[[str], None],
    show: Callable[[Running], None],
) -> None:
    settings = _settings(dsn, options, folder)
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        services: Services = app.state.services
        api_key = options.api_key or folder.api_key()
        await services.environments.ensure_key(services.environment_id, api_key, "dev")
        address = _address(options.host, port_of(listener))
        worker = WorkerProcess(
            options.modules,
            _environment(dsn, address, api_key, settings),
            Watch(folders_of(options.modules) if options.reload else []),
            say,
        )
        async with anyio.create_task_group() as tasks:
            stop = anyio.Event()
            drain = partial(services.realtime.drain, _DRAIN_SECONDS)
            tasks.start_soon(_serve_until, stop, app, listener, drain, settings)
            tasks.start_soon(_set_when_cancelled, stop)
            if options.modules:
                await tasks.start(worker.run)
            link = f"{address}/#sign-in={services.sign_in.issue()}"
            known = await services.engine.catalogue.list(services.environment_id)
            show(Running(address, link, api_key, dsn, _example(known if options.modules else [])))
            await anyio.sleep_forever()


async def _serve_until(
    stop: anyio.Event,
    app: Starlette,
    listener: socket.socket,
    drain: Callable[[], Awaitable[None]],
    settings: ServerSettings,
) -> None:
    # It ends by `stop`, within a bound of its own; being cancelled would cut answers off.
    with anyio.CancelScope(shield=True):
        await serve(
            app,
            listener,
            stop,
            drain,
            ping_interval=settings.ping_interval,
            ping_timeout=settings.ping_timeout,
        )


async def _set_when_cancelled(stop: anyio.Event) -> None:
    """Set `stop` the moment everything is to end, so that server and worker stop side by side."""
    try:
        await anyio.sleep_forever()
    finally:
        stop.set()


def _example(known: Sequence[TaskRow]) -> Example | None:
    """Return the first of the tasks announced last: those that run here, not those of last week."""
    if not known:
        return None
    since = max(task.updated_at for task in known) - _ANNOUNCED_TOGETHER
    task = next(task for task in known if task.updated_at >= since)
    schema = task.payload_schema
    return Example(task.id, None if schema is None else sample_payload(decode(schema)))


def _settings(dsn: str, options: DevOptions, folder: DataFolder) -> ServerSettings:
    given = ServerSettings(
        database_url=SecretStr(dsn),
        secret=SecretStr(options.secret or folder.secret()),
        environment=ENVIRONMENT,
        host=options.host,
        port=options.port,
    )
    if options.database_url is None:
        # What the shell says is meant for another database.
        given = given.model_copy(update={"listen_database_url": None})
    if given.allowed_origins or options.host not in _LOOPBACK:
        return given
    # A front end under development is served by another port of this machine.
    return given.model_copy(update={"allowed_origins": (LOOPBACK,)})


def _environment(
    dsn: str, address: str, api_key: str, settings: ServerSettings
) -> Mapping[str, str]:
    listen = settings.listen_database_url
    return {
        **os.environ,
        "RUNWIRE_DATABASE_URL": dsn,
        "RUNWIRE_LISTEN_DATABASE_URL": listen.get_secret_value() if listen else "",
        "RUNWIRE_API_URL": address,
        "RUNWIRE_API_KEY": api_key,
        "RUNWIRE_ENVIRONMENT": ENVIRONMENT,
        "RUNWIRE_SECRET": settings.secret.get_secret_value(),
        # A reload, and the end, give back what still executes; nobody waits half a minute for it.
        "RUNWIRE_GRACE": os.environ.get("RUNWIRE_GRACE", _GRACE),
    }


def _address(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    return f"http://{shown}:{port}"
