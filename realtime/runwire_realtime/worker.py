"""Composes a worker process: modules in, their tasks executed until it is told to stop."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

import anyio

from runwire import queues
from runwire._settings import DEFAULT_API_URL
from runwire.tasks import registry
from runwire_engine.children import Mint
from runwire_engine.modules import load_modules
from runwire_engine.settings import EngineSettings
from runwire_engine.worker import Worker
from runwire_realtime.errors import StartError
from runwire_realtime.garbage import spare_what_stays
from runwire_realtime.logs import hear_runs
from runwire_realtime.parent import READY, report, until_orphaned
from runwire_realtime.settings import database_address
from runwire_realtime.tokens import (
    TRIGGER_LIFETIME,
    Tokens,
    callback_url,
    check_secret,
    made_scopes,
)

logger = logging.getLogger("runwire.worker")


async def run_worker(modules: Sequence[str], say: Callable[[str], None]) -> None:
    """Execute the tasks of modules until SIGINT or SIGTERM; a second signal stops without grace.

    Raises StartError, ModuleLoadError or another EngineError, one line each.
    """
    if not modules:
        raise StartError("name the modules that define the tasks: runwire worker MODULE…")
    load_modules(modules)
    if not registry():
        raise StartError(f"no task is defined in {', '.join(modules)}")
    settings = _settings()
    hear_runs(settings.run_log_level)
    mint = _mint(os.environ.get("RUNWIRE_SECRET") or None)
    worker = Worker(settings, registry(), mint=mint, queues=queues.registry())

    async def stop_on_signal() -> None:
        async for _ in signals:
            is_first = not stopping.is_set()
            stopping.set()
            worker.stop(grace=None if is_first else 0.0)
            if is_first:
                watchers.start_soon(say_what_executes)

    async def say_what_executes() -> None:
        # Not at once: a claim may be under way.
        await worker.claimed_last()
        if worker.held:
            within = f"within {settings.grace:g} s, or now at a second signal"
            say(f"stopping; what still executes is given back {within}")

    async def stop_as_orphan() -> None:
        await until_orphaned()
        worker.stop()

    stopping = anyio.Event()
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as watchers:
            watchers.start_soon(stop_on_signal)
            watchers.start_soon(stop_as_orphan)
            try:
                async with anyio.create_task_group() as tasks:
                    await tasks.start(worker.run)
                    spare_what_stays()
                    report(READY)
                    say(f"executing {', '.join(sorted(registry()))}")
            except Exception:
                if worker.left_behind:
                    logger.exception("the worker failed")
                    _end_now(1)
                raise
            if worker.left_behind:
                _end_now(0)
            watchers.cancel_scope.cancel()


def _end_now(code: int) -> None:
    """End the process without waiting for functions that ignore that they were told to end."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _settings() -> EngineSettings:
    return EngineSettings(database_url=database_address())


def _mint(secret: str | None) -> Mint | None:
    """Return what mints the tokens of runs triggered inside a run; None without the secret."""
    if secret is None:
        return None
    problem = check_secret(secret)
    if problem is not None:
        raise StartError(problem)
    tokens = Tokens(secret)
    api_url = (os.environ.get("RUNWIRE_API_URL") or DEFAULT_API_URL).rstrip("/")

    def mint(environment_id: int, kind: str, id: str) -> str:
        if kind == "callback":
            return callback_url(api_url, tokens.callback(environment_id, id), id)
        scopes = made_scopes(kind, id)
        return tokens.mint(environment_id, scopes, now=time.time(), lifetime=TRIGGER_LIFETIME).token

    return mint
