"""Programs that run for the length of a block, on cores of their own."""

import contextlib
import os
import select
import subprocess
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.benchmarks.cores import cores
from tests.support.processes import CHECKOUT


@contextlib.contextmanager
def program(
    command: Sequence[str], environment: Mapping[str, str], wanted: set[int]
) -> Generator[subprocess.Popen[str]]:
    """Run a program on these cores for the length of a block; its input and output are pipes."""
    with cores(wanted):
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def next_line(process: subprocess.Popen[str], seconds: float = 60) -> str:
    """Return the next line a program prints, without its newline.

    Raises RuntimeError when it ends instead, TimeoutError when it says nothing for so long.
    """
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], seconds)[0]:
        raise TimeoutError(f"{process.args!r} said nothing for {seconds} s")
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} ended with {process.wait(10)} and said nothing")
    return line.strip()


def input_of(process: subprocess.Popen[str]) -> IO[str]:
    """Return the pipe a program reads."""
    assert process.stdin is not None
    return process.stdin


def cpu_seconds(pid: int) -> float:
    """Return the processor time a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
