"""DBOS: workflows in Postgres. Throughput is its queue's; trigger → start is `start_workflow`.

At its best here: workflows are queued before the queue is served, as with all others; the queue is
polled every 10 ms (1 s is the default, which caps it at `concurrency` a second); nothing is asked
of a step; starts go without a queue, straight into the same process, which is quicker than any
queue of it, and flatters it.
"""

import asyncio
import sys
import time

from dbos import DBOS

from tests.benchmarks.pace import Tally, steadily

POLLING = 0.01
QUEUED_AT_ONCE = 8


def main(url: str, mode: str, *numbers: int) -> None:
    count, concurrency = numbers[-2:]
    DBOS(
        config={
            "name": "peer",
            "system_database_url": url,
            "run_admin_server": False,
            "log_level": "ERROR",
        }
    )
    tally = Tally(count)

    @DBOS.workflow()
    async def noop(at: int = 0) -> None:
        tally.start(at)

    DBOS.launch()

    async def throughput() -> None:
        # Served from the first `set_worker_concurrency` on: until then nothing is taken.
        queue = await DBOS.register_queue_async(
            "runs", worker_concurrency=0, polling_interval_sec=POLLING
        )
        handles = []
        for first in range(0, count, QUEUED_AT_ONCE):
            many = min(QUEUED_AT_ONCE, count - first)
            handles += await asyncio.gather(*[queue.enqueue_async(noop) for _ in range(many)])
        await queue.set_worker_concurrency_async(concurrency)
        for handle in handles:
            await handle.get_result()

    async def start() -> None:
        async def trigger():
            return await DBOS.start_workflow_async(noop, time.monotonic_ns())

        for handle in await steadily(trigger, numbers[0], count):
            await handle.get_result()

    asyncio.run(throughput() if mode == "throughput" else start())
    tally.say(mode)
    DBOS.destroy()


main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
