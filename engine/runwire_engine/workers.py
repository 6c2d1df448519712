"""Workers and their leases; what becomes of the runs of one that is gone.

Only database time counts. A claim locks its worker's row (FOR KEY SHARE), heartbeats do not get in
its way, and the sweep takes that row FOR UPDATE: so a worker is never counted as dead between
somebody's look at its lease and the claim that follows from it.
"""

import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from runwire_engine.claims import Claims
from runwire_engine.database import Database, Row, Transaction
from runwire_engine.doorbell import Doorbell
from runwire_engine.endings import Endings
from runwire_engine.outcomes import Canceled, Lost, Outcome, Released, record
from runwire_engine.waits import Waits

# Of one pass of the sweep: workers, and runs of each kind.
_WORKERS_AT_ONCE: Final = 20
_RUNS_AT_ONCE: Final = 500

_Work: TypeAlias = Callable[[Transaction, Endings], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Swept:
    """How much one pass found to do."""

    dead_workers: int = 0
    lost: int = 0
    canceled: int = 0
    expired: int = 0
    promoted: int = 0

    @property
    def full(self) -> bool:
        """Whether a bound was reached, so that another pass is due at once."""
        # Not for what is due: workers make that ready, as fast as they take it.
        runs = max(self.lost, self.canceled, self.expired)
        return self.dead_workers >= _WORKERS_AT_ONCE or runs >= _RUNS_AT_ONCE


class Workers:
    """Registers workers, renews their leases, and sweeps up after them."""

    def __init__(
        self,
        database: Database,
        bell: Doorbell,
        claims: Claims,
        *,
        lease: float,
        cancel_grace: float,
        waits: Waits | None = None,
        canceled: Callable[[], None] | None = None,
    ) -> None:
        self._database = database
        self._waits = waits
        self._canceled = canceled
        self._bell = bell
        self._claims = claims
        self._lease = lease
        self._cancel_grace = cancel_grace

    async def register(
        self,
        environment_id: int,
        worker_id: str,
        *,
        version: str = "",
        declares: Sequence[str] = (),
    ) -> None:
        """Give a new worker its lease; may be repeated.

        `declares`: the tasks in whose code a schedule stands.
        """
        await self._database.run(
            "workers.register",
            {
                "environment_id": environment_id,
                "id": worker_id,
                "lease": self._lease,
                "host": socket.gethostname(),
                "process_id": os.getpid(),
                "version": version,
                "declares": list(declares),
            },
        )

    async def heartbeat(self, worker_id: str) -> bool:
        """Renew a lease. False: the worker was counted as dead; its runs are others' now."""
        row = await self._database.one("workers.heartbeat", {"id": worker_id, "lease": self._lease})
        return row is not None

    async def stop(self, worker_id: str) -> int:
        """End a lease in order and give back whatever the worker still holds; return how much."""

        async def work(tx: Transaction, endings: Endings) -> int:
            await tx.run("workers.stop", {"id": worker_id})
            held = await tx.all("workers.held", {"ids": [worker_id]})
            return await _end(tx, endings, held, Released)

        return await self._change(work)

    async def held(self, worker_id: str) -> dict[str, int]:
        """Return the runs a worker holds, with their executions."""
        rows = await self._database.all("workers.held", {"ids": [worker_id]})
        return {row["id"]: row["execution"] for row in rows}

    async def cancel_requests(self, worker_id: str) -> list[str]:
        """Return the runs a worker holds that somebody asked to cancel."""
        rows = await self._database.all("workers.cancel_requests", {"id": worker_id})
        return [row["id"] for row in rows]

    async def sweep(self) -> Swept:
        """Do once, and no more than a bounded amount of, what time makes due.

        Any number of sweepers may run: each skips what another one is at.
        """
        dead, lost = await self._bury()
        return Swept(
            dead_workers=dead,
            lost=lost,
            canceled=await self._change(self._force_cancels),
            expired=await self._change(_expire),
            promoted=await self._claims.promote_all(),
        )

    async def _bury(self) -> tuple[int, int]:
        """Mark workers dead whose lease ran out, and give their runs to others."""
        dead: list[Row] = []

        async def work(tx: Transaction, endings: Endings) -> int:
            dead[:] = await tx.all("workers.bury", {"limit": _WORKERS_AT_ONCE})
            held = await tx.all("workers.held", {"ids": [row["id"] for row in dead]})
            # Also what a worker holds that nobody would sweep any more; there should be none.
            orphans = await tx.all("workers.orphans", {"limit": _RUNS_AT_ONCE})
            return await _end(tx, endings, [*held, *orphans], Lost)

        lost = await self._change(work)
        return len(dead), lost

    async def _force_cancels(self, tx: Transaction, endings: Endings) -> int:
        overdue = await tx.all(
            "workers.overdue_cancels", {"grace": self._cancel_grace, "limit": _RUNS_AT_ONCE}
        )
        return await _end(tx, endings, overdue, Canceled)

    async def _change(self, work: _Work) -> int:
        """Do work in a transaction and ring for it once it is committed."""
        endings = Endings(self._bell, self._waits, self._canceled)

        async def once(tx: Transaction) -> int:
            nonlocal endings
            endings = Endings(self._bell, self._waits, self._canceled)
            return await work(tx, endings)

        count = await self._database.surely(once)
        endings.ring()
        return count


async def _end(
    tx: Transaction,
    endings: Endings,
    runs: Sequence[Row],
    outcome: Callable[[str, int], Outcome],
) -> int:
    """End executions that nobody else will, in the order of their ids."""
    ended = 0
    for environment_id in sorted({row["environment_id"] for row in runs}):
        own = sorted(
            (row["id"], row["execution"]) for row in runs if row["environment_id"] == environment_id
        )
        for start in range(0, len(own), _RUNS_AT_ONCE):
            outcomes = [outcome(*run) for run in own[start : start + _RUNS_AT_ONCE]]
            changed = await record(tx, environment_id, outcomes)
            await endings.settle(tx, changed)
            ended += len(changed)
    return ended


async def _expire(tx: Transaction, endings: Endings) -> int:
    expired = await tx.all("workers.expire", {"limit": _RUNS_AT_ONCE})
    await endings.settle(tx, expired)
    return len(expired)
