"""How long things are kept: history by days, then the runs themselves.

A day's events and chunks are dropped whole, once every run of the day is over and past its time:
the day is closed, its partitions are detached and then dropped. Some time later its runs go, a few
hundred at once. Any number of processes do this together and any of them may die in between: what
is done stands in the database, and the next pass goes on from there.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from functools import partial
from typing import Final

from runwire_engine.database import Database, Row, Transaction
from runwire_engine.errors import DatabaseUnavailableError, LockHeldError, StatementError

logger = logging.getLogger("runwire.retention")

# Deleted by one transaction, so that none of them is long; and how many of those in one pass.
_RUNS_AT_ONCE: Final = 500
_ROUNDS: Final = 20
_BATCHES_AT_ONCE: Final = 5_000


class Retention:
    """Ends history. `history` is how long a run's is kept after its end, `runs` the run itself."""

    def __init__(self, database: Database, *, history: timedelta, runs: timedelta) -> None:
        self._database = database
        self._spans: Row = {"history": history, "runs": runs}
        # Days that are old and kept by a run, and that run: it is looked at first.
        self._kept: dict[date, Row] = {}

    async def once(self) -> bool:
        """Make one pass; say whether there is more to delete at once."""
        await self.close_days()
        await self.drop_days()
        return await self.delete_runs()

    async def close_days(self) -> None:
        """Close the days that no run keeps any more."""
        days = [row["day"] for row in await self._database.all("retention.old_days", self._spans)]
        self._kept = {day: self._kept[day] for day in days if day in self._kept}
        for day in days:
            if await self._is_kept(day):
                continue
            try:
                row = await self._patiently("retention.close_day", {"day": day, **self._spans})
            except (LockHeldError, StatementError) as error:
                logger.info("%s is not closed yet: %s", day, error)
                continue
            if row is not None and row["is_closed"]:
                logger.info("the history of %s is closed", day)

    async def _is_kept(self, day: date) -> bool:
        known = self._kept.pop(day, None)
        if known is not None:
            row = await self._database.one("retention.still_keeps", {**known, **self._spans})
            if row is not None and row["keeps"]:
                self._kept[day] = known
                return True
        keeper = await self._patiently("retention.keeper", {"day": day, **self._spans})
        if keeper is not None:
            self._kept[day] = keeper
        return keeper is not None

    async def _patiently(self, name: str, parameters: Row) -> Row | None:
        """Run a statement that may have to look at every run of a day."""
        async with self._database.transaction() as tx:
            await tx.run("retention.take_time")
            return await tx.one(name, parameters)

    async def drop_days(self) -> None:
        """Take the partitions of closed days out of the logs, and drop them."""
        for leftover in await self._database.all("retention.leftovers"):
            try:
                await self._drop(leftover)
            except (DatabaseUnavailableError, StatementError) as error:
                # Somebody else is at it, or reads it; the next pass goes on from where it is then.
                logger.info("%s is not dropped yet: %s", leftover["leaf"], error)
        await self._database.run("retention.note_dropped")

    async def _drop(self, leftover: Row) -> None:
        names: Mapping[str, str] = {"parent": leftover["parent"], "leaf": leftover["leaf"]}
        async with self._database.session() as session:
            if leftover["is_pending"]:
                await session.run_on("retention.finish_detach", **names)
            elif leftover["is_attached"]:
                await session.run_on("retention.detach", **names)
            await session.run_on("retention.drop", leaf=names["leaf"])
        logger.info("dropped %s", names["leaf"])

    async def delete_runs(self) -> bool:
        """Delete the oldest runs that have no history any more; say whether there are others."""
        rounds = 0
        for row in await self._database.all("retention.days_to_empty", self._spans):
            found = _RUNS_AT_ONCE
            while found == _RUNS_AT_ONCE:
                if rounds == _ROUNDS:
                    return True
                rounds += 1
                found = await self._database.retrying(partial(self._delete, row["day"]))
            if found:
                logger.info("deleted the runs of %s", row["day"])
            if await self._database.run("retention.note_emptied", {"day": row["day"]}):
                await self._database.run(
                    "retention.delete_batches", {**self._spans, "limit": _BATCHES_AT_ONCE}
                )
        return False

    async def _delete(self, day: date, tx: Transaction) -> int:
        runs = await tx.all(
            "retention.expired_runs", {"day": day, "limit": _RUNS_AT_ONCE, **self._spans}
        )
        for environment_id in {run["environment_id"] for run in runs}:
            await _delete_of(
                tx, environment_id, [r for r in runs if r["environment_id"] == environment_id]
            )
        return len(runs)


async def _delete_of(tx: Transaction, environment_id: int, runs: Sequence[Row]) -> None:
    tagged = [(tag, run) for run in runs for tag in run["tags"]]
    names: Row = {
        "environment_id": environment_id,
        "ids": [run["id"] for run in runs],
        "tags": [tag for tag, _ in tagged],
        "tagged": [run["id"] for _, run in tagged],
        "tagged_at": [run["created_at"] for _, run in tagged],
    }
    for what in ("streams", "metadata", "tags", "batch_items", "idempotency_keys", "runs"):
        await tx.run(f"retention.delete_{what}", names)
