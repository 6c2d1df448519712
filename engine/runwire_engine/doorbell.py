"""The doorbell: tells everybody that something moved, by NOTIFY; it never carries the truth.

A NOTIFY inside a writing transaction serialises every commit of the database, so writers ring only
after their commit was acknowledged, without waiting: `ring_*` notes what moved, and the one task in
`Doorbell.run` sends at once, then whatever gathered while that was in flight; bells that only say
that runs moved are 2 ms apart. Errors are logged and swallowed. Whoever listens also polls (1 s),
so that a lost bell costs time, never data.
"""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import closing

import anyio
import psycopg

from runwire_engine.back_off import back_offs
from runwire_engine.bell_connection import (
    BACK_OFF,
    SEND_WITHIN,
    Connection,
    connected,
    severed_after,
)
from runwire_engine.bells import Bell, Control, Ringing, StreamMoved, encode
from runwire_engine.notifier import Notifier

logger = logging.getLogger("runwire.doorbell")

# Seconds from a bell to the next that only says that runs moved: a worker at full speed would have
# Postgres send more than a thousand a second, for a tenth of what the runs themselves cost it.
_GAP = 0.002


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
        waits = back_offs(*BACK_OFF)
        while True:
            try:
                async with connected(self._dsn, "runwire-bell") as connection:
                    waits = back_offs(*BACK_OFF)
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
            with severed_after(SEND_WITHIN, connection):
                await notifier.send(payloads)

    def _of(self, environment_id: int) -> Ringing:
        # As many as this process's environments: never removed.
        return self._ringing.setdefault(environment_id, Ringing())
