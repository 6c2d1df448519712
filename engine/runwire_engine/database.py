"""Connections, transactions, and driver errors translated: the one module that knows psycopg.

A transaction that loses a deadlock or a serialisation is repeated by `Database.retrying`; one whose
COMMIT got no answer raises CommitUnknownError, and only whoever numbered its writes (see
runwire.writers in the schema) may repeat it.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from runwire_engine.errors import (
    CommitUnknownError,
    DatabaseUnavailableError,
    DataRefusedError,
    StatementError,
    TransitionRefusedError,
)
from runwire_engine.statements import statement

logger = logging.getLogger("runwire.database")

Row = dict[str, Any]
Parameters = Mapping[str, object]
T = TypeVar("T")

# Reference numbers: statements of the hot path take milliseconds, so these only ever cut accidents.
_SESSION = {
    "application_name": "runwire",
    "options": "-c statement_timeout=5s -c lock_timeout=2s"
    " -c idle_in_transaction_session_timeout=10s -c timezone=UTC",
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "connect_timeout": "5",
}
_REPEATABLE = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_TRIES = 5


class Transaction:
    """One open transaction: runs named statements."""

    def __init__(self, cursor: AsyncCursor[Row]) -> None:
        self._cursor = cursor

    async def all(self, name: str, parameters: Parameters | None = None) -> list[Row]:
        """Run a statement and return its rows."""
        await self._cursor.execute(statement(name), parameters)
        return await self._cursor.fetchall() if self._cursor.description else []

    async def one(self, name: str, parameters: Parameters | None = None) -> Row | None:
        """Run a statement and return its first row, if any."""
        await self._cursor.execute(statement(name), parameters)
        return await self._cursor.fetchone() if self._cursor.description else None

    async def run(self, name: str, parameters: Parameters | None = None) -> int:
        """Run a statement for its effect and return how many rows it touched."""
        await self._cursor.execute(statement(name), parameters)
        return self._cursor.rowcount

    async def many(self, name: str, parameters: Sequence[Parameters]) -> None:
        """Run one statement once per set of parameters, in one pipeline."""
        await self._cursor.executemany(statement(name), parameters)

    @property
    def connection(self) -> AsyncConnection[Row]:
        return self._cursor.connection


class Database:
    """A bounded pool of connections to one Postgres, all with our session settings."""

    def __init__(self, dsn: str, *, max_size: int = 10, name: str = "runwire") -> None:
        self.dsn = dsn
        self._pool: AsyncConnectionPool[AsyncConnection[Row]] = AsyncConnectionPool(
            dsn,
            kwargs={**_SESSION, "autocommit": True, "row_factory": dict_row},
            connection_class=AsyncConnection[Row],
            min_size=1,
            max_size=max_size,
            max_waiting=10_000,
            timeout=10.0,
            name=name,
            open=False,
            check=None,
        )

    async def open(self) -> None:
        """Open the pool. Raises DatabaseUnavailableError when no connection can be made."""
        try:
            await self._pool.open(wait=True, timeout=15.0)
        except PoolTimeout as error:
            await self._pool.close()
            raise DatabaseUnavailableError(f"Postgres did not answer: {error}") from None

    async def close(self) -> None:
        await self._pool.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Transaction]:
        """Open a transaction: committed when the block ends, rolled back when it raises.

        Raises CommitUnknownError when the connection broke during COMMIT: it may or may not have
        happened.
        """
        async with self._connection() as connection:
            await connection.execute("begin")
            try:
                async with connection.cursor() as cursor:
                    yield Transaction(cursor)
            except BaseException:
                await _roll_back(connection)
                raise
            await _commit(connection)

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[Transaction]:
        """Borrow a connection in autocommit: each statement is its own transaction."""
        async with self._connection() as connection, connection.cursor() as cursor:
            yield Transaction(cursor)

    async def all(self, name: str, parameters: Parameters | None = None) -> list[Row]:
        """Run one statement in a transaction of its own and return its rows."""
        async with self.session() as session:
            return await session.all(name, parameters)

    async def one(self, name: str, parameters: Parameters | None = None) -> Row | None:
        async with self.session() as session:
            return await session.one(name, parameters)

    async def run(self, name: str, parameters: Parameters | None = None) -> int:
        async with self.session() as session:
            return await session.run(name, parameters)

    async def retrying(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Do work in a transaction, again from the start after a deadlock (at most 5 times)."""
        for _ in range(_TRIES - 1):
            try:
                async with self.transaction() as tx:
                    return await work(tx)
            except StatementError as error:
                if not error.repeatable:
                    raise
        async with self.transaction() as tx:
            return await work(tx)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[AsyncConnection[Row]]:
        try:
            async with self._pool.connection() as connection:
                yield connection
        except psycopg.Error as error:
            raise translate(error) from error


async def _commit(connection: AsyncConnection[Row]) -> None:
    try:
        await connection.execute("commit")
    except psycopg.OperationalError as error:
        if connection.broken or connection.closed:
            raise CommitUnknownError("the connection broke during COMMIT") from error
        raise


async def _roll_back(connection: AsyncConnection[Row]) -> None:
    if connection.closed:
        return
    try:
        await connection.execute("rollback")
    except psycopg.Error:
        await connection.close()


def translate(error: psycopg.Error) -> Exception:
    """Return our error for a driver error; never with the statement's values in its text."""
    state = error.sqlstate
    message = error.diag.message_primary or type(error).__name__
    if isinstance(error, PoolTimeout) or state is None or state[:2] in {"08", "57", "53"}:
        return DatabaseUnavailableError(message)
    if state in {"RW001", "RW002"}:
        return TransitionRefusedError(message)
    if state[:2] in {"22", "54"} or state == "23514":
        return DataRefusedError(message)
    return StatementError(message, sqlstate=state, repeatable=isinstance(error, _REPEATABLE))
