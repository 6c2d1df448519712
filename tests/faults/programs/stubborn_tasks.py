"""Tasks that meet faults: they hang, blow up, or note what became of their writes.

Run by `runwire worker`. A task that must not be reached twice looks at its attempt.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from runwire import Context, FencedError, metadata, streams, task

A_TICK = 0.01


class Numbers(BaseModel):
    count: int = 100
    pause: float = A_TICK


class Notes(BaseModel):
    """Where a task says, outside of Runwire, what it met."""

    file: Path


@task(id="hang-once")
async def hang_once(ctx: Context) -> str:
    """Write for ever, but only on the first attempt."""
    number = 0
    while ctx.attempt.number == 1 or number < 3:
        await streams.append("log", f"{ctx.attempt.number}.{number}")
        metadata.increment("ticks")
        number += 1
        await asyncio.sleep(A_TICK)
    return f"attempt {ctx.attempt.number}"


@task(id="zombie")
def zombie(payload: Notes, ctx: Context) -> str:
    """On the first attempt, write until that is refused, then try everything else as well.

    A `def` task cannot be interrupted: this one ignores that it was asked to stop.
    """
    if ctx.attempt.number > 1:
        streams.sync.append("log", "of the second")
        return "second"
    while _outcome(lambda: streams.sync.append("log", "of the first")) == "done":
        time.sleep(A_TICK)
    notes = [
        _outcome(lambda: streams.sync.append("log", "of a zombie")),
        _outcome(lambda: streams.sync.append("late", "of a zombie")),
        _outcome(_write_metadata),
        _outcome(lambda: streams.sync.pipe("log", ["of a zombie"]).wait_until_complete()),
    ]
    payload.file.write_text("\n".join(notes))
    return "first"


def _write_metadata() -> None:
    metadata.set("zombie", True)
    metadata.sync.flush()


def _outcome(write: Callable[[], object]) -> str:
    try:
        write()
    except FencedError:
        return "fenced"
    except BaseException as error:
        return repr(error)
    return "done"


@task(id="count")
async def count(payload: Numbers) -> int:
    """Write numbers and count them in the metadata."""
    for number in range(payload.count):
        await streams.append("numbers", number)
        metadata.increment("count")
        await asyncio.sleep(payload.pause)
    return payload.count


@task(id="quick")
async def quick(payload: int) -> int:
    """Return the payload."""
    return payload


@task(id="poison", retry={"max_attempts": 3})
async def poison() -> None:
    """Take the whole process along."""
    os.kill(os.getpid(), signal.SIGKILL)


@task(id="sleep")
async def sleep(payload: float) -> str:
    """Take a while."""
    metadata.set("asleep", True)
    await asyncio.sleep(payload)
    return "slept"
