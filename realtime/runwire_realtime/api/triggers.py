"""POST /api/v1/tasks/{taskId}/trigger: one run."""

from typing import Final

import anyio.to_thread
from starlette.responses import Response

from runwire.requests import TriggerAnswer, TriggerBody
from runwire_engine.new_runs import check_payload, new_run
from runwire_engine.wanted_runs import NewRun
from runwire_realtime.api.answer import answer
from runwire_realtime.api.call import Call
from runwire_realtime.api.operation import Operation
from runwire_realtime.api.run_tokens import TOKEN_HEADERS, one_time, run_token
from runwire_realtime.errors import ForbiddenError

# A larger payload is checked in a thread, so that its walk does not stall every socket.
_CHECKED_INLINE: Final = 128 * 1024


async def trigger(call: Call) -> Response:
    """Start a run of a task and return its id, with a token that reads it."""
    task = str(call.request.path_params["taskId"])
    if not call.grant.may_trigger(task):
        raise ForbiddenError(f"triggering needs the scope trigger:tasks:{task[:128]}")
    body = await call.body(TriggerBody)
    result = await call.services.engine.runs.trigger(
        call.environment_id, await _wanted(call, task, body)
    )
    made = TriggerAnswer(id=result.id, is_cached=result.is_cached)
    return answer(made, headers=run_token(call, result.id))


async def _wanted(call: Call, task: str, body: TriggerBody) -> NewRun:
    def make() -> NewRun:
        return new_run(
            task,
            check_payload(body.payload, body.options.payload_type),
            body.options,
            request_key=call.request_key(task),
            one_time=one_time(call),
        )

    if len(body.payload or "") <= _CHECKED_INLINE:
        return make()
    return await anyio.to_thread.run_sync(make)


OPERATIONS: Final = (
    Operation(
        "POST",
        "/api/v1/tasks/{taskId:path}/trigger",
        "triggerTask",
        "Start a run of a task",
        trigger,
        TriggerAnswer,
        scopes="trigger:tasks:<taskId>",
        body=TriggerBody,
        request_key=True,
        answer_headers=TOKEN_HEADERS,
        errors=(404, 408, 413, 415),
    ),
)
