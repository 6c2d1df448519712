"""GET /api/v1/runs/{runId}/events: what happened to a run, revision by revision."""

from typing import Final, cast

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from starlette.responses import Response

from runwire.values import decode
from runwire.wire import GapReason, JsonObject
from runwire_realtime.api.answer import answer
from runwire_realtime.api.call import Call
from runwire_realtime.api.operation import Operation
from runwire_realtime.api.run_access import readable_run
from runwire_realtime.run_view import View, view_of, wire_time


class TimelineEvent(BaseModel):
    """One revision of a run: what happened, and which fields it set; a large value stands as
    {"$large": {"bytes": n}} and is in the run itself.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    revision: int
    type: str
    created_at: str
    delta: JsonObject


class TimelineGap(BaseModel):
    """Why there is no history."""

    reason: GapReason


class Timeline(BaseModel):
    """Oldest first. `gap` says that the history of the run is past retention; the run itself is
    there.
    """

    gap: TimelineGap | None = None
    data: list[TimelineEvent]


async def read(call: Call) -> Response:
    """Return every revision of a run, as far as the credential sees it."""
    row = await readable_run(call)
    view = view_of(call.grant.visibility(), [None], is_feed=True)
    events = await call.services.engine.runs.events(call.environment_id, row.id)
    # A run's history lives and dies whole, and its creation is its first event.
    gap = None if events else TimelineGap(reason=GapReason.RETENTION)
    return answer(
        Timeline(
            gap=gap,
            data=[
                TimelineEvent(
                    revision=event.revision,
                    type=event.type,
                    created_at=wire_time(event.created_at),
                    delta=visible_delta(decode(event.delta), view),
                )
                for event in events
            ],
        )
    )


def visible_delta(delta: JsonObject, view: View) -> JsonObject:
    """Return the parts of a change that a view shows."""
    shown: JsonObject = {}
    changes = cast(JsonObject, delta.get("set") or {})
    if changes:
        shown["set"] = {n: _visible(n, v, view) for n, v in changes.items() if view.shows(n)}
    if delta.get("metadata") and view.shows("metadata"):
        shown["metadata"] = delta["metadata"]
    return shown


def _visible(name: str, value: object, view: View) -> object:
    if name != "error" or view.is_internal or not isinstance(value, dict):
        return value
    error = cast(JsonObject, value)
    return {key: part for key, part in error.items() if key != "stackTrace"}


OPERATIONS: Final = (
    Operation(
        "GET",
        "/api/v1/runs/{runId}/events",
        "readTimeline",
        "Read every revision of a run",
        read,
        Timeline,
        scopes="read:runs:<runId>, read:tasks:<task>, read:tags:<tag>, read:batch:<batch>",
        errors=(404,),
    ),
)
