"""The `id` of a server-sent event: where every subscription of the stream stands. [core]

Base64 of JSON {sub: {"cursor": …, "streams": {key: next seq}}}. A client hands the last one back
as Last-Event-ID, with the same body, and goes on there.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import cast

import orjson

from runwire.wire import Json, JsonObject, StreamRequest, Subscribe
from runwire_realtime.cursors import run_cursor
from runwire_realtime.follower import Follower
from runwire_realtime.subscription import RunTarget, Stage, Subscription

_MAX_BYTES = 32 * 1024


def positions_id(follower: Follower) -> bytes:
    """Return where the subscriptions stand, everything said so far having been sent."""
    places = {sub: _place(follower, each) for sub, each in follower.subscriptions.items()}
    return base64.urlsafe_b64encode(orjson.dumps(places))


def _place(follower: Follower, subscription: Subscription) -> JsonObject:
    if not isinstance(subscription.target, RunTarget):
        return {"cursor": subscription.cursor_sent} if subscription.cursor_sent else {}
    reader = follower.readers.get(subscription.target.run_id)
    if reader is None:
        return {}
    place: JsonObject = {"streams": reader.streams.positions()}
    if reader.written and subscription.stage is Stage.LIVE:
        place["cursor"] = run_cursor(follower.hub.epoch, reader.written)
    return place


def resumed(requests: Sequence[Subscribe], last_event_id: str | None) -> list[Subscribe]:
    """Return the requests as they go on from an id; one that cannot be read is no id at all."""
    places = _read(last_event_id)
    return [_resumed(request, places.get(request.sub)) for request in requests]


def _resumed(request: Subscribe, place: Json) -> Subscribe:
    if not isinstance(place, dict):
        return request
    known = cast(JsonObject, place)
    changes: JsonObject = {}
    cursor: Json = known.get("cursor")
    if isinstance(cursor, str) and len(cursor) <= 8192:
        changes["cursor"] = cursor
    streams: Json = known.get("streams")
    if isinstance(streams, dict) and request.streams and request.to.run is not None:
        changes["streams"] = _from(request.streams, cast(JsonObject, streams))
    return request.model_copy(update=changes)


def _from(asked: dict[str, StreamRequest], places: JsonObject) -> dict[str, StreamRequest]:
    streams = dict(asked)
    for key, place in list(places.items())[:64]:
        request = asked.get(key) or asked.get("*")
        if request is not None and isinstance(place, int) and 0 <= place < 2**53:
            streams[key] = request.model_copy(update={"start": place})
    return streams


def _read(last_event_id: str | None) -> JsonObject:
    if not last_event_id or len(last_event_id) > _MAX_BYTES:
        return {}
    try:
        places: Json = orjson.loads(base64.urlsafe_b64decode(last_event_id.encode()))
    except (binascii.Error, ValueError):
        return {}
    return cast(JsonObject, places) if isinstance(places, dict) else {}
