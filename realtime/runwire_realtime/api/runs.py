"""Runs: retrieve, list, cancel, reschedule, replay."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.responses import Response

from runwire.durations import seconds
from runwire.requests import RescheduleBody
from runwire.wire import ErrorCode, JsonObject
from runwire_engine.new_runs import check_payload, delay_of, parse_time
from runwire_engine.runs import RunQuery
from runwire_engine.states import RunStatus
from runwire_realtime.api.answer import answer
from runwire_realtime.api.call import Call
from runwire_realtime.api.cron_view import generator
from runwire_realtime.api.operation import Operation
from runwire_realtime.api.run_access import readable_run, writable_run
from runwire_realtime.api.run_body import RunBody, RunSchedule, run_body
from runwire_realtime.api.run_tokens import TOKEN_HEADERS, run_token
from runwire_realtime.errors import ForbiddenError, RefusedError

_STATUSES: Final = frozenset(status.value for status in RunStatus)
_MOST_FILTERS: Final = 20  # values of one filter; more make a query nobody can plan for
_PAGE_SIZE: Final = 25
_LARGEST_PAGE: Final = 100


class RunsQuery(BaseModel):
    """The filters of a list; several values of one filter are separated by commas."""

    model_config = ConfigDict(extra="ignore")

    status: Annotated[str | None, Field(alias="filter[status]", max_length=400)] = None
    task: Annotated[str | None, Field(alias="filter[taskIdentifier]", max_length=2600)] = None
    tag: Annotated[str | None, Field(alias="filter[tag]", max_length=2600)] = None
    batch: Annotated[str | None, Field(alias="filter[batch]", max_length=128)] = None
    parent: Annotated[str | None, Field(alias="filter[parent]", max_length=128)] = None
    schedule: Annotated[str | None, Field(alias="filter[schedule]", max_length=128)] = None
    created_from: Annotated[str | None, Field(alias="filter[createdAt][from]", max_length=40)] = (
        None
    )
    created_to: Annotated[str | None, Field(alias="filter[createdAt][to]", max_length=40)] = None
    period: Annotated[str | None, Field(alias="filter[createdAt][period]", max_length=40)] = None
    size: Annotated[int, Field(alias="page[size]", ge=1, le=_LARGEST_PAGE)] = _PAGE_SIZE
    after: Annotated[str | None, Field(alias="page[after]", max_length=256)] = None
    before: Annotated[str | None, Field(alias="page[before]", max_length=256)] = None


class Pagination(BaseModel):
    """Opaque cursors: absent where there is no further page."""

    next: str | None = None
    previous: str | None = None


class RunsAnswer(BaseModel):
    data: list[RunBody]
    pagination: Pagination


class RunId(BaseModel):
    id: str


class ReplayBody(BaseModel):
    """What a replay does differently from the run it repeats."""

    model_config = ConfigDict(extra="ignore", alias_generator=to_camel, populate_by_name=True)

    payload: str | None = None
    payload_type: str | None = None


async def retrieve(call: Call) -> Response:
    """Return one run."""
    row = await readable_run(call)
    body = run_body(row, call.grant.visibility())
    if row.schedule_id is not None:
        body |= await _schedule(call, row.schedule_id)
    return answer(body)


async def list_runs(call: Call) -> Response:
    """Return a page of runs, newest first."""
    query = call.query(RunsQuery)
    _refuse_other_filters(call.request.query_params)
    wanted = _wanted(query)
    _authorise_list(call, wanted)
    page = await call.services.engine.runs.list(call.environment_id, wanted)
    name = await call.services.environments.name(call.environment_id)
    environment = {"id": str(call.environment_id), "name": name or ""}
    visibility = call.grant.visibility()
    pagination = {"next": page.next, "previous": page.previous}
    return answer(
        {
            "data": [run_body(row, visibility) | {"env": environment} for row in page.runs],
            "pagination": {name: at for name, at in pagination.items() if at is not None},
        }
    )


async def cancel(call: Call) -> Response:
    """Ask a run to stop; one that is over stays as it is."""
    row = await writable_run(call)
    return answer({"id": (await call.services.engine.runs.cancel(call.environment_id, row.id)).id})


async def reschedule(call: Call) -> Response:
    """Have a delayed run wait until another time; return it."""
    delay = delay_of((await call.body(RescheduleBody)).delay)
    row = await call.services.engine.runs.reschedule(call.environment_id, call.id("runId"), delay)
    return answer(run_body(row, call.grant.visibility()))


async def replay(call: Call) -> Response:
    """Start a new run with the task, payload and options of an old one."""
    row = await writable_run(call)
    body = await call.optional_body(ReplayBody)
    kind = body.payload_type or (row.payload_type if body.payload is None else "application/json")
    if body.payload is not None:
        check_payload(body.payload, kind)
    result = await call.services.engine.runs.replay(
        call.environment_id,
        row.id,
        payload=body.payload,
        payload_type=None if body.payload is None else kind,
        request_key=call.request_key(row.id),
    )
    return answer({"id": result.id, "taskIdentifier": row.task}, headers=run_token(call, result.id))


async def _schedule(call: Call, schedule_id: str) -> JsonObject:
    """Return the schedule a run came of, as official clients expect it; not one that is gone."""
    row = await call.services.engine.schedules.retrieve(call.environment_id, schedule_id)
    if row is None:
        return {}
    of_run = RunSchedule(
        id=row.id,
        external_id=row.external_id,
        deduplication_key=row.deduplication_key,
        generator=generator(row.cron, row.timezone),
    )
    return {"schedule": of_run.model_dump(mode="json", by_alias=True, exclude_none=True)}


def _refuse_other_filters(given: Iterable[str]) -> None:
    """Refuse a filter that would be ignored: the answer would hold runs that were not asked for."""
    offered = {field.alias for field in RunsQuery.model_fields.values()}
    unknown = sorted(name for name in given if name.startswith("filter[") and name not in offered)
    if unknown:
        raise _refused(f"there is no {unknown[0][:60]}")


def _wanted(query: RunsQuery) -> RunQuery:
    if query.after is not None and query.before is not None:
        raise _refused("give page[after] or page[before], not both")
    statuses = _values(query.status, "filter[status]")
    for status in statuses:
        if status not in _STATUSES:
            raise _refused(f"filter[status]: {status[:40]!r} is not a status of a run")
    return RunQuery(
        status=statuses,
        task=_values(query.task, "filter[taskIdentifier]"),
        tag=_values(query.tag, "filter[tag]"),
        batch=query.batch,
        parent=query.parent,
        schedule=query.schedule,
        created_from=_from(query),
        created_to=_to(query),
        size=query.size,
        after=query.after,
        before=query.before,
    )


def _values(text: str | None, what: str) -> tuple[str, ...]:
    values = tuple(dict.fromkeys(value for value in (text or "").split(",") if value))
    if len(values) > _MOST_FILTERS:
        raise _refused(f"{what} takes at most {_MOST_FILTERS} values")
    return values


def _from(query: RunsQuery) -> datetime | None:
    if query.period is not None:
        span = seconds(query.period)
        if not 0 <= span <= 10 * 366 * 86_400:
            raise _refused("filter[createdAt][period] is at most ten years")
        return datetime.now(UTC) - timedelta(seconds=span)
    return None if query.created_from is None else _time(query.created_from, "from")


def _to(query: RunsQuery) -> datetime | None:
    """Return the end of what is wanted, with the whole of its millisecond: runs tell no less."""
    if query.created_to is None:
        return None
    to = _time(query.created_to, "to")
    return to if to.microsecond % 1000 else to + timedelta(microseconds=999)


def _time(text: str, end: str) -> datetime:
    # Official clients send Unix milliseconds.
    if text.isascii() and text.isdigit() and len(text) <= 14:
        return datetime.fromtimestamp(int(text) / 1000, UTC)
    return parse_time(text, f"filter[createdAt][{end}]")


def _authorise_list(call: Call, wanted: RunQuery) -> None:
    grant = call.grant
    allowed = (
        grant.may_read_runs()
        or (bool(wanted.tag) and all(grant.may_read_tag_feed([tag]) for tag in wanted.tag))
        or (bool(wanted.task) and all(grant.may_read_task(task) for task in wanted.task))
        or (wanted.batch is not None and grant.may_read_batch(wanted.batch))
    )
    if not allowed:
        raise ForbiddenError(
            "listing needs the scope read:runs, or a filter for tags, tasks or a batch that the"
            " token may read"
        )


def _refused(message: str) -> RefusedError:
    return RefusedError(ErrorCode.MALFORMED, message)


_WRITE: Final = "write:runs:<runId>, write:tasks:<task>, write:tags:<tag>, write:batch:<batch>"
_READ: Final = "read:runs:<runId>, read:tasks:<task>, read:tags:<tag>, read:batch:<batch>"

OPERATIONS: Final = (
    Operation(
        "GET",
        "/api/v1/runs",
        "listRuns",
        "List runs, newest first",
        list_runs,
        RunsAnswer,
        scopes="read:runs; with the matching filter read:tags:<tag>, read:tasks:<task>,"
        " read:batch:<batch>",
        query=RunsQuery,
    ),
    Operation(
        "GET",
        "/api/v3/runs/{runId}",
        "retrieveRun",
        "Read one run",
        retrieve,
        RunBody,
        scopes=_READ,
        errors=(404,),
    ),
    Operation(
        "POST",
        "/api/v2/runs/{runId}/cancel",
        "cancelRun",
        "Ask a run to stop",
        cancel,
        RunId,
        scopes=_WRITE,
        errors=(404,),
    ),
    Operation(
        "POST",
        "/api/v1/runs/{runId}/reschedule",
        "rescheduleRun",
        "Have a delayed run wait until another time",
        reschedule,
        RunBody,
        credential="key",
        body=RescheduleBody,
        errors=(404, 408, 413, 415, 422),
    ),
    Operation(
        "POST",
        "/api/v1/runs/{runId}/replay",
        "replayRun",
        "Start a run again as a new one",
        replay,
        RunId,
        scopes=_WRITE,
        body=ReplayBody,
        body_required=False,
        request_key=True,
        answer_headers=TOKEN_HEADERS,
        errors=(404, 408, 413, 415),
    ),
)
