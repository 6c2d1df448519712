"""Queues: list, retrieve, pause and resume, put another limit in place of the one in code."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.responses import Response

from runwire.requests import OverrideBody, PauseBody, QueueBody, QueueType
from runwire_engine.queues import QueueRow
from runwire_realtime.api.answer import answer
from runwire_realtime.api.call import Call
from runwire_realtime.api.operation import Operation
from runwire_realtime.errors import NotFoundError
from runwire_realtime.run_view import wire_time

_PAGE_SIZE: Final = 25
_LARGEST_PAGE: Final = 100
# Of a task's own queue; the rest of its name is the task's id.
_TASK_PREFIX: Final = "task/"


class QueuesQuery(BaseModel):
    """Which page; the first is 1."""

    model_config = ConfigDict(extra="ignore")

    page: Annotated[int, Field(ge=1, le=100_000)] = 1
    per_page: Annotated[int, Field(alias="perPage", ge=1, le=_LARGEST_PAGE)] = _PAGE_SIZE


class QueueQuery(BaseModel):
    """How the queue in the path is meant."""

    model_config = ConfigDict(extra="ignore")

    type: QueueType = "id"


class _Answer(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class ConcurrencyBody(_Answer):
    """The limit that holds, the one in code, and the one put in its place; null: none."""

    current: int | None
    base: int | None
    override: int | None
    overridden_at: str | None
    overridden_by: str | None


class QueueAnswer(_Answer):
    """A queue. The name of a task's own queue is the task's id."""

    id: str
    name: str
    type: Literal["task", "custom"]
    running: int
    queued: int
    paused: bool
    concurrency_limit: int | None
    # Official clients of some versions ask for it: a waiting run always lets others go on.
    release_concurrency_on_waitpoint: bool
    concurrency: ConcurrencyBody


class PagesBody(_Answer):
    current_page: int
    total_pages: int
    count: int


class QueuesAnswer(_Answer):
    data: list[QueueAnswer]
    pagination: PagesBody


async def list_queues(call: Call) -> Response:
    """Return a page of queues, by name."""
    query = call.query(QueuesQuery)
    page = await call.services.engine.queues.page(
        call.environment_id, offset=(query.page - 1) * query.per_page, limit=query.per_page
    )
    pages = PagesBody(
        current_page=query.page,
        total_pages=-(-page.count // query.per_page),
        count=page.count,
    )
    return _answer(QueuesAnswer(data=[_body(row) for row in page.queues], pagination=pages))


async def retrieve(call: Call) -> Response:
    """Return one queue."""
    name = _name(call, call.query(QueueQuery).type)
    return _answer(_body(await call.services.engine.queues.retrieve(call.environment_id, name)))


async def pause(call: Call) -> Response:
    """Start nothing of a queue any more, or go on."""
    body = await call.body(PauseBody)
    queues = call.services.engine.queues
    change = queues.pause if body.action == "pause" else queues.resume
    return _answer(_body(await change(call.environment_id, _name(call, body.type))))


async def override(call: Call) -> Response:
    """Put another limit in place of the one in code."""
    body = await call.body(OverrideBody)
    row = await call.services.engine.queues.override_concurrency_limit(
        call.environment_id, _name(call, body.type), body.concurrency_limit
    )
    return _answer(_body(row))


async def reset(call: Call) -> Response:
    """Go back to the limit in code."""
    body = await call.optional_body(QueueBody)
    name = _name(call, body.type)
    row = await call.services.engine.queues.reset_concurrency_limit(call.environment_id, name)
    return _answer(_body(row))


def _name(call: Call, kind: QueueType) -> str:
    # Clients escape a slash twice, as one in a path would end the name.
    name = call.id("queue").replace("%2F", "/")
    match kind:
        case "task":
            return _TASK_PREFIX + name
        case "custom":
            return name
        case "id":
            if not name.startswith("queue_"):
                raise NotFoundError("there is no queue by that id; say type=task or type=custom")
            return name


def _body(row: QueueRow) -> QueueAnswer:
    at = row.overridden_at
    return QueueAnswer(
        id=row.id,
        name=row.name.removeprefix(_TASK_PREFIX),
        type="task" if row.name.startswith(_TASK_PREFIX) else "custom",
        running=row.running,
        queued=row.queued,
        paused=row.paused,
        concurrency_limit=row.concurrency_limit,
        release_concurrency_on_waitpoint=True,
        concurrency=ConcurrencyBody(
            current=row.concurrency_limit,
            base=row.base_limit,
            override=row.override_limit,
            overridden_at=None if at is None else wire_time(at),
            overridden_by=None,
        ),
    )


def _answer(body: BaseModel) -> Response:
    """Return a body with its nulls: to official clients they are not the same as nothing."""
    return answer(body.model_dump(mode="json", by_alias=True))


OPERATIONS: Final = (
    Operation(
        "GET",
        "/api/v1/queues",
        "listQueues",
        "List queues, by name",
        list_queues,
        QueuesAnswer,
        credential="key",
        query=QueuesQuery,
    ),
    Operation(
        "GET",
        "/api/v1/queues/{queue}",
        "retrieveQueue",
        "Read one queue",
        retrieve,
        QueueAnswer,
        credential="key",
        query=QueueQuery,
        errors=(404,),
    ),
    Operation(
        "POST",
        "/api/v1/queues/{queue}/pause",
        "pauseQueue",
        "Pause a queue, or have it go on",
        pause,
        QueueAnswer,
        credential="key",
        body=PauseBody,
        errors=(404, 408, 413, 415),
    ),
    Operation(
        "POST",
        "/api/v1/queues/{queue}/concurrency/override",
        "overrideConcurrencyLimit",
        "Put another limit in place of the one in code",
        override,
        QueueAnswer,
        credential="key",
        body=OverrideBody,
        errors=(404, 408, 413, 415),
    ),
    Operation(
        "POST",
        "/api/v1/queues/{queue}/concurrency/reset",
        "resetConcurrencyLimit",
        "Go back to the limit in code",
        reset,
        QueueAnswer,
        credential="key",
        body=QueueBody,
        body_required=False,
        errors=(404, 408, 413, 415),
    ),
)
