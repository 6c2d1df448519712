"""A connection to Postgres that the event loop watches for as long as it lives.

The driver's own waiter joins the loop for each statement and leaves it again; what calls Postgres
all the time goes without. Its owner sends through libpq, and takes in what has come.
"""

import asyncio
from typing import Final, Protocol

import psycopg
from psycopg.pq.abc import PGconn

# uvloop does not say that a socket is readable where it has an error, as when the other end was
# killed with something unread: so often it is read all the same.
_LOOK_SECONDS: Final = 0.5


class Owner(Protocol):
    """Who sends over the connection."""

    @property
    def is_waiting(self) -> bool:
        """Whether an answer is still to come."""
        ...

    def came(self) -> None:
        """Take what has come. May raise psycopg.Error: then the connection is lost."""

    def lost(self, error: psycopg.Error) -> None:
        """Note that nothing comes or goes any more; called once at most."""


class WatchedConnection:
    """Watches one connection. It belongs to the loop that makes it."""

    def __init__(self, pgconn: PGconn, owner: Owner) -> None:
        """Watch until `close`, or until the connection is lost."""
        self.pgconn = pgconn
        # Its number, which a broken connection does not know any more.
        self.socket = pgconn.socket
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._is_writing = self._is_looking = self._is_closed = False
        self._loop.add_reader(self.socket, self._readable)

    def flush(self) -> None:
        """Send what the socket takes, and the rest when it takes more. Raises psycopg.Error."""
        is_left = bool(self.pgconn.flush())
        if is_left and not self._is_writing:
            self._loop.add_writer(self.socket, self._writable)
        elif self._is_writing and not is_left:
            self._loop.remove_writer(self.socket)
        self._is_writing = is_left
        if not self._is_looking:
            self._is_looking = True
            self._loop.call_later(_LOOK_SECONDS, self._look)

    def close(self) -> None:
        """Watch no longer."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self.socket)
            self._loop.remove_writer(self.socket)

    def _look(self) -> None:
        if not self._is_closed:
            self._readable()
        self._is_looking = self._owner.is_waiting and not self._is_closed
        if self._is_looking:
            self._loop.call_later(_LOOK_SECONDS, self._look)

    def _readable(self) -> None:
        try:
            self.pgconn.consume_input()
            if self._is_writing:
                self.flush()
            self._owner.came()
        except psycopg.Error as error:
            self._lose(error)

    def _writable(self) -> None:
        try:
            self.flush()
        except psycopg.Error as error:
            self._lose(error)

    def _lose(self, error: psycopg.Error) -> None:
        if not self._is_closed:
            self.close()
            self._owner.lost(error)
