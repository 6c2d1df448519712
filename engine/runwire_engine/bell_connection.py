"""The connections over which bells go: those that send NOTIFY and those that LISTEN.

Their settings are for a network that fails: what does not answer is noticed, and cut.
"""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeAlias

import anyio
import psycopg
from psycopg import AsyncConnection

from runwire_engine.driver_errors import Refusal

logger = logging.getLogger("runwire.doorbell")

Connection: TypeAlias = AsyncConnection[tuple[object, ...]]

# A bell that takes this long is worth less than a new connection, seconds.
SEND_WITHIN: Final = 5.0
# Half-open connections are found in about 11 s by TCP.
_OPTIONS = (
    "-c synchronous_commit=off -c statement_timeout=5s -c lock_timeout=2s"
    " -c idle_in_transaction_session_timeout=10s -c timezone=UTC"
)
_SESSION = {
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "connect_timeout": "5",
}
# From one try to connect to the next: the first wait and the longest, in seconds.
BACK_OFF: Final = (0.05, 5.0)


@asynccontextmanager
async def connected(dsn: str, name: str) -> AsyncGenerator[Connection]:
    connection = await _connect(dsn, name)
    try:
        yield connection
    finally:
        with anyio.CancelScope(shield=True):
            await connection.close()


async def _connect(dsn: str, name: str) -> Connection:
    """Connect with our settings; without, where a pooler refuses them."""
    settings: dict[str, Any] = {
        **_SESSION,
        "application_name": name,
        "autocommit": True,
        # A pooler's connections know nothing of each other's; and each runs one statement or two.
        "prepare_threshold": None,
    }
    try:
        return await AsyncConnection.connect(dsn, options=_OPTIONS, **settings)
    except psycopg.OperationalError as error:
        if not Refusal(error).is_a_poolers:
            raise
    return await AsyncConnection.connect(dsn, **settings)


@contextmanager
def severed_after(seconds: float, connection: Connection) -> Generator[None]:
    """Cut a connection that does not answer in time; whoever waits on it gets an error.

    A timeout around the call would not do: cancelling a statement asks the same silent server to
    agree, for up to ten seconds.
    """
    timer = asyncio.get_running_loop().call_later(seconds, _sever, connection)
    try:
        yield
    finally:
        timer.cancel()


def _sever(connection: Connection) -> None:
    if connection.closed:
        return
    logger.warning("a connection to Postgres does not answer; it is cut")
    with socket.socket(fileno=os.dup(connection.fileno())) as line:
        try:
            line.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other side was faster
