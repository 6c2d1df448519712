"""Triggering inside the caller's own transaction: the run exists exactly if it commits.

The work is the engine's, which this package must not import: it is found by name, and needs the
extra `server`.
"""

import os
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from runwire import _context
from runwire._context import Triggered, TriggeredBatch
from runwire.errors import ConfigurationError
from runwire.requests import BatchItem, TriggerOptions

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

DEFAULT_ENVIRONMENT = "dev"


class Engine(Protocol):
    """What runwire_engine.transactional offers."""

    async def trigger(
        self,
        connection: "AsyncConnection[Any]",
        environment: str,
        task: str,
        payload: str | None,
        options: TriggerOptions,
        parent: tuple[str, int] | None,
    ) -> Triggered: ...

    async def trigger_batch(
        self,
        connection: "AsyncConnection[Any]",
        environment: str,
        items: Sequence[BatchItem],
        idempotency_key: str | None,
        parent: tuple[str, int] | None,
    ) -> TriggeredBatch: ...

    def trigger_blocking(
        self,
        connection: "Connection[Any]",
        environment: str,
        task: str,
        payload: str | None,
        options: TriggerOptions,
        parent: tuple[str, int] | None,
    ) -> Triggered: ...

    def trigger_batch_blocking(
        self,
        connection: "Connection[Any]",
        environment: str,
        items: Sequence[BatchItem],
        idempotency_key: str | None,
        parent: tuple[str, int] | None,
    ) -> TriggeredBatch: ...


def engine() -> Engine:
    """Return the engine's side. Raises ConfigurationError where it is not installed."""
    try:
        return cast(Engine, import_module("runwire_engine.transactional"))
    except ImportError as error:
        raise ConfigurationError(
            "triggering inside a transaction needs what talks to Postgres:"
            f' pip install "runwire[server]" ({error})'
        ) from error


def surroundings() -> tuple[str, tuple[str, int] | None]:
    """Return the environment to trigger in, and the run that triggers, by id and execution."""
    runtime = _context.current()
    if runtime is None:
        return os.environ.get("RUNWIRE_ENVIRONMENT") or DEFAULT_ENVIRONMENT, None
    ctx = runtime.ctx
    return ctx.environment, (ctx.run.id, ctx.attempt.execution)
