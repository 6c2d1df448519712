"""pgqueuer: a queue in Postgres that deletes a job once it is done, and logs its statuses.

At its best here: uvloop; asyncpg, the fastest of its drivers; its log, which it writes in batches,
as it comes; room for three times the concurrency, as ours has counting what is not stored yet, and
the largest batches that this allows: in its favour, since nothing keeps its functions to the
concurrency.
"""

import asyncio
import contextlib
import sys
import time

import asyncpg
import uvloop
from pgqueuer import AsyncpgDriver, PgQueuer, Queries
from pgqueuer.models import Job

from tests.benchmarks.pace import Tally, steadily


async def main(url: str, mode: str, *numbers: int) -> None:
    worker_connection = await asyncpg.connect(url)
    trigger_connection = await asyncpg.connect(url)
    await Queries(AsyncpgDriver(worker_connection)).install()
    queries = Queries(AsyncpgDriver(trigger_connection))
    worker = PgQueuer(AsyncpgDriver(worker_connection))
    count, concurrency = numbers[-2:]
    tally = Tally(count)
    all_done = asyncio.Event()

    @worker.entrypoint("noop")
    async def noop(job: Job) -> None:
        if tally.start(int(job.payload or 0)):
            all_done.set()

    async def trigger() -> None:
        await queries.enqueue("noop", str(time.monotonic_ns()).encode())

    if mode == "throughput":
        for start in range(0, count, 1000):
            many = min(1000, count - start)
            await queries.enqueue(["noop"] * many, [None] * many, [0] * many)
    work = asyncio.create_task(
        worker.run(batch_size=3 * concurrency // 2, max_concurrent_tasks=3 * concurrency)
    )
    if mode == "start":
        await asyncio.sleep(1)
        await steadily(trigger, numbers[0], count)
    await all_done.wait()
    tally.say(mode)
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work


uvloop.run(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])))
