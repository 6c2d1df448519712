"""Schedules: tasks that run by themselves, at the times of a cron.

    @schedules.task(id="digest", cron={"pattern": "0 9 * * 1", "timezone": "Europe/Berlin"})
    async def digest(payload: ScheduledTaskPayload) -> None: ...

    await schedules.create(task="report", cron="0 8 * * *", deduplication_key="report:user_42",
                           external_id="user_42", timezone="America/New_York")

The first stands in the code and comes and goes with it; the second is made by a call, with the API
key. Runs of both get a `ScheduledTaskPayload`. Blocking twins: `runwire.sync.schedules`.
"""

import inspect
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypedDict, Unpack, cast
from urllib.parse import quote

import orjson
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from runwire import _default, tasks
from runwire._client import Client
from runwire._cron import CronKeywords, CronOptions, Missed, cron_options
from runwire._definition import Decorator
from runwire._signature import OFFERED
from runwire.requests import ScheduleBody, ScheduleChanges
from runwire.tasks import AnyTask, TaskKeywords
from runwire.wire import JsonObject

__all__ = [
    "CronOptions",
    "Schedule",
    "SchedulePage",
    "ScheduledTaskPayload",
    "Schedules",
    "activate",
    "create",
    "deactivate",
    "del_",
    "list",
    "retrieve",
    "task",
    "timezones",
    "update",
]

ScheduleType = Literal["DECLARATIVE", "IMPERATIVE"]

_PATH: Final = "/api/v1/schedules"


class ScheduledTaskPayload(BaseModel):
    """What a run of a schedule gets. Times are in UTC, by the cron, whenever the run starts."""

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore"
    )

    # The time of this tick.
    timestamp: datetime
    # Of the tick before that got a run; None at the first.
    last_timestamp: datetime | None = None
    timezone: str = "UTC"
    schedule_id: str
    external_id: str | None = None
    # The next five ticks.
    upcoming: tuple[datetime, ...] = ()
    type: ScheduleType = "IMPERATIVE"


@dataclass(frozen=True)
class Schedule:
    """A schedule as it is now."""

    id: str
    # DECLARATIVE: stands in the code of its task.
    type: ScheduleType
    task: str
    active: bool
    cron: str
    # The cron in words.
    description: str
    timezone: str
    window: str | None
    missed: Missed
    deduplication_key: str
    external_id: str | None
    # The next tick, by the cron; None while there is none to come.
    next_run: datetime | None
    # The last tick that got a run.
    last_run: datetime | None
    # True while it stands still because no worker that declares it lives.
    suspended: bool
    # Why the last tick got no run.
    error: str | None
    # As the server sent it.
    raw: JsonObject

    @classmethod
    def of(cls, body: JsonObject) -> "Schedule":
        """Read a schedule as the server sends it."""
        generator: JsonObject = body["generator"]
        return cls(
            id=body["id"],
            type=body["type"],
            task=body["task"],
            active=body["active"],
            cron=generator["expression"],
            description=generator["description"],
            timezone=body["timezone"],
            window=body.get("window"),
            missed=body["missed"],
            deduplication_key=body["deduplicationKey"],
            external_id=body.get("externalId"),
            next_run=_time(body.get("nextRun")),
            last_run=_time(body.get("lastRun")),
            suspended=body["suspended"],
            error=body.get("error"),
            raw=body,
        )


@dataclass(frozen=True)
class SchedulePage:
    """Some schedules, oldest first."""

    schedules: tuple[Schedule, ...]
    # From 1.
    number: int
    pages: int
    # Of all pages.
    count: int


class ScheduleList:
    """All schedules, oldest first: `async for schedule in …`, or page by page."""

    def __init__(self, connect: Callable[[], Client], per_page: int) -> None:
        self._connect = connect
        self._per_page = per_page

    async def page(self, number: int = 1) -> SchedulePage:
        """Return a page; the first is 1."""
        asked = {"page": str(number), "perPage": str(self._per_page)}
        response = await self._connect().http.get(_PATH, asked)
        body: JsonObject = orjson.loads(response.content)
        pagination: JsonObject = body["pagination"]
        found = cast("tuple[JsonObject, ...]", tuple(body["data"]))
        return SchedulePage(
            tuple(Schedule.of(each) for each in found),
            number,
            pagination["totalPages"],
            pagination["count"],
        )

    async def __aiter__(self) -> AsyncIterator[Schedule]:
        number = 1
        while True:
            page = await self.page(number)
            for schedule in page.schedules:
                yield schedule
            if number >= page.pages:
                return
            number += 1


class ScheduleKeywords(TypedDict, total=False):
    """What `update` can change; None takes an external id or a window away."""

    task: str | AnyTask
    cron: str
    timezone: str
    external_id: str | None
    window: str | None
    missed: Missed


