"""The doorbell: NOTIFY on its own connection, LISTEN on another; neither carries the truth.

A NOTIFY inside a writing transaction serialises every commit of the database, so writers ring only
after their commit was acknowledged, without waiting: `ring_*` notes what moved, and the one task in
`Doorbell.run` sends at once, then whatever gathered while that was in flight; bells that only say
that runs moved are 2 ms apart. Errors are logged and swallowed. Whoever listens also polls (1 s),
so that a lost bell costs time, never data.

Behind a transaction pooler bells can be rung but not heard. A listener finds that out at its start,
by a ping to itself, and says so once: whoever has it then goes by the poll alone.
"""

import asyncio
import logging
import os
import random
import secrets
import socket
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from types import TracebackType
from typing import Any, TypeAlias

import anyio
import psycopg
from anyio.abc import TaskGroup
from psycopg import AsyncConnection, sql

from runwire_engine.bells import CHANNELS as CHANNELS
from runwire_engine.bells import Bell as Bell
from runwire_engine.bells import ChunkRow as ChunkRow
from runwire_engine.bells import Control as Control
from runwire_engine.bells import Ringing, decode, encode
from runwire_engine.bells import StreamMoved as StreamMoved
from runwire_engine.driver_errors import Refusal
from runwire_engine.notifier import Notifier
from runwire_engine.statements import statement

logger = logging.getLogger("runwire.doorbell")

Connection: TypeAlias = AsyncConnection[tuple[object, ...]]

# Half-open connections are found in about 11 s by TCP, and in PING_EVERY + PING_WITHIN by the ping.
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
PING_EVERY = 5.0
PING_WITHIN = 3.0
# A bell that takes this long is worth less than a new connection.
_SEND_WITHIN = 5.0
_BACK_OFF = (0.05, 5.0)
# Seconds from a bell to the next that only says that runs moved: a worker at full speed would have
# Postgres send more than a thousand a second, for a tenth of what the runs themselves cost it.
_GAP = 0.002
# How often a listener that hears nothing tries again whether that has changed.
_POLL_ONLY_PAUSE = 30.0


