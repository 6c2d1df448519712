"""Batches: runs announced together, in two phases, and what has become of them.

A batch is created with the number of its items, then the items come, in any number of calls that
may each be repeated: an item is told apart by its index. The last one promised seals the batch.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from runwire_engine.database import Database, Row, Transaction
from runwire_engine.doorbell import Doorbell
from runwire_engine.errors import BatchNotFoundError, DataRefusedError
from runwire_engine.ids import new_batch_id, new_run_id
from runwire_engine.triggers import (
    DEFAULT_IDEMPOTENCY_TTL,
    NewRun,
    Parent,
    Triggering,
    Wanted,
    hold_parent,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch, and the runs of its items by index."""

    environment_id: int
    id: str
    run_count: int
    # Every promised item is in.
    sealed: bool
    parent_id: str | None
    idempotency_key: str | None
    created_at: datetime
    updated_at: datetime
    # PENDING (items are missing), PROCESSING, COMPLETED, or PARTIAL_FAILED when a run failed.
    status: str
    run_ids: tuple[str, ...]
    # An idempotency key led to this earlier batch.
    is_cached: bool = False


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """What a call with items did, and how far the batch is."""

    accepted: int
    deduplicated: int
    sealed: bool
    # Items that are in, of those that were promised.
    enqueued: int
    expected: int


class Batches:
    """Creates batches, fills them, reads them."""

    def __init__(self, database: Database, bell: Doorbell) -> None:
        self._database = database
        self._bell = bell

    async def create(
        self,
        environment_id: int,
        run_count: int,
        idempotency_key: str | None = None,
        parent: Parent | None = None,
    ) -> BatchRow:
        """Announce a batch; the same key leads to the same batch for thirty days.

        Raises FencedError when the parent lost its run.
        """
        batch_id = new_batch_id()
        parameters: dict[str, object] = {
            "environment_id": environment_id,
            "id": batch_id,
            "run_count": run_count,
            "parent_id": parent.run_id if parent else None,
            "idempotency_key": idempotency_key,
            "key": hashlib.sha256((idempotency_key or "").encode()).hexdigest(),
            "ttl": DEFAULT_IDEMPOTENCY_TTL,
        }

        async def work(tx: Transaction) -> str:
            if parent is not None:
                await hold_parent(tx, environment_id, parent)
            if idempotency_key is not None:
                claimed = await tx.one("batches.claim_key", parameters)
                held = claimed or await tx.one("batches.held_key", parameters)
                if held is not None and held["run_id"] != batch_id:
                    return str(held["run_id"])
            await tx.run("batches.create", parameters)
            return batch_id

        made = await self._database.surely(work)
        batch = await self.retrieve(environment_id, made)
        if batch is None:
            raise BatchNotFoundError(made)
        return replace(batch, is_cached=made != batch_id)

    async def add_items(
        self, environment_id: int, batch_id: str, items: Sequence[tuple[int, NewRun]]
    ) -> BatchProgress:
        """Start the runs of items, all of the call or none; those that are in are left alone.

        Raises BatchNotFoundError, DataRefusedError (an index beyond what was promised), and what
        `Runs.trigger` raises, for the first item that is refused.
        """
        first = {index: new for index, new in reversed(items)}
        wanted = {index: Wanted(new_run_id(), first[index]) for index in sorted(first)}
        made: list[Row] = []

        async def work(tx: Transaction) -> tuple[BatchProgress, bool]:
            name = {"environment_id": environment_id, "batch_id": batch_id}
            batch = await tx.one("batches.lock", name)
            if batch is None:
                raise BatchNotFoundError(batch_id)
            _check_indexes(batch, wanted)
            rows = await tx.all("batches.items", {**name, "indexes": list(wanted)})
            there = {row["index"]: row["run_id"] for row in rows}
            fresh = [wanted[index] for index in wanted if index not in there]
            triggering = Triggering(tx, environment_id, fresh)
            for answer in await triggering.run() if fresh else []:
                if isinstance(answer, Exception):
                    raise answer
            made[:] = triggering.made
            # After a COMMIT without an answer: what is in under the ids of this call is its own.
            own = sum(there[index] == wanted[index].id for index in there)
            sealed = await tx.one("batches.seal", name)
            count = await tx.one("batches.count", name)
            assert count is not None
            progress = BatchProgress(
                accepted=len(fresh) + own,
                deduplicated=len(items) - len(fresh) - own,
                sealed=bool(batch["sealed"]) or sealed is not None,
                enqueued=count["items"],
                expected=batch["run_count"],
            )
            return progress, sealed is not None

        progress, is_news = await self._with_partitions(work)
        if made or is_news:
            self._bell.ring_feed(environment_id, [row["id"] for row in made] or [batch_id])
        if made:
            self._bell.ring_work(environment_id, {row["queue"] for row in made})
        return progress

    async def retrieve(self, environment_id: int, batch_id: str) -> BatchRow | None:
        """Return a batch, or None when there is none by that id."""
        row = await self._database.one(
            "batches.retrieve", {"environment_id": environment_id, "batch_id": batch_id}
        )
        if row is None:
            return None
        values = dict(row)
        values["run_ids"] = tuple(row["run_ids"])
        return BatchRow(**values)

    async def _with_partitions(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Do work that makes runs; once more, with its partition, on the first of a new day."""
        try:
            return await self._database.surely(work)
        except DataRefusedError:
            await self._database.run("runs.make_partitions")
            return await self._database.surely(work)


def _check_indexes(batch: Row, wanted: Mapping[int, Wanted]) -> None:
    beyond = [index for index in wanted if not 0 <= index < batch["run_count"]]
    if beyond:
        raise DataRefusedError(
            f"item {beyond[0]} of {batch['id']}, which was announced with"
            f" {batch['run_count']} items"
        )
