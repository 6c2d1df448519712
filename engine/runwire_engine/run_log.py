"""The log of one attempt, as its code writes it: never in the way, opened by the first line."""

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from runwire._log_line import LogLevel, is_at_least, log_line
from runwire._stream_keys import LOG_KEY
from runwire_engine.claims import ClaimedRun
from runwire_engine.log_writer import LogWriter
from runwire_engine.steps import Steps
from runwire_engine.streams import Append
from runwire_engine.surroundings import Surroundings


class Host(Protocol):
    """What an attempt lends to its log."""

    @property
    def run(self) -> ClaimedRun: ...


class RunLog:
    """Writes lines from any thread."""

    def __init__(self, around: Surroundings, steps: Steps, host: Host) -> None:
        self._around = around
        self._steps = steps
        self._host = host
        self._lock = threading.Lock()
        self._writer: LogWriter | None = None
        self._is_closed = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever written."""
        return self._writer is None

    def write(
        self,
        level: LogLevel,
        message: object,
        attributes: Mapping[str, object] | None,
        logger: str | None,
    ) -> None:
        """Write a line, unless an earlier execution of the code has written it."""
        if self._is_closed or not is_at_least(level, self._around.log_level):
            return
        if not self._steps.admits("log"):
            return
        writer = self._writer or self._opened()
        if writer.has_room():
            writer.add(log_line(datetime.now(UTC), level, message, attributes, logger))

    def close(self) -> None:
        """Take nothing more."""
        self._is_closed = True

    def abort(self) -> None:
        """Drop what waits: another execution holds the run."""
        self._is_closed = True
        if self._writer is not None:
            self._writer.abort()

    async def flush(self) -> None:
        """Store what was taken so far; on the engine's loop."""
        if self._writer is not None:
            await self._writer.flush()

    async def finish(self) -> None:
        """Store what was taken, and say how much was dropped; on the engine's loop."""
        if self._writer is not None:
            await self._writer.finish()

    def _opened(self) -> LogWriter:
        with self._lock:
            if self._writer is None:
                stored = self._stored if self._host.run.execution > 1 else None
                self._writer = LogWriter(self._around.bridge, self._send, stored)
            return self._writer

    async def _send(self, lines: Sequence[str]) -> None:
        await self._steps.pass_gate()
        run = self._host.run
        append = Append(
            run.id,
            LOG_KEY,
            tuple(lines),
            execution=run.execution,
            attempt=run.attempt,
            lineage=run.lineage,
            reserved=True,
        )
        await self._around.engine.streams.append(self._around.environment_id, append)

    async def _stored(self) -> tuple[int, int]:
        """Return how many lines and bytes earlier executions have written."""
        streams, name = self._around.engine.streams, (self._host.run.id, LOG_KEY)
        heads = await streams.heads(self._around.environment_id, [name])
        return (heads[0].next_seq, heads[0].bytes) if heads else (0, 0)
