"""A worker's lease: renewed by heartbeats, and counted as lost before the database does so.

Only database time decides when another worker may have the runs. This side measures how long ago
it *asked* for the renewal that was granted last, and stops at three quarters of the lease, so that
a worker which cannot reach Postgres is silent well before its runs start elsewhere.
"""

import logging
import time

import anyio

from runwire_engine.errors import EngineError
from runwire_engine.workers import Workers

logger = logging.getLogger("runwire.worker")

# A fifth of the lease shall be left when everything is stopped, on a busy machine too.
_MARGIN = 0.75
# While heartbeats fail they are sent this often.
_HURRY = 0.2


class Lease:
    """The lease of one worker id."""

    def __init__(
        self, workers: Workers, worker_id: str, *, seconds: float, heartbeat: float
    ) -> None:
        self._workers = workers
        self._worker_id = worker_id
        self._seconds = seconds
        self._heartbeat = heartbeat
        self._renewed = time.monotonic()

    def renewed(self, asked_at: float) -> None:
        """Note that the lease was granted to someone who asked at this (monotonic) time."""
        self._renewed = max(self._renewed, asked_at)

    async def run(self) -> None:
        """Keep the lease; return when it is lost."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._beat, tasks.cancel_scope)
            await self._overdue()
            logger.error("Postgres was out of reach for too long; the lease counts as lost")
            tasks.cancel_scope.cancel()

    async def _overdue(self) -> None:
        """Return once the last renewal is too long ago."""
        while True:
            left = self._renewed + self._seconds * _MARGIN - time.monotonic()
            if left < 0:
                return
            await anyio.sleep(min(left + 0.01, self._seconds / 20))

    async def _beat(self, scope: anyio.CancelScope) -> None:
        while True:
            asked_at = time.monotonic()
            try:
                alive = await self._workers.heartbeat(self._worker_id)
            except EngineError as error:
                logger.warning("a heartbeat failed: %s", error)
                await anyio.sleep(min(_HURRY, self._heartbeat))
                continue
            if not alive:
                logger.error("this worker was counted as dead; its runs go to others")
                scope.cancel()
                return
            self.renewed(asked_at)
            await anyio.sleep(self._heartbeat)
