"""procrastinate: a queue in Postgres that keeps each job and its events, as ours does.

At its best here: uvloop; its psycopg connector with a pool; async tasks, so that `concurrency` jobs
run at once in one worker; LISTEN, so that it need not poll; jobs inserted with one statement.
"""

import asyncio
import contextlib
import json
import sys
import time

import procrastinate
import uvloop


async def main(url: str, mode: str, *numbers: int) -> None:
    count, concurrency = numbers[-2:]
    app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(conninfo=url, min_size=4, max_size=20)
    )
    starts: list[float] = []
    latencies: list[float] = []
    all_done = asyncio.Event()

    @app.task(name="noop")
    async def noop(at: int = 0) -> None:
        starts.append(time.monotonic())
        if at:
            latencies.append((time.monotonic_ns() - at) / 1e6)
        if len(starts) == count:
            all_done.set()

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        if mode == "throughput":
            await noop.batch_defer_async(*[{} for _ in range(count)])
            work = asyncio.create_task(run(app, concurrency))
            await all_done.wait()
            answer: object = {"runs": count / (starts[-1] - starts[0])}
        else:
            work = asyncio.create_task(run(app, concurrency))
            await asyncio.sleep(1)
            await steadily(lambda: noop.defer_async(at=time.monotonic_ns()), numbers[0], count)
            await all_done.wait()
            answer = {"latencies": latencies}
        print(json.dumps(answer), flush=True)
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work


async def run(app: procrastinate.App, concurrency: int) -> None:
    await app.run_worker_async(
        concurrency=concurrency, listen_notify=True, install_signal_handlers=False
    )


async def steadily(call, per_second: int, count: int) -> None:
    start = time.monotonic()
    calls = []
    for number in range(count):
        await asyncio.sleep(max(0.0, start + number / per_second - time.monotonic()))
        calls.append(asyncio.create_task(call()))
    await asyncio.gather(*calls)


uvloop.run(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])))
