"""Connections, transactions, and driver errors translated: where every statement runs.

A transaction that loses a deadlock or a serialisation is repeated by `Database.retrying`; one whose
COMMIT got no answer raises CommitUnknownError, and only whoever numbered its writes (see
runwire.writers in the schema) may repeat it.

Behind a transaction pooler, which refuses start-up options and forgets prepared statements, both
are left out; the time limits are then the role's own (`alter role ... set statement_timeout`).
"""

import logging
import select
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, LiteralString, TypeVar

import anyio
import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from runwire_engine.errors import (
    CommitUnknownError,
    DatabaseUnavailableError,
    DataRefusedError,
    EngineError,
    LockHeldError,
    StatementError,
    TransitionRefusedError,
)
from runwire_engine.statements import statement

logger = logging.getLogger("runwire.database")

Row = dict[str, Any]
Parameters = Mapping[str, object]
T = TypeVar("T")

_SESSION: Final = {
    "application_name": "runwire",
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "connect_timeout": "5",
}
_TRIES: Final = 5
# How often somebody who waits for a connection asks the pool again: the pool itself doubles its
# pauses and would notice a Postgres that is back only long after.
_ASK_SECONDS: Final = 1.0
_OPEN_SECONDS: Final = 15.0
_ROLLBACK_SECONDS: Final = 2.0


class Transaction:
    """One open transaction, or a session in autocommit: runs named statements.

    A lazy one sends BEGIN with its first statement, and `last` sends COMMIT along: a round trip
    less each.
    """

    def __init__(self, cursor: AsyncCursor[Row], *, is_autocommit: bool = False) -> None:
        self._cursor = cursor
        self._is_autocommit = is_autocommit
        self._has_begun = is_autocommit
        self._is_over = False

    async def all(self, name: str, parameters: Parameters | None = None) -> list[Row]:
        """Run a statement and return its rows."""
        await self._execute(name, parameters)
        return await self._cursor.fetchall() if self._cursor.description else []

    async def one(self, name: str, parameters: Parameters | None = None) -> Row | None:
        """Run a statement and return its first row, if any."""
        await self._execute(name, parameters)
        return await self._cursor.fetchone() if self._cursor.description else None

    async def run(self, name: str, parameters: Parameters | None = None) -> int:
        """Run a statement for its effect and return how many rows it touched."""
        await self._execute(name, parameters)
        return self._cursor.rowcount

    async def many(self, name: str, parameters: Sequence[Parameters]) -> None:
        """Run one statement once per set of parameters, in one pipeline."""
        await self.begin()
        try:
            await self._cursor.executemany(statement(name), parameters)
        except (psycopg.Error, UnicodeError) as error:
            raise self._translate(error, name) from None

    async def script(self, name: str, text: str) -> None:
        """Run a file of statements, all in this transaction; only migrations are such files."""
        await self.begin()
        try:
            await self._cursor.execute(text.encode())
        except psycopg.Error as error:
            raise self._translate(error, name) from None

    @property
    def connection(self) -> AsyncConnection[Row]:
        return self._cursor.connection

    async def together(self, *steps: tuple[str, Parameters | None]) -> list[list[Row]]:
        """Run statements in one round trip, none of which needs what another returns."""
        cursors: list[AsyncCursor[Row]] = []
        try:
            async with self.connection.pipeline():
                await self.begin()
                for name, parameters in steps:
                    cursors.append(await self.connection.execute(statement(name), parameters))
            return [await each.fetchall() if each.description else [] for each in cursors]
        except (psycopg.Error, UnicodeError) as error:
            raise self._translate(error, " + ".join(name for name, _ in steps)) from None

    async def last(self, name: str, parameters: Parameters | None = None) -> list[Row]:
        """Run the last statement and COMMIT in one round trip; return its rows.

        It is committed whatever they are. Raises CommitUnknownError as `Database.transaction`.
        """
        try:
            async with self.connection.pipeline():
                await self.begin()
                await self._cursor.execute(statement(name), parameters)
                await self.connection.execute("commit")
            self._is_over = True
            return await self._cursor.fetchall() if self._cursor.description else []
        except (psycopg.Error, UnicodeError) as error:
            if self.connection.broken or self.connection.closed:
                raise CommitUnknownError(f"{name}: the connection broke during COMMIT") from None
            raise self._translate(error, name) from None

    async def commit(self) -> None:
        """Commit, unless that has happened or there is nothing to commit."""
        if self._has_begun and not self._is_over:
            self._is_over = True
            await _commit(self.connection)

    async def begin(self) -> None:
        """Send BEGIN, unless that has happened."""
        if not self._has_begun:
            self._has_begun = True
            await self.connection.execute("begin")

    async def _execute(self, name: str, parameters: Parameters | None) -> None:
        query: LiteralString = statement(name)
        try:
            if self._has_begun:
                await self._cursor.execute(query, parameters)
                return
            async with self.connection.pipeline():
                await self.begin()
                await self._cursor.execute(query, parameters)
        except (psycopg.Error, UnicodeError) as error:
            raise self._translate(error, name) from None

    def _translate(self, error: psycopg.Error | UnicodeError, name: str) -> EngineError:
        if self._is_autocommit and self.connection.closed:
            return CommitUnknownError(f"{name}: the connection broke; it may have happened")
        return translate(error, name)


