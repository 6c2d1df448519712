"""Threads for `def` tasks: bounded, reused, and never in the way of the process's exit.

The pool of the standard library joins its threads when the interpreter exits, so that one task that
ignores its signal would keep a stopped worker alive. These threads are daemons, and one that is
given up makes room for another.
"""

import contextvars
import logging
import sys
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

logger = logging.getLogger("runwire.worker")

# Seconds a thread waits for work before it ends.
IDLE = 30.0


class Errand:
    """One function handed to the pool."""

    __slots__ = ("abandoned", "done", "lent", "work")

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work
        self.done = False
        self.abandoned = False
        self.lent = False


class Threads:
    """At most `limit` threads that count, and those that were given up."""

    def __init__(self, limit: int, *, name: str = "runwire-task") -> None:
        self._limit = limit
        self._name = name
        self._lock = threading.Lock()
        # Bounded by whoever hands work in: a worker never holds more runs than it has slots.
        self._queue: SimpleQueue[Errand] = SimpleQueue()
        self._size = 0
        self._outstanding = 0
        self._started = 0

    def submit(self, work: Callable[[], object]) -> Errand:
        """Run a function in a thread, as soon as one is free."""
        errand = Errand(work)
        with self._lock:
            self._outstanding += 1
            grow = self._outstanding > self._size and self._size < self._limit
            if grow:
                self._size += 1
                self._started += 1
        self._queue.put(errand)
        if grow:
            threading.Thread(
                target=self._serve, name=f"{self._name}-{self._started}", daemon=True
            ).start()
        return errand

    def lend(self, errand: Errand) -> None:
        """Make room for another thread while what this one runs only waits."""
        with self._lock:
            if not errand.done and not errand.lent:
                errand.lent = True
                self._limit += 1

    def reclaim(self, errand: Errand) -> None:
        """Count a thread again."""
        with self._lock:
            self._unlend(errand)

    def _unlend(self, errand: Errand) -> None:
        if errand.lent:
            errand.lent = False
            self._limit -= 1

    def abandon(self, errand: Errand) -> None:
        """Count a thread no longer: what it runs does not return."""
        with self._lock:
            if not errand.done and not errand.abandoned:
                errand.abandoned = True
                self._limit += 1

    @property
    def busy(self) -> int:
        """How many functions were handed in and have not returned."""
        return self._outstanding

    def _serve(self) -> None:
        while True:
            try:
                errand = self._queue.get(timeout=IDLE)
            except Empty:
                if self._leave():
                    return
                continue
            try:
                errand.work()
            except BaseException:
                logger.exception("work in a task thread failed")
            if self._returned(errand):
                return

    def _leave(self) -> bool:
        with self._lock:
            if self._outstanding >= self._size:
                return False  # something was just handed in for this thread
            self._size -= 1
            return True

    def _returned(self, errand: Errand) -> bool:
        """Count the thread as free again; say whether it is one too many."""
        with self._lock:
            errand.done = True
            self._outstanding -= 1
            self._unlend(errand)
            if errand.abandoned:
                self._limit -= 1
            surplus = self._size > self._limit
            self._size -= surplus
            return surplus


def outside_of_loops() -> contextvars.Context:
    """Return the variables of here for threads, where no loop runs."""
    variables = contextvars.copy_context()
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None:
        variables.run(sniffio.current_async_library_cvar.set, None)
    return variables
