"""LISTEN: hears bells on a connection of its own, which is opened again when it breaks.

Behind a transaction pooler bells can be rung but not heard. A listener finds that out at its start,
by a ping to itself, and says so once: whoever has it then goes by the poll alone.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from types import TracebackType

import anyio
import psycopg
from anyio.abc import TaskGroup
from psycopg import sql

from runwire_engine.back_off import back_offs
from runwire_engine.bell_connection import (
    BACK_OFF,
    SEND_WITHIN,
    Connection,
    connected,
    severed_after,
)
from runwire_engine.bells import CHANNELS, Bell, Ringing, decode
from runwire_engine.statements import statement

logger = logging.getLogger("runwire.doorbell")

# Half-open connections are found in about 11 s by TCP, and in PING_EVERY + PING_WITHIN by the ping.
PING_EVERY = 5.0
PING_WITHIN = 3.0
# How often a listener that hears nothing tries again whether that has changed.
_POLL_ONLY_PAUSE = 30.0


class Listener:
    """Yields bells, the first and every first after a reconnect with `scan`.

    `async with Listener(dsn) as bells: async for bell in bells: ...`; what rings while the reader
    is busy is joined into its next bell. With `rung` bells are not yielded but told of at once,
    without waiting for a task's turn.
    """

    def __init__(
        self,
        dsn: str,
        *,
        environment_id: int | None = None,
        ping_every: float = PING_EVERY,
        ping_within: float = PING_WITHIN,
        rung: Callable[[Bell], None] | None = None,
    ) -> None:
        """Listen to all environments, or to one."""
        self._rung = rung
        # Whether bells arrive: not while disconnected.
        self.listening = False
        # Whether LISTEN is of no use here, as behind a transaction pooler.
        self.is_poll_only = False
        self._has_heard = False
        self._dsn = dsn
        self._only = environment_id
        self._ping_every = ping_every
        self._ping_within = ping_within
        self._ringing = Ringing()
        self._rang = asyncio.Event()
        self._ponged = asyncio.Event()
        # Of this listener alone: nobody else's ping counts.
        self._own = f"runwire_ping_{secrets.token_hex(8)}"
        self._tasks: TaskGroup | None = None

    @property
    def is_known(self) -> bool:
        """Whether it was found out if bells arrive here: they did once, or cannot."""
        return self._has_heard or self.is_poll_only

    async def __aenter__(self) -> "Listener":
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._run)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        return await self._tasks.__aexit__(kind, error, trace)

    def __aiter__(self) -> "Listener":
        return self

    async def __anext__(self) -> Bell:
        await self._rang.wait()
        return self.take()

    def take(self) -> Bell:
        """Return what rang since the last time, which may be nothing, without waiting."""
        self._rang.clear()
        return self._ringing.take()

    async def _run(self) -> None:
        waits = back_offs(*BACK_OFF)
        told = False
        while True:
            try:
                await self._listen()
            except* _DeafError:
                # One that has heard before is merely interrupted.
                if not (self.is_poll_only or self._has_heard):
                    logger.warning(
                        "notifications do not arrive here, as behind a transaction pooler:"
                        " poll-only; RUNWIRE_LISTEN_DATABASE_URL can name a direct connection"
                    )
                self.is_poll_only = not self._has_heard
            except* (psycopg.Error, OSError, _SilentError) as group:
                level = logging.WARNING if self.listening or not told else logging.DEBUG
                logger.log(level, "listening was interrupted: %s", _names(group))
                told = True
            if self.listening:
                waits = back_offs(*BACK_OFF)
            self.listening = False
            await anyio.sleep(_POLL_ONLY_PAUSE if self.is_poll_only else next(waits))

    async def _listen(self) -> None:
        async with (
            connected(self._dsn, "runwire-listen") as connection,
            connected(self._dsn, "runwire-ping") as pinger,
        ):
            await self._prove(connection, pinger)
            await _listen_to(connection, *CHANNELS)
            if self.is_poll_only:
                logger.warning("notifications arrive; no longer poll-only")
                self.is_poll_only = False
            self.listening = self._has_heard = True
            # From here on nothing is missed; what came before has to be read.
            self._ringing.scan = True
            self._tell()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._drain, connection)
                tasks.start_soon(self._ping, pinger)

    async def _prove(self, connection: Connection, pinger: Connection) -> None:
        """Ping ourselves, before anything relies on it. Raises _DeafError.

        Our own channel alone: what is left listening in a pooler's hands shall hear nobody's bells.
        """
        await _listen_to(connection, self._own)
        await self._send_ping(pinger)
        async for notification in connection.notifies(timeout=self._ping_within, stop_after=1):
            if notification.channel == self._own:
                return
        if connection.closed or pinger.closed:
            raise _SilentError("the connection was lost during the first ping")
        raise _DeafError("the first ping did not come back")

    async def _drain(self, connection: Connection) -> None:
        """Hear until the connection is lost."""
        # Those that came with the answers to LISTEN.
        async for notification in connection.notifies(timeout=0):
            self._hear(notification.channel, notification.payload)
        self._tell()
        pgconn, loop = connection.pgconn, asyncio.get_running_loop()
        number, lost = pgconn.socket, loop.create_future()

        def hear() -> None:
            if lost.done():
                return
            try:
                pgconn.consume_input()
                while (notification := pgconn.notifies()) is not None:
                    self._hear(notification.relname.decode(), notification.extra.decode())
                self._tell()
            except Exception as error:
                loop.remove_reader(number)
                lost.set_exception(error)

        # For as long as it lives: the driver's own waiter joins the loop anew for each bell.
        loop.add_reader(number, hear)
        try:
            await lost
        finally:
            # What is lost is not watched any more, and its number may be another connection's.
            if lost.cancelled():
                loop.remove_reader(number)

    def _hear(self, channel: str, payload: str) -> None:
        if channel == self._own:
            self._ponged.set()
        else:
            decode(channel, payload, self._ringing, only=self._only)

    def _tell(self) -> None:
        if not self._ringing:
            return
        if self._rung is None:
            self._rang.set()
        else:
            self._rung(self.take())

    async def _ping(self, pinger: Connection) -> None:
        while True:
            await anyio.sleep(self._ping_every)
            self._ponged.clear()
            await self._send_ping(pinger)
            with anyio.move_on_after(self._ping_within):
                await self._ponged.wait()
            if not self._ponged.is_set():
                raise _SilentError("the ping did not come back")

    async def _send_ping(self, pinger: Connection) -> None:
        with anyio.CancelScope(shield=True), severed_after(self._ping_within, pinger):
            await pinger.execute(
                statement("doorbell.ring"), {"channels": [self._own], "payloads": [""]}
            )


class _SilentError(Exception):
    """The connection lives, as far as anybody can tell, but notifications stopped."""


class _DeafError(Exception):
    """LISTEN and NOTIFY were accepted, but what was sent did not arrive, not even once."""


async def _listen_to(connection: Connection, *channels: str) -> None:
    for channel in channels:
        with severed_after(SEND_WITHIN, connection):
            await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))


def _names(group: BaseExceptionGroup[Exception]) -> str:
    return ", ".join(type(error).__name__ for error in group.exceptions)
