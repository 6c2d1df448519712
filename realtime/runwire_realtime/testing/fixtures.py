"""What the fixtures hand to tests: `RunTask` and `Clock` over a bench."""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar, cast

import anyio.to_thread

from runwire.durations import Duration, seconds
from runwire.requests import RunStatus
from runwire.tasks import AnyTask
from runwire.testing import TaskResult
from runwire_realtime.testing.bench import Bench

T = TypeVar("T")

# Tests wait for what happens; this only ends those that wait for ever.
_TIMEOUT: Final = 30.0


class BenchClock:
    """Implements `runwire.testing.Clock`."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def now(self) -> datetime:
        return self._bench.now()

    def advance(self, duration: Duration) -> None:
        span = seconds(duration)
        if span < 0:
            raise ValueError("time moves forward only")
        self._bench.advance_by(timedelta(seconds=span))

    def advance_to(self, time: datetime) -> None:
        if time < self._bench.now():
            raise ValueError(f"{time} has passed; time moves forward only")
        self._bench.advance_to(time)


class BenchSyncStartedRun:
    """Implements `runwire.testing.SyncStartedRun`."""

    def __init__(self, bench: Bench, id: str) -> None:
        self._bench = bench
        self.id = id

    def status(self) -> RunStatus:
        return cast(RunStatus, self._bench.status(self.id))

    def until(self, *statuses: RunStatus, timeout: Duration = _TIMEOUT) -> RunStatus:
        return cast(RunStatus, self._bench.until(self.id, statuses, seconds(timeout)))

    def result(self, *, skip_waits: bool = True, timeout: Duration = _TIMEOUT) -> TaskResult[Any]:
        return self._bench.result(self.id, skip_waits=skip_waits, timeout=seconds(timeout))


class BenchStartedRun:
    """Implements `runwire.testing.StartedRun`."""

    def __init__(self, bench: Bench, id: str) -> None:
        self.id = id
        self.sync = BenchSyncStartedRun(bench, id)

    async def status(self) -> RunStatus:
        return await _elsewhere(self.sync.status)

    async def until(self, *statuses: RunStatus, timeout: Duration = _TIMEOUT) -> RunStatus:
        return await _elsewhere(partial(self.sync.until, *statuses, timeout=timeout))

    async def result(
        self, *, skip_waits: bool = True, timeout: Duration = _TIMEOUT
    ) -> TaskResult[Any]:
        return await _elsewhere(partial(self.sync.result, skip_waits=skip_waits, timeout=timeout))


class BenchSyncRunTask:
    """Implements `runwire.testing.SyncRunTask`."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def __call__(
        self,
        task: AnyTask,
        payload: Any = None,
        *,
        skip_waits: bool = True,
        timeout: Duration = _TIMEOUT,
        **options: Any,
    ) -> TaskResult[Any]:
        run = self.start(task, payload, **options)
        return run.result(skip_waits=skip_waits, timeout=timeout)

    def start(self, task: AnyTask, payload: Any = None, **options: Any) -> BenchSyncStartedRun:
        return BenchSyncStartedRun(
            self._bench, self._bench.start(task, payload, cast(Any, options))
        )

    def runs(self, task: AnyTask, *, timeout: Duration = _TIMEOUT) -> list[TaskResult[Any]]:
        return self._bench.finished(task, seconds(timeout))


class BenchRunTask:
    """Implements `runwire.testing.RunTask`."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.sync = BenchSyncRunTask(bench)

    async def __call__(
        self,
        task: AnyTask,
        payload: Any = None,
        *,
        skip_waits: bool = True,
        timeout: Duration = _TIMEOUT,
        **options: Any,
    ) -> TaskResult[Any]:
        run = await self.start(task, payload, **options)
        return await run.result(skip_waits=skip_waits, timeout=timeout)

    async def start(self, task: AnyTask, payload: Any = None, **options: Any) -> BenchStartedRun:
        start = partial(self._bench.start, task, payload, cast(Any, options))
        return BenchStartedRun(self._bench, await _elsewhere(start))

    async def runs(self, task: AnyTask, *, timeout: Duration = _TIMEOUT) -> list[TaskResult[Any]]:
        return await _elsewhere(partial(self.sync.runs, task, timeout=timeout))


async def _elsewhere(work: Callable[[], T]) -> T:
    """Call in a thread, so that the test's own loop goes on; the bench bounds how long it takes."""
    return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
