"""Tasks of every temper, written only with what the README and the docs say."""

import asyncio
from collections.abc import AsyncIterator

from pydantic import BaseModel

from runwire import AbortTaskRunError, Context, metadata, streams, task
from runwire.tasks import RetryOptions

# Losing a worker costs an attempt; these are to survive several.
PATIENT = RetryOptions(max_attempts=10, min_timeout=0.2, max_timeout=1.0)


class Order(BaseModel):
    number: int
    chunks: int = 25
    pause: float = 0.02


async def words(order: Order) -> AsyncIterator[str]:
    for index in range(order.chunks):
        yield f"{order.number}.{index} "
        await asyncio.sleep(order.pause)


@task(id="quick", retry=PATIENT)
async def quick(payload: Order) -> int:
    """Return at once."""
    return payload.number


@task(id="streaming", retry=PATIENT)
async def streaming(payload: Order) -> str:
    """Stream words, and keep them."""
    text = ""
    async for word in await metadata.stream("words", words(payload)):
        text += word
    return text


@task(id="retrying", retry=PATIENT)
async def retrying(payload: Order, ctx: Context) -> int:
    """Fail twice, each time after some lines."""
    for line in range(3):
        await streams.append("log", {"attempt": ctx.attempt.number, "line": line})
    if ctx.attempt.number < 3:
        raise RuntimeError(f"attempt {ctx.attempt.number} was to fail")
    return payload.number


@task(id="failing", retry=PATIENT)
async def failing(payload: Order) -> None:
    """Fail for good, after a word."""
    await streams.append("log", "about to fail")
    raise AbortTaskRunError(f"order {payload.number} cannot be done")


@task(id="telling", retry=PATIENT)
def telling(payload: Order) -> int:
    """Tell everything in the metadata; a blocking task."""
    for index in range(payload.chunks):
        metadata.set("step", index).increment("steps").append("done", f"{payload.number}-{index}")
        if index % 5 == 0:
            metadata.sync.flush()
    return payload.number
