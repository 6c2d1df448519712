"""The worker of `runwire dev`: a child process, started again when sources change or it dies."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import anyio
from anyio.abc import Process, TaskStatus

from runwire_realtime.errors import StartError
from runwire_realtime.parent import PARENT_VARIABLE, READY, REPORT_VARIABLE
from runwire_realtime.watch import Watch

# Longer than a worker's own grace, so that it releases its runs; within the 5 s that a stop takes.
_STOP_SECONDS: Final = 3.5
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 10.0
_STEADY_SECONDS: Final = 10.0  # a worker that lived so long was not broken at its start


@dataclass(frozen=True)
class _Child:
    process: Process
    # Reads the child's report of its start.
    report: int


class WorkerProcess:
    """Keeps one worker running; `say` shows a line to the person at the terminal."""

    def __init__(
        self,
        modules: Sequence[str],
        environment: Mapping[str, str],
        watch: Watch,
        say: Callable[[str], None],
    ) -> None:
        self._command = [sys.executable, "-m", "runwire_realtime.cli", "worker", *modules]
        self._environment = environment
        self._watch = watch
        self._say = say

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled. Raises StartError when the very first start fails."""
        pause = _FIRST_PAUSE
        first = True
        while True:
            child = await self._spawn()
            began = anyio.current_time()
            try:
                word = await read_report(child.report)
                if word == READY:
                    if first:
                        task_status.started()
                    first = False
                    changed = await self._exit_or_change(child)
                elif first:
                    raise StartError(word or "the worker died while it started")
                else:
                    self._say(f"{word or 'the worker died while it started'}; waiting for a change")
                    changed = await self._watch.change()
            finally:
                with anyio.CancelScope(shield=True):
                    await _stop(child)
            if changed is not None:
                self._say(f"{changed} changed; starting the worker again")
                pause = _FIRST_PAUSE
                continue
            if anyio.current_time() - began > _STEADY_SECONDS:
                pause = _FIRST_PAUSE
            self._say(f"the worker died ({_cause(child)}); starting it again in {pause:g} s")
            await anyio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _spawn(self) -> _Child:
        reads, writes = os.pipe()
        try:
            process = await anyio.open_process(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=None,
                stderr=None,
                env={
                    **self._environment,
                    PARENT_VARIABLE: str(os.getpid()),
                    REPORT_VARIABLE: str(writes),
                },
                pass_fds=(writes,),
                # Ctrl-C in the terminal is for us; we tell the worker in our own order.
                start_new_session=True,
            )
        except BaseException:
            os.close(reads)
            raise
        finally:
            os.close(writes)
        return _Child(process, reads)

    async def _exit_or_change(self, child: _Child) -> str | None:
        """Return the changed file, or None when the child ended by itself."""
        changed: str | None = None

        async def watch() -> None:
            nonlocal changed
            changed = await self._watch.change()
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await child.process.wait()
            tasks.cancel_scope.cancel()
        return changed


async def read_report(descriptor: int) -> str:
    """Return the word of a child on its start; empty: it died without one."""
    data = b""
    while b"\n" not in data:
        await anyio.wait_readable(descriptor)
        part = os.read(descriptor, 4096)
        if not part:
            break
        data += part
    return data.decode(errors="replace").strip()


async def _stop(child: _Child) -> None:
    """Ask the child to stop, and end it and whatever it started when it does not in time."""
    os.close(child.report)
    if child.process.returncode is None:
        child.process.terminate()
        with anyio.move_on_after(_STOP_SECONDS):
            await child.process.wait()
    try:
        os.killpg(child.process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    await child.process.wait()


def _cause(child: _Child) -> str:
    code = child.process.returncode
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
