"""Canceling runs: one that somebody names, and after it its children, and theirs.

The transaction that makes a run CANCELED leaves a row in runwire.cancellations if children of it
are not over. Here they are canceled, a bounded number in each transaction, by the process that
canceled the run; what a dead process left is the sweep's. Each step may be done twice.
"""

import logging
from collections.abc import Sequence
from typing import Final

from runwire_engine.database import Database, Row, Transaction
from runwire_engine.doorbell import Doorbell
from runwire_engine.endings import Endings
from runwire_engine.errors import EngineError
from runwire_engine.repeating import WHEN_WOKEN, Repeating
from runwire_engine.states import FINAL
from runwire_engine.waits import Waits

logger = logging.getLogger("runwire.cancellations")

# Of one transaction: children, and the runs they are children of.
_CHILDREN_AT_ONCE: Final = 500
_PARENTS_AT_ONCE: Final = 100
_AGAIN_SECONDS: Final = 1.0


class Cancellations(Repeating):
    """Cancels runs, and, woken, the children of those that became CANCELED."""

    def __init__(self, database: Database, bell: Doorbell, waits: Waits | None = None) -> None:
        super().__init__()
        self._database = database
        self._bell = bell
        self._waits = waits

    async def cancel(self, environment_id: int, run_id: str) -> None:
        """Cancel a run: at once, or, while it executes, by asking its worker to."""
        # Also of tries whose COMMIT got no answer: then there is nothing left to change.
        changed: list[Row] = []
        endings = self._endings()

        async def work(tx: Transaction) -> None:
            changed.extend(await _cancel(tx, endings, [(environment_id, run_id)]))

        await self._database.surely(work)
        self._ring(endings, changed)

    async def sweep(self) -> bool:
        """Cancel some of the children that are left; say whether there are more."""
        changed: list[Row] = []
        endings = self._endings()

        async def work(tx: Transaction) -> bool:
            nonlocal endings
            changed.clear()
            endings = self._endings()
            parents = await tx.all("cancellations.take", {"limit": _PARENTS_AT_ONCE})
            if not parents:
                return False
            named = {
                "environment_ids": [row["environment_id"] for row in parents],
                "parents": [row["run_id"] for row in parents],
            }
            limit = {"limit": _CHILDREN_AT_ONCE}
            children = await tx.all("cancellations.lock_children", {**named, **limit})
            if children:
                ids = [(row["environment_id"], row["id"]) for row in children]
                changed.extend(await _cancel(tx, endings, ids))
            if len(children) < _CHILDREN_AT_ONCE:
                await tx.run("cancellations.drop", named)
            # What was canceled may have left children of its own.
            return True

        is_more = await self._database.surely(work)
        self._ring(endings, changed)
        return is_more

    async def _step(self) -> float:
        """Cancel the children that are left; what is not done when it closes is the sweep's."""
        try:
            while not self._closing.is_set() and await self.sweep():
                pass
        except EngineError as error:
            logger.warning("children could not be canceled and are tried again: %s", error)
            await self._pause(_AGAIN_SECONDS)
            return 0.0
        return WHEN_WOKEN

    def _endings(self) -> Endings:
        return Endings(self._bell, self._waits, self.wake)

    def _ring(self, endings: Endings, changed: Sequence[Row]) -> None:
        endings.ring()
        for row in changed:
            # Also where its code waits in a worker's memory.
            if row["status"] not in FINAL or row["parked_by"]:
                self._bell.ring_control(row["environment_id"], "cancel", row["id"])


async def _cancel(
    tx: Transaction, endings: Endings, runs: Sequence[tuple[int, str]]
) -> Sequence[Row]:
    rows = await tx.all(
        "cancellations.cancel",
        {
            "environment_ids": sorted({environment_id for environment_id, _ in runs}),
            "ids": [run_id for _, run_id in runs],
        },
    )
    await endings.settle(tx, rows)
    return rows
