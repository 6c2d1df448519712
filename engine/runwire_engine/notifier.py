"""Sends NOTIFYs over a connection of its own, past the driver's cursors.

For each statement a cursor costs several times what Postgres does for a NOTIFY: it composes, looks
up adapters, and joins the event loop anew.
"""

import asyncio
from collections.abc import Iterable

import psycopg
from psycopg import AsyncConnection
from psycopg.errors import error_from_result
from psycopg.pq import Escaping, ExecStatus

from runwire_engine.watched_connection import WatchedConnection


class Notifier:
    """Sends scripts of NOTIFYs, one at a time. It belongs to the loop that makes it."""

    def __init__(self, connection: AsyncConnection[tuple[object, ...]]) -> None:
        """Take a connection in autocommit that nobody else uses until `close`."""
        self._pgconn = connection.pgconn
        self._escaping = Escaping(connection.pgconn)
        # Of the script under way, and what Postgres refused of it.
        self._answer: asyncio.Future[None] | None = None
        self._refusal: psycopg.Error | None = None
        self._lost: psycopg.Error | None = None
        self._watched = WatchedConnection(connection.pgconn, self)

    async def send(self, payloads: Iterable[tuple[str, str]]) -> None:
        """Send payloads, each to its channel, and return once they are.

        Raises psycopg's error where Postgres refused one of them, or the connection was lost.
        """
        assert self._answer is None, "one script at a time"
        if self._lost is not None:
            raise self._lost
        # As one script, which Postgres neither plans nor prepares.
        script = b";".join([self._notify(*payload) for payload in payloads])
        self._answer = asyncio.get_running_loop().create_future()
        try:
            self._pgconn.send_query(script)
            self._watched.flush()
            await self._answer
        finally:
            self._answer = None

    def close(self) -> None:
        """Leave the connection alone."""
        self._watched.close()

    def _notify(self, channel: str, payload: str) -> bytes:
        name = self._escaping.escape_identifier(channel.encode())
        return b"notify %b, %b" % (name, self._escaping.escape_literal(payload.encode()))

    @property
    def is_waiting(self) -> bool:
        """Whether a script is under way."""
        return self._answer is not None

    def came(self) -> None:
        """Take what has come."""
        while self._answer is not None and not self._answer.done() and not self._pgconn.is_busy():
            result = self._pgconn.get_result()
            if result is None:
                refusal, self._refusal = self._refusal, None
                self._settle(refusal)
            elif result.status != ExecStatus.COMMAND_OK:
                self._refusal = error_from_result(result)

    def lost(self, error: psycopg.Error) -> None:
        """Note that nothing comes or goes any more."""
        self._lost = error
        self._settle(error)

    def _settle(self, error: psycopg.Error | None) -> None:
        if self._answer is None or self._answer.done():
            return
        if error is None:
            self._answer.set_result(None)
        else:
            self._answer.set_exception(error)
