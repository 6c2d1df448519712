"""DBOS: workflows in Postgres. Throughput is its queue's; trigger → start is `start_workflow`.

At its best here: the queue is polled every 10 ms (1 s is the default, which caps it at
`concurrency` a second); nothing is asked of a step; starts go without a queue, straight into the
same process, which is quicker than any queue of it, and flatters it.
"""

import asyncio
import json
import sys
import time

from dbos import DBOS


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
    starts: list[float] = []
    latencies: list[float] = []

    @DBOS.workflow()
    async def noop(at: int = 0) -> None:
        starts.append(time.monotonic())
        if at:
            latencies.append((time.monotonic_ns() - at) / 1e6)

    DBOS.launch()
    queue = DBOS.register_queue("runs", worker_concurrency=concurrency, polling_interval_sec=0.01)

    async def throughput() -> None:
        handles = [await queue.enqueue_async(noop) for _ in range(count)]
        for handle in handles:
            await handle.get_result()

    async def steadily(per_second: int) -> None:
        start = time.monotonic()
        calls = []
        for number in range(count):
            await asyncio.sleep(max(0.0, start + number / per_second - time.monotonic()))
            calls.append(asyncio.create_task(DBOS.start_workflow_async(noop, time.monotonic_ns())))
        for call in calls:
            await (await call).get_result()

    if mode == "throughput":
        asyncio.run(throughput())
        answer: object = {"runs": count / (max(starts) - min(starts))}
    else:
        asyncio.run(steadily(numbers[0]))
        answer = {"latencies": latencies}
    print(json.dumps(answer), flush=True)
    DBOS.destroy()


main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
