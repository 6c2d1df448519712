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

from runwire import Context, FencedError, metadata, streams, tags, task

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
        _outcome(_set_own),
        _outcome(lambda: streams.sync.pipe("log", ["of a zombie"]).wait_until_complete()),
    ]
    payload.file.write_text("\n".join(notes))
    return "first"


@task(id="quick")
async def quick(payload: int) -> int:
    """Return the payload."""
    return payload


class LateWrite(BaseModel):
    """What a task tries when its worker comes back, and where it says that it waits for that, and
    how it went.
    """

    kind: str
    waits: Path
    file: Path


def _set_own() -> None:
    metadata.set("zombie", True)
    metadata.sync.flush()


def _set_parents() -> None:
    metadata.parent.set("zombie", True)
    metadata.sync.flush()


LATE_WRITES: dict[str, Callable[[], object]] = {
    "chunk": lambda: streams.sync.append("log", "of a zombie"),
    "new stream": lambda: streams.sync.append("late", "of a zombie"),
    "parent's stream": lambda: streams.sync.append("log", "of a zombie", target="parent"),
    "metadata": _set_own,
    "parent's metadata": _set_parents,
    "child": lambda: quick.sync.trigger(1),
    "batch": lambda: quick.sync.batch_trigger([{"payload": 1}], idempotency_key="batch"),
    "tags": lambda: tags.sync.add("of-a-zombie"),
}


@task(id="late-write")
def late_write(payload: LateWrite, ctx: Context) -> str:
    """On the first attempt, wait until the process was stalled, then try one write, or return."""
    if ctx.attempt.number > 1:
        return "second"
    streams.sync.append("log", "of the first")
    last = time.monotonic()
    # Only from here on is a stall noticed.
    payload.waits.touch()
    while (now := time.monotonic()) - last < 1.0:
        last = now
        time.sleep(A_TICK)
    write = LATE_WRITES.get(payload.kind)
    payload.file.write_text("returned" if write is None else _outcome(write))
    return "first"


class Gate(BaseModel):
    """The files by which a test and a task wait for one another."""

    go: Path
    gone: Path


@task(id="gated", retry={"max_attempts": 3})
async def gated(payload: Gate, ctx: Context) -> str:
    """Return when the test says so; note that nothing is left to be done."""
    await streams.append("log", ctx.attempt.number)
    while not payload.go.exists():
        await asyncio.sleep(A_TICK)
    payload.gone.touch()
    return f"attempt {ctx.attempt.number}"


@task(id="clock")
async def clock() -> float:
    """Return what time this process thinks it is."""
    return time.time()


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


@task(id="noted")
def noted(ctx: Context) -> None:
    """Note in this process's own file which run was started."""
    with Path(os.environ["NOTES"]).open("a") as notes:
        notes.write(f"{ctx.run.id}\n")


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
