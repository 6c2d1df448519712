"""One HTTP server in this process: uvicorn, set up the one way that holds what we promise.

uvicorn's own signal handling and lifespan are left out: the process that composes the parts decides
when to stop, in which order, and gets the error itself when a part does not start.
"""

import signal
import socket
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Final

import anyio
import uvicorn
from starlette.types import ASGIApp

from runwire.wire import MAX_CLIENT_FRAME_BYTES
from runwire_realtime.app import create_app
from runwire_realtime.errors import StartError
from runwire_realtime.garbage import spare_what_stays
from runwire_realtime.parent import READY, report, shares_port, until_told
from runwire_realtime.services import Services
from runwire_realtime.settings import ServerSettings
from runwire_realtime.socket_protocol import SocketProtocol

_BACKLOG: Final = 2048
# Sockets were told to go before; what is left is requests in flight.
_GRACE_SECONDS: Final = 2


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def bind(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """Return a listening socket. Raises StartError, in one line, when the port cannot be had.

    `is_shared`: others may have the same port, and it does not listen yet.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError(f"cannot listen on {host}: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        if not is_shared:
            listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(
            f"port {port} of {host} cannot be used ({error.strerror}); give another with --port"
        ) from None
    listener.setblocking(False)
    return listener


def port_of(listener: socket.socket) -> int:
    """Return the port a listening socket got."""
    return int(listener.getsockname()[1])


async def serve(
    app: ASGIApp,
    listener: socket.socket,
    stop: anyio.Event,
    drain: Callable[[], Awaitable[None]] | None = None,
    *,
    ping_interval: float = 20.0,
    ping_timeout: float = 20.0,
) -> None:
    """Answer on the listener until `stop` is set.

    Then `drain` sends subscribers away in good order, while requests are still answered, and
    requests in flight get a moment to finish.
    """
    server = _Server(
        uvicorn.Config(
            app,
            loop="none",
            http="auto",
            # wsproto inflates before it looks at the size; deflate costs memory for each socket.
            # This one reads a message at a time, and the next when that was taken.
            ws=SocketProtocol,
            ws_per_message_deflate=False,
            ws_max_size=MAX_CLIENT_FRAME_BYTES,
            ws_ping_interval=ping_interval,
            ws_ping_timeout=ping_timeout,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            backlog=_BACKLOG,
        )
    )

    async def stop_when_asked() -> None:
        await stop.wait()
        if drain is not None:
            await drain()
        server.should_exit = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_when_asked)
        await server.serve(sockets=[listener])
        tasks.cancel_scope.cancel()


async def run_server(settings: ServerSettings, say: Callable[[str], None]) -> None:
    """Run one server until SIGINT or SIGTERM. Raises StartError or EngineError, one line each."""
    is_one_of_several = shares_port()
    listener = bind(settings.host, settings.port, is_shared=is_one_of_several)
    stop = anyio.Event()

    async def stop_on_signal() -> None:
        async for _ in signals:
            stop.set()

    try:
        app = create_app(settings)
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with app.router.lifespan_context(app), anyio.create_task_group() as tasks:
                tasks.start_soon(stop_on_signal)
                spare_what_stays()
                if is_one_of_several:
                    report(READY)
                    await until_told()
                else:
                    say(f"Runwire answers at http://{settings.host}:{port_of(listener)}")
                services: Services = app.state.services
                await serve(
                    app,
                    listener,
                    stop,
                    services.realtime.drain,
                    ping_interval=settings.ping_interval,
                    ping_timeout=settings.ping_timeout,
                )
                tasks.cancel_scope.cancel()
    finally:
        listener.close()
