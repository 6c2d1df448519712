"""A worker: claims runs and executes them, on two loops.

`run` is awaited on the task loop, where `async def` tasks run; usually it is the main thread's. The
worker starts a thread with a loop of its own, on which claims, heartbeats and flushers live, so
that a task which blocks its loop loses no lease. `def` tasks run in further threads.
"""

import asyncio
import contextlib
import dataclasses
import inspect
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import TypeVar

import anyio
import orjson
from anyio.abc import TaskStatus

from runwire.tasks import AnyTask
from runwire_engine.bells import Bell
from runwire_engine.bridge import Bridge, arrival, pending_promise
from runwire_engine.captured_logs import capturing
from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.children import Children, Mint
from runwire_engine.engine import Engine, open_engine
from runwire_engine.environments import Environments
from runwire_engine.errors import DatabaseUnavailableError
from runwire_engine.ids import new_worker_id
from runwire_engine.inputs import InputBells
from runwire_engine.listener import Listener
from runwire_engine.migrations import require_schema
from runwire_engine.schedules import declared
from runwire_engine.settings import EngineSettings
from runwire_engine.surroundings import Surroundings
from runwire_engine.task_loop import TaskLoop
from runwire_engine.tenure import BACK_OFF, Tenure
from runwire_engine.threads import Threads, outside_of_loops
from runwire_engine.wait_tokens import WaitTokens
from runwire_engine.watchdog import Watchdog

logger = logging.getLogger("runwire.worker")

T = TypeVar("T")

# Beside one thread for each slot, for the on_cancel hooks of functions that do not return.
_HOOK_THREADS = 8
# A task that computes in Python keeps the interpreter this long each time. Each of the ten or so
# steps of a flush waits for that: with the default of 5 ms a chunk took 150 ms beside such a task.
_SWITCH_INTERVAL = 0.001


