"""pgqueuer: a queue in Postgres that deletes a job once it is done, and keeps no payload or output.

At its best here: uvloop; asyncpg, the fastest of its drivers; its log, which it writes in batches,
as it comes; batches as large as the concurrency, for which it wants room for twice as many:
in its favour, and twice as fast as batches of half the concurrency.
"""

import asyncio
import contextlib
import json
import sys
import time

import asyncpg
import uvloop
from pgqueuer import AsyncpgDriver, PgQueuer, Queries
from pgqueuer.models import Job


async def main(url: str, mode: str, *numbers: int) -> None:
    worker_connection = await asyncpg.connect(url)
    trigger_connection = await asyncpg.connect(url)
    await Queries(AsyncpgDriver(worker_connection)).install()
    queries = Queries(AsyncpgDriver(trigger_connection))
    worker = PgQueuer(AsyncpgDriver(worker_connection))
    count, concurrency = numbers[-2:]
    starts: list[float] = []
    latencies: list[float] = []
    all_done = asyncio.Event()

    @worker.entrypoint("noop")
    async def noop(job: Job) -> None:
        starts.append(time.monotonic())
        if job.payload:
            latencies.append((time.monotonic_ns() - int(job.payload)) / 1e6)
        if len(starts) == count:
            all_done.set()

    if mode == "throughput":
        for start in range(0, count, 1000):
            many = min(1000, count - start)
            await queries.enqueue(["noop"] * many, [None] * many, [0] * many)
        work = asyncio.create_task(run(worker, concurrency))
        await all_done.wait()
        # The last start, not the last write: a little in its favour.
        answer: object = {"runs": count / (starts[-1] - starts[0])}
    else:
        work = asyncio.create_task(run(worker, concurrency))
        await asyncio.sleep(1)
        await steadily(
            lambda: queries.enqueue("noop", str(time.monotonic_ns()).encode()), numbers[0], count
        )
        await all_done.wait()
        answer = {"latencies": latencies}
    print(json.dumps(answer), flush=True)
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work


async def run(worker: PgQueuer, concurrency: int) -> None:
    await worker.run(batch_size=concurrency, max_concurrent_tasks=2 * concurrency)


async def steadily(call, per_second: int, count: int) -> None:
    start = time.monotonic()
    calls = []
    for number in range(count):
        await asyncio.sleep(max(0.0, start + number / per_second - time.monotonic()))
        calls.append(asyncio.create_task(call()))
    await asyncio.gather(*calls)


uvloop.run(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])))
