"""Celery on Redis: the queue is in memory, results are not kept, and no log is written.

At its best here: Redis writes nothing to disk; no results, no events, no rate limits; its pool of
threads, which for tasks that do nothing is quicker than processes; messages are acknowledged when
they are fetched, and four for each thread are fetched ahead.
"""

import json
import logging
import sys
import threading
import time

from celery import Celery


def main(url: str, mode: str, *numbers: int) -> None:
    count, concurrency = numbers[-2:]
    app = Celery("peer", broker=url)
    app.conf.update(
        task_ignore_result=True,
        worker_send_task_events=False,
        worker_disable_rate_limits=True,
        worker_prefetch_multiplier=4,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        task_acks_late=False,
        broker_pool_limit=4,
    )
    logging.disable(logging.WARNING)
    starts: list[float] = []
    latencies: list[float] = []
    all_done = threading.Event()

    @app.task(name="noop")
    def noop(at: int = 0) -> None:
        starts.append(time.monotonic())
        if at:
            latencies.append((time.monotonic_ns() - at) / 1e6)
        if len(starts) == count:
            all_done.set()

    def work() -> None:
        app.Worker(
            pool="threads",
            concurrency=concurrency,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
        ).start()

    def trigger() -> None:
        if mode == "throughput":
            return
        time.sleep(1)
        start = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, start + number / numbers[0] - time.monotonic()))
            noop.delay(time.monotonic_ns())

    def answer() -> None:
        all_done.wait()
        said = {"latencies": latencies}
        if mode == "throughput":
            said = {"runs": count / (max(starts) - min(starts))}
        print(json.dumps(said), flush=True)

    if mode == "throughput":
        with app.producer_or_acquire() as producer:
            for _ in range(count):
                noop.apply_async(producer=producer)
    for target in (trigger, answer):
        threading.Thread(target=target, daemon=True).start()
    work()


main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
