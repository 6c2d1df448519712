"""The log of one attempt on its way to the database: bounded, and never in the task's way.

A line is taken or dropped at once; nobody waits and nothing fails because of a log. Dropped are
lines for which there is no room: more wait than may, or the run's log has all the lines or bytes it
may have, those of earlier attempts included. The last line of the attempt says how many.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from runwire._log_line import log_line
from runwire_engine.bridge import Bridge, pending_promise

logger = logging.getLogger("runwire.worker")

# Of one run. A person reads no more, and a hundred thousand such runs still fit on a disk.
MAX_LINES: Final = 10_000
MAX_BYTES: Final = 4 * 1024 * 1024
# What may wait beside the append in flight, so that a hundred flooding runs fit into memory.
MAX_WAITING: Final = 2_000
MAX_WAITING_BYTES: Final = 512 * 1024
_AT_ONCE: Final = 500
# Seconds that the end of an attempt waits for its log.
_FINISH_WITHIN: Final = 10.0


class LogWriter:
    """Takes lines from any thread and stores them, one append in flight."""

    def __init__(
        self,
        bridge: Bridge,
        send: Callable[[Sequence[str]], Awaitable[object]],
        stored: Callable[[], Awaitable[tuple[int, int]]] | None,
    ) -> None:
        """Take the engine's loop, what appends there, and what tells how many lines and bytes the
        run's log has already (None: none).
        """
        self._bridge = bridge
        self._send = send
        self._stored = stored
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._waiting_bytes = 0
        # What may still be taken; less once it is known what earlier attempts have written.
        self._lines_left = MAX_LINES
        self._bytes_left = MAX_BYTES
        self._busy = False
        self._closed = False
        self._idle: list[Future[None]] = []
        self.dropped = 0

    def has_room(self) -> bool:
        """Say whether a line would be taken; one that is not is counted as dropped."""
        with self._lock:
            if not self._is_full:
                return True
            self.dropped += 1
            return False

    @property
    def _is_full(self) -> bool:
        return (
            self._closed
            or self._lines_left <= 0
            or self._bytes_left <= 0
            or len(self._lines) >= MAX_WAITING
            or self._waiting_bytes >= MAX_WAITING_BYTES
        )

    def add(self, line: str) -> None:
        """Take a line, or count it as dropped."""
        size = len(line)
        with self._lock:
            if self._is_full or size > self._bytes_left:
                self.dropped += 1
                return
            self._lines.append(line)
            self._waiting_bytes += size
            self._lines_left -= 1
            self._bytes_left -= size
            wake, self._busy = not self._busy, True
        if wake:
            self._bridge.post(self._start)

    def abort(self) -> None:
        """Take nothing more and drop what waits: another execution holds the run."""
        with self._lock:
            self._closed = True
            self._lines, self._waiting_bytes = [], 0

    async def flush(self) -> None:
        """Wait until what was taken so far is stored or dropped; on the engine's loop."""
        idle: Future[None] = pending_promise()
        with self._lock:
            if self._busy:
                self._idle.append(idle)
            else:
                idle.set_result(None)
        await asyncio.wait([asyncio.wrap_future(idle)], timeout=_FINISH_WITHIN)

    async def finish(self) -> None:
        """Store what waits, and say how much was dropped; on the engine's loop."""
        with self._lock:
            self._closed = True
        await self.flush()
        if self.dropped:
            await self._try([_notice(self.dropped)])

    # -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._bridge.start(self._run)

    async def _run(self) -> None:
        if self._stored is not None:
            await self._count(self._stored)
            self._stored = None
        while lines := self._take():
            await self._try(lines)

    async def _count(self, stored: Callable[[], Awaitable[tuple[int, int]]]) -> None:
        """Take off what earlier attempts have written."""
        with suppress(Exception):
            lines, size = await stored()
            with self._lock:
                self._lines_left -= lines
                self._bytes_left -= size
                # What was taken before that was known.
                while self._lines and (self._lines_left < 0 or self._bytes_left < 0):
                    last = len(self._lines.pop())
                    self._waiting_bytes -= last
                    self._bytes_left += last
                    self._lines_left += 1
                    self.dropped += 1

    def _take(self) -> list[str]:
        with self._lock:
            taken, self._lines = self._lines[:_AT_ONCE], self._lines[_AT_ONCE:]
            self._waiting_bytes -= sum(map(len, taken))
            if not taken:
                self._busy = False
                idle, self._idle = self._idle, []
                for promise in idle:
                    promise.set_result(None)
            return taken

    async def _try(self, lines: Sequence[str]) -> None:
        try:
            await self._send(lines)
        except Exception as error:
            # Whatever is wrong with the database or the run, others will be told.
            logger.debug("%d lines of a log were not stored: %r", len(lines), error)
            with self._lock:
                self.dropped += len(lines)


def _notice(count: int) -> str:
    return log_line(
        datetime.now(UTC),
        "warn",
        f"{count} lines of this attempt's log were dropped: a run's log holds {MAX_LINES} lines and"
        f" {MAX_BYTES} bytes, and at most {MAX_WAITING} lines wait to be stored",
        {"dropped": count},
    )
