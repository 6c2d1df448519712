"""GET and PUT /api/v1/runs/{runId}/metadata: the document, whole or by operations."""

from typing import Final

from pydantic import BaseModel
from starlette.responses import Response

from runwire.requests import MetadataBody
from runwire.values import decode
from runwire.wire import ErrorCode, JsonObject
from runwire_engine.run_metadata import MetadataWrite
from runwire_realtime.api.answer import answer
from runwire_realtime.api.call import Call
from runwire_realtime.api.operation import Operation
from runwire_realtime.api.run_access import readable_run, writable_run
from runwire_realtime.errors import ForbiddenError, RefusedError

_MOST_OPERATIONS: Final = 1000


class MetadataAnswer(BaseModel):
    """The document as it is now."""

    metadata: JsonObject


async def read(call: Call) -> Response:
    """Return a run's metadata."""
    row = await readable_run(call)
    if call.grant.fields is not None and "metadata" not in call.grant.fields:
        raise ForbiddenError("the token was minted without the field metadata")
    return await _current(call, row.id)


async def write(call: Call) -> Response:
    """Replace the document, or apply operations in order; until an hour after the run's end."""
    row = await writable_run(call)
    body = await call.body(MetadataBody)
    if (body.metadata is None) == (body.operations is None):
        raise RefusedError(ErrorCode.MALFORMED, "send either metadata or operations")
    if body.metadata is not None:
        await call.services.engine.metadata.replace(call.environment_id, row.id, body.metadata)
    elif body.operations:
        if len(body.operations) > _MOST_OPERATIONS:
            raise RefusedError(
                ErrorCode.TOO_LARGE, f"send at most {_MOST_OPERATIONS} operations at once"
            )
        await call.services.engine.metadata.apply(
            call.environment_id, MetadataWrite(row.id, tuple(body.operations))
        )
    return await _current(call, row.id)


async def _current(call: Call, run_id: str) -> Response:
    text = await call.services.engine.metadata.retrieve(call.environment_id, run_id)
    return answer(MetadataAnswer(metadata={} if text is None else decode(text)))


OPERATIONS: Final = (
    Operation(
        "GET",
        "/api/v1/runs/{runId}/metadata",
        "readMetadata",
        "Read a run's metadata",
        read,
        MetadataAnswer,
        scopes="read:runs:<runId> and the like",
        errors=(404,),
    ),
    Operation(
        "PUT",
        "/api/v1/runs/{runId}/metadata",
        "writeMetadata",
        "Replace a run's metadata, or apply operations to it",
        write,
        MetadataAnswer,
        scopes="write:runs:<runId> and the like",
        body=MetadataBody,
        errors=(404, 408, 413, 415, 422),
    ),
)
