"""Several servers on one port, one for each core: `runwire server --processes N`.

The kernel shares new connections out among the processes that listen on the port. They have nothing
in common but that; this one starts them, tells them to listen once all of them can serve, starts
again what dies, and stops them together.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import anyio
from anyio.abc import Process

from runwire_realtime.errors import StartError
from runwire_realtime.parent import PARENT_VARIABLE, READY, REPORT_VARIABLE, SHARES_PORT
from runwire_realtime.server import bind, port_of
from runwire_realtime.settings import ServerSettings
from runwire_realtime.worker_process import read_report

logger = logging.getLogger("runwire.server")

_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 10.0
_STEADY_SECONDS: Final = 10.0  # a server that lived so long was not broken at its start
# Beyond the time to drain: for requests in flight, and for the parts to stop.
_STOP_SECONDS: Final = 10.0


@dataclass(frozen=True)
class _Child:
    process: Process
    # Reads its report of its start.
    report: int

    async def started(self) -> str:
        """Return its word on its start: READY, or why it failed."""
        try:
            return await read_report(self.report)
        finally:
            os.close(self.report)

    async def listen(self) -> None:
        """Tell it that it may listen."""
        assert self.process.stdin is not None
        try:
            await self.process.stdin.send(b"\n")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # it has died: whoever waits for it notices

    def stop(self) -> None:
        if self.process.returncode is None:
            self.process.terminate()


class ServerProcesses:
    """Keeps servers running on one port."""

    def __init__(self, settings: ServerSettings, count: int) -> None:
        if not hasattr(socket, "SO_REUSEPORT"):
            raise StartError("this system cannot share a port; leave --processes out")
        self._count = count
        self._patience = settings.drain + _STOP_SECONDS
        # Holds the port, also one that the system chose, and never listens.
        self._holder = bind(settings.host, settings.port, is_shared=True)
        self.port = port_of(self._holder)
        address = ["--host", settings.host, "--port", str(self.port)]
        self._command = [sys.executable, "-m", "runwire_realtime.cli", "server", *address]
        self._children: list[_Child] = []
        self._stopping = anyio.Event()

    async def run(self, say: Callable[[str], None], host: str) -> None:
        """Run until SIGINT or SIGTERM. Raises StartError when the first start of one fails."""
        try:
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._keep_all, say, host)
                    async for _ in signals:
                        self._stopping.set()
                        break
                    tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._stop_all()
            self._holder.close()

    async def _keep_all(self, say: Callable[[str], None], host: str) -> None:
        first = [await self._spawn() for _ in range(self._count)]
        for child in first:
            word = await child.started()
            if word != READY:
                raise StartError(word or "a server died while it started")
        async with anyio.create_task_group() as tasks:
            for child in first:
                await child.listen()
                tasks.start_soon(self._keep, child)
            say(f"Runwire answers at http://{host}:{self.port} ({self._count} processes)")

    async def _keep(self, child: _Child) -> None:
        """Start a server again, whenever it dies."""
        pause = _FIRST_PAUSE
        while True:
            began = anyio.current_time()
            await child.process.wait()
            self._children.remove(child)
            if anyio.current_time() - began > _STEADY_SECONDS:
                pause = _FIRST_PAUSE
            code = child.process.returncode
            logger.warning(
                "a server died (exit code %s); starting it again in %g s",
                code,
                pause,
                extra={"pid": child.process.pid},
            )
            await anyio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            child = await self._spawn()
            word = await child.started()
            if word == READY:
                await child.listen()
            else:
                logger.error("a server did not start: %s", word or "it died")

    async def _spawn(self) -> _Child:
        reads, writes = os.pipe()
        try:
            process = await anyio.open_process(
                self._command,
                stdin=subprocess.PIPE,
                stdout=None,
                stderr=None,
                env={
                    **os.environ,
                    PARENT_VARIABLE: str(os.getpid()),
                    REPORT_VARIABLE: str(writes),
                    SHARES_PORT: "1",
                },
                pass_fds=(writes,),
            )
        except BaseException:
            os.close(reads)
            raise
        finally:
            os.close(writes)
        child = _Child(process, reads)
        self._children.append(child)
        return child

    async def _stop_all(self) -> None:
        """Let all of them send their clients away at the same time; end what does not end."""
        for child in self._children:
            child.stop()
        with anyio.move_on_after(self._patience):
            for child in self._children:
                await child.process.wait()
        for child in self._children:
            if child.process.returncode is None:
                child.process.kill()
                await child.process.wait()


async def run_servers(settings: ServerSettings, count: int, say: Callable[[str], None]) -> None:
    """Run so many servers on one port until SIGINT or SIGTERM.

    Raises StartError, in one line, when one of them does not start.
    """
    await ServerProcesses(settings, count).run(say, settings.host)
