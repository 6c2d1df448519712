"""The routes of schedules: /api/v1/schedules, and the time zones they may be in."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.responses import Response

from runwire.requests import ScheduleBody, ScheduleChanges
from runwire_engine.errors import ScheduleNotFoundError
from runwire_engine.schedules import ScheduleRow, ScheduleSpec, timezones
from runwire_realtime.api.answer import answer
from runwire_realtime.api.call import Call
from runwire_realtime.api.cron_view import Generator, generator
from runwire_realtime.api.operation import Operation
from runwire_realtime.errors import ForbiddenError
from runwire_realtime.run_view import wire_time

_PAGE_SIZE: Final = 50
_LARGEST_PAGE: Final = 100
_LAST_PAGE: Final = 1_000_000
# What may be taken away; of the other fields null means nothing.
_REMOVABLE: Final = frozenset({"external_id", "window"})


class ScheduleEnvironment(BaseModel):
    id: str
    type: str


class ScheduleView(BaseModel):
    """A schedule. `nextRun` is absent while no tick is to come."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    id: str
    type: Literal["DECLARATIVE", "IMPERATIVE"]
    task: str
    active: bool
    deduplication_key: str
    external_id: str | None = None
    generator: Generator
    timezone: str
    window: str | None = None
    missed: Literal["newest", "all"]
    next_run: str | None = None
    last_run: str | None = None
    # Stands still: no worker that declares it lives.
    suspended: bool
    # Why the last tick got no run.
    error: str | None = None
    environments: list[ScheduleEnvironment]
    created_at: str
    updated_at: str


class SchedulesQuery(BaseModel):
    """Pages count from 1."""

    model_config = ConfigDict(extra="ignore")

    page: Annotated[int, Field(ge=1, le=_LAST_PAGE)] = 1
    per_page: Annotated[int, Field(alias="perPage", ge=1, le=_LARGEST_PAGE)] = _PAGE_SIZE