class Doorbell:
    """Rings after commits. One per process and event loop; `run` belongs into a task group."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._ringing: dict[int, Ringing] = {}
        self._rung = asyncio.Event()
        self._sending = False
        # When the last bell was sent, by the loop's clock; and what rings a moment after it.
        self._sent_at: float | None = None
        self._soon: asyncio.TimerHandle | None = None
        # Whether the notification queue was full at the last try: told once, not at each bell.
        self._is_full = False

    def ring_work(self, environment_id: int, queues: Iterable[str]) -> None:
        """Say that queues have new work."""
        self._of(environment_id).add_work(queues)
        self._rung.set()

    def ring_feed(
        self, environment_id: int, runs: Iterable[str] = (), streams: Iterable[StreamMoved] = ()
    ) -> None:
        """Say that runs and streams moved. Call it only once the commit is acknowledged."""
        ringing = self._of(environment_id)
        ringing.runs_moved = ringing.runs_moved or any(True for _ in runs)
        for moved in streams:
            ringing.add_stream(moved)
        if ringing.streams:
            self._rung.set()
        else:
            self._ring_soon()

    def _ring_soon(self) -> None:
        """Ring that runs moved: at once, but for a bell that has just said so."""
        if self._sent_at is None:
            self._rung.set()
            return
        loop = asyncio.get_running_loop()
        wait = self._sent_at + _GAP - loop.time()
        if wait <= 0:
            self._rung.set()
        elif self._soon is None:
            self._soon = loop.call_later(wait, self._ring_now)

    def _ring_now(self) -> None:
        self._soon = None
        self._rung.set()

    def behind_a_commit(self, environment_id: int, streams: Iterable[StreamMoved]) -> str | None:
        """Return what a writer's own session may send on `FEED` right behind its commit.

        In a transaction of its own, once the commit is on disk. None: ring as everybody does, since
        NOTIFY fails for now, and the writer's session has other things to do.
        """
        if not self.takes_notify:
            return None
        ((_, payload),) = encode(environment_id, Bell(streams=tuple(streams)))
        return payload

    @property
    def takes_notify(self) -> bool:
        """Whether a writer's session may ring right behind its commit: NOTIFY does not fail now."""
        return not self._is_full

    def ring_control(self, environment_id: int, kind: str, target: str) -> None:
        """Say that something is to be done now, such as "cancel" of a run."""
        self._of(environment_id).add_control(Control(kind, target))
        self._rung.set()

    @property
    def idle(self) -> bool:
        """Whether everything rung so far has been sent (or given up)."""
        return not self._sending and not any(self._ringing.values())

    async def run(self) -> None:
        """Send bells until cancelled, over one connection that is opened again when it breaks."""
        waits = _back_offs()
        while True:
            try:
                async with _connected(self._dsn, "runwire-bell") as connection:
                    waits = _back_offs()
                    with closing(Notifier(connection)) as notifier:
                        await self._send_all(notifier, connection)
            except (psycopg.Error, OSError) as error:
                self._sending = False
                logger.warning("the doorbell lost its connection: %s", type(error).__name__)
                # What was in flight may be lost: let everybody look.
                for ringing in self._ringing.values():
                    ringing.scan = True
                self._rung.set()
            await anyio.sleep(next(waits))

    async def _send_all(self, notifier: Notifier, connection: Connection) -> None:
        while True:
            await self._rung.wait()
            self._rung.clear()
            self._sending = True
            try:
                await self._send(notifier, connection)
                self._is_full = False
            except psycopg.errors.ProgramLimitExceeded:
                # A stuck listener somewhere fills the queue; polling goes on, and so do writers.
                if not self._is_full:
                    logger.error("the notification queue of Postgres is full; bells are lost")
                self._is_full = True
            self._sending = False

    async def _send(self, notifier: Notifier, connection: Connection) -> None:
        payloads = [
            payload
            for environment_id, ringing in self._ringing.items()
            if ringing
            for payload in encode(environment_id, ringing.take())
        ]
        if payloads:
            self._sent_at = asyncio.get_running_loop().time()
            with _severed_after(_SEND_WITHIN, connection):
                await notifier.send(payloads)

    def _of(self, environment_id: int) -> Ringing:
        # As many as this process's environments: never removed.
        return self._ringing.setdefault(environment_id, Ringing())


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
        waits = _back_offs()
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
                waits = _back_offs()
            self.listening = False
            await anyio.sleep(_POLL_ONLY_PAUSE if self.is_poll_only else next(waits))

    async def _listen(self) -> None:
        async with (
            _connected(self._dsn, "runwire-listen") as connection,
            _connected(self._dsn, "runwire-ping") as pinger,
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
        with anyio.CancelScope(shield=True), _severed_after(self._ping_within, pinger):
            await pinger.execute(
                statement("doorbell.ring"), {"channels": [self._own], "payloads": [""]}
            )


class _SilentError(Exception):
    """The connection lives, as far as anybody can tell, but notifications stopped."""


class _DeafError(Exception):
    """LISTEN and NOTIFY were accepted, but what was sent did not arrive, not even once."""


@asynccontextmanager
async def _connected(dsn: str, name: str) -> AsyncGenerator[Connection]:
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


async def _listen_to(connection: Connection, *channels: str) -> None:
    for channel in channels:
        with _severed_after(_SEND_WITHIN, connection):
            await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))


@contextmanager
def _severed_after(seconds: float, connection: Connection) -> Generator[None]:
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


def _names(group: BaseExceptionGroup[Exception]) -> str:
    return ", ".join(type(error).__name__ for error in group.exceptions)


def _back_offs() -> Iterator[float]:
    wait, longest = _BACK_OFF
    while True:
        yield wait * random.uniform(0.5, 1.0)
        wait = min(wait * 2, longest)
