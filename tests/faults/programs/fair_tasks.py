"""Three tasks whose queues let 1, 3 and 10 runs of a key execute at once."""

import asyncio

from runwire import queue, task

STEP = 0.01


@task(id="fair-1", queue=queue("fair-1", concurrency_limit=1))
async def one() -> None:
    await asyncio.sleep(STEP)


@task(id="fair-3", queue=queue("fair-3", concurrency_limit=3))
async def three() -> None:
    await asyncio.sleep(STEP)


@task(id="fair-10", queue=queue("fair-10", concurrency_limit=10))
async def ten() -> None:
    await asyncio.sleep(STEP)
