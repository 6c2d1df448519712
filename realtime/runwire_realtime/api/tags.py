"""POST /api/v1/runs/{runId}/tags: add tags to a run."""

from typing import Final

from pydantic import BaseModel
from starlette.responses import Response

from runwire.requests import MAX_TAGS, TagsBody
from runwire.wire import ErrorCode
from runwire_engine.new_runs import tags_of
from runwire_realtime.api.answer import answer
from runwire_realtime.api.call import Call
from runwire_realtime.api.operation import Operation
from runwire_realtime.api.run_access import writable_run
from runwire_realtime.errors import RefusedError


class TagsAnswer(BaseModel):
    """All the tags the run has now."""

    message: str
    tags: list[str]


async def add(call: Call) -> Response:
    """Add tags; those the run has already are left alone."""
    row = await writable_run(call)
    tags = tags_of((await call.body(TagsBody)).tags)
    if len({*row.tags, *tags}) > MAX_TAGS:
        raise RefusedError(
            ErrorCode.CONFLICT, f"a run has at most {MAX_TAGS} tags; this one has {len(row.tags)}"
        )
    row = await call.services.engine.runs.add_tags(call.environment_id, row.id, tags)
    return answer(TagsAnswer(message=f"the run has {len(row.tags)} tags", tags=list(row.tags)))


OPERATIONS: Final = (
    Operation(
        "POST",
        "/api/v1/runs/{runId}/tags",
        "addTags",
        "Add tags to a run",
        add,
        TagsAnswer,
        scopes="write:runs:<runId>",
        body=TagsBody,
        errors=(404, 408, 413, 415, 422),
    ),
)
