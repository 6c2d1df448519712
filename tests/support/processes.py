"""Real processes under test: started, watched, stalled, killed; none is left behind.

    async with running("runwire", "server", environment={...}) as server:
        await server.until_line("ready")
        server.kill()

A process gets a session of its own, so that what it starts dies with it.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import httpx

CHECKOUT: Final = Path(__file__).parents[2]
_LOOK_SECONDS: Final = 0.02  # nothing announces another process's facts: we look


class ProcessEnded(Exception):
    """A process ended while a fact about it was waited for."""


class Process:
    """One running program with its output in a file."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self.command = list(command)
        with tempfile.NamedTemporaryFile(prefix="runwire-process-", delete=False) as log:
            self.log_file = Path(log.name)
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=CHECKOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def output(self) -> str:
        """Return everything it has written so far, both streams."""
        return self.log_file.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL this process alone, as the kernel would: what it started is left running."""
        self.send(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM: the polite request of an init system."""
        self.send(signal.SIGTERM)

    def interrupt(self) -> None:
        """SIGINT: a Ctrl-C."""
        self.send(signal.SIGINT)

    def stall(self) -> None:
        """SIGSTOP: it keeps its sockets and locks but does nothing until `resume`."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `stall`."""
        self.send(signal.SIGCONT)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended: then its number may be somebody else's."""
        if self._process.poll() is None:
            os.kill(self.pid, number)

    async def wait(self, seconds: float = 60.0) -> int:
        """Wait for its end and return the exit code. Raises TimeoutError."""
        await until(lambda: self.exit_code is not None, seconds)
        assert self.exit_code is not None
        return self.exit_code

    async def until_line(self, text: str, seconds: float = 60.0) -> str:
        """Wait until it has written a line with this text, and return the line."""
        found: list[str] = []

        def look() -> bool:
            found[:] = [line for line in self.output().splitlines() if text in line]
            return bool(found) or self._must_run(f"a line with {text!r}")

        await until(look, seconds)
        return found[0]

    async def until_ready(self, url: str, seconds: float = 60.0) -> None:
        """Wait until a GET of this URL (a /readyz) answers 200."""
        async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:

            async def look() -> bool:
                self._must_run(f"an answer of {url}")
                try:
                    return (await client.get(url)).status_code == 200
                except httpx.TransportError:
                    return False

            await until_async(look, seconds)

    def _must_run(self, fact: str) -> bool:
        if self.exit_code is not None:
            raise ProcessEnded(
                f"{self.command[0]} ended with {self.exit_code} before {fact}:\n{self.output()}"
            )
        return False

    def destroy(self) -> None:
        """SIGKILL it with all it started in its session, and forget its output."""
        for pid in _session_of(self.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.wait()
        self.log_file.unlink(missing_ok=True)


@asynccontextmanager
async def running(
    *command: str, environment: Mapping[str, str] | None = None
) -> AsyncGenerator[Process]:
    """Run a program for the length of a block; afterwards it is dead with all it started."""
    process = Process(_resolved(command), environment)
    try:
        yield process
    finally:
        process.destroy()


async def until(fact: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until a fact holds. Raises TimeoutError."""
    with anyio.fail_after(seconds):
        while True:
            if fact():
                return
            await anyio.sleep(_LOOK_SECONDS)


async def until_async(fact: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    """Wait until a fact that must be asked for holds. Raises TimeoutError."""
    with anyio.fail_after(seconds):
        while True:
            if await fact():
                return
            await anyio.sleep(_LOOK_SECONDS)


def free_port() -> int:
    """Return a loopback port nobody listens on right now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _resolved(command: Sequence[str]) -> list[str]:
    """Take `runwire` and `python` from the interpreter that runs the tests."""
    program, *arguments = command
    if program == "python":
        return [sys.executable, *arguments]
    beside = Path(sys.executable).parent / program
    return [str(beside) if beside.exists() else program, *arguments]


def kill_descendants() -> None:
    """SIGKILL all that this process has started, what those have started, and their sessions."""
    processes = _processes()
    found: set[int] = set()
    new = {os.getpid()}
    while new:
        found |= new
        new = {
            pid
            for pid, (parent, session) in processes.items()
            # One whose parent has ended is still in its session; ours is not ours alone.
            if parent in found or (session in found and session != os.getpid())
        } - found
    for pid in found - {os.getpid()}:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _session_of(leader: int) -> list[int]:
    """Return the live processes of a session, its leader included, even a leader that is gone."""
    found = {leader}
    found |= {pid for pid, (_, session) in _processes().items() if session == leader}
    return sorted(found)


def _processes() -> dict[int, tuple[int, int]]:
    """Return the parent and the session of each live process, where the system shows them."""
    found: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").glob("[0-9]*") if Path("/proc/self/stat").exists() else ():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[int(entry.name)] = (int(fields[1]), int(fields[3]))
    return found
