"""Celery on Redis: the queue is in memory, results are not kept, and no log is written.

At its best here: Redis writes nothing to disk; no results, no events, no rate limits; its pool of
threads, which for tasks that do nothing is quicker than processes; messages are acknowledged when
they are fetched, and four for each thread are fetched ahead.
"""

import logging
import sys
import threading
import time

from celery import Celery

from tests.benchmarks.pace import Tally, waits


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
    tally = Tally(count)
    all_done = threading.Event()

    @app.task(name="noop")
    def noop(at: int = 0) -> None:
        if tally.start(at):
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
        time.sleep(1)
        for wait in waits(numbers[0], count):
            time.sleep(wait)
            noop.delay(time.monotonic_ns())

    def answer() -> None:
        all_done.wait()
        tally.say(mode)

    if mode == "throughput":
        with app.producer_or_acquire() as producer:
            for _ in range(count):
                noop.apply_async(producer=producer)
    else:
        threading.Thread(target=trigger, daemon=True).start()
    threading.Thread(target=answer, daemon=True).start()
    work()


main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
