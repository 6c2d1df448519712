"""The sweep: what time makes due, done by every process, with no leader.

Each pass is bounded and skips what another sweeper is at. Once a minute it also tidies up: keys and
tokens that served their time, groups nobody uses, partitions for the days ahead, and history and
runs past retention. What becomes of Postgres itself is looked at in every pass (see `alarms`).
"""

import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

import anyio

from runwire_engine.alarms import Alarms
from runwire_engine.batches import Batches
from runwire_engine.cancellations import Cancellations
from runwire_engine.database import Database
from runwire_engine.errors import EngineError
from runwire_engine.queue_groups import match_runs
from runwire_engine.repeating import Repeating
from runwire_engine.retention import Retention
from runwire_engine.waitpoints import Waitpoints
from runwire_engine.waits import Waits
from runwire_engine.workers import Workers

logger = logging.getLogger("runwire.sweep")

INTERVAL: Final = 5.0
_TIDY_SECONDS: Final = 60.0
# Rows deleted by one statement; a full one is repeated at the next pass, not in a minute.
_DELETED_AT_ONCE: Final = 5_000
_DAYS_AHEAD: Final = 7
# Tables that statements reach by key and that may grow fast from nothing.
_ANALYZED: Final = (
    "runs",
    "run_metadata",
    "run_tags",
    "streams",
    "batch_items",
    "idempotency_keys",
    "request_keys",
    "queue_groups",
    "waits",
    "wait_targets",
    "waitpoints",
)
# How long an answer can be asked for again.
_KEPT: Final = {
    "sweep.delete_request_keys": timedelta(days=1),
    "sweep.delete_writers": timedelta(days=1),
    "sweep.delete_idempotency_keys": timedelta(0),
    "sweep.delete_debounce_keys": timedelta(hours=1),
    "sweep.delete_used_tokens": timedelta(hours=1),
    "sweep.delete_revoked_tokens": timedelta(hours=1),
    "waitpoints.delete_old": timedelta(days=30),
    "sweep.delete_groups": timedelta(minutes=1),
    "sweep.delete_workers": timedelta(days=7),
}


class Sweep(Repeating):
    """Sweeps every few seconds; what fails is logged and tried again at the next pass."""

    def __init__(
        self,
        database: Database,
        workers: Workers,
        batches: Batches,
        waits: Waits,
        waitpoints: Waitpoints,
        cancellations: Cancellations,
        retention: Retention,
        alarms: Alarms,
        *,
        interval: float = INTERVAL,
    ) -> None:
        super().__init__()
        self.alarms = alarms
        self._database = database
        self._workers = workers
        self._batches = batches
        self._waits = waits
        self._waitpoints = waitpoints
        self._cancellations = cancellations
        self._retention = retention
        self._interval = interval
        self._tidied = -_TIDY_SECONDS

    async def _step(self) -> float:
        return 0.05 if await self.once() else self._interval

    async def once(self) -> bool:
        """Make one pass; say whether there is more to do at once."""
        swept: list[bool] = []

        async def sweep() -> None:
            swept.append((await self._workers.sweep()).full)

        async def wake() -> None:
            swept.append(await self._waitpoints.sweep())
            swept.append(await self._waits.sweep())

        async def cancel() -> None:
            swept.append(await self._cancellations.sweep())

        await self._careful("the sweep", sweep)
        await self._careful("a look at what runs wait for", wake)
        await self._careful("canceling children", cancel)
        await self._careful("a look at the notification queue", self.alarms.look_at_notifications)
        await self._careful("a look at old transactions", self.alarms.look_at_horizon)
        await self._careful("a look at the statistics", self._refresh_statistics)
        if anyio.current_time() - self._tidied >= _TIDY_SECONDS:
            self._tidied = anyio.current_time()
            await self.tidy()
        return any(swept)

    async def tidy(self) -> None:
        """Make partitions ahead, put queues right, delete what served its time."""
        await self._careful("making partitions", self._make_partitions)
        await self._careful("matching queues and limits", self._match_runs)
        await self._careful("giving up abandoned batches", self._give_up_batches)
        for name, kept in _KEPT.items():
            await self._careful(name, self._deletion(name, kept))
        await self._careful("ending history", self._end_history)

    def _deletion(self, name: str, kept: timedelta) -> Callable[[], Awaitable[None]]:
        async def delete() -> None:
            count = await self._database.run(name, {"kept": kept, "limit": _DELETED_AT_ONCE})
            if count >= _DELETED_AT_ONCE:
                self._tidied = -_TIDY_SECONDS

        return delete

    async def _make_partitions(self) -> None:
        row = await self._database.one("sweep.make_partitions", {"days": _DAYS_AHEAD})
        if row is not None and row["made"]:
            logger.info("made %d partitions", row["made"])

    async def _end_history(self) -> None:
        if await self._retention.once():
            self._tidied = -_TIDY_SECONDS

    async def _match_runs(self) -> None:
        if await self._database.retrying(match_runs):
            self._tidied = -_TIDY_SECONDS

    async def _give_up_batches(self) -> None:
        if await self._batches.give_up_abandoned():
            self._tidied = -_TIDY_SECONDS

    async def _refresh_statistics(self) -> None:
        stale = {row["name"] for row in await self._database.all("sweep.stale_statistics")}
        for table in _ANALYZED:
            if table in stale:
                await self._database.run(f"sweep.analyze_{table}")

    async def _careful(self, what: str, step: Callable[[], Awaitable[None]]) -> None:
        """Do a step, unless closing; what goes wrong with it must not end the process."""
        if self._closing.is_set():
            return
        try:
            await step()
        except EngineError as error:
            logger.warning("%s failed and is tried again: %s", what, error)
        except Exception:
            logger.exception("%s failed and is tried again", what)
