"""The `id` of a server-sent event: where every subscription of the stream stands. [core]

Base64 of JSON {sub: {"cursor": …, "streams": {run: {key: next seq}}}}. A client hands the last one
back as Last-Event-ID, with the same body, and goes on there. What it came with stands in the next
ids until there is something newer: a response may end before that. It is bounded: of a feed with
more streams than there is room for, the rest begins again, and the client drops what it has.
"""

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import cast

import orjson

from runwire.wire import Json, JsonObject, Subscribe
from runwire_realtime.cursors import run_cursor
from runwire_realtime.follower import Follower
from runwire_realtime.run_reader import RunReader
from runwire_realtime.subscription import RunTarget, Stage, Subscription

_MAX_BYTES = 32 * 1024
# Of what is written of streams: with cursors and as base64, an id fits into 8 KiB, which is what
# proxies take as one line of a header.
_STREAM_BYTES = 5 * 1024


def positions_id(follower: Follower) -> bytes:
    """Return where the subscriptions stand, everything said so far having been sent."""
    places: JsonObject = {}
    room = _STREAM_BYTES
    for sub, subscription in follower.subscriptions.items():
        is_feed = not isinstance(subscription.target, RunTarget)
        place = places[sub] = _place_of_feed(subscription) if is_feed else {}
        if not is_feed:
            place |= _place_of_run(follower, subscription)
        if subscription.streams and room > 0:
            room = _add_streams(place, follower, subscription, room)
    return base64.urlsafe_b64encode(orjson.dumps(places))


def _place_of_feed(subscription: Subscription) -> JsonObject:
    cursor = subscription.cursor_sent or subscription.resumed_from
    if cursor:
        return {"cursor": cursor}
    return {"begun": True} if subscription.stage is Stage.LIVE else {}


def _place_of_run(follower: Follower, subscription: Subscription) -> JsonObject:
    reader = _reader_of(follower, subscription)
    place: JsonObject = {}
    if subscription.positions is not None or (
        reader is not None and reader.streams.is_listed(subscription.sub)
    ):
        place["listed"] = True
    if reader is not None and reader.written and subscription.stage is Stage.LIVE:
        place["cursor"] = run_cursor(follower.hub.epoch, reader.written)
    elif subscription.resumed_from:
        place["cursor"] = subscription.resumed_from
    return place


def _reader_of(follower: Follower, subscription: Subscription) -> RunReader | None:
    target = subscription.target
    return follower.readers.get(target.run_id) if isinstance(target, RunTarget) else None


def _add_streams(
    place: JsonObject, follower: Follower, subscription: Subscription, room: int
) -> int:
    """Add the positions in streams, as many as there is room for. Return what is left of it."""
    streams: dict[str, dict[str, int]] = {}
    for run_id, key, next_seq in _streams_of(follower, subscription):
        # Characters beyond ASCII and escapes take more than one byte.
        room -= len(orjson.dumps(key)) + 20 + (0 if run_id in streams else len(run_id) + 6)
        if room <= 0:
            return _put_streams(place, streams, 0)
        streams.setdefault(run_id, {})[key] = next_seq
    return _put_streams(place, streams, room)


def _streams_of(follower: Follower, subscription: Subscription) -> Iterator[tuple[str, str, int]]:
    """Yield where a subscription stands in its streams.

    Those that may go on come first: one that is over is repeated at worst.
    """
    reader = _reader_of(follower, subscription)
    known: set[tuple[str, str]] = set()
    over: list[tuple[str, str, int]] = []
    for each in list(follower.readers.values()) if reader is None else [reader]:
        if subscription.sub not in each.subscriptions:
            continue
        run_id = each.topic.run_id
        for key, (next_seq, is_over) in each.streams.positions(subscription.sub).items():
            known.add((run_id, key))
            if is_over:
                over.append((run_id, key, next_seq))
            else:
                yield run_id, key, next_seq
    if not subscription.cursor_sent and subscription.broken is None:
        for run_id, keys in (subscription.positions or {}).items():
            for key, next_seq in keys.items():
                if (run_id, key) not in known:
                    yield run_id, key, next_seq
    yield from over


def _put_streams(place: JsonObject, streams: dict[str, dict[str, int]], room: int) -> int:
    if streams:
        place["streams"] = streams
    return room


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
    positions = _positions(known.get("streams")) if request.streams else {}
    # Before its first cursor a feed begins again, though not in the streams it knows; so does a run
    # before it was told which streams there are.
    if request.to.run is None:
        has_begun = "cursor" in changes or known.get("begun") is True
    else:
        has_begun = known.get("listed") is True
    if has_begun or positions:
        changes["positions"] = positions
    return request.model_copy(update=changes)


def _positions(said: Json) -> dict[str, dict[str, int]]:
    """Return the positions that an id holds; what is none is left out."""
    if not isinstance(said, dict):
        return {}
    runs = cast(JsonObject, said)
    return {
        run_id: {
            key: next_seq
            for key, next_seq in cast(JsonObject, streams).items()
            if isinstance(next_seq, int) and 0 <= next_seq < 2**53
        }
        for run_id, streams in runs.items()
        if isinstance(streams, dict)
    }


def _read(last_event_id: str | None) -> JsonObject:
    if not last_event_id or len(last_event_id) > _MAX_BYTES:
        return {}
    try:
        places: Json = orjson.loads(base64.urlsafe_b64decode(last_event_id.encode()))
    except (binascii.Error, ValueError):
        return {}
    return cast(JsonObject, places) if isinstance(places, dict) else {}
