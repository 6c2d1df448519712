"""Sends NOTIFYs over a connection of its own, past the driver's cursors.

For each statement a cursor costs several times what Postgres does for a NOTIFY: it composes, looks
up adapters, and joins the event loop anew. Here the loop watches the connection for as long as it
lives.
"""

import asyncio
from collections.abc import Iterable

import psycopg
from psycopg import AsyncConnection
from psycopg.errors import error_from_result
from psycopg.pq import Escaping, ExecStatus

# uvloop does not say that a socket is readable where it has an error, as when the other end was
# killed with something unread: so often it is read all the same.
_LOOK_SECONDS = 0.5


class Notifier:
    """Sends scripts of NOTIFYs, one at a time. It belongs to the loop that makes it."""

    def __init__(self, connection: AsyncConnection[tuple[object, ...]]) -> None:
        """Take a connection in autocommit that nobody else uses until `close`."""
        self._pgconn = connection.pgconn
        self._escaping = Escaping(connection.pgconn)
        self._loop = asyncio.get_running_loop()
        # Its number, which a broken connection does not know any more.
        self._socket = connection.pgconn.socket
        # Of the script under way, and what Postgres refused of it.
        self._answer: asyncio.Future[None] | None = None
        self._refusal: psycopg.Error | None = None
        self._lost: psycopg.Error | None = None
        self._is_writing = False
        self._loop.add_reader(self._socket, self._readable)

    async def send(self, payloads: Iterable[tuple[str, str]]) -> None:
        """Send payloads, each to its channel, and return once they are.

        Raises psycopg's error where Postgres refused one of them, or the connection was lost.
        """
        assert self._answer is None, "one script at a time"
        if self._lost is not None:
            raise self._lost
        # As one script, which Postgres neither plans nor prepares.
        script = b";".join([self._notify(*payload) for payload in payloads])
        self._answer = self._loop.create_future()
        looking = self._loop.call_later(_LOOK_SECONDS, self._look)
        try:
            self._pgconn.send_query(script)
            self._flush()
            await self._answer
        finally:
            looking.cancel()
            self._answer = None

    def close(self) -> None:
        """Leave the connection alone."""
        self._loop.remove_reader(self._socket)
        if self._is_writing:
            self._loop.remove_writer(self._socket)

    def _notify(self, channel: str, payload: str) -> bytes:
        name = self._escaping.escape_identifier(channel.encode())
        return b"notify %b, %b" % (name, self._escaping.escape_literal(payload.encode()))

    def _look(self) -> None:
        # Until it is answered, or whoever waits has had the connection cut.
        if self._answer is not None and self._lost is None:
            self._loop.call_later(_LOOK_SECONDS, self._look)
            self._readable()

    def _readable(self) -> None:
        try:
            self._pgconn.consume_input()
            if self._is_writing:
                self._flush()
            self._read()
        except psycopg.Error as error:
            self._lose(error)

    def _read(self) -> None:
        while self._answer is not None and not self._answer.done() and not self._pgconn.is_busy():
            result = self._pgconn.get_result()
            if result is None:
                refusal, self._refusal = self._refusal, None
                self._settle(refusal)
            elif result.status != ExecStatus.COMMAND_OK:
                self._refusal = error_from_result(result)

    def _flush(self) -> None:
        """Send what the socket takes, and the rest when it takes more."""
        is_left = bool(self._pgconn.flush())
        if is_left and not self._is_writing:
            self._loop.add_writer(self._socket, self._readable)
        elif self._is_writing and not is_left:
            self._loop.remove_writer(self._socket)
        self._is_writing = is_left

    def _lose(self, error: psycopg.Error) -> None:
        self._lost = error
        self.close()
        self._is_writing = False
        self._settle(error)

    def _settle(self, error: psycopg.Error | None) -> None:
        if self._answer is None or self._answer.done():
            return
        if error is None:
            self._answer.set_result(None)
        else:
            self._answer.set_exception(error)
