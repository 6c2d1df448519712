"""A run as it was when it was created: where a reader of every revision begins. [core]"""

from dataclasses import replace
from datetime import datetime

import orjson

from runwire.wire import Json, JsonObject
from runwire_engine.followed import FollowedRun
from runwire_realtime.run_topic import is_reference


def beginning(
    run: FollowedRun, then: JsonObject, *, by_reference: bool = False
) -> FollowedRun | None:
    """Return a run at revision 1, from its row as it is now and what its creation set.

    None when its metadata was too large to stand in the delta: then only the row tells of it, if it
    is not to stand by reference.
    """
    metadata = then.get("metadata")
    sizes = {name: size for name, size in run.sizes.items() if name == "payload"}
    if is_reference(metadata):
        if not by_reference:
            return None
        sizes["metadata"] = then["metadata"]["$large"]["bytes"]
        metadata = None
    row = run.row._replace(
        status=then["status"],
        revision=1,
        execution=0,
        attempt=0,
        worker_id=None,
        version=None,
        output=None,
        output_type=None,
        error=None,
        tags=tuple(then["tags"]),
        stream_keys=(),
        delayed_until=_time(then.get("delayedUntil")),
        cancel_requested_at=None,
        updated_at=run.row.created_at,
        queued_at=_time(then.get("queuedAt")),
        started_at=None,
        claimed_at=None,
        duration_ms=0,
        finished_at=None,
        expired_at=None,
        metadata=None if metadata is None else orjson.dumps(metadata).decode(),
    )
    return replace(run, row=row, sizes=sizes)


def _time(text: Json) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
