"""Schedules: made by a call, or declared by the code of a task; read, changed, deleted.

A call is repeated safely: the deduplication key names the schedule. What makes the runs is `ticks`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias
from zoneinfo import available_timezones

from runwire.errors import InvalidValueError
from runwire.tasks import AnyTask
from runwire_engine.cron import Tick, timetable
from runwire_engine.database import Database, Row, Transaction
from runwire_engine.errors import (
    ScheduleDeclaredError,
    ScheduleNotFoundError,
    StatementError,
    UnknownTaskError,
)
from runwire_engine.ids import new_schedule_id

ScheduleType: TypeAlias = Literal["DECLARATIVE", "IMPERATIVE"]
Missed: TypeAlias = Literal["newest", "all"]

_LONGEST_KEY: Final = 256


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """A schedule that is wanted. `key` names it: the same key again changes the same schedule."""

    task: str
    cron: str
    key: str
    timezone: str = "UTC"
    window: str | None = None
    missed: Missed = "newest"
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A schedule as it is stored."""

    environment_id: int
    id: str
    type: ScheduleType
    task: str
    cron: str
    timezone: str
    due_window: str | None
    missed: Missed
    deduplication_key: str
    external_id: str | None
    active: bool
    suspended_at: datetime | None
    next_at: datetime | None
    due_at: datetime | None
    last_at: datetime | None
    error: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class SchedulePage:
    schedules: list[ScheduleRow]
    # Of all pages.
    count: int


