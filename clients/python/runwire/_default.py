"""The clients behind the module functions: one per event loop and settings, made when needed."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from runwire._client import Client
from runwire._portal import Portal
from runwire._settings import Settings

T = TypeVar("T")


class _PerLoop:
    """The default clients of one loop, closed by the loop's own shutdown."""

    def __init__(self) -> None:
        self._clients: dict[Settings, Client] = {}
        self._closer = self._close_at_shutdown()
        self._registered = False

    def client(self, settings: Settings) -> Client:
        if settings not in self._clients:
            self._clients[settings] = Client(settings)
        self._register()
        return self._clients[settings]

    def _register(self) -> None:
        # A started async generator is closed by asyncio.run (shutdown_asyncgens): the only hook a
        # library has to close what belongs to a loop that it did not start.
        if self._registered:
            return
        self._registered = True
        try:
            self._closer.__anext__().send(None)
        except StopIteration:
            return

    async def _close_at_shutdown(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            for client in self._clients.values():
                await client.aclose()
            self._clients.clear()


_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _PerLoop] = WeakKeyDictionary()


def client() -> Client:
    """Return the default client of the running loop."""
    loop = asyncio.get_running_loop()
    held = _loops.get(loop)
    if held is None:
        held = _loops[loop] = _PerLoop()
    return held.client(Settings.of())


class Blocking:
    """A client behind a thread with its own loop, for code without one."""

    def __init__(self, settings: Settings) -> None:
        self.portal = Portal()
        self.client = Client(settings)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the thread's loop and wait for what it returns."""
        return self.portal.run(work)

    def close(self) -> None:
        """Close every connection and end the thread."""
        self.portal.run(self.client.aclose())
        self.portal.close()


_blocking: dict[Settings, Blocking] = {}
_one_at_a_time = threading.Lock()


def blocking() -> Blocking:
    """Return the default client for code without a loop."""
    settings = Settings.of()
    with _one_at_a_time:
        if settings not in _blocking:
            _blocking[settings] = Blocking(settings)
        return _blocking[settings]
