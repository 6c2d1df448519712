"""Batches: runs announced together, in two phases, and what has become of them.

A batch is created with the number of its items, then the items come, in any number of calls that
may each be repeated: an item is told apart by its index. The last one promised seals the batch. An
open batch is created without that number, and is sealed when it is told to have ended. One whose
client is gone is sealed by the sweep.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypeAlias, TypeVar

import orjson

from runwire.requests import MAX_BATCH_ITEMS
from runwire_engine.database import Database, Row, Transaction
from runwire_engine.doorbell import Doorbell
from runwire_engine.errors import BatchNotFoundError, DataRefusedError, UnknownTaskError
from runwire_engine.ids import new_batch_id, new_run_id
from runwire_engine.triggers import Triggering, hold_parent
from runwire_engine.wanted_runs import DEFAULT_IDEMPOTENCY_TTL, NewRun, Parent, Wanted

T = TypeVar("T")

# Nothing more will come: all is in, or whoever filled the batch gave up.
End: TypeAlias = Literal["complete", "aborted"]

# What is told of refused items: enough to see what is wrong with all of them.
MAX_ERRORS: Final = 100
# A batch to which nothing was added for so long has lost its client.
ABANDONED_AFTER: Final = timedelta(hours=1)
_GIVEN_UP_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True)
class ItemError:
    """An item that was refused, and why."""

    index: int
    task: str
    error: str
    code: str


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch, and the runs of its items by index."""

    environment_id: int
    id: str
    # How many items were promised; while it is open, how many have come.
    run_count: int
    # Every promised item is in.
    sealed: bool
    parent_id: str | None
    idempotency_key: str | None
    created_at: datetime
    updated_at: datetime
    # PENDING (items are missing), PROCESSING, COMPLETED, PARTIAL_FAILED when a run failed, or
    # ABORTED when it was sealed without items that were refused.
    status: str
    run_ids: tuple[str, ...]
    errors: tuple[ItemError, ...]
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
    # The runs of the call's items, by index.
    run_ids: Mapping[int, str] = field(default_factory=dict[int, str], compare=False)


