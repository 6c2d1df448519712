"""Waitpoints: what somebody outside of the engine completes, once, and runs wait for.

A waitpoint is pending until it is completed or its time is over; the first of both stands, decided
by the database's clock. The transaction that decides also leaves a row in runwire.wakes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Final, Literal, TypeAlias

import orjson

from runwire_engine.database import Database, Row, Transaction
from runwire_engine.errors import WaitpointNotFoundError
from runwire_engine.ids import new_waitpoint_id
from runwire_engine.waits import Waits

Status: TypeAlias = Literal["WAITING", "COMPLETED", "TIMED_OUT"]

DEFAULT_TIMEOUT: Final = 600.0
DEFAULT_KEY_TTL: Final = 3_600.0
_AT_ONCE: Final = 500
TIMED_OUT: Final = orjson.dumps(
    {
        "name": "WaitTimeoutError",
        "message": "nobody completed the token in time",
        "code": "TIMED_OUT",
    }
).decode()


@dataclass(frozen=True, slots=True)
class WaitpointRow:
    """A waitpoint as it is stored; output and error are JSON text."""

    environment_id: int
    id: str
    ok: bool | None
    output: str | None
    output_type: str
    error: str | None
    tags: tuple[str, ...]
    timeout_at: datetime | None
    idempotency_key: str | None
    idempotency_expires_at: datetime | None
    created_at: datetime
    completed_at: datetime | None

    @property
    def status(self) -> Status:
        if self.ok is None:
            return "WAITING"
        return "COMPLETED" if self.ok else "TIMED_OUT"


@dataclass(frozen=True, slots=True)
class NewWaitpoint:
    """A waitpoint that is wanted. Spans are seconds."""

    # None: a fresh one. A run's code gives the same at each replay.
    id: str | None = None
    timeout: float | None = DEFAULT_TIMEOUT
    # Beats `timeout`.
    timeout_at: datetime | None = None
    idempotency_key: str | None = None
    idempotency_ttl: float = DEFAULT_KEY_TTL
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WaitpointQuery:
    """Which waitpoints to list. Several values of one filter: any of them; several filters: all."""

    status: Sequence[Status] = ()
    idempotency_key: str | None = None
    tags: Sequence[str] = ()
    created_from: datetime | None = None
    created_to: datetime | None = None
    size: int = 50
    # The last waitpoint of the page before, or the first of the page after.
    after: tuple[datetime, str] | None = None
    before: tuple[datetime, str] | None = None


class Waitpoints:
    """Creates, completes and reads waitpoints."""

    def __init__(self, database: Database, waits: Waits) -> None:
        self._database = database
        self._waits = waits

    async def create(self, environment_id: int, new: NewWaitpoint) -> tuple[WaitpointRow, bool]:
        """Return a waitpoint, and whether its idempotency key led to an earlier one."""
        parameters: dict[str, object] = {
            "environment_id": environment_id,
            "id": new.id or new_waitpoint_id(),
            "tags": list(new.tags),
            "timeout": new.timeout,
            "timeout_at": new.timeout_at,
            "key": new.idempotency_key,
            "key_ttl": new.idempotency_ttl,
        }

        async def work(tx: Transaction) -> Row | None:
            if new.idempotency_key is not None:
                await tx.run("waitpoints.free_key", parameters)
            made = await tx.one("waitpoints.create", parameters)
            if made is None and new.idempotency_key is not None:
                made = await tx.one("waitpoints.of_key", parameters)
            return made or await tx.one(
                "waitpoints.retrieve", {**parameters, "ids": [parameters["id"]]}
            )

        row = await self._database.surely(work)
        if row is None:
            raise WaitpointNotFoundError(str(parameters["id"]))
        return _row(row), row["id"] != parameters["id"]

    async def complete(
        self,
        environment_id: int,
        waitpoint_id: str,
        output: str | None,
        output_type: str = "application/json",
    ) -> WaitpointRow:
        """Complete a waitpoint; one that is completed or timed out is returned as it is.

        Raises WaitpointNotFoundError.
        """
        parameters = {
            "environment_id": environment_id,
            "id": waitpoint_id,
            "output": output,
            "output_type": output_type,
        }

        async def work(tx: Transaction) -> Row | None:
            return await tx.one("waitpoints.complete", parameters)

        done = await self._database.surely(work)
        if done is not None:
            self._waits.ended(environment_id, [waitpoint_id])
            return _row(done)
        there = await self.retrieve(environment_id, waitpoint_id)
        if there is None:
            raise WaitpointNotFoundError(waitpoint_id)
        return there

    async def retrieve(self, environment_id: int, waitpoint_id: str) -> WaitpointRow | None:
        """Return a waitpoint, or None when there is none by that id."""
        row = await self._database.one(
            "waitpoints.retrieve", {"environment_id": environment_id, "ids": [waitpoint_id]}
        )
        return None if row is None else _row(row)

    async def list(self, environment_id: int, query: WaitpointQuery) -> list[WaitpointRow]:
        """Return a page of waitpoints, newest first."""
        after, before = query.after or (None, None), query.before or (None, None)
        rows = await self._database.all(
            "waitpoints.list",
            {
                "environment_id": environment_id,
                "statuses": list(query.status) or None,
                "key": query.idempotency_key,
                "tags": list(query.tags) or None,
                "created_from": query.created_from,
                "created_to": query.created_to,
                "after_time": after[0],
                "after_id": after[1],
                "before_time": before[0],
                "before_id": before[1],
                "limit": query.size,
            },
        )
        found = [_row(row) for row in rows]
        return found[::-1] if query.before is not None else found

    async def time_out(self, environment_id: int | None = None) -> int:
        """Complete, as not ok, waitpoints whose time is over; return how many."""
        rows = await self._database.all(
            "waitpoints.time_out",
            {"environment_id": environment_id, "limit": _AT_ONCE, "error": TIMED_OUT},
        )
        for row in rows:
            self._waits.ended(row["environment_id"], [row["id"]])
        return len(rows)

    async def time_out_due(self, environment_id: int) -> float | None:
        """Time out what is due, and return the seconds until the next; None without one."""
        next_due = await self._database.one(
            "waitpoints.next_due", {"environment_id": environment_id}
        )
        if next_due is None:
            return None
        if next_due["seconds"] > 0:
            seconds: float = next_due["seconds"]
            return seconds
        await self.time_out(environment_id)
        return 0.0

    async def sweep(self) -> bool:
        """Time out what is due everywhere; say whether there is more."""
        return await self.time_out() >= _AT_ONCE


_COLUMNS: Final = tuple(field.name for field in fields(WaitpointRow))


def _row(row: Row) -> WaitpointRow:
    values = {name: row[name] for name in _COLUMNS}
    values["tags"] = tuple(row["tags"])
    return WaitpointRow(**values)