class Schedules:
    """Everything about schedules, over one client; it needs an API key."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect

    async def create(
        self,
        *,
        task: str | AnyTask,
        cron: str,
        deduplication_key: str,
        timezone: str = "UTC",
        external_id: str | None = None,
        window: str | None = None,
        missed: Missed = "newest",
    ) -> Schedule:
        """Make a schedule, or change the one with the same deduplication key.

        `window` spreads runs over "30m", "2h" or "50%" of the time to the next tick; `missed` says
        whether ticks that nobody made runs for get one for the newest of them, or for all. Raises
        NotFoundError for a task no worker announced, ApiError for a cron that cannot be.
        """
        body = ScheduleBody(
            task=_task_id(task),
            cron=cron,
            deduplication_key=deduplication_key,
            timezone=timezone,
            external_id=external_id,
            window=window,
            missed=missed,
        )
        sent = body.model_dump(mode="json", by_alias=True, exclude_none=True)
        return _schedule(await self._connect().http.post(_PATH, json=sent))

    async def update(self, schedule_id: str, **changes: Unpack[ScheduleKeywords]) -> Schedule:
        """Change what is given of a schedule that was made by a call. Raises NotFoundError."""
        unknown = sorted(set(changes) - set(ScheduleKeywords.__annotations__))
        if unknown:
            raise TypeError(f"a schedule has no {', '.join(unknown)} to change")
        given: dict[str, Any] = {**changes}
        if "task" in changes:
            given["task"] = _task_id(changes["task"])
        body = ScheduleChanges(**given)
        sent = body.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return _schedule(await self._connect().http.put(_at(schedule_id), json=sent))

    async def retrieve(self, schedule_id: str) -> Schedule:
        """Return a schedule as it is now. Raises NotFoundError."""
        return _schedule(await self._connect().http.get(_at(schedule_id)))

    def list(self, *, per_page: int = 50) -> ScheduleList:
        """Return all schedules, oldest first; nothing is asked until iterated."""
        return ScheduleList(self._connect, per_page)

    async def activate(self, schedule_id: str) -> Schedule:
        """Have a schedule tick again, from now on. Raises NotFoundError."""
        return _schedule(await self._connect().http.post(f"{_at(schedule_id)}/activate"))

    async def deactivate(self, schedule_id: str) -> Schedule:
        """Have a schedule stand still until it is activated. Raises NotFoundError."""
        return _schedule(await self._connect().http.post(f"{_at(schedule_id)}/deactivate"))

    async def del_(self, schedule_id: str) -> None:
        """Delete a schedule that was made by a call; its runs stay. Raises NotFoundError."""
        await self._connect().http.delete(_at(schedule_id))

    async def timezones(self, *, exclude_utc: bool = False) -> tuple[str, ...]:
        """Return the names of every time zone a cron may be read in."""
        asked = {"excludeUtc": "true"} if exclude_utc else None
        response = await self._connect().http.get("/api/v1/timezones", asked)
        body: JsonObject = orjson.loads(response.content)
        return tuple(cast("tuple[str, ...]", body["timezones"]))


def task(
    *,
    id: str,
    cron: str | CronKeywords | CronOptions | None = None,
    **options: Unpack[TaskKeywords],
) -> Decorator:
    """Make a function a task that runs by itself: `tasks.task`, with a cron.

    `cron` is five fields in UTC, or {"pattern", "timezone", "environments", "window", "missed"}.
    Without one the task waits for schedules that are made by calls. The payload is a
    `ScheduledTaskPayload`, also where it is not annotated. Raises TaskError.
    """
    declared = None if cron is None else cron_options(cron)
    decorate = cast("Callable[[Callable[..., Any]], AnyTask]", tasks.task(id=id, **options))

    def scheduled(function: Callable[..., Any]) -> AnyTask:
        _annotate(function)
        defined = decorate(function)
        defined.cron = declared
        return defined

    return cast(Decorator, scheduled)


def _annotate(function: Callable[..., Any]) -> None:
    """Have a first parameter without annotation be a ScheduledTaskPayload."""
    first = next(iter(inspect.signature(function).parameters.values()), None)
    if first is not None and first.annotation is first.empty and first.name not in OFFERED:
        function.__annotations__[first.name] = ScheduledTaskPayload


def _task_id(task: str | AnyTask) -> str:
    return task if isinstance(task, str) else task.id


def _at(schedule_id: str) -> str:
    return f"{_PATH}/{quote(schedule_id, safe='')}"


def _schedule(response: Any) -> Schedule:
    return Schedule.of(orjson.loads(response.content))


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


_default_schedules = Schedules(_default.client)
create = _default_schedules.create
update = _default_schedules.update
retrieve = _default_schedules.retrieve
list = _default_schedules.list
activate = _default_schedules.activate
deactivate = _default_schedules.deactivate
del_ = _default_schedules.del_
timezones = _default_schedules.timezones
