"""Queues: what is known of them, and what people may change while runs wait in them.

The limit that holds is the override, if somebody has set one, else what code says: the worker that
started last (of its tasks and `queue()` objects that share a name, the lowest), or a trigger since.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from runwire_engine.database import Database, Row, Transaction
from runwire_engine.doorbell import Doorbell
from runwire_engine.errors import NoOverrideError, QueueNotFoundError
from runwire_engine.queue_groups import apply

ID_PATTERN: Final = re.compile(r"queue_[0-9a-f]{24}")
MAX_LIMIT: Final = 100_000


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A queue: its limits (None: none), and how many runs execute and wait in it now."""

    id: str
    name: str
    base_limit: int | None
    override_limit: int | None
    overridden_at: datetime | None
    paused: bool
    running: int
    queued: int

    @property
    def concurrency_limit(self) -> int | None:
        """The limit that holds."""
        return self.base_limit if self.override_limit is None else self.override_limit


@dataclass(frozen=True, slots=True)
class QueuePage:
    """Some queues, by name, and how many there are in all."""

    queues: tuple[QueueRow, ...]
    count: int


class Queues:
    """The queues of every environment; a queue is given by its name or its id."""

    def __init__(self, database: Database, bell: Doorbell) -> None:
        self._database = database
        self._bell = bell

    async def page(self, environment_id: int, *, offset: int = 0, limit: int = 25) -> QueuePage:
        """Return queues, by name."""
        parameters = {"environment_id": environment_id, "offset": offset, "limit": limit}
        rows = await self._database.all("queues.page", parameters)
        count = await self._database.one("queues.count", {"environment_id": environment_id})
        return QueuePage(tuple(QueueRow(**row) for row in rows), count["queues"] if count else 0)

    async def retrieve(self, environment_id: int, queue: str) -> QueueRow:
        """Return a queue. Raises QueueNotFoundError."""
        name = await self._name(environment_id, queue)
        row = await self._database.one(
            "queues.retrieve", {"environment_id": environment_id, "name": name}
        )
        if row is None:
            raise QueueNotFoundError(queue)
        return QueueRow(**row)

    async def pause(self, environment_id: int, queue: str) -> QueueRow:
        """Start nothing of a queue any more; what executes goes on. Raises QueueNotFoundError.

        A claim that is under way in this moment may still start what it has picked.
        """
        return await self._set_paused(environment_id, queue, paused=True)

    async def resume(self, environment_id: int, queue: str) -> QueueRow:
        """Have a paused queue go on, at once. Raises QueueNotFoundError."""
        return await self._set_paused(environment_id, queue, paused=False)

    async def override_concurrency_limit(
        self, environment_id: int, queue: str, limit: int
    ) -> QueueRow:
        """Put another limit in place of what code says, until it is reset.

        What executes beyond a lower limit goes on. Raises QueueNotFoundError.
        """

        async def change(tx: Transaction, name: str) -> Row | None:
            return await tx.one("queues.override", _with(environment_id, name, limit=limit))

        return await self._change(environment_id, queue, change)

    async def reset_concurrency_limit(self, environment_id: int, queue: str) -> QueueRow:
        """Go back to the limit that code says. Raises QueueNotFoundError and NoOverrideError."""
        row = await self.retrieve(environment_id, queue)

        async def change(tx: Transaction, name: str) -> Row | None:
            return await tx.one("queues.override", _with(environment_id, name, limit=None))

        if row.override_limit is None:
            raise NoOverrideError(row.name)
        return await self._change(environment_id, row.name, change)

    async def _set_paused(self, environment_id: int, queue: str, *, paused: bool) -> QueueRow:
        async def change(tx: Transaction, name: str) -> Row | None:
            return await tx.one("queues.pause", _with(environment_id, name, paused=paused))

        return await self._change(environment_id, queue, change)

    async def _change(
        self,
        environment_id: int,
        queue: str,
        change: Callable[[Transaction, str], Awaitable[Row | None]],
    ) -> QueueRow:
        """Change what is said of a queue, have claims go by it, and wake who waits for that."""
        name = await self._name(environment_id, queue)

        async def work(tx: Transaction) -> None:
            await change(tx, name)
            await apply(tx, environment_id, [name])

        await self._database.surely(work)
        self._bell.ring_work(environment_id, [name])
        return await self.retrieve(environment_id, name)

    async def _name(self, environment_id: int, queue: str) -> str:
        if ID_PATTERN.fullmatch(queue) is None:
            return queue
        row = await self._database.one(
            "queues.name_of", {"environment_id": environment_id, "id": queue}
        )
        # Somebody may have given a queue such a name.
        return queue if row is None else str(row["name"])


def _with(environment_id: int, name: str, **more: object) -> dict[str, object]:
    return {"environment_id": environment_id, "name": name, **more}
