"""One statement, called again and again on a connection of its own, past the driver's cursors.

For a statement psycopg looks up types, plans and adapters, and a waiter joins the event loop and
leaves it; a pool lends a connection. Each time that costs several round trips to a local Postgres.
Here the statement is prepared once, its parameters are texts, and the loop watches the connection
for as long as it lives. One call at a time.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import psycopg
from psycopg import AsyncConnection
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGconn, PGresult

from runwire_engine.arrays import parameter
from runwire_engine.database import Database, Parameters, Row, repeated
from runwire_engine.driver_errors import translate
from runwire_engine.errors import CommitUnknownError, DatabaseUnavailableError, EngineError
from runwire_engine.statements import by_position

_PREPARED = b"call"
# uvloop does not say that a socket is readable where it has an error, as when the other end was
# killed with something unread: so often it is read all the same.
_LOOK_SECONDS = 0.5
_WELL = frozenset({ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK})
# A table has other columns than when the statement was prepared, or somebody dropped that.
_STALE = (psycopg.errors.FeatureNotSupported, psycopg.errors.InvalidSqlStatementName)


class DirectCall:
    """Calls one named statement in autocommit. It belongs to the loop that first calls it."""

    def __init__(self, database: Database, name: str, *, one_plan: bool = False) -> None:
        """Take a statement; `one_plan`: it has one good plan whatever its parameters."""
        self._database = database
        self._one_plan = one_plan
        self._name = name
        text, self._words = by_position(name)
        self._text = text.encode()
        self._connection: AsyncConnection[Row] | None = None
        # Its number, which a broken connection does not know any more.
        self.socket = -1
        # Of the call that is under way: the promise of its answer, and what came of it so far.
        self._answer: asyncio.Future[PGresult] | None = None
        self._result: PGresult | None = None
        self._is_writing = False
        # A call is under way, or connects.
        self.is_busy = False

    async def one(self, parameters: Parameters) -> list[str | None]:
        """Call it and return the first row, as texts.

        Raises CommitUnknownError when the connection broke meanwhile: it may have happened.
        """
        result, _ = await self._call(parameters)
        return [_loaded(result.get_value(0, column)) for column in range(result.nfields)]

    async def all(self, parameters: Parameters) -> list[Row]:
        """Call it and return its rows. Raises as `one`."""
        result, connection = await self._call(parameters)
        rows = Transformer.from_context(connection)
        rows.set_pgresult(result)
        names = [(result.fname(column) or b"").decode() for column in range(result.nfields)]
        return rows.load_rows(
            0, result.ntuples, lambda values: dict(zip(names, values, strict=True))
        )

    async def _call(self, parameters: Parameters) -> tuple[PGresult, AsyncConnection[Row]]:
        assert not self.is_busy, "one call at a time"
        self.is_busy = True
        try:
            values = [parameter(parameters[word]) for word in self._words]
            try:
                return await self._sent(values)
            except _STALE:
                # Refused before anything was done; what is prepared anew fits.
                self.close()
                return await self._sent(values)
        except (psycopg.Error, UnicodeError) as error:
            translated = translate(error, self._name)
            self._database.note(translated)
            raise translated from None
        finally:
            self.is_busy = False

    async def _sent(self, values: Sequence[bytes | None]) -> tuple[PGresult, AsyncConnection[Row]]:
        connection = self._connection or await self._connect()
        return await self._ask(partial(self._send, values)), connection

    @property
    def is_connected(self) -> bool:
        """Whether its connection stands, as far as is known."""
        return self._connection is not None

    def close(self) -> None:
        """Close the connection; a call under way is given up, and may have happened."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.socket)
        loop.remove_writer(self.socket)
        self._is_writing = False
        connection.pgconn.finish()
        self._settle(self._unknown())

    async def _connect(self) -> AsyncConnection[Row]:
        self._connection = connection = await self._database.connect(one_plan=self._one_plan)
        self.socket = connection.pgconn.socket
        asyncio.get_running_loop().add_reader(self.socket, self._readable)
        if self._database.is_pooled:
            return connection
        try:
            await self._ask(lambda pgconn: pgconn.send_prepare(_PREPARED, self._text))
        except CommitUnknownError as error:
            raise DatabaseUnavailableError(str(error)) from None
        except psycopg.Error:
            # Every call there would fail: nothing is prepared.
            self.close()
            raise
        return connection

    def _send(self, values: Sequence[bytes | None], pgconn: PGconn) -> None:
        if self._database.is_pooled:
            pgconn.send_query_params(self._text, values)
        else:
            pgconn.send_query_prepared(_PREPARED, values)

    async def _ask(self, send: Callable[[PGconn], None]) -> PGresult:
        connection = self._connection
        assert connection is not None
        pgconn = connection.pgconn
        answer: asyncio.Future[PGresult] = asyncio.get_running_loop().create_future()
        self._answer = answer
        looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look, answer)
        try:
            send(pgconn)
            self._flush()
            result = await answer
        except BaseException as error:
            # Nobody waits any more for what is under way there.
            answer.cancel()
            self.close()
            if isinstance(error, psycopg.OperationalError):
                raise self._unknown() from None
            raise
        finally:
            looking.cancel()
        if result.status in _WELL:
            return result
        if pgconn.status != ConnStatus.OK:
            self.close()
            raise self._unknown()
        raise error_from_result(result)

    def _unknown(self) -> CommitUnknownError:
        return CommitUnknownError(f"{self._name}: the connection broke; it may have happened")

    def _flush(self) -> None:
        """Send what the socket takes, and the rest when it takes more."""
        connection = self._connection
        if connection is None:
            return
        is_left = bool(connection.pgconn.flush())
        if is_left and not self._is_writing:
            asyncio.get_running_loop().add_writer(self.socket, self._writable)
        elif self._is_writing and not is_left:
            asyncio.get_running_loop().remove_writer(self.socket)
        self._is_writing = is_left

    def _writable(self) -> None:
        try:
            self._flush()
        except psycopg.Error:
            self.close()

    def _look(self, answer: "asyncio.Future[PGresult]") -> None:
        if not answer.done():
            self._readable()
            asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look, answer)

    def _readable(self) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            self._read(connection)
        except psycopg.Error:
            self.close()

    def _read(self, connection: AsyncConnection[Row]) -> None:
        pgconn = connection.pgconn
        pgconn.consume_input()
        if self._is_writing:
            self._flush()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is not None:
                self._result = result
                continue
            if self._result is not None:
                self._settle(self._result)
            return

    def _settle(self, outcome: PGresult | EngineError) -> None:
        answer, self._answer, self._result = self._answer, None, None
        if answer is None or answer.done():
            return
        if isinstance(outcome, EngineError):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)


class DirectCalls:
    """Statements that every run needs, each on a connection of its own, with one plan."""

    def __init__(self, database: Database, names: Sequence[str]) -> None:
        self._database = database
        self._calls = {name: DirectCall(database, name, one_plan=True) for name in names}

    async def all(self, name: str, parameters: Parameters) -> list[Row]:
        """Run one of the statements in a transaction of its own, as `Database.all`.

        While it is called already, another connection takes this one.
        """
        call = self._calls[name]
        if call.is_busy:
            return await self._database.all(name, parameters)
        return await repeated(lambda: call.all(parameters))

    def close(self) -> None:
        """Close the connections."""
        for call in self._calls.values():
            call.close()


def _loaded(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
