"""Writes what is due to all sockets that can be written to directly: one task, turn by turn.

First what is the same for many, stream by stream, then a frame to each connection that has
something of its own. After so many writes the loop is given a turn.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

from runwire.wire import CloseCode
from runwire_realtime.cohort import MEMBERS, Cohort
from runwire_realtime.frames import Frames
from runwire_realtime.hub import Hub

if TYPE_CHECKING:
    from runwire_realtime.direct_connection import DirectConnection

logger = logging.getLogger("runwire.delivery")

# Connections written to in one turn of the loop: one's own frame costs several times a shared one.
_CONNECTIONS: Final = 100


class Delivery:
    """Who has something due."""

    def __init__(self, hub: Hub, frames: Frames) -> None:
        self._streams = hub.streams
        self._limits = hub.limits
        self._frames = frames
        self._due: dict[DirectConnection, None] = {}
        # Of asyncio, as it is cleared and used again with every turn.
        self._wanted = asyncio.Event()
        self._streams.wake = self._wanted.set

    def add(self, connection: "DirectConnection") -> None:
        """Write to a connection when its turn comes."""
        self._due[connection] = None
        self._wanted.set()

    def forget(self, connection: "DirectConnection") -> None:
        self._due.pop(connection, None)

    @staticmethod
    def now() -> float:
        return time.monotonic()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._streams.moved or self._due:
                await self._push()
                self._write()
                await asyncio.sleep(0)

    async def _push(self) -> None:
        written = 0
        moved = list(self._streams.moved)
        self._streams.moved.clear()
        for topic in moved:
            for cohort in list(topic.cohorts):
                if written and written + len(cohort.members) > MEMBERS:
                    written = 0
                    await asyncio.sleep(0)
                written += len(cohort.members)
                self._push_one(cohort)

    def _push_one(self, cohort: Cohort) -> None:
        if cohort.push(self._framed, self._limits, self.now()):
            self._streams.moved[cohort.topic] = None

    def _framed(self, messages: Sequence[bytes]) -> bytes:
        return self._frames.frame(messages).wire

    def _write(self) -> None:
        now = self.now()
        for connection in list(islice(self._due, _CONNECTIONS)):
            del self._due[connection]
            try:
                connection.write(now)
            except Exception:
                logger.exception("writing to a connection failed; it is told to resume")
                connection.cut_off(CloseCode.INSUFFICIENT_STATE, "the server lost its place")
