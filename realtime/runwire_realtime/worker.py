"""Composes a worker process: modules in, their tasks executed until it is told to stop."""

import os
import signal
import time
from collections.abc import Callable, Sequence

import anyio

from runwire.tasks import registry
from runwire_engine.children import Mint
from runwire_engine.modules import load_modules
from runwire_engine.settings import EngineSettings
from runwire_engine.worker import Worker
from runwire_realtime.errors import StartError
from runwire_realtime.parent import READY, report, until_orphaned
from runwire_realtime.tokens import TRIGGER_LIFETIME, Tokens, check_secret, made_scopes


async def run_worker(modules: Sequence[str], say: Callable[[str], None]) -> None:
    """Execute the tasks of modules until SIGINT or SIGTERM; a second signal stops without grace.

    Raises StartError, ModuleLoadError or another EngineError, one line each.
    """
    if not modules:
        raise StartError("name the modules that define the tasks: runwire worker MODULE…")
    load_modules(modules)
    if not registry():
        raise StartError(f"no task is defined in {', '.join(modules)}")
    worker = Worker(_settings(), registry(), mint=_mint(os.environ.get("RUNWIRE_SECRET")))

    async def stop_on_signal() -> None:
        async for _ in signals:
            worker.stop(grace=0.0 if stopping.is_set() else None)
            stopping.set()

    async def stop_as_orphan() -> None:
        await until_orphaned()
        worker.stop()

    stopping = anyio.Event()
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as watchers:
            watchers.start_soon(stop_on_signal)
            watchers.start_soon(stop_as_orphan)
            async with anyio.create_task_group() as tasks:
                await tasks.start(worker.run)
                report(READY)
                say(f"executing {', '.join(sorted(registry()))}")
            watchers.cancel_scope.cancel()


def _settings() -> EngineSettings:
    if not os.environ.get("RUNWIRE_DATABASE_URL"):
        raise StartError("RUNWIRE_DATABASE_URL is not set; a worker speaks to Postgres directly")
    return EngineSettings()


def _mint(secret: str | None) -> Mint | None:
    """Return what mints the tokens of runs triggered inside a run; None without the secret."""
    if secret is None:
        return None
    problem = check_secret(secret)
    if problem is not None:
        raise StartError(problem)
    tokens = Tokens(secret)

    def mint(environment_id: int, kind: str, id: str) -> str:
        scopes = made_scopes(kind, id)
        return tokens.mint(environment_id, scopes, now=time.time(), lifetime=TRIGGER_LIFETIME).token

    return mint