class Schedules:
    """The schedules of every environment."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, environment_id: int, spec: ScheduleSpec) -> ScheduleRow:
        """Make a schedule, or change the one with its key; its ticks go on where the cron is the
        same.

        Raises InvalidValueError for what cannot be, UnknownTaskError.
        """
        check_schedule(spec)
        schedule_id = new_schedule_id()

        async def work(tx: Transaction) -> ScheduleRow:
            await _require_task(tx, environment_id, spec.task)
            return await _store(tx, environment_id, schedule_id, "IMPERATIVE", spec)

        return await self._database.surely(work)

    async def declare(
        self, environment_id: int, specs: Collection[ScheduleSpec], tasks: Collection[str]
    ) -> None:
        """Write down what the code of tasks declares: `specs`, and nothing for the other tasks.

        The last announcement wins. Raises InvalidValueError, naming the task.
        """
        declared = {spec.task: spec for spec in specs}
        for spec in specs:
            _check_declared(spec)
        ids = {task: new_schedule_id() for task in declared}

        async def work(tx: Transaction) -> None:
            others = sorted(set(tasks) - declared.keys())
            parameters = {"environment_id": environment_id, "tasks": others}
            await tx.run("schedules.undeclare", parameters)
            for task in sorted(declared):
                await _store(tx, environment_id, ids[task], "DECLARATIVE", declared[task])

        await self._database.surely(work)

    async def update(
        self, environment_id: int, schedule_id: str, changes: Mapping[str, Any]
    ) -> ScheduleRow:
        """Change fields of ScheduleSpec, but for its key; the others stay.

        Raises ScheduleNotFoundError, ScheduleDeclaredError, InvalidValueError, UnknownTaskError.
        """

        async def work(tx: Transaction) -> ScheduleRow:
            row = await _locked(tx, environment_id, schedule_id)
            if row["type"] == "DECLARATIVE":
                raise ScheduleDeclaredError(schedule_id, row["task"])
            spec = replace(_spec(row), **changes)
            check_schedule(spec)
            await _require_task(tx, environment_id, spec.task)
            return await _change(tx, row, spec)

        return await self._database.surely(work)

    async def activate(self, environment_id: int, schedule_id: str) -> ScheduleRow:
        """Have a schedule tick, from now on; ticks of the time before are not missed.

        Raises ScheduleNotFoundError.
        """
        return await self._set_active(environment_id, schedule_id, active=True)

    async def deactivate(self, environment_id: int, schedule_id: str) -> ScheduleRow:
        """Have a schedule not tick until it is activated. Raises ScheduleNotFoundError."""
        return await self._set_active(environment_id, schedule_id, active=False)

    async def delete(self, environment_id: int, schedule_id: str) -> None:
        """Delete a schedule that was made by a call; its runs stay.

        Raises ScheduleNotFoundError, ScheduleDeclaredError.
        """
        name = {"environment_id": environment_id, "id": schedule_id}
        deleted: list[Row] = []

        async def work(tx: Transaction) -> None:
            deleted.extend(await tx.all("schedules.delete", name))

        await self._database.surely(work)
        if not deleted:
            row = await self.retrieve(environment_id, schedule_id)
            if row is None:
                raise ScheduleNotFoundError(schedule_id)
            raise ScheduleDeclaredError(schedule_id, row.task)

    async def retrieve(self, environment_id: int, schedule_id: str) -> ScheduleRow | None:
        """Return a schedule, or None when there is none by that id."""
        row = await self._database.one(
            "schedules.retrieve", {"environment_id": environment_id, "id": schedule_id}
        )
        return None if row is None else schedule_row(row)

    async def list(self, environment_id: int, *, page: int, size: int) -> SchedulePage:
        """Return a page of schedules, oldest first; pages count from 1."""
        name = {"environment_id": environment_id}
        rows = await self._database.all(
            "schedules.list", {**name, "limit": size, "offset": (page - 1) * size}
        )
        counted = await self._database.one("schedules.count", name)
        return SchedulePage(
            [schedule_row(row) for row in rows], 0 if counted is None else counted["count"]
        )

    async def _set_active(
        self, environment_id: int, schedule_id: str, *, active: bool
    ) -> ScheduleRow:
        async def work(tx: Transaction) -> ScheduleRow:
            row = await _locked(tx, environment_id, schedule_id)
            if row["active"] == active:
                return schedule_row(row)
            return await _change(tx, row, _spec(row), active=active)

        return await self._database.surely(work)


def declared(tasks: Mapping[str, AnyTask], environment: str) -> Sequence[ScheduleSpec]:
    """Return the schedules that the code of tasks declares for an environment."""
    return [
        ScheduleSpec(
            task=task.id,
            cron=task.cron.pattern,
            key=task.id,
            timezone=task.cron.timezone,
            window=task.cron.window,
            missed=task.cron.missed,
        )
        for task in tasks.values()
        if task.cron is not None and task.cron.holds_in(environment)
    ]


def check_schedule(spec: ScheduleSpec) -> None:
    """Check what is wanted. Raises InvalidValueError, naming the option."""
    for what, text in (("deduplicationKey", spec.key), ("externalId", spec.external_id)):
        if text is not None and not (1 <= len(text) <= _LONGEST_KEY and text.isprintable()):
            raise InvalidValueError(
                f"{what} must have 1 to {_LONGEST_KEY} printable characters", code="option"
            )
    timetable("", spec.cron, spec.timezone, spec.window)


def schedule_row(row: Mapping[str, Any]) -> ScheduleRow:
    """Return a schedule from a row with its columns, and maybe more."""
    return ScheduleRow(**{name: row[name] for name in _COLUMNS})


@lru_cache(maxsize=1)
def timezones() -> Sequence[str]:
    """Return the names of every time zone, UTC first."""
    return ("UTC", *sorted(available_timezones() - {"UTC", "localtime", "Factory"}))


_COLUMNS: Final = tuple(field.name for field in fields(ScheduleRow))


def _check_declared(spec: ScheduleSpec) -> None:
    try:
        check_schedule(spec)
    except InvalidValueError as error:
        raise InvalidValueError(
            f"the schedule of task {spec.task!r}: {error}", code=error.code
        ) from None


async def _require_task(tx: Transaction, environment_id: int, task: str) -> None:
    if await tx.one("catalogue.known", {"environment_id": environment_id, "id": task}) is None:
        raise UnknownTaskError(task)


async def _locked(tx: Transaction, environment_id: int, schedule_id: str) -> Row:
    row = await tx.one("schedules.lock", {"environment_id": environment_id, "id": schedule_id})
    if row is None:
        raise ScheduleNotFoundError(schedule_id)
    return row


async def _store(
    tx: Transaction, environment_id: int, schedule_id: str, type: ScheduleType, spec: ScheduleSpec
) -> ScheduleRow:
    """Make the schedule of a key, or change the one there is."""
    name = {"environment_id": environment_id, "type": type, "deduplication_key": spec.key}
    there = await tx.one("schedules.lock_by_key", name)
    if there is not None:
        return await _change(tx, there, spec)
    clock = await tx.one("schedules.clock")
    assert clock is not None
    tick = _tick_after(clock["now"], schedule_id, spec)
    made = await tx.one(
        "schedules.insert",
        {**name, **_columns(spec, tick), "id": schedule_id, "now": clock["now"]},
    )
    if made is None:
        raise StatementError(
            "a schedule of this key was made meanwhile", sqlstate="40001", repeatable=True
        )
    return schedule_row(made)


async def _change(
    tx: Transaction, row: Row, spec: ScheduleSpec, *, active: bool | None = None
) -> ScheduleRow:
    """Change a schedule that is locked. Its next tick stays unless it comes of another cron."""
    before = _spec(row)
    active = row["active"] if active is None else active
    stays = row["active"] == active and row["error"] is None and _times(before) == _times(spec)
    if stays and before == spec:
        return schedule_row(row)
    tick: Tick | None = None
    if active and stays and row["next_at"] is not None:
        tick = Tick(row["next_at"], row["due_at"])
    elif active:
        tick = _tick_after(row["now"], row["id"], spec)
    changed = await tx.one(
        "schedules.change",
        {
            **_columns(spec, tick),
            "environment_id": row["environment_id"],
            "id": row["id"],
            "active": active,
            "error": None,
            "now": row["now"],
        },
    )
    assert changed is not None
    return schedule_row(changed)


def _tick_after(now: datetime, schedule_id: str, spec: ScheduleSpec) -> Tick | None:
    return timetable(schedule_id, spec.cron, spec.timezone, spec.window).next(now)


def _times(spec: ScheduleSpec) -> tuple[str, str, str | None]:
    return spec.cron, spec.timezone, spec.window


def _columns(spec: ScheduleSpec, tick: Tick | None) -> dict[str, object]:
    return {
        "task": spec.task,
        "cron": spec.cron,
        "timezone": spec.timezone,
        "due_window": spec.window,
        "missed": spec.missed,
        "external_id": spec.external_id,
        "next_at": None if tick is None else tick.at,
        "due_at": None if tick is None else tick.due,
    }


def _spec(row: Row) -> ScheduleSpec:
    return ScheduleSpec(
        task=row["task"],
        cron=row["cron"],
        key=row["deduplication_key"],
        timezone=row["timezone"],
        window=row["due_window"],
        missed=row["missed"],
        external_id=row["external_id"],
    )