class Database:
    """A bounded pool of connections to one Postgres, all with our session settings."""

    # Statements of the hot path take milliseconds, so the timeouts only ever cut accidents.
    def __init__(
        self,
        dsn: str,
        *,
        max_size: int = 10,
        name: str = "runwire",
        statement_timeout: str = "5s",
        lock_timeout: str = "2s",
        wait_seconds: float = 10.0,
    ) -> None:
        self.dsn = dsn
        self._max_size = max_size
        self._name = name
        self._options = (
            f"-c statement_timeout={statement_timeout} -c lock_timeout={lock_timeout}"
            " -c idle_in_transaction_session_timeout=10s -c timezone=UTC"
        )
        # How long a caller waits for a connection before it hears that there is none.
        self._wait_seconds = wait_seconds
        self._is_pooled = False
        self._pool = self._new_pool()

    async def open(self, *, seconds: float = _OPEN_SECONDS) -> None:
        """Open the pool, waiting for a Postgres that is still starting.

        Raises DatabaseUnavailableError when it does not come up in time, and at once when it
        answers and refuses us (password, unknown role or database).
        """
        await self._prove_connectable(seconds)
        self._pool = self._new_pool()
        try:
            await self._pool.open(wait=True, timeout=seconds)
        except PoolTimeout:
            await self._pool.close()
            raise DatabaseUnavailableError("Postgres did not answer") from None

    async def close(self) -> None:
        await self._pool.close()

    @asynccontextmanager
    async def transaction(self, *, lazy: bool = False) -> AsyncGenerator[Transaction]:
        """Open a transaction: committed when the block ends, rolled back when it raises.

        `lazy`: BEGIN travels with the first named statement; until then its connection is bare.
        Raises CommitUnknownError when the connection broke during COMMIT: it may or may not have
        happened.
        """
        async with self._connection() as connection, connection.cursor() as cursor:
            tx = Transaction(cursor)
            try:
                if not lazy:
                    await tx.begin()
                yield tx
            except BaseException:
                await _roll_back(connection)
                raise
            await tx.commit()

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[Transaction]:
        """Borrow a connection in autocommit: each statement is its own transaction."""
        async with self._connection() as connection, connection.cursor() as cursor:
            yield Transaction(cursor, is_autocommit=True)

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
        connection = await self._borrow()
        try:
            yield connection
        except psycopg.Error as error:
            raise translate(error) from None
        finally:
            # Shielded: a connection that is not given back is lost to everybody.
            with anyio.CancelScope(shield=True):
                await self._pool.putconn(connection)

    async def _borrow(self) -> AsyncConnection[Row]:
        deadline = anyio.current_time() + self._wait_seconds
        while True:
            left = deadline - anyio.current_time()
            try:
                return await self._pool.getconn(timeout=max(0.001, min(left, _ASK_SECONDS)))
            except PoolTimeout:
                if left <= _ASK_SECONDS:
                    raise DatabaseUnavailableError(
                        f"no connection to Postgres became free within {self._wait_seconds:g} s"
                    ) from None
            except psycopg.Error as error:
                raise translate(error) from None

    async def _prove_connectable(self, seconds: float) -> None:
        """Connect once before the pool does: only here one learns why it does not work."""
        deadline = anyio.current_time() + seconds
        while True:
            try:
                connection = await AsyncConnection.connect(self.dsn, **self._connect_settings())
            except psycopg.Error as error:
                refusal = _Refusal(error)
            else:
                return await connection.close()
            if refusal.is_a_poolers and not self._is_pooled:
                logger.warning("a pooler refuses start-up options; time limits are the role's")
                self._is_pooled = True
            elif refusal.is_final or anyio.current_time() >= deadline:
                raise DatabaseUnavailableError(f"cannot connect to Postgres: {refusal.reason}")
            else:
                await anyio.sleep(0.2)  # nothing announces a Postgres that is up

    def _connect_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {**_SESSION, "autocommit": True}
        if self._is_pooled:
            return {**settings, "prepare_threshold": None}
        return {**settings, "options": self._options}

    def _new_pool(self) -> AsyncConnectionPool[AsyncConnection[Row]]:
        return AsyncConnectionPool(
            self.dsn,
            kwargs={**self._connect_settings(), "row_factory": dict_row},
            connection_class=AsyncConnection[Row],
            min_size=1,
            max_size=self._max_size,
            max_waiting=10_000,
            timeout=self._wait_seconds,
            # It gives up soon; `_borrow` asks it again.
            reconnect_timeout=0.5,
            name=self._name,
            open=False,
            check=_check,
        )


