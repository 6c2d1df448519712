"""procrastinate: a queue in Postgres that keeps each job and its events, as ours does.

At its best here: uvloop; its psycopg connector with a pool; async tasks, so that `concurrency` jobs
run at once in one worker; LISTEN, so that it need not poll; jobs inserted with one statement.
"""

import asyncio
import contextlib
import sys
import time

import procrastinate
import uvloop

from tests.benchmarks.pace import Tally, steadily


async def main(url: str, mode: str, *numbers: int) -> None:
    count, concurrency = numbers[-2:]
    app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(conninfo=url, min_size=4, max_size=20)
    )
    tally = Tally(count)
    all_done = asyncio.Event()

    @app.task(name="noop")
    async def noop(at: int = 0) -> None:
        if tally.start(at):
            all_done.set()

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        if mode == "throughput":
            await noop.batch_defer_async(*[{} for _ in range(count)])
        work = asyncio.create_task(
            app.run_worker_async(
                concurrency=concurrency, listen_notify=True, install_signal_handlers=False
            )
        )
        if mode == "start":
            await asyncio.sleep(1)
            await steadily(lambda: noop.defer_async(at=time.monotonic_ns()), numbers[0], count)
        await all_done.wait()
        tally.say(mode)
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work


uvloop.run(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])))
