"""An engine and a worker on one test's database, on a loop and a thread of their own.

Tests call in from wherever they run: plain functions, anyio's loop, pytest-asyncio's. `async def`
tasks run on the bench's loop, `def` tasks in threads, as they do in a worker process.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from runwire._options import TriggerKeywords, trigger_options
from runwire.tasks import AnyTask, registry
from runwire.testing import TaskResult
from runwire_engine.engine import Engine, open_engine
from runwire_engine.environments import Environments
from runwire_engine.new_runs import new_run
from runwire_engine.settings import EngineSettings
from runwire_engine.states import FINAL
from runwire_engine.worker import Worker
from runwire_realtime.testing.databases import ENVIRONMENT
from runwire_realtime.testing.results import Results
from runwire_realtime.testing.server import serving

T = TypeVar("T")

# How often the database is looked at: nothing tells a test that nothing happens any more.
_LOOK: Final = 0.005
# So many looks in a row must find nothing to do: between two states of a run there may be a moment.
_QUIET: Final = 3
_A_CENTURY: Final = 100 * 365 * 86_400.0


class Bench:
    """Runs tasks on a database of its own; everything may be called from any thread."""

    def __init__(self, database_url: str) -> None:
        self._settings = EngineSettings(
            database_url=database_url,
            listen_database_url="",
            environment=ENVIRONMENT,
            pool_size=6,
            # Time that is moved forward ends no lease and no history.
            lease=_A_CENTURY,
            retention=_A_CENTURY,
            run_retention=_A_CENTURY,
            horizon_alarm=_A_CENTURY,
            heartbeat=10.0,
            sweep=0.1,
            poll=0.05,
            grace=0.0,
        )
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._engine: Engine | None = None
        self._environment_id = 0
        self._working: AbstractContextManager[None] | None = None
        self._tasks: dict[str, AnyTask] = {}

    def close(self) -> None:
        """Stop the worker, without grace, and the engine."""
        self._stop_worker()
        self._stack.close()

    def start(self, task: AnyTask, payload: object, options: TriggerKeywords) -> str:
        """Start a run and return its id. Raises InvalidValueError."""
        new = new_run(task.id, task.dump_payload(payload), trigger_options(options))
        self._work_on(task)
        return self._call(self._trigger, new)

    def status(self, run_id: str) -> str:
        """Return a run's status."""
        return str(self._call(self._situation, run_id)["status"])

    def until(self, run_id: str, statuses: Sequence[str], timeout: float) -> str:
        """Wait until a run has one of some statuses, skipping nothing. Raises TimeoutError."""
        return self._call(self._until, run_id, statuses, timeout)

    def result(self, run_id: str, *, skip_waits: bool, timeout: float) -> TaskResult[Any]:
        """Wait until a run is over, and return it. Raises TimeoutError."""
        return self._call(self._result, run_id, skip_waits, timeout)

    def finished(self, task: AnyTask, timeout: float) -> list[TaskResult[Any]]:
        """Wait until nothing executes, and return the finished runs of a task."""
        self._work_on(task)
        return self._call(self._finished, task.id, timeout)

    def now(self) -> datetime:
        """Return the time of the database."""
        return self._call(self._now)

    def advance_by(self, span: timedelta) -> None:
        """Move time forward by a span."""
        self.advance_to(self.now() + span)

    def advance_to(self, time: datetime) -> None:
        """Move time forward to a moment."""
        if registry():
            # So that schedules are declared before their time comes.
            self._work_on(None)
        self._call(self._advance_and_tick, time)

    @contextmanager
    def serving(self) -> Generator[tuple[str, str]]:
        """Run a server for the length of a block; its address, and an API key."""
        portal = self._opened()
        self._work_on(None)
        with portal.wrap_async_context_manager(serving(self._settings.database_url)) as served:
            yield served

    # On the bench's loop -----------------------------------------------------------------------

    @property
    def _running(self) -> Engine:
        assert self._engine is not None
        return self._engine

    async def _trigger(self, new: Any) -> str:
        return (await self._running.runs.trigger(self._environment_id, new)).id

    async def _until(self, run_id: str, statuses: Sequence[str], timeout: float) -> str:
        with _deadline(timeout) as scope:
            while True:
                status = str((await self._situation(run_id))["status"])
                if status in statuses:
                    return status
                await anyio.sleep(_LOOK)
        assert scope.cancelled_caught
        raise await self._too_late(run_id, timeout)

    async def _result(self, run_id: str, skip_waits: bool, timeout: float) -> TaskResult[Any]:
        with _deadline(timeout):
            await self._skip_until_final(run_id, skip_waits)
            # Its children may have started with its end.
            await self._settle()
            return await self._read(run_id)
        raise await self._too_late(run_id, timeout)

    async def _skip_until_final(self, run_id: str, skip_waits: bool) -> None:
        quiet = 0
        while (now := await self._situation(run_id))["status"] not in FINAL:
            quiet = 0 if now["is_busy"] else quiet + 1
            if skip_waits and quiet >= _QUIET and now["due_at"] is not None:
                await self._advance(max(now["due_at"], now["now"]))
                quiet = 0
            await anyio.sleep(_LOOK)

    async def _settle(self) -> None:
        """Wait until nothing executes and nothing is due."""
        quiet = 0
        while quiet < _QUIET:
            await self._running.sweep.once()
            quiet = 0 if (await self._situation(""))["is_busy"] else quiet + 1
            await anyio.sleep(_LOOK)

    async def _finished(self, task: str, timeout: float) -> list[TaskResult[Any]]:
        with anyio.fail_after(timeout):
            await self._settle()
            parameters = {"environment_id": self._environment_id, "task": task}
            rows = await self._running.database.all("testing.finished", parameters)
            return [await self._read(row["id"]) for row in rows]

    async def _read(self, run_id: str) -> TaskResult[Any]:
        return await Results(self._running, self._environment_id, self._tasks).of(run_id)

    async def _situation(self, run_id: str) -> dict[str, Any]:
        parameters = {"environment_id": self._environment_id, "run_id": run_id}
        row = await self._running.database.one("testing.situation", parameters)
        assert row is not None
        return row

    async def _now(self) -> datetime:
        row = await self._running.database.one("testing.now")
        assert row is not None
        now: datetime = row["now"]
        return now

    async def _advance(self, to: datetime) -> None:
        database = self._running.database
        await database.run("testing.make_partitions", {"day": to.astimezone(UTC).date()})
        await database.run("testing.advance", {"to": to})
        # At once what the engine would find at its next look.
        await self._running.sweep.once()

    async def _advance_and_tick(self, to: datetime) -> None:
        await self._advance(to)
        while await self._running.ticks.once() == 0:
            pass

    async def _too_late(self, run_id: str, timeout: float) -> TimeoutError:
        now = await self._situation(run_id)
        why = ""
        if now["status"] in FINAL:
            why = "; another run, of those it triggered, still executes"
        elif now["status"] == "WAITING" and now["due_at"] is None:
            why = "; it waits for something that no time brings: a token, an input, another run"
        elif now["status"] in {"DELAYED", "WAITING"}:
            why = f"; it goes on at {now['due_at']}, and it is {now['now']}"
        return TimeoutError(f"run {run_id} is {now['status']} after {timeout:g} s{why}")

    # Starting and stopping ---------------------------------------------------------------------

    def _call(self, work: Callable[..., Awaitable[T]], *arguments: object) -> T:
        return self._opened().call(work, *arguments)

    def _opened(self) -> BlockingPortal:
        if self._portal is None:
            self._portal = self._stack.enter_context(start_blocking_portal("asyncio"))
            engine = open_engine(self._settings)
            self._engine = self._stack.enter_context(
                self._portal.wrap_async_context_manager(engine)
            )
            environments = Environments(self._engine.database)
            self._environment_id = self._portal.call(environments.ensure, ENVIRONMENT)
        return self._portal

    def _work_on(self, task: AnyTask | None) -> None:
        """Have a worker that knows a task, and all that are defined by now."""
        known = dict(registry())
        if task is not None:
            known[task.id] = task
        if all(self._tasks.get(id) is each for id, each in known.items()) and self._working:
            return
        self._stop_worker()
        self._tasks |= known
        working = self._opened().wrap_async_context_manager(self._worker())
        working.__enter__()
        self._working = working

    def _stop_worker(self) -> None:
        working, self._working = self._working, None
        if working is not None:
            working.__exit__(None, None, None)

    @asynccontextmanager
    async def _worker(self) -> AsyncGenerator[None]:
        worker = Worker(self._settings, self._tasks)
        async with anyio.create_task_group() as group:
            await group.start(worker.run)
            try:
                yield
            finally:
                worker.stop(grace=0.0)


def _deadline(seconds: float) -> anyio.CancelScope:
    return anyio.move_on_after(seconds)
