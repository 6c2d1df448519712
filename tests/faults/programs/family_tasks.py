"""Parents whose children are executed wherever there is room, and tell them how they do."""

import asyncio
import contextlib

from pydantic import BaseModel

from runwire import Context, FencedError, metadata, streams, task, tasks
from runwire.tasks import BatchEntry, RetryOptions

PATIENT = RetryOptions(max_attempts=10, min_timeout=0.2, max_timeout=1.0)


class Family(BaseModel):
    children: int = 5
    pause: float = 0.05


class Child(BaseModel):
    number: int
    pause: float


@task(id="child", retry=PATIENT)
async def child(payload: Child, ctx: Context) -> int:
    """Write into the parent's stream and count on the parent and the root."""
    await asyncio.sleep(payload.pause)
    metadata.parent.increment("children").append("numbers", payload.number)
    # The parent of a child whose worker was killed may be over by now.
    with contextlib.suppress(FencedError):
        await streams.append("children", payload.number, target="parent")
    return payload.number


@task(id="parent", retry=PATIENT)
async def parent(payload: Family, ctx: Context) -> list[str]:
    """Trigger a batch of children, and one more, once however often this starts."""
    items: list[BatchEntry[Child]] = [
        {"payload": Child(number=number, pause=payload.pause)} for number in range(payload.children)
    ]
    batch = await tasks.batch_trigger(child, items, idempotency_key="children")
    last = Child(number=payload.children, pause=payload.pause)
    handle = await tasks.trigger(child, last, idempotency_key="the last")
    await streams.append("own", ctx.attempt.number)
    # Long enough for children to write while this executes.
    await asyncio.sleep(20 * payload.pause)
    return [batch.id, handle.id]