class SchedulePagination(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    current_page: int
    total_pages: int
    count: int


class SchedulesAnswer(BaseModel):
    data: list[ScheduleView]
    pagination: SchedulePagination


class ScheduleId(BaseModel):
    id: str


class TimezonesQuery(BaseModel):
    model_config = ConfigDict(extra="ignore")

    exclude_utc: Annotated[bool, Field(alias="excludeUtc")] = False


class TimezonesAnswer(BaseModel):
    timezones: list[str]


async def create(call: Call) -> Response:
    """Make a schedule, or change the one with the same key."""
    body = await call.body(ScheduleBody)
    spec = ScheduleSpec(
        task=body.task,
        cron=body.cron,
        key=body.deduplication_key,
        timezone=body.timezone,
        window=body.window,
        missed=body.missed,
        external_id=body.external_id,
    )
    return await _shown(
        call, await call.services.engine.schedules.create(call.environment_id, spec)
    )


async def list_schedules(call: Call) -> Response:
    """Return a page of schedules, oldest first; the signed-in dashboard may look, too."""
    if not (call.grant.api_key or call.grant.internal):
        raise ForbiddenError("this needs an API key; a public token does not open it")
    query = call.query(SchedulesQuery)
    page = await call.services.engine.schedules.list(
        call.environment_id, page=query.page, size=query.per_page
    )
    environment = await _environment(call)
    pagination = SchedulePagination(
        current_page=query.page,
        total_pages=max(1, -(-page.count // query.per_page)),
        count=page.count,
    )
    data = [_view(row, environment) for row in page.schedules]
    return answer(SchedulesAnswer(data=data, pagination=pagination))


async def retrieve(call: Call) -> Response:
    """Return one schedule."""
    schedule_id = call.id("scheduleId")
    row = await call.services.engine.schedules.retrieve(call.environment_id, schedule_id)
    if row is None:
        raise ScheduleNotFoundError(schedule_id)
    return await _shown(call, row)


async def update(call: Call) -> Response:
    """Change what is given of a schedule."""
    body = await call.body(ScheduleChanges)
    changes: dict[str, Any] = {
        name: getattr(body, name)
        for name in body.model_fields_set
        if getattr(body, name) is not None or name in _REMOVABLE
    }
    row = await call.services.engine.schedules.update(
        call.environment_id, call.id("scheduleId"), changes
    )
    return await _shown(call, row)


async def activate(call: Call) -> Response:
    """Have a schedule tick again, from now on."""
    schedules = call.services.engine.schedules
    return await _shown(call, await schedules.activate(call.environment_id, call.id("scheduleId")))


async def deactivate(call: Call) -> Response:
    """Have a schedule stand still."""
    schedules = call.services.engine.schedules
    return await _shown(
        call, await schedules.deactivate(call.environment_id, call.id("scheduleId"))
    )


async def delete(call: Call) -> Response:
    """Delete a schedule that was made by a call."""
    schedule_id = call.id("scheduleId")
    await call.services.engine.schedules.delete(call.environment_id, schedule_id)
    return answer(ScheduleId(id=schedule_id))


async def list_timezones(call: Call) -> Response:
    """Return the names of all time zones."""
    without_utc = call.query(TimezonesQuery).exclude_utc
    return answer(TimezonesAnswer(timezones=list(timezones()[1 if without_utc else 0 :])))


async def _shown(call: Call, row: ScheduleRow) -> Response:
    return answer(_view(row, await _environment(call)))


async def _environment(call: Call) -> ScheduleEnvironment:
    name = await call.services.environments.name(call.environment_id)
    return ScheduleEnvironment(id=str(call.environment_id), type=name or "")


def _view(row: ScheduleRow, environment: ScheduleEnvironment) -> ScheduleView:
    return ScheduleView(
        id=row.id,
        type=row.type,
        task=row.task,
        active=row.active,
        deduplication_key=row.deduplication_key,
        external_id=row.external_id,
        generator=generator(row.cron, row.timezone),
        timezone=row.timezone,
        window=row.due_window,
        missed=row.missed,
        next_run=None if row.next_at is None else wire_time(row.next_at),
        last_run=None if row.last_at is None else wire_time(row.last_at),
        suspended=row.suspended_at is not None,
        error=row.error,
        environments=[environment],
        created_at=wire_time(row.created_at),
        updated_at=wire_time(row.updated_at),
    )


_SCHEDULE: Final = "/api/v1/schedules/{scheduleId}"

OPERATIONS: Final = (
    Operation(
        "POST",
        "/api/v1/schedules",
        "createSchedule",
        "Make a schedule, or change the one with the same deduplication key",
        create,
        ScheduleView,
        credential="key",
        body=ScheduleBody,
        errors=(404, 408, 413, 415),
    ),
    Operation(
        "GET",
        "/api/v1/schedules",
        "listSchedules",
        "List schedules, oldest first",
        list_schedules,
        SchedulesAnswer,
        scopes="none: the signed-in dashboard's own",
        query=SchedulesQuery,
    ),
    Operation(
        "POST",
        f"{_SCHEDULE}/activate",
        "activateSchedule",
        "Have a schedule tick again, from now on",
        activate,
        ScheduleView,
        credential="key",
        errors=(404,),
    ),
    Operation(
        "POST",
        f"{_SCHEDULE}/deactivate",
        "deactivateSchedule",
        "Have a schedule stand still",
        deactivate,
        ScheduleView,
        credential="key",
        errors=(404,),
    ),
    Operation(
        "GET",
        _SCHEDULE,
        "retrieveSchedule",
        "Read one schedule",
        retrieve,
        ScheduleView,
        credential="key",
        errors=(404,),
    ),
    Operation(
        "PUT",
        _SCHEDULE,
        "updateSchedule",
        "Change a schedule that was made by a call",
        update,
        ScheduleView,
        credential="key",
        body=ScheduleChanges,
        errors=(404, 408, 413, 415, 422),
    ),
    Operation(
        "DELETE",
        _SCHEDULE,
        "deleteSchedule",
        "Delete a schedule that was made by a call",
        delete,
        ScheduleId,
        credential="key",
        errors=(404, 422),
    ),
    Operation(
        "GET",
        "/api/v1/timezones",
        "listTimezones",
        "List the time zones that schedules may be in",
        list_timezones,
        TimezonesAnswer,
        credential="open",
        query=TimezonesQuery,
    ),
)
