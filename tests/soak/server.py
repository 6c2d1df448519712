"""`runwire server`, which on SIGUSR1 also says how much it holds.

    python -m tests.soak.server

A line of JSON each time: tasks of its loop, descriptors, memory (bytes), objects Python knows of.
"""

import asyncio
import gc
import os
import signal
import sys
from pathlib import Path

import orjson
import uvloop

from runwire_realtime.server import run_server
from runwire_realtime.settings import read_settings


def say(line: str) -> None:
    """Print one line."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def measure() -> None:
    """Say what this process holds now, garbage left out."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    held = {
        "tasks": len(asyncio.all_tasks()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "memory": pages * os.sysconf("SC_PAGE_SIZE"),
        "objects": len(gc.get_objects()),
    }
    say("HOLDS " + orjson.dumps(held).decode())


async def main() -> None:
    """Serve until SIGTERM."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, measure)
    await run_server(read_settings(port=int(os.environ["RUNWIRE_PORT"])), say)


uvloop.run(main())
