"""A statement, called again and again on a connection of its own, past the driver's cursors.

For a statement psycopg looks up types, plans and adapters, and a waiter joins the event loop and
leaves it; a pool lends a connection. Each time that costs several round trips to a local Postgres.
Here the statement is prepared once, and its parameters are texts. A call is sent behind those that
are under way, which Postgres executes one after the other, each in a transaction of its own.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import psycopg
from psycopg import AsyncConnection, abc, adapt
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult

from runwire_engine.arrays import parameter
from runwire_engine.database import Database, Parameters, Row, repeated
from runwire_engine.driver_errors import translate
from runwire_engine.errors import CommitUnknownError, DatabaseUnavailableError
from runwire_engine.statements import by_position
from runwire_engine.watched_connection import WatchedConnection

_WELL = frozenset({ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK})
# Behind a call that takes longer, as where it waits for a lock, nobody waits.
_PATIENCE = 0.02
# A table has other columns than when the statement was prepared, or somebody dropped that.
_STALE = (psycopg.errors.FeatureNotSupported, psycopg.errors.InvalidSqlStatementName)


class StaleError(Exception):
    """What was prepared does not fit any more: nothing was done."""


class _Statement:
    """A named statement, and what it is called where it is prepared."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.prepared = name.encode()
        text, self.words = by_position(name)
        self.text = text.encode()

    def values(self, parameters: Parameters) -> list[bytes | None]:
        return [parameter(parameters[word]) for word in self.words]


