"""Serves all sockets that are written to directly: one task, turn by turn.

First what is the same for many, stream by stream, then a frame to each connection that has
something of its own, and then a message of each that has sent some: a burst of one client is not
everybody's. After so many of them the loop is given a turn.
"""

import asyncio
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

import anyio
from anyio.abc import TaskGroup

from runwire_realtime.cohort import MEMBERS, Cohort
from runwire_realtime.frames import Frames
from runwire_realtime.hub import Hub
from runwire_realtime.line import Line

if TYPE_CHECKING:
    from runwire_realtime.direct_connection import DirectConnection

logger = logging.getLogger("runwire.delivery")

# Connections written to in one turn of the loop: one's own frame costs several times a shared one.
_CONNECTIONS: Final = 200
# Messages read in one turn: a subscription costs about a tenth of a millisecond.
_MESSAGES: Final = 50
# Where many sockets are written to and there is more when that is done: what gathers in so many
# seconds leaves with the same writes.
_GATHERING: Final = 0.002


class Delivery:
    """Who has something due."""

    def __init__(self, hub: Hub, frames: Frames) -> None:
        self._streams = hub.streams
        self._limits = hub.limits
        self._frames = frames
        self._due: dict[DirectConnection, None] = {}
        # Who has sent something that was not looked at yet.
        self._unread: dict[DirectConnection, None] = {}
        # Of asyncio, as it is cleared and used again with every turn.
        self._wanted = asyncio.Event()
        self._streams.wake = self._wanted.set

    def add(self, connection: "DirectConnection") -> None:
        """Write to a connection when its turn comes."""
        self._due[connection] = None
        self._wanted.set()

    def read_from(self, connection: "DirectConnection") -> None:
        """Read a message of a connection when its turn comes."""
        self._unread[connection] = None
        self._wanted.set()

    def forget(self, connection: "DirectConnection") -> None:
        """Neither write to a connection nor read from it any more."""
        self._due.pop(connection, None)
        self._unread.pop(connection, None)

    @staticmethod
    def now() -> float:
        return time.monotonic()

    async def run(self) -> None:
        """Write and read until cancelled."""
        async with anyio.create_task_group() as verifying:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                while self._streams.moved or self._due or self._unread:
                    written = await self._push()
                    self._write()
                    self._read(verifying)
                    is_behind = written >= MEMBERS and self._streams.moved
                    await asyncio.sleep(_GATHERING if is_behind else 0)

    async def _push(self) -> int:
        """Push what has moved, and return to how many sockets."""
        moved = [cohort for topic in self._streams.moved for cohort in topic.cohorts]
        self._streams.moved.clear()
        total = sum(len(cohort.members) for cohort in moved)
        while moved:
            turn: list[Cohort] = []
            members = 0
            while moved and (not turn or members + len(moved[-1].members) <= MEMBERS):
                turn.append(moved.pop())
                members += len(turn[-1].members)
            self._push_some(turn)
            if moved:
                await asyncio.sleep(0)
        return total

    def _push_some(self, cohorts: Sequence[Cohort]) -> None:
        """Write to cohorts what is new; a socket in several of them gets it as one write."""
        gathered: dict[Line, list[bytes]] = defaultdict(list)
        now = self.now()
        send = partial(_write_to_all, now)
        if len(cohorts) > 1:
            send = partial(_gather_for_all, now, gathered)
        for cohort in cohorts:
            if cohort.push(self._framed, self._limits, send):
                self._streams.moved[cohort.topic] = None
        joined: dict[tuple[bytes, ...], bytes] = {}
        for line, frames in gathered.items():
            if len(frames) == 1:
                line.write(frames[0])
                continue
            key = tuple(frames)
            if key not in joined:
                joined[key] = b"".join(frames)
            line.write(joined[key])

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
                connection.fail()

    def _read(self, verifying: TaskGroup) -> None:
        now = self.now()
        for connection in list(islice(self._unread, _MESSAGES)):
            del self._unread[connection]
            try:
                token = connection.read(now)
            except Exception:
                logger.exception("reading from a connection failed; it is told to resume")
                connection.fail()
            else:
                if token is not None:
                    verifying.start_soon(connection.verify, token)


def _write_to_all(now: float, frame: bytes, lines: Iterable[Line]) -> set[Line]:
    """Write a frame to each socket that is free; return the others.

    The kernel gets it at once, which is all that is done for nearly every one of thousands.
    """
    late: set[Line] = set()
    write, size = os.write, len(frame)
    for line in lines:
        if not line.is_free:
            late.add(line)
            continue
        line.written_at = now
        try:
            taken = write(line.descriptor, frame)
        except OSError:
            taken = 0
        if taken < size:
            line.write(frame[taken:])
    return late


def _gather_for_all(
    now: float, gathered: dict[Line, list[bytes]], frame: bytes, lines: Iterable[Line]
) -> set[Line]:
    """Keep a frame for each socket that is free; return the others."""
    late: set[Line] = set()
    for line in lines:
        if line.is_free:
            line.written_at = now
            gathered[line].append(frame)
        else:
            late.add(line)
    return late
