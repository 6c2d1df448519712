"""The tasks and queues that workers have announced."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from runwire_engine.database import Database, Transaction
from runwire_engine.doorbell import Doorbell
from runwire_engine.queue_groups import declare_queues


@dataclass(frozen=True, slots=True)
class TaskAnnouncement:
    """A task as its code defines it."""

    id: str
    queue: str
    # How many runs of the queue execute at once, for each concurrency key; None: no limit.
    concurrency_limit: int | None = None
    # JSON: the retry policy.
    retry: str = "{}"
    max_duration: float | None = None
    # Seconds that a run may wait to start, unless its trigger says otherwise.
    ttl: float | None = None
    # The JSON schema of the payload; None when the task takes anything.
    payload_schema: str | None = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class TaskRow:
    """An announced task."""

    environment_id: int
    id: str
    queue: str
    retry: str
    max_duration: float | None
    ttl: float | None
    payload_schema: str | None
    description: str
    updated_at: datetime


class Catalogue:
    """Announces tasks and tells which there are."""

    def __init__(self, database: Database, bell: Doorbell) -> None:
        self._database = database
        self._bell = bell

    async def announce(
        self,
        environment_id: int,
        tasks: Sequence[TaskAnnouncement],
        queues: Mapping[str, int | None] | None = None,
    ) -> None:
        """Write down tasks, and the limits of their queues and others, as their code says now.

        A queue loses its limit when none of its tasks names one any more.
        """
        last = {task.id: task for task in tasks}
        limits = _limits(list(last.values()), queues or {})

        async def work(tx: Transaction) -> None:
            await tx.run("catalogue.announce", _columns(environment_id, list(last.values())))
            await declare_queues(tx, environment_id, limits, tasks=last)

        await self._database.surely(work)
        self._bell.ring_work(environment_id, limits)

    async def known(self, environment_id: int, task: str) -> bool:
        """Say whether a task was ever announced."""
        row = await self._database.one(
            "catalogue.known", {"environment_id": environment_id, "id": task}
        )
        return row is not None

    async def list(self, environment_id: int) -> "list[TaskRow]":
        """Return every announced task, by id."""
        rows = await self._database.all("catalogue.list", {"environment_id": environment_id})
        return [TaskRow(**row) for row in rows]


def _limits(
    tasks: Sequence[TaskAnnouncement], queues: Mapping[str, int | None]
) -> Mapping[str, int | None]:
    """Return the limit of each queue; where several say one, the lowest."""
    limits: dict[str, int | None] = {}
    said = [*((task.queue, task.concurrency_limit) for task in tasks), *queues.items()]
    for queue, limit in said:
        given = [each for each in (limits.get(queue), limit) if each is not None]
        limits[queue] = min(given) if given else None
    return limits


def _columns(environment_id: int, tasks: Sequence[TaskAnnouncement]) -> dict[str, object]:
    return {
        "environment_id": environment_id,
        "ids": [task.id for task in tasks],
        "queues": [task.queue for task in tasks],
        "retries": [task.retry for task in tasks],
        "max_durations": [
            None if task.max_duration is None else float(task.max_duration) for task in tasks
        ],
        "ttls": [None if task.ttl is None else float(task.ttl) for task in tasks],
        "payload_schemas": [task.payload_schema for task in tasks],
        "descriptions": [task.description for task in tasks],
    }
