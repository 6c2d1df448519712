"""Triggering inside a transaction of an application's own: a run exists exactly if that commits.

Everything runs on the caller's connection, whatever its row factory, adapters, search path or
pipeline are. The bells ring in the same transaction, so that they leave with its COMMIT: here, and
only here. What Postgres refuses is raised as psycopg raises it, because the transaction is the
caller's to roll back or to repeat.

The public package finds this module by name (runwire._transactional): it imports no engine.
"""

from collections.abc import Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import Any, Final, Protocol, TypeVar, cast

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.adapt import AdaptersMap
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import dict_row

from runwire._context import Triggered, TriggeredBatch
from runwire.errors import ConfigurationError, InvalidValueError, NotInTransactionError
from runwire.requests import BatchItem, TriggerOptions
from runwire_engine.batches import creation
from runwire_engine.bells import Bell, encode
from runwire_engine.database import Parameters, Row, Statements
from runwire_engine.ids import new_batch_id, new_run_id
from runwire_engine.new_runs import new_run
from runwire_engine.statements import statement
from runwire_engine.triggers import Triggering
from runwire_engine.wanted_runs import NewRun, Parent, TriggerResult, Wanted

T = TypeVar("T")

# As psycopg has them: what an application registered on its connection is for its own values.
_ADAPTERS: Final = AdaptersMap(psycopg.adapters)
_NO_SCHEMA: Final = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedFunction,
)


async def trigger(
    connection: AsyncConnection[Any],
    environment: str,
    task: str,
    payload: str | None,
    options: TriggerOptions,
    parent: tuple[str, int] | None,
) -> Triggered:
    """Start a run with the caller's transaction. `parent`: the id and execution of a run.

    Raises NotInTransactionError, UnknownTaskError, InvalidValueError, FencedError,
    ConfigurationError, TypeError for what is no connection of psycopg, and what psycopg raises.
    """
    work = _Work(_Waiting(connection), environment, parent)
    return await work.trigger(task, payload, options)


async def trigger_batch(
    connection: AsyncConnection[Any],
    environment: str,
    items: Sequence[BatchItem],
    idempotency_key: str | None,
    parent: tuple[str, int] | None,
) -> TriggeredBatch:
    """Start a batch of runs with the caller's transaction. Raises what `trigger` raises."""
    work = _Work(_Waiting(connection), environment, parent)
    return await work.trigger_batch(items, idempotency_key)


def trigger_blocking(
    connection: Connection[Any],
    environment: str,
    task: str,
    payload: str | None,
    options: TriggerOptions,
    parent: tuple[str, int] | None,
) -> Triggered:
    """Do what `trigger` does, on a connection that blocks."""
    work = _Work(_Blocking(connection), environment, parent)
    return _finished(work.trigger(task, payload, options))


def trigger_batch_blocking(
    connection: Connection[Any],
    environment: str,
    items: Sequence[BatchItem],
    idempotency_key: str | None,
    parent: tuple[str, int] | None,
) -> TriggeredBatch:
    """Do what `trigger_batch` does, on a connection that blocks."""
    work = _Work(_Blocking(connection), environment, parent)
    return _finished(work.trigger_batch(items, idempotency_key))


class _Caller(Statements, Protocol):
    """Statements on a caller's connection."""

    def check_begun(self) -> None: ...


class _Work:
    """What one trigger does inside the transaction."""

    def __init__(self, tx: _Caller, environment: str, parent: tuple[str, int] | None) -> None:
        self._tx = tx
        self._environment = environment
        self._environment_id = 0
        self._parent = None if parent is None else Parent(*parent)
        self._tasks: Sequence[Row] = ()

    async def trigger(self, task: str, payload: str | None, options: TriggerOptions) -> Triggered:
        new = self._new(task, payload, options)
        await self._begin([task])
        [made] = await self._make([Wanted(new_run_id(), new)])
        return Triggered(made.id, made.is_cached, None)

    async def trigger_batch(
        self, items: Sequence[BatchItem], idempotency_key: str | None
    ) -> TriggeredBatch:
        batch_id = new_batch_id()
        new = [
            self._new(item.task, item.payload, item.options, (batch_id, item.index))
            for item in items
        ]
        await self._begin(sorted({item.task for item in items}))
        name: dict[str, object] = {"environment_id": self._environment_id, "batch_id": batch_id}
        parent_id = None if self._parent is None else self._parent.run_id
        made = creation(self._environment_id, batch_id, len(items), idempotency_key, parent_id)
        if idempotency_key is not None:
            claimed = await self._tx.all("batches.claim_key", made)
            held = claimed or await self._tx.all("batches.held_key", made)
            if held and held[0]["run_id"] != batch_id:
                name["batch_id"] = str(held[0]["run_id"])
                [found] = await self._tx.all("batches.retrieve", name)
                run_ids = tuple(found["run_ids"])
                return TriggeredBatch(found["id"], found["run_count"], True, None, run_ids)
        await self._tx.run("batches.create", made)
        runs = await self._make([Wanted(new_run_id(), each) for each in new])
        await self._tx.all("batches.seal", name)
        return TriggeredBatch(batch_id, len(items), False, None, tuple(run.id for run in runs))

    def _new(
        self,
        task: str,
        payload: str | None,
        options: TriggerOptions,
        batch: tuple[str, int] | None = None,
    ) -> NewRun:
        new = new_run(task, payload, options, parent=self._parent, batch=batch)
        if new.concurrency_limit is not None:
            raise InvalidValueError(
                "the limit of a queue is not set inside a transaction, which would keep the queue"
                " from being served until it ends: set it with the task",
                code="option",
            )
        if new.debounce is not None:
            raise InvalidValueError(
                "debounce is not offered inside a transaction, which would hold up every other"
                " trigger with its key until it ends; use an idempotency key",
                code="option",
            )
        return new

    async def _begin(self, tasks: Sequence[str]) -> None:
        try:
            rows = await self._tx.all(
                "transactional.begin", {"environment": self._environment, "tasks": list(tasks)}
            )
        except _NO_SCHEMA as error:
            raise ConfigurationError(
                "this database has no tables of Runwire, or older ones: `runwire migrate` makes"
                " them in the database that RUNWIRE_DATABASE_URL names"
            ) from error
        self._tx.check_begun()
        if rows[0]["environment_id"] is None:
            raise ConfigurationError(
                f"this database has no environment {self._environment!r}; RUNWIRE_ENVIRONMENT"
                " names the one to trigger in"
            )
        if not rows[0]["has_partitions"]:
            await self._tx.all("runs.make_partitions")
        self._environment_id = rows[0]["environment_id"]
        self._tasks = rows

    async def _make(self, wanted: Sequence[Wanted]) -> list[TriggerResult]:
        triggering = Triggering(
            self._tx, self._environment_id, wanted, is_brief=False, tasks=self._tasks
        )
        results: list[TriggerResult] = []
        for answer in await triggering.run():
            if isinstance(answer, Exception):
                raise answer
            results.append(answer)
        if triggering.made:
            await self._ring({row["queue"] for row in triggering.made})
        return results

    async def _ring(self, queues: set[str]) -> None:
        bell = Bell(work=frozenset(queues), runs_moved=True)
        channels, payloads = zip(*encode(self._environment_id, bell), strict=True)
        await self._tx.all(
            "doorbell.ring", {"channels": list(channels), "payloads": list(payloads)}
        )


