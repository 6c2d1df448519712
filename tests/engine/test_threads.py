"""The thread pool of `def` tasks."""

import threading
from queue import SimpleQueue

from runwire_engine.threads import Threads

WAIT = 60.0


def test_work_runs_in_a_daemon_thread() -> None:
    seen: SimpleQueue[bool] = SimpleQueue()
    Threads(2).submit(lambda: seen.put(threading.current_thread().daemon))
    assert seen.get(timeout=WAIT)


def test_no_more_threads_than_the_limit_work_at_once() -> None:
    threads = Threads(2)
    started: SimpleQueue[int] = SimpleQueue()
    gate = threading.Event()

    def work() -> None:
        started.put(threading.get_ident())
        gate.wait(WAIT)

    for _ in range(6):
        threads.submit(work)
    first = {started.get(timeout=WAIT), started.get(timeout=WAIT)}
    assert started.empty()
    gate.set()
    assert {started.get(timeout=WAIT) for _ in range(4)} <= first


def test_an_abandoned_thread_makes_room_for_another() -> None:
    threads = Threads(1)
    gate, ran = threading.Event(), threading.Event()
    stuck = threads.submit(lambda: gate.wait(WAIT))
    threads.submit(ran.set)
    assert not ran.is_set()
    threads.abandon(stuck)
    threads.submit(lambda: None)
    assert ran.wait(WAIT)
    gate.set()


def test_an_exception_leaves_the_thread_working() -> None:
    threads = Threads(1)
    ran = threading.Event()

    def broken() -> None:
        raise SystemExit(3)

    threads.submit(broken)
    threads.submit(ran.set)
    assert ran.wait(WAIT)
