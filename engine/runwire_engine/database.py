"""Connections, transactions, and driver errors translated: where every statement runs.

A transaction that loses a deadlock or a serialisation is repeated by `Database.retrying`, a single
statement by `run`, `one` and `all` themselves: five tries in all. One whose COMMIT got no answer
raises CommitUnknownError. Work that does nothing twice when it is repeated goes on with `surely`;
else only whoever numbered its writes (see runwire.writers in the schema) may repeat it.

Behind a transaction pooler, which refuses or drops start-up options and forgets prepared
statements, both are left out; the time limits are then the role's own
(`alter role ... set statement_timeout`).
"""

import logging
import select
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, LiteralString, Protocol, TypeVar

import anyio
import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import dict_row, tuple_row
from psycopg.sql import SQL, Identifier
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from runwire_engine.arrays import with_arrays
from runwire_engine.driver_errors import Refusal, translate
from runwire_engine.errors import (
    CommitUnknownError,
    DatabaseUnavailableError,
    EngineError,
    StatementError,
    WritesRefusedError,
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
# After a COMMIT without an answer: the first pause, which doubles; 3 s in all.
_COMMIT_PAUSE: Final = 0.1
# How long a write that was refused for want of disk space is news: whoever has something to write
# tries again every two seconds, so that it stays news for as long as it matters.
_REFUSED_SECONDS: Final = 5.0
# The first that has transaction_timeout.
_BOUNDS_TRANSACTIONS: Final = 170_000
# How often somebody who waits for a connection asks the pool again: the pool itself doubles its
# pauses and would notice a Postgres that is back only long after.
_ASK_SECONDS: Final = 1.0
_OPEN_SECONDS: Final = 15.0
_ROLLBACK_SECONDS: Final = 2.0


class Statements(Protocol):
    """What runs named statements: a transaction of ours, or one of a caller's own."""

    async def all(self, name: str, parameters: Parameters | None = None) -> list[Row]: ...

    async def run(self, name: str, parameters: Parameters | None = None) -> int: ...


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
        _check_has_rows(self._cursor, name)
        return await self._cursor.fetchall()

    async def tuples(self, name: str, parameters: Parameters) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows as tuples; in autocommit only."""
        try:
            cursor = self.connection.cursor(row_factory=tuple_row, binary=True)
            await cursor.execute(statement(name), parameters)
            return await cursor.fetchall()
        except (psycopg.Error, UnicodeError) as error:
            raise self._translate(error, name) from None

    async def one(self, name: str, parameters: Parameters | None = None) -> Row | None:
        """Run a statement and return its first row, if any."""
        await self._execute(name, parameters)
        _check_has_rows(self._cursor, name)
        return await self._cursor.fetchone()

    async def run(self, name: str, parameters: Parameters | None = None) -> int:
        """Run a statement for its effect and return how many rows it touched."""
        await self._execute(name, parameters)
        _check_answered(self._cursor, name)
        return self._cursor.rowcount

    async def run_on(self, name: str, **tables: str) -> None:
        """Run a statement on tables whose names stand in it as `{word}`."""
        named = {word: Identifier(table) for word, table in tables.items()}
        try:
            await self._cursor.execute(SQL(statement(name)).format(**named))
        except psycopg.Error as error:
            raise self._translate(error, name) from None

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
            answered = zip(steps, cursors, strict=True)
            return [await _rows(cursor, name) for (name, _), cursor in answered]
        except (psycopg.Error, UnicodeError) as error:
            raise self._translate(error, " + ".join(name for name, _ in steps)) from None

    async def last(
        self, name: str, parameters: Parameters | None = None, *, one_plan: bool = False
    ) -> list[Row]:
        """Run the last statement and COMMIT in one round trip; return its rows.

        `one_plan`: it has one good plan whatever its parameters, so none is made for each call.
        It is committed whatever they are. Raises CommitUnknownError as `Database.transaction`.
        """
        try:
            async with self.connection.pipeline():
                await self.begin()
                if one_plan:
                    await self.connection.execute(statement("database.one_plan"))
                await self._cursor.execute(statement(name), parameters)
                await self.connection.execute("commit")
            self._is_over = True
            return await _rows(self._cursor, name)
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
        transaction_timeout: str = "30s",
        wait_seconds: float = 10.0,
        connected: Callable[[Transaction], Awaitable[None]] | None = None,
    ) -> None:
        self.dsn = dsn
        # Looks at each new connection, before anybody gets it.
        self._connected = connected
        self._max_size = max_size
        self._name = name
        self._options = (
            f"-c statement_timeout={statement_timeout} -c lock_timeout={lock_timeout}"
            " -c idle_in_transaction_session_timeout=10s -c timezone=UTC"
            # What is asked here is little: starting helpers would take longer than the answer.
            " -c max_parallel_workers_per_gather=0"
        )
        self._transaction_timeout = transaction_timeout
        self._server_version = 0
        # The last write that Postgres refused to store, and when.
        self._refused: tuple[float, WritesRefusedError] | None = None
        # How long a caller waits for a connection before it hears that there is none.
        self._wait_seconds = wait_seconds
        self._is_pooled = False
        self._pool = self._new_pool()

    @property
    def refuses_writes(self) -> WritesRefusedError | None:
        """Why nothing can be stored, where a write has met with that in the last seconds."""
        if self._refused is None or anyio.current_time() - self._refused[0] > _REFUSED_SECONDS:
            return None
        return self._refused[1]

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

    async def connect(self, *, one_plan: bool = False, settings: str = "") -> AsyncConnection[Row]:
        """Return a connection beside the pool, in autocommit; whoever asks for it closes it.

        `one_plan`: what runs there has one good plan whatever its parameters. `settings`: more of
        the session's, as start-up options; behind a pooler there are none.
        """
        options = self._driver_settings()
        if one_plan:
            settings += " -c plan_cache_mode=force_generic_plan"
        if not self._is_pooled:
            options["options"] += settings
        try:
            connection = await AsyncConnection[Row].connect(self.dsn, **options)
        except psycopg.Error as error:
            raise translate(error) from None
        if self._connected is not None:
            try:
                await self._configure(connection)
            except BaseException:
                await connection.close()
                raise
        return connection

    @property
    def is_pooled(self) -> bool:
        """Whether there is a pooler before Postgres, which forgets prepared statements."""
        return self._is_pooled

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

        async def work() -> list[Row]:
            async with self.session() as session:
                return await session.all(name, parameters)

        return await repeated(work)

    async def tuples(self, name: str, parameters: Parameters) -> list[tuple[Any, ...]]:
        """Run one statement as `all`; its rows come as tuples, for many small ones."""

        async def work() -> list[tuple[Any, ...]]:
            async with self.session() as session:
                return await session.tuples(name, parameters)

        return await repeated(work)

    async def one(self, name: str, parameters: Parameters | None = None) -> Row | None:
        """Run one statement in a transaction of its own and return its first row, if any."""

        async def work() -> Row | None:
            async with self.session() as session:
                return await session.one(name, parameters)

        return await repeated(work)

    async def run(self, name: str, parameters: Parameters | None = None) -> int:
        """Run one statement in a transaction of its own; return how many rows it touched."""

        async def work() -> int:
            async with self.session() as session:
                return await session.run(name, parameters)

        return await repeated(work)

    async def retrying(
        self, work: Callable[[Transaction], Awaitable[T]], *, lazy: bool = False
    ) -> T:
        """Do work in a transaction, again from the start after a deadlock (5 tries in all)."""

        async def once() -> T:
            async with self.transaction(lazy=lazy) as tx:
                return await work(tx)

        return await repeated(once)

    async def surely(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """As `retrying`, and again after a COMMIT without an answer (5 tries in all).

        Only for work that does nothing twice when it finds itself done.
        """
        for tried in range(_TRIES - 1):
            try:
                return await self.retrying(work)
            except CommitUnknownError:
                await anyio.sleep(_COMMIT_PAUSE * 2**tried)
        return await self.retrying(work)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[AsyncConnection[Row]]:
        connection = await self._borrow()
        try:
            yield connection
        except psycopg.Error as error:
            raise translate(error) from None
        except WritesRefusedError as error:
            self.note(error)
            raise
        finally:
            # Shielded: a connection that is not given back is lost to everybody.
            with anyio.CancelScope(shield=True):
                if connection.info.pipeline_status != PipelineStatus.OFF:
                    # Cancelled as a pipeline began, psycopg leaves it open: what the next one asks
                    # would be sent some time, and never answered.
                    await connection.close()
                await self._pool.putconn(connection)

    def note(self, error: EngineError) -> None:
        """Remember for a while if a write was refused."""
        if isinstance(error, WritesRefusedError):
            self._refused = (anyio.current_time(), error)

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
                refusal = Refusal(error)
            else:
                self._server_version = connection.info.server_version
                if not self._is_pooled and not await _keeps_options(connection):
                    self._note_pooler("drops")
                return await connection.close()
            if refusal.is_a_poolers and not self._is_pooled:
                self._note_pooler("refuses")
            elif refusal.is_final or anyio.current_time() >= deadline:
                raise DatabaseUnavailableError(f"cannot connect to Postgres: {refusal.reason}")
            else:
                await anyio.sleep(0.2)  # nothing announces a Postgres that is up

    def _note_pooler(self, does: str) -> None:
        logger.warning("a pooler %s start-up options; time limits are the role's", does)
        self._is_pooled = True

    def _connect_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {**_SESSION, "autocommit": True}
        if self._is_pooled:
            return {**settings, "prepare_threshold": None}
        options = self._options
        if self._server_version >= _BOUNDS_TRANSACTIONS:
            options += f" -c transaction_timeout={self._transaction_timeout}"
        return {**settings, "options": options}

    def _driver_settings(self) -> dict[str, Any]:
        return {**self._connect_settings(), "row_factory": dict_row, "context": with_arrays()}

    def _new_pool(self) -> AsyncConnectionPool[AsyncConnection[Row]]:
        return AsyncConnectionPool(
            self.dsn,
            kwargs=self._driver_settings(),
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
            configure=None if self._connected is None else self._configure,
        )

    async def _configure(self, connection: AsyncConnection[Row]) -> None:
        assert self._connected is not None
        async with connection.cursor() as cursor:
            await self._connected(Transaction(cursor, is_autocommit=True))


def _check_has_rows(cursor: AsyncCursor[Row], name: str) -> None:
    """Raise StatementError where that there are no rows is not what Postgres has answered."""
    _check_answered(cursor, name)
    if cursor.description is None:
        raise StatementError(f"{name} returns no rows", sqlstate="", repeatable=False)


def _check_answered(cursor: AsyncCursor[Row], name: str) -> None:
    """Raise StatementError where a statement only waits in a pipeline that is still open."""
    if cursor.pgresult is None:
        raise StatementError(
            f"{name} got no answer: its connection is in a pipeline", sqlstate="", repeatable=False
        )


async def _rows(cursor: AsyncCursor[Row], name: str) -> list[Row]:
    """Return the rows of a statement that was sent with others and may have none to return."""
    _check_answered(cursor, name)
    return await cursor.fetchall() if cursor.description else []


async def repeated(work: Callable[[], Awaitable[T]]) -> T:
    """Do work that leaves nothing behind when it fails, again after a deadlock (5 tries in all)."""
    tries = 0
    while True:
        tries += 1
        try:
            return await work()
        except StatementError as error:
            if not error.repeatable:
                raise
            if tries == _TRIES:
                # Whoever called would begin to count anew.
                raise StatementError(
                    str(error), sqlstate=error.sqlstate, repeatable=False
                ) from None


async def _keeps_options(connection: AsyncConnection[Any]) -> bool:
    """Say whether the session has the settings that were asked for at its start."""
    cursor = await connection.execute(statement("database.idle_timeout"))
    row = await cursor.fetchone()
    return row is not None and row[0] == "10s"


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
                # Not as a statement: psycopg would go on to believe that what a failed pipeline
                # was to prepare is prepared, and each use of it would fail.
                await connection.rollback()
                return
        except psycopg.Error:
            pass
    await connection.close()
