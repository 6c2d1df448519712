"""Tasks that wait, have children and write, and say in a file what was acknowledged to them.

Every value is made once and named after the execution that wrote it, so that a value that stands
twice was written twice by the engine, not by the code.
"""

import asyncio
import os
from collections.abc import AsyncIterator

from runwire import Context, metadata, schedules, streams, task, wait
from runwire.schedules import ScheduledTaskPayload
from runwire.tasks import RetryOptions

# Losing a worker costs an attempt; these are to survive many.
PATIENT = RetryOptions(max_attempts=200, min_timeout=0.1, max_timeout=0.5)


def acknowledged(kind: str, run_id: str, value: str) -> None:
    """Note that the engine has taken a value; one write, which a kill does not tear."""
    with open(os.environ["STORM_LEDGER"], "ab", buffering=0) as ledger:
        ledger.write(f"{kind} {run_id} {value}\n".encode())


def name_of(ctx: Context, what: str) -> str:
    return f"{ctx.run.id}.{ctx.attempt.execution}.{what}"


async def words(ctx: Context, section: str) -> AsyncIterator[str]:
    for number in range(4):
        yield name_of(ctx, f"{section}.{number}")
        await asyncio.sleep(0.01)


async def write(ctx: Context, section: str) -> None:
    """Write metadata, here and at the parent, and chunks; then say that they are stored.

    A replay leaves out what an earlier execution wrote, under that one's name: it says nothing.
    """
    operation = name_of(ctx, section)
    metadata.append("operations", operation).increment("count")
    if ctx.run.parent_id is not None:
        metadata.parent.append("fromChildren", operation)
    await metadata.flush()
    is_replay = operation not in metadata.get("operations")
    if not is_replay:
        acknowledged("metadata", ctx.run.id, operation)
        if ctx.run.parent_id is not None:
            acknowledged("parent", ctx.run.parent_id, operation)
    chunk = name_of(ctx, f"{section}.whole")
    await streams.append("log", chunk)
    await streams.pipe("words", words(ctx, section)).wait_until_complete()
    if not is_replay:
        acknowledged("chunk", ctx.run.id, chunk)
        acknowledged("chunk", ctx.run.id, name_of(ctx, f"{section}.3"))


@task(id="storm-leaf", retry=PATIENT)
async def leaf(payload: int, ctx: Context) -> int:
    """Write, and return the number."""
    await write(ctx, "only")
    return payload


@task(id="storm-blocking-leaf", retry=PATIENT)
def blocking_leaf(payload: int) -> int:
    """The same without a loop, with a wait in a thread."""
    metadata.set("step", 1)
    wait.sync.for_(0.2)
    metadata.set("step", 2)
    return payload


@task(id="storm-parent", retry=PATIENT)
async def parent(payload: int, ctx: Context) -> int:
    """Have children in each way there is, with waits between."""
    await write(ctx, "before")
    await leaf.trigger(payload)
    await wait.for_(0.3)
    await write(ctx, "between")
    first = (await leaf.trigger_and_wait(payload)).unwrap()
    both = await leaf.batch_trigger_and_wait([{"payload": payload + 1}, {"payload": payload + 2}])
    blocking = (await blocking_leaf.trigger_and_wait(payload)).unwrap()
    await write(ctx, "after")
    return first + sum(result.unwrap() for result in both.runs) + blocking


@schedules.task(id="storm-tick", retry=PATIENT)
async def tick(payload: ScheduledTaskPayload) -> str:
    """Say for which time it ran."""
    return payload.timestamp.isoformat()
