"""Claiming: which ready runs a worker executes next.

One short transaction; task code never runs inside it. Groups of limited queues are locked first,
those first that have had the fewest turns. A later statement, whose snapshot is taken under those
locks, counts
what executes in each and picks its next runs: counting in the locking statement would overrun.
What was picked is then taken over with one revision, one execution and one attempt more, if the
worker's lease holds; the same statement picks runs of unlimited queues, straight from their index.
So where nothing waits in groups a claim is one round trip. A run that became ready by itself, on a
worker that left none behind, is claimed by its id: Postgres then looks for nothing else.

Of a queue with very many keys one look takes in a bounded number, the next look those after them.
Whether a run goes through a group is written on it when it is queued; a run that was queued while
its queue got or lost its limit is put right by whoever meets it first.
"""

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

import anyio

from runwire_engine.database import Database, Row, Transaction
from runwire_engine.direct_call import DirectCalls
from runwire_engine.doorbell import Doorbell
from runwire_engine.queue_groups import make_groups, match_runs
from runwire_engine.run_row import RunRow, run_row

ClaimedRun: TypeAlias = RunRow

# How far past the wanted number of ready runs to look, as other workers hold some of them.
_REACH: Final = 8
_LEAST_REACH: Final = 64
# Keys of one queue taken into account by one look, and looks of one claim.
_KEYS_AT_ONCE: Final = 128
_LOOKS: Final = 4
# By the sweep, and by a worker, for which it also bounds how many are ready: at a thousand runs a
# second a fresh one waits a quarter of a second for them.
_PROMOTED_AT_ONCE: Final = 500
_READY_AT_ONCE: Final = 250
# Seconds until a worker looks again for due runs when enough are ready, or others are at them.
_LATER: Final = 0.05


@dataclass(slots=True)
class _Worker:
    """The claims of one worker id, one at a time."""

    turn: anyio.Lock = field(default_factory=lambda: anyio.Lock(fast_acquire=True))
    # When its last answered claim with runs happened, by the database's clock.
    answered: datetime | None = None
    # A later claim got no answer.
    unsure: bool = False


@dataclass(slots=True)
class _Met:
    """What a claim met on its way."""

    # Queues and keys of runs that go the wrong way.
    strays: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    # Groups that are served, and the turns they have had.
    turns: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])


