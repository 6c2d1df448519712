"""POST /api/v1/idempotencyKeys/{key}/reset: the next trigger with this key makes a new run."""

from typing import Final

from pydantic import BaseModel
from starlette.responses import Response

from runwire.idempotency_keys import MAX_LENGTH
from runwire.requests import ResetKeyBody
from runwire_realtime.api.answer import answer
from runwire_realtime.api.call import Call
from runwire_realtime.api.operation import Operation
from runwire_realtime.errors import ForbiddenError, NotFoundError


class KeyAnswer(BaseModel):
    id: str


async def reset(call: Call) -> Response:
    """Free an idempotency key of a task; the run that it led to goes on."""
    key = str(call.request.path_params["key"])
    task = (await call.body(ResetKeyBody)).task_identifier
    if not call.grant.may_reset_keys(task):
        raise ForbiddenError(f"resetting a key needs the scope write:tasks:{task}, or write:runs")
    if not 1 <= len(key) <= MAX_LENGTH or "\0" in key + task:
        raise NotFoundError("no run of this task is held by that idempotency key")
    if not await call.services.engine.runs.reset_key(call.environment_id, task, key):
        raise NotFoundError("no run of this task is held by that idempotency key")
    return answer(KeyAnswer(id=key))


OPERATIONS: Final = (
    Operation(
        "POST",
        "/api/v1/idempotencyKeys/{key:path}/reset",
        "resetIdempotencyKey",
        "Free an idempotency key of a task",
        reset,
        KeyAnswer,
        scopes="write:tasks:<task>, write:runs",
        body=ResetKeyBody,
        errors=(404, 408, 413, 415),
    ),
)