async def _check(connection: AsyncConnection[Row]) -> None:
    """Spot a connection that died in the pool; without a round trip while it is sound.

    A sound idle connection has nothing to say: only one that is readable is asked.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        await connection.execute("")


async def _commit(connection: AsyncConnection[Row]) -> None:
    try:
        await connection.execute("commit")
    except psycopg.OperationalError:
        if connection.broken or connection.closed:
            raise CommitUnknownError("the connection broke during COMMIT") from None
        raise


async def _roll_back(connection: AsyncConnection[Row]) -> None:
    """Leave the connection clean, or closed; bounded, also while we are being cancelled."""
    if connection.closed:
        return
    with anyio.move_on_after(_ROLLBACK_SECONDS, shield=True):
        try:
            status = connection.info.transaction_status
            if status == TransactionStatus.IDLE:
                return
            if status != TransactionStatus.ACTIVE:
                await connection.execute("rollback")
                return
        except psycopg.Error:
            pass
    await connection.close()


class _Refusal:
    """Why a connection could not be made, fit for showing: libpq's text has no password."""

    def __init__(self, error: psycopg.Error) -> None:
        # One line per address that was tried; the server's own words come after FATAL.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        server = [line.partition("FATAL:")[2].strip() for line in lines if "FATAL:" in line]
        self.reason = server[0] if server else (lines[0] if lines else type(error).__name__)
        self.is_a_poolers = "unsupported startup parameter" in self.reason
        self.is_final = bool(server) and any(
            words in self.reason
            for words in ("authentication", "does not exist", "pg_hba.conf", "not permitted")
        )


def translate(error: psycopg.Error | UnicodeError, name: str = "a statement") -> EngineError:
    """Return our error for a driver error; its text never has a value in it."""
    if isinstance(error, UnicodeError):
        return DataRefusedError(f"{name}: a text has characters that UTF-8 cannot hold")
    state = error.sqlstate
    if state is None:
        return _translate_the_drivers_own(error, name)
    message = f"{name}: {error.diag.message_primary}"
    if state in {"RW001", "RW002"}:
        return TransitionRefusedError(error.diag.message_primary or "")
    # Class 22 quotes the value it refuses.
    if state[:2] == "22":
        return DataRefusedError(f"{name}: {type(error).__name__} ({state})")
    if state[:2] == "54" or state == "23514":
        return DataRefusedError(message)
    if state == "55P03":
        return LockHeldError(message)
    # Also: what was the primary is a standby now (25006).
    if state[:2] in {"08", "53", "57"} or state == "25006":
        return DatabaseUnavailableError(message)
    repeatable = isinstance(
        error, psycopg.errors.DeadlockDetected | psycopg.errors.SerializationFailure
    )
    return StatementError(message, sqlstate=state, repeatable=repeatable)


def _translate_the_drivers_own(error: psycopg.Error, name: str) -> EngineError:
    if isinstance(error, psycopg.DataError):
        return DataRefusedError(f"{name}: a value that Postgres cannot hold (a NUL in a text?)")
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return DatabaseUnavailableError(f"{name}: the connection to Postgres is lost")
    return StatementError(f"{name}: {type(error).__name__}", sqlstate="", repeatable=False)