class Claims:
    """Hands ready runs to workers, and makes due runs ready."""

    def __init__(self, database: Database, bell: Doorbell, hot: DirectCalls | None = None) -> None:
        """Take the database, and what calls the statement of every claim."""
        self._database = database
        self._hot = hot or database
        self._bell = bell
        # Takes turns, so that neither kind of queue starves the other.
        self._limited_first = False
        # The last claim got all it wanted: the next looks no further at first.
        self._is_plenty = False
        # False while nothing waited in groups at the last look.
        self._others_wait = True
        # Whether the last claim left groups to others that were at them: it is worth looking again.
        self.crowded = False
        # By queue: the key after which the next look goes on; only where there are very many.
        self._cursors: Mapping[str, str] = {}
        self._workers: dict[str, _Worker] = {}

    async def claim(
        self,
        environment_id: int,
        worker_id: str,
        tasks: Mapping[str, int],
        slots: int,
        *,
        lone_run: str | None = None,
    ) -> list[ClaimedRun]:
        """Claim up to `slots` runs of tasks, given with the attempts each allows its runs.

        A worker without a lease gets none. A claim that got no answer may have happened: the next
        one returns its runs. `lone_run`: the only one that is known to be ready; others are not
        looked for, unless it is ready and cannot be claimed by itself.
        """
        if slots < 1 or not tasks:
            return []
        # One for each worker id that this process ever had: few.
        worker = self._workers.setdefault(worker_id, _Worker())
        async with worker.turn:
            rows: list[Row] = []
            if worker.unsure:
                rows += await self._lost(environment_id, worker_id, worker.answered)
                lone_run = None
            worker.unsure = True
            if len(rows) < slots:
                wanted: dict[str, object] = {
                    "environment_id": environment_id,
                    "worker_id": worker_id,
                    "tasks": list(tasks),
                    "max_attempts": list(tasks.values()),
                }
                left = slots - len(rows)
                rows += await self._claim(environment_id, wanted, left, lone_run)
            worker.unsure = False
            if rows:
                worker.answered = max(row["claimed_at"] for row in rows)
        if rows:
            self._bell.ring_feed(environment_id, [row["id"] for row in rows])
        return sorted((run_row(row) for row in rows), key=lambda run: (run.sort_at, run.id))

    async def promote_due(self, environment_id: int, tasks: Collection[str] = ()) -> float | None:
        """Queue runs whose time has come; return the seconds until the next, None without one.

        A worker gives its tasks: while many of theirs are ready it leaves due runs for later, so
        that a fresh run waits for some of them and not for all.
        """
        rows = await self._promote(environment_id, tasks, _READY_AT_ONCE)
        next_due = await self._database.one("claims.next_due", {"environment_id": environment_id})
        if next_due is None:
            return None
        seconds: float = next_due["seconds"]
        return max(0.0 if rows else _LATER, seconds)

    async def promote_all(self) -> int:
        """Queue due runs of every environment, a bounded number; return how many."""
        return len(await self._promote(None, (), _PROMOTED_AT_ONCE))

    async def _promote(
        self, environment_id: int | None, tasks: Collection[str], limit: int
    ) -> list[Row]:
        rows = await self._database.all(
            "claims.promote",
            {"environment_id": environment_id, "tasks": list(tasks), "limit": limit},
        )
        self.ring_promoted(rows)
        return rows

    def ring_promoted(self, rows: list[Row]) -> None:
        """Tell about runs that became ready."""
        for environment_id in {row["environment_id"] for row in rows}:
            own = [row for row in rows if row["environment_id"] == environment_id]
            self._bell.ring_work(environment_id, {row["queue"] for row in own})
            self._bell.ring_feed(environment_id, [row["id"] for row in own])

    async def _lost(self, environment_id: int, worker_id: str, since: datetime | None) -> list[Row]:
        """Return what the claim without an answer claimed after all."""
        names = {"environment_id": environment_id, "worker_id": worker_id, "since": since}

        async def work(tx: Transaction) -> list[Row]:
            await tx.run("claims.wait_for_claim", names)
            return await tx.all("claims.lost", names)

        return await self._database.retrying(work)

    async def _claim(
        self,
        environment_id: int,
        wanted: Mapping[str, object],
        slots: int,
        lone_run: str | None,
    ) -> list[Row]:
        if lone_run is not None:
            taken = await self._hot.all("claims.take_lone", {**wanted, "run_id": lone_run})
            if not taken[0]["is_odd"]:
                return [row for row in taken if row["id"] is not None]
        rows, strays = await self._claim_once(wanted, slots)
        if strays:
            await self._put_right(environment_id, strays)
            more, _ = await self._claim_once(wanted, slots - len(rows))
            rows += more
        return rows

    async def _claim_once(
        self, wanted: Mapping[str, object], slots: int
    ) -> tuple[list[Row], set[tuple[str, str]]]:
        """Return what was claimed, and where runs were met that go the wrong way."""
        self._limited_first = not self._limited_first
        self.crowded = False
        met = _Met()
        is_first = self._limited_first and self._others_wait
        is_narrow = self._is_plenty and not is_first
        rows = await self._take(wanted, slots, met, with_groups=is_first, is_narrow=is_narrow)
        if is_narrow and len(rows) < slots:
            self._is_plenty = False
            more, strays = await self._claim_once(wanted, slots - len(rows))
            return rows + more, strays | met.strays
        if not is_first and len(rows) < slots and self._others_wait:
            rows += await self._take(wanted, slots - len(rows), met, with_groups=True)
        self._is_plenty = len(rows) == slots
        self._others_wait = self._others_wait or bool(met.strays)
        return rows, met.strays

    async def _take(
        self,
        wanted: Mapping[str, object],
        slots: int,
        met: _Met,
        *,
        with_groups: bool,
        is_narrow: bool = False,
    ) -> list[Row]:
        """Claim runs in one transaction: first those of groups, where these have their turn.

        `is_narrow`: looks at no more runs than it wants.
        """

        async def work(tx: Transaction) -> list[Row]:
            met.turns.clear()
            ids = await self._pick_limited(tx, wanted, slots, met)
            # Planning takes as long as claiming ten runs.
            return await tx.last("claims.take", _taken(wanted, slots, ids, met), one_plan=True)

        if with_groups:
            rows = await self._database.retrying(work, lazy=True)
        else:
            taken = _taken(wanted, slots, [], met, is_narrow=is_narrow)
            rows = await self._hot.all("claims.take", taken)
        self._others_wait = rows[0]["others_wait"]
        met.strays.update((queue, "") for queue in rows[0]["unmade_queues"] or ())
        return [row for row in rows if row["id"] is not None]

    async def _put_right(self, environment_id: int, strays: Set[tuple[str, str]]) -> None:
        groups = sorted(strays)

        async def work(tx: Transaction) -> None:
            await make_groups(tx, environment_id, groups)
            await match_runs(tx, environment_id, {queue for queue, _ in groups})

        await self._database.retrying(work)

    async def _pick_limited(
        self,
        tx: Transaction,
        wanted: Mapping[str, object],
        slots: int,
        met: _Met,
    ) -> list[str]:
        ids: list[str] = []
        for _ in range(_LOOKS):
            before = self._cursors
            left = slots - len(ids)
            locked, open_groups = await self._lock_groups(tx, wanted, left, met)
            groups = [group for group in locked if not group["is_served"]]
            turns = left
            if len(groups) < min(open_groups, left):
                # Others serve the rest just now: what is here does not get their share as well.
                self.crowded = True
                turns = -(-left // open_groups)
            if groups:
                met.turns |= {(g["queue"], g["concurrency_key"]): g["turns"] for g in groups}
                ids += await _pick_of(tx, wanted, left, turns, groups)
            is_whole = not before and not self._cursors and len(groups) == len(locked)
            if is_whole or len(ids) >= slots:
                break
        return ids

    async def _lock_groups(
        self,
        tx: Transaction,
        wanted: Mapping[str, object],
        slots: int,
        met: _Met,
    ) -> tuple[list[Row], int]:
        """Return the groups that were locked, and how many seemed to have room."""
        rows = await tx.all(
            "claims.lock_groups",
            {
                **wanted,
                "slots": slots,
                "reach": _KEYS_AT_ONCE,
                "cursor_queues": list(self._cursors),
                "cursor_keys": list(self._cursors.values()),
                "held_queues": [queue for queue, _ in met.turns],
                "held_keys": [key for _, key in met.turns],
            },
        )
        look = rows[0]
        self._cursors = dict(
            zip(look["cursor_queues"] or (), look["cursor_keys"] or (), strict=True)
        )
        met.strays.update(zip(look["unmade_queues"] or (), look["unmade_keys"] or (), strict=True))
        return [row for row in rows if row["queue"] is not None], look["open_groups"]


def _taken(
    wanted: Mapping[str, object],
    slots: int,
    ids: Sequence[str],
    met: _Met,
    *,
    is_narrow: bool = False,
) -> dict[str, object]:
    left = slots - len(ids)
    return {
        **wanted,
        "ids": ids,
        "slots": left,
        "reach": left if is_narrow else max(_LEAST_REACH, left * _REACH),
        "queues": [queue for queue, _ in met.turns],
        "keys": [key for _, key in met.turns],
        "had_turns": list(met.turns.values()),
    }


async def _pick_of(
    tx: Transaction, wanted: Mapping[str, object], slots: int, turns: int, groups: Sequence[Row]
) -> list[str]:
    rows = await tx.all(
        "claims.pick_limited",
        {
            **wanted,
            "slots": slots,
            "turns": turns,
            "queues": [group["queue"] for group in groups],
            "keys": [group["concurrency_key"] for group in groups],
            "limits": [group["concurrency_limit"] for group in groups],
        },
    )
    return [row["id"] for row in rows]