class Worker:
    """Executes tasks until it is stopped."""

    def __init__(
        self,
        settings: EngineSettings,
        tasks: Mapping[str, AnyTask],
        *,
        mint: Mint | None = None,
        queues: Mapping[str, int | None] | None = None,
    ) -> None:
        """Take what to execute, what mints the tokens that a trigger inside a run returns, and the
        limits (None: no limit) of queues that code names besides those of its tasks.
        """
        self._settings = settings
        self._tasks = dict(tasks)
        self._mint = mint
        self._queues = dict(queues or {})
        self._threads = Threads(settings.concurrency + _HOOK_THREADS)
        self._variables = outside_of_loops()
        self._started: Future[None] = pending_promise()
        self._claimed_last: Future[None] = pending_promise()
        self._tenure: Tenure | None = None
        # Of the engine's thread, once it runs. The lock orders `stop` against that moment; a signal
        # handler may call `stop` while it runs.
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: anyio.Event | None = None
        self._stop_asked = False
        self._grace = settings.grace
        # Functions that did not end when they were told to, when `run` returned.
        self.left_behind = 0

    @property
    def worker_id(self) -> str | None:
        """The id it works under now; another one after a lost lease."""
        return None if self._tenure is None else self._tenure.worker_id

    @property
    def held(self) -> Mapping[str, int]:
        """The runs held now, with their executions."""
        return {} if self._tenure is None else self._tenure.executor.held

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Work until `stop`; started once it claims.

        Cancelled, it stops without any grace: what still executes is released. When `left_behind`
        is not 0 afterwards, the process must be ended the hard way: asyncio and the interpreter
        would wait for those functions.
        """
        ended: Future[None] = pending_promise()
        task_loop = TaskLoop()
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL))
        thread = threading.Thread(
            target=self._serve_thread,
            args=(task_loop.bridge, threading.get_ident(), ended),
            name="runwire-engine",
            daemon=True,
        )
        thread.start()
        try:
            with capturing():
                await arrival(self._started)
                task_status.started()
                await arrival(ended)
        finally:
            self.stop(grace=0.0)
            with anyio.CancelScope(shield=True):
                over = asyncio.wrap_future(ended)
                await asyncio.wait([over])
                over.exception()  # raised above, or what ended the start was
                self._note_claimed_last()
                self.left_behind = await task_loop.close() + self._threads.busy
            thread.join()

    async def claimed_last(self) -> None:
        """Wait, after `stop`, until `held` is what still executes, and nothing is added to it."""
        await arrival(self._claimed_last)

    def stop(self, *, grace: float | None = None) -> None:
        """Claim nothing more; let what executes finish for the grace, then release it.

        May be called from anywhere, a signal handler included, and again with less grace; `run`
        returns afterwards.
        """
        with self._lock:
            self._stop_asked = True
            if grace is not None:
                self._grace = min(grace, self._grace)
            loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # its thread has ended
                loop.call_soon_threadsafe(self._wind_down)

    # On the engine's thread ----------------------------------------------------------------------

    def _wind_down(self) -> None:
        if self._stopping is not None:
            self._stopping.set()
        if self._tenure is not None:
            self._tenure.shorten_grace(self._grace)

    def _serve_thread(self, task_loop: Bridge, thread: int, ended: "Future[None]") -> None:
        try:
            anyio.run(self._serve, task_loop, thread, backend_options={"loop_factory": _new_loop})
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
            ended.set_exception(error)
        else:
            if not self._started.done():
                self._started.set_result(None)
            ended.set_result(None)

    async def _serve(self, task_loop: Bridge, thread: int) -> None:
        stopping = anyio.Event()
        with self._lock:
            self._loop, self._stopping = asyncio.get_running_loop(), stopping
            if self._stop_asked:
                stopping.set()
        async with contextlib.AsyncExitStack() as stack:
            engine = await _patiently(lambda: self._open(stack), stopping)
            if engine is None:
                return
            environment_id = await _patiently(lambda: self._introduce(engine), stopping)
            if environment_id is None:
                return
            async with anyio.create_task_group() as tasks:
                around = Surroundings(
                    engine=engine,
                    environment_id=environment_id,
                    environment=self._settings.environment,
                    bridge=Bridge(tasks.start_soon),
                    children=Children(engine, environment_id, self._mint),
                    tokens=WaitTokens(engine, environment_id, self._mint),
                    inputs=InputBells(),
                    log_level=self._settings.run_log_level,
                )
                tasks.start_soon(self._listen, around)
                tasks.start_soon(Watchdog(task_loop.loop, thread, self._on_loop).run)
                while not stopping.is_set():
                    await self._serve_tenure(around, task_loop, stopping)
                around.bridge.close()
                tasks.cancel_scope.cancel()

    async def _open(self, stack: contextlib.AsyncExitStack) -> Engine:
        """Open the engine, which sweeps at once, on a database that fits it."""
        await require_schema(self._settings.database_url)
        return await stack.enter_async_context(open_engine(self._settings))

    async def _introduce(self, engine: Engine) -> int:
        """Make the environment and its tasks known."""
        environment_id = await Environments(engine.database).ensure(self._settings.environment)
        announced = [_announcement(task) for task in self._tasks.values()]
        await engine.catalogue.announce(environment_id, announced, self._queues)
        await engine.schedules.declare(
            environment_id, declared(self._tasks, self._settings.environment), self._tasks.keys()
        )
        return environment_id

    async def _serve_tenure(
        self, around: Surroundings, task_loop: Bridge, stopping: anyio.Event
    ) -> None:
        tenure = Tenure(
            new_worker_id(),
            around,
            self._tasks,
            self._settings,
            task_loop=task_loop,
            threads=self._threads,
            variables=self._variables,
            grace=self._grace,
        )
        self._tenure = tenure
        await tenure.run(stopping, self._note_started, self._note_claimed_last)

    def _note_started(self) -> None:
        if not self._started.done():
            self._started.set_result(None)

    def _note_claimed_last(self) -> None:
        if not self._claimed_last.done():
            self._claimed_last.set_result(None)

    async def _listen(self, around: Surroundings) -> None:
        dsn = around.engine.settings.listen_dsn

        def rang(bell: Bell) -> None:
            around.inputs.rang(bell)
            if self._tenure is not None:
                self._tenure.rang(bell)

        async with Listener(dsn, environment_id=around.environment_id, rung=rang):
            await anyio.sleep_forever()

    def _on_loop(self) -> list[str]:
        return [] if self._tenure is None else list(self._tenure.executor.on_loop())


def _announcement(task: AnyTask) -> TaskAnnouncement:
    schema = task.payload_schema()
    return TaskAnnouncement(
        id=task.id,
        queue=task.queue.name,
        concurrency_limit=task.queue.concurrency_limit,
        retry=orjson.dumps(dataclasses.asdict(task.retry)).decode(),
        max_duration=task.max_duration,
        ttl=task.ttl,
        payload_schema=None if schema is None else orjson.dumps(schema).decode(),
        description=inspect.cleandoc(task.__doc__ or ""),
    )


async def _patiently(work: Callable[[], Awaitable[T]], stopping: anyio.Event) -> T | None:
    """Do work that needs the database, however long that stays away; None when told to stop."""
    wait, longest = BACK_OFF
    while not stopping.is_set():
        try:
            return await work()
        except DatabaseUnavailableError as error:
            logger.warning("the worker waits for Postgres: %s", error)
        with anyio.move_on_after(wait):
            await stopping.wait()
        wait = min(wait * 2, longest)
    return None


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's loop where it is installed."""
    if sys.platform != "win32":
        with contextlib.suppress(ImportError):
            import uvloop

            return uvloop.new_event_loop()
    return asyncio.new_event_loop()