class DirectCall:
    """Calls named statements in autocommit. It belongs to the loop that first calls it."""

    def __init__(
        self,
        database: Database,
        *names: str,
        one_plan: bool = False,
        settings: str = "",
    ) -> None:
        """Take the statements.

        `one_plan`: they have one good plan whatever their parameters. `settings`: of the session,
        as start-up options.
        """
        self._database = database
        self._one_plan = one_plan
        self._settings = settings
        self._name = names[0]
        self._statements = {name: _Statement(name) for name in names}
        self._connection: AsyncConnection[Row] | None = None
        # What loads a statement's rows, and their columns; known after its first answer.
        self._rows: dict[str, tuple[abc.Transformer, list[str]]] = {}
        self._watched: WatchedConnection | None = None
        # The promises of what is under way, in order, and what came for the first of them so far.
        self._answers: deque[asyncio.Future[PGresult]] = deque()
        self._result: PGresult | None = None
        # When the first of them was sent, or those before it were answered.
        self._moved_at = 0.0
        # What is prepared does not fit any more.
        self._is_stale = False
        self._is_connecting = False

    async def all(self, name: str, parameters: Parameters) -> list[Row]:
        """Call a statement behind those under way, and return its rows; connects where it must.

        Raises EngineError; CommitUnknownError when the connection broke meanwhile: it may have
        happened. StaleError where what is prepared does not fit any more, and others are under way.
        """
        await self.connect()
        try:
            return await self._behind(name, parameters)
        except StaleError:
            await self.connect()
            return await self._behind(name, parameters)

    async def _behind(self, name: str, parameters: Parameters) -> list[Row]:
        if self._connection is None:
            raise DatabaseUnavailableError(f"{name}: the connection was lost")
        try:
            result = await self.begin(name, parameters, in_binary=True)
        except _STALE:
            # Refused before anything was done.
            self._is_stale = True
            raise StaleError(name) from None
        except (psycopg.Error, UnicodeError) as error:
            translated = translate(error, name)
            self._database.note(translated)
            raise translated from None
        return self._loaded(name, result)

    def _loaded(self, name: str, result: PGresult) -> list[Row]:
        known = self._rows.get(name)
        rows, names = known or (adapt.Transformer.from_context(self._connection), [])
        rows.set_pgresult(result, set_loaders=not names)
        if not names:
            names = [(result.fname(column) or b"").decode() for column in range(result.nfields)]
            if not self._database.is_pooled:  # what is prepared keeps its columns
                self._rows[name] = rows, names
        return rows.load_rows(
            0, result.ntuples, lambda values: dict(zip(names, values, strict=True))
        )

    def begin(
        self, name: str, parameters: Parameters, *, in_binary: bool = False
    ) -> "asyncio.Future[PGresult]":
        """Send a call behind those under way; only while connected.

        The promise raises CommitUnknownError when the connection broke meanwhile, psycopg's own
        errors where Postgres refused it. Raises those of a parameter that cannot be sent.
        """
        statement = self._statements[name]
        values = statement.values(parameters)
        try:
            return self._sent(partial(self._send, statement, values, in_binary=in_binary))
        except psycopg.OperationalError:
            self.close()
            raise self._unknown() from None

    @property
    def is_connected(self) -> bool:
        """Whether its connection stands, as far as is known."""
        return self._connection is not None

    def close(self) -> None:
        """Close the connection; calls under way are given up, and may have happened."""
        connection, self._connection = self._connection, None
        self._rows = {}
        self._is_stale = False
        if connection is None:
            return
        if self._watched is not None:
            self._watched.close()
            self._watched = None
        connection.pgconn.finish()
        self._result = None
        while self._answers:
            self._settle(self._unknown())

    @property
    def takes_more(self) -> bool:
        """Whether a call may go behind those under way: none takes its time."""
        if self._is_connecting:
            return False
        if not self._answers:
            return True
        waited = asyncio.get_running_loop().time() - self._moved_at
        return waited <= _PATIENCE and not self._is_stale

    async def connect(self) -> None:
        """Connect, unless it is. Raises EngineError."""
        if self._is_stale and not self._answers:
            self.close()
        if self._connection is not None:
            return
        self._is_connecting = True
        try:
            await self._connect()
        except psycopg.Error as error:
            raise translate(error, self._name) from None
        finally:
            self._is_connecting = False

    async def _connect(self) -> None:
        self._connection = connection = await self._database.connect(
            one_plan=self._one_plan, settings=self._settings
        )
        connection.pgconn.enter_pipeline_mode()
        self._watched = WatchedConnection(connection.pgconn, self)
        if self._database.is_pooled:
            return
        try:
            for statement in self._statements.values():
                await self._ask(partial(_prepare, statement))
        except CommitUnknownError as error:
            raise DatabaseUnavailableError(str(error)) from None
        except psycopg.Error:
            # Every call there would fail: nothing is prepared.
            self.close()
            raise

    def _send(
        self,
        statement: _Statement,
        values: Sequence[bytes | None],
        pgconn: PGconn,
        *,
        in_binary: bool = False,
    ) -> None:
        # Both sides are quicker at rows of times and numbers in binary.
        form = Format.BINARY if in_binary else Format.TEXT
        if self._database.is_pooled:
            pgconn.send_query_params(statement.text, values, result_format=form)
        else:
            pgconn.send_query_prepared(statement.prepared, values, result_format=form)

    async def _ask(self, send: Callable[[PGconn], None]) -> PGresult:
        answer: asyncio.Future[PGresult] | None = None
        try:
            answer = self._sent(send)
            return await answer
        except BaseException as error:
            if answer is not None and answer.done() and not answer.cancelled():
                raise
            # Nobody waits any more for what is under way there.
            self.close()
            if isinstance(error, psycopg.OperationalError):
                raise self._unknown() from None
            raise

    def _sent(self, send: Callable[[PGconn], None]) -> "asyncio.Future[PGresult]":
        """Send a statement, in a transaction of its own, and return the promise of its answer."""
        assert self._watched is not None
        loop = asyncio.get_running_loop()
        send(self._watched.pgconn)
        self._watched.pgconn.pipeline_sync()
        answer: asyncio.Future[PGresult] = loop.create_future()
        if not self._answers:
            self._moved_at = loop.time()
        self._answers.append(answer)
        self._watched.flush()
        return answer

    def _unknown(self) -> CommitUnknownError:
        return CommitUnknownError(f"{self._name}: the connection broke; it may have happened")

    @property
    def is_waiting(self) -> bool:
        """Whether a call is under way."""
        return bool(self._answers)

    def lost(self, error: psycopg.Error) -> None:
        """Note that the connection is lost."""
        self.close()

    def came(self) -> None:
        """Take the answers that have come."""
        assert self._connection is not None
        pgconn = self._connection.pgconn
        was_there = True
        while self._answers and not pgconn.is_busy():
            result = pgconn.get_result()
            # One None ends each statement; a second one says that nothing more has come.
            if result is None and not was_there:
                return
            was_there = result is not None
            if result is None:
                continue
            if result.status != ExecStatus.PIPELINE_SYNC:
                self._result = result
            elif self._result is not None:
                whole, self._result = self._result, None
                self._settle(whole if whole.status in _WELL else error_from_result(whole))

    def _settle(self, outcome: PGresult | Exception) -> None:
        answer = self._answers.popleft()
        self._moved_at = asyncio.get_running_loop().time()
        if answer.done():
            return
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)


def _prepare(statement: _Statement, pgconn: PGconn) -> None:
    pgconn.send_prepare(statement.prepared, statement.text)


class DirectCalls:
    """Statements that every run needs, on connections of their own, with one plan."""

    def __init__(self, database: Database, *groups: Sequence[str]) -> None:
        """Take the statements of each connection: what is sent first there is done first."""
        self._database = database
        self._calls: dict[str, DirectCall] = {}
        for group in groups:
            self._calls |= dict.fromkeys(group, DirectCall(database, *group, one_plan=True))

    async def all(self, name: str, parameters: Parameters) -> list[Row]:
        """Run one of the statements in a transaction of its own, as `Database.all`.

        While one before it takes its time, another connection takes this one.
        """
        call = self._calls[name]
        if call.takes_more:
            with suppress(StaleError):
                return await repeated(lambda: call.all(name, parameters))
        return await self._database.all(name, parameters)

    def close(self) -> None:
        """Close the connections."""
        for call in self._calls.values():
            call.close()