class Batches:
    """Creates batches, fills them, reads them."""

    def __init__(self, database: Database, bell: Doorbell) -> None:
        self._database = database
        self._bell = bell

    async def create(
        self,
        environment_id: int,
        run_count: int | None,
        idempotency_key: str | None = None,
        parent: Parent | None = None,
        *,
        request_key: str | None = None,
    ) -> BatchRow:
        """Announce a batch of so many items; None: of as many as come until it is ended.

        The same idempotency key leads to the same batch for thirty days; a request key names the
        call, so that it may be repeated. Raises FencedError when the parent lost its run.
        """
        batch_id = new_batch_id()
        parent_id = parent.run_id if parent else None
        parameters = creation(environment_id, batch_id, run_count, idempotency_key, parent_id)
        parameters["request_key"] = request_key

        async def work(tx: Transaction) -> tuple[str, bool]:
            if parent is not None:
                await hold_parent(tx, environment_id, parent)
            if request_key is not None and not await tx.one("batches.claim_request", parameters):
                answered = await tx.one("batches.answered_request", parameters)
                if answered is not None:
                    return str(answered["target_id"]), bool(answered["is_cached"])
            if idempotency_key is not None:
                claimed = await tx.one("batches.claim_key", parameters)
                held = claimed or await tx.one("batches.held_key", parameters)
                if held is not None and held["run_id"] != batch_id:
                    moved = {**parameters, "target_id": held["run_id"]}
                    if request_key is not None:
                        await tx.run("batches.move_request", moved)
                    return str(held["run_id"]), True
            await tx.run("batches.create", parameters)
            return batch_id, False

        made, is_cached = await self._database.surely(work)
        batch = await self.retrieve(environment_id, made)
        if batch is None:
            raise BatchNotFoundError(made)
        return replace(batch, is_cached=is_cached)

    async def add_items(
        self,
        environment_id: int,
        batch_id: str,
        items: Sequence[tuple[int, NewRun]],
        *,
        end: End | None = None,
    ) -> BatchProgress:
        """Start the runs of items, all of the call or none; those that are in are left alone.

        With an end the batch is sealed with what is in; "aborted" frees its idempotency key, too.
        Raises BatchNotFoundError, DataRefusedError (an index beyond what was promised), and what
        `Runs.trigger` raises, for the first item that is refused; it is noted with the batch.
        """
        first = {index: new for index, new in reversed(items)}
        wanted = {index: Wanted(new_run_id(), first[index]) for index in sorted(first)}
        made: list[Row] = []
        refused: list[ItemError] = []

        async def work(tx: Transaction) -> tuple[BatchProgress, bool]:
            name = {"environment_id": environment_id, "batch_id": batch_id}
            batch = await tx.one("batches.lock", name)
            if batch is None:
                raise BatchNotFoundError(batch_id)
            _check_indexes(batch, wanted)
            rows = await tx.all("batches.items", {**name, "indexes": list(wanted)})
            there = {row["index"]: row["run_id"] for row in rows}
            fresh = [index for index in wanted if index not in there]
            triggering = Triggering(tx, environment_id, [wanted[index] for index in fresh])
            run_ids: dict[int, str] = dict(there)
            answers = await triggering.run() if fresh else []
            refused[:] = [
                ItemError(index, answer.task, str(answer), answer.code)
                for index, answer in zip(fresh, answers, strict=True)
                if isinstance(answer, UnknownTaskError)
            ]
            for index, answer in zip(fresh, answers, strict=True):
                if isinstance(answer, Exception):
                    raise answer
                run_ids[index] = answer.id
            made[:] = triggering.made
            # After a COMMIT without an answer: what is in under the ids of this call is its own.
            own = sum(there[index] == wanted[index].id for index in there)
            await _forget_errors(tx, name, batch, run_ids)
            if end is not None:
                await tx.run("batches.end", name)
            if end == "aborted" and not batch["sealed"]:
                await tx.run("batches.forget_key", name)
            sealed = await tx.one("batches.seal", name)
            count = await tx.one("batches.count", name)
            assert count is not None
            progress = BatchProgress(
                accepted=len(fresh) + own,
                deduplicated=len(items) - len(fresh) - own,
                sealed=bool(batch["sealed"]) or sealed is not None,
                enqueued=count["items"],
                expected=batch["run_count"] if end is None else count["items"],
                run_ids=run_ids,
            )
            return progress, sealed is not None

        try:
            progress, is_news = await self._with_partitions(work)
        except UnknownTaskError:
            await self.note_errors(environment_id, batch_id, refused)
            raise
        if made or is_news:
            self._bell.ring_feed(environment_id, [row["id"] for row in made] or [batch_id])
        if made:
            self._bell.ring_work(environment_id, {row["queue"] for row in made})
        return progress

    async def note_errors(
        self, environment_id: int, batch_id: str, errors: Sequence[ItemError]
    ) -> None:
        """Note which items were refused, until they come again."""

        async def work(tx: Transaction) -> None:
            name = {"environment_id": environment_id, "batch_id": batch_id}
            batch = await tx.one("batches.lock", name)
            if batch is None or batch["sealed"]:
                return
            noted = {error.index: error for error in (*_errors(batch["errors"]), *errors)}
            kept = [noted[index] for index in sorted(noted)[:MAX_ERRORS]]
            await tx.run("batches.note_errors", {**name, "errors": _text(kept)})

        await self._database.surely(work)

    async def give_up_abandoned(self) -> bool:
        """Seal batches whose client is gone with what is in; say whether there are more.

        Such a batch is ABORTED: what was expected next is noted as an error of it, and its
        idempotency key is free again.
        """
        given_up: list[Row] = []

        async def work(tx: Transaction) -> None:
            given_up[:] = await tx.all(
                "batches.abandoned",
                {
                    "quiet": ABANDONED_AFTER,
                    "most": MAX_BATCH_ITEMS,
                    "limit": _GIVEN_UP_AT_ONCE,
                },
            )
            for batch in given_up:
                name = {"environment_id": batch["environment_id"], "batch_id": batch["id"]}
                errors = [*_errors(batch["errors"]), _missing(batch["missing"])]
                noted = {error.index: error for error in reversed(errors)}
                kept = [noted[index] for index in sorted(noted)[:MAX_ERRORS]]
                await tx.run("batches.note_errors", {**name, "errors": _text(kept)})
                await tx.run("batches.end", name)
                await tx.run("batches.forget_key", name)
                await tx.run("batches.seal", name)

        await self._database.surely(work)
        for batch in given_up:
            self._bell.ring_feed(batch["environment_id"], [batch["id"]])
        return len(given_up) >= _GIVEN_UP_AT_ONCE

    async def retrieve(self, environment_id: int, batch_id: str) -> BatchRow | None:
        """Return a batch, or None when there is none by that id."""
        row = await self._database.one(
            "batches.retrieve", {"environment_id": environment_id, "batch_id": batch_id}
        )
        if row is None:
            return None
        values: dict[str, Any] = dict(row)
        values["run_ids"] = tuple(row["run_ids"])
        values["errors"] = _errors(row["errors"])
        return BatchRow(**values)

    async def _with_partitions(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Do work that makes runs; once more, with its partition, on the first of a new day."""
        try:
            return await self._database.surely(work)
        except DataRefusedError:
            await self._database.run("runs.make_partitions")
            return await self._database.surely(work)


def _missing(index: int) -> ItemError:
    """Return what is noted of a batch whose client is gone: the first item that did not come."""
    hours = ABANDONED_AFTER // timedelta(hours=1)
    error = f"neither this item nor another one came for {hours} h, so the batch was given up"
    return ItemError(index, "", error, "BATCH_ABANDONED")


def creation(
    environment_id: int,
    batch_id: str,
    run_count: int | None,
    idempotency_key: str | None,
    parent_id: str | None,
) -> dict[str, object]:
    """Return what the statements that make a batch take."""
    return {
        "environment_id": environment_id,
        "id": batch_id,
        "run_count": MAX_BATCH_ITEMS if run_count is None else run_count,
        "is_open": run_count is None,
        "parent_id": parent_id,
        "idempotency_key": idempotency_key,
        "key": hashlib.sha256((idempotency_key or "").encode()).hexdigest(),
        "ttl": DEFAULT_IDEMPOTENCY_TTL,
    }


def _check_indexes(batch: Row, wanted: Mapping[int, Wanted]) -> None:
    beyond = [index for index in wanted if not 0 <= index < batch["run_count"]]
    if beyond:
        announced = "at most " if batch["is_open"] else ""
        raise DataRefusedError(
            f"item {beyond[0]} of {batch['id']}, which was announced with"
            f" {announced}{batch['run_count']} items"
        )


async def _forget_errors(
    tx: Transaction, name: Mapping[str, object], batch: Row, came: Mapping[int, str]
) -> None:
    """Forget that items were refused which have come after all."""
    errors = _errors(batch["errors"])
    left = [error for error in errors if error.index not in came]
    if len(left) < len(errors):
        await tx.run("batches.note_errors", {**name, "errors": _text(left)})


def _errors(text: str) -> tuple[ItemError, ...]:
    return tuple(ItemError(**error) for error in orjson.loads(text))


def _text(errors: Sequence[ItemError]) -> str:
    return orjson.dumps([asdict(error) for error in errors]).decode()
