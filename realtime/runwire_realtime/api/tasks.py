"""GET /api/v1/tasks: what workers have announced."""

from typing import Final

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from starlette.responses import Response

from runwire.values import decode
from runwire.wire import Json
from runwire_engine.catalogue import TaskRow
from runwire_realtime.api.answer import answer
from runwire_realtime.api.call import Call
from runwire_realtime.api.operation import Operation
from runwire_realtime.run_view import wire_time


class RetryBody(BaseModel):
    """How often a run is tried, and what it waits in between, in seconds."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    max_attempts: int | None = None
    factor: float | None = None
    min_timeout: float | None = None
    max_timeout: float | None = None
    randomize: bool | None = None


class TaskBody(BaseModel):
    """A task: its id, its queue, and the JSON schema of its payload where it has one."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    id: str
    queue: str
    description: str = ""
    retry: RetryBody
    max_duration: float | None = None
    ttl: float | None = None
    payload_schema: Json = None
    updated_at: str


class TasksAnswer(BaseModel):
    data: list[TaskBody]


async def list_tasks(call: Call) -> Response:
    """Return the tasks that the credential may trigger or read."""
    rows = await call.services.engine.catalogue.list(call.environment_id)
    grant = call.grant
    visible = [row for row in rows if grant.may_trigger(row.id) or grant.may_read_task(row.id)]
    return answer(TasksAnswer(data=[_body(row) for row in visible]))


def _body(row: TaskRow) -> TaskBody:
    return TaskBody(
        id=row.id,
        queue=row.queue,
        description=row.description,
        retry=RetryBody.model_validate_json(row.retry),
        max_duration=row.max_duration,
        ttl=row.ttl,
        payload_schema=None if row.payload_schema is None else decode(row.payload_schema),
        updated_at=wire_time(row.updated_at),
    )


OPERATIONS: Final = (
    Operation(
        "GET",
        "/api/v1/tasks",
        "listTasks",
        "List the tasks that workers have announced",
        list_tasks,
        TasksAnswer,
        scopes="trigger:tasks:<task>, read:tasks:<task>, read:runs",
    ),
)