class _OwnCursor(Cursor[Row]):
    """Reads and writes values as psycopg does by itself."""

    @property
    def adapters(self) -> AdaptersMap:
        return _ADAPTERS


class _OwnAsyncCursor(AsyncCursor[Row]):
    """As _OwnCursor."""

    @property
    def adapters(self) -> AdaptersMap:
        return _ADAPTERS


class _Blocking:
    """Statements on a connection that blocks: these coroutines never wait."""

    def __init__(self, connection: Connection[Any]) -> None:
        _check(connection, Connection)
        self._connection = connection
        self._cursor = _OwnCursor(connection, row_factory=dict_row)

    async def all(self, name: str, parameters: Parameters | None = None) -> list[Row]:
        self._execute(name, parameters)
        return self._cursor.fetchall() if self._cursor.description else []

    async def run(self, name: str, parameters: Parameters | None = None) -> int:
        self._execute(name, parameters)
        return self._cursor.rowcount

    def check_begun(self) -> None:
        _check_begun(self._connection)

    def _execute(self, name: str, parameters: Parameters | None) -> None:
        # Binary: the session's DateStyle may be any.
        with self._answered():
            self._cursor.execute(statement(name), parameters, binary=True)

    def _answered(self) -> AbstractContextManager[object]:
        """In pipeline mode, have what was sent answered at the end of the block."""
        return self._connection.pipeline() if _is_piped(self._connection) else nullcontext()


class _Waiting:
    """Statements on a connection of asyncio."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        _check(connection, AsyncConnection)
        self._connection = connection
        self._cursor = _OwnAsyncCursor(connection, row_factory=dict_row)

    async def all(self, name: str, parameters: Parameters | None = None) -> list[Row]:
        await self._execute(name, parameters)
        return await self._cursor.fetchall() if self._cursor.description else []

    async def run(self, name: str, parameters: Parameters | None = None) -> int:
        await self._execute(name, parameters)
        return self._cursor.rowcount

    def check_begun(self) -> None:
        _check_begun(self._connection)

    async def _execute(self, name: str, parameters: Parameters | None) -> None:
        async with self._answered():
            await self._cursor.execute(statement(name), parameters, binary=True)

    def _answered(self) -> AbstractAsyncContextManager[object]:
        return self._connection.pipeline() if _is_piped(self._connection) else nullcontext()


def _finished(work: Coroutine[Any, Any, T]) -> T:
    """Run to its end a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        return cast(T, end.value)
    work.close()
    raise AssertionError("a statement on a connection that blocks was waited for")


def _check(given: object, kind: type[Any]) -> None:
    if not isinstance(given, kind):
        name, wanted = type(given).__name__, f"psycopg.{kind.__name__}"
        raise TypeError(
            f"the connection is a psycopg.{name}, and this call takes a {wanted}: the blocking"
            " twins take what blocks, the async calls what does not"
            if isinstance(given, Connection | AsyncConnection)
            else f"connection must be a {wanted}, not {name}: in Django that is"
            " `connection.connection`, in SQLAlchemy `connection.connection.driver_connection`"
        )
    connection = cast("Connection[Any] | AsyncConnection[Any]", given)
    if connection.closed:
        raise NotInTransactionError("the connection is closed")
    if connection.info.transaction_status == TransactionStatus.INERROR:
        raise NotInTransactionError("the transaction has failed already: roll it back first")


def _check_begun(connection: Connection[Any] | AsyncConnection[Any]) -> None:
    if connection.info.transaction_status == TransactionStatus.IDLE:
        raise NotInTransactionError(
            "the connection commits by itself (autocommit) and is in no transaction: trigger"
            " inside `with connection.transaction():`"
        )


def _is_piped(connection: Connection[Any] | AsyncConnection[Any]) -> bool:
    return connection.pgconn.pipeline_status != PipelineStatus.OFF
