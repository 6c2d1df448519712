"""From a client's `subscribe` to what the hub follows: everything in it checked. [core]"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from runwire.durations import seconds
from runwire.errors import InvalidValueError
from runwire.wire import ErrorCode, Subscribe
from runwire_realtime.cursors import Cursor, FeedCursor, RunCursor, parse_cursor
from runwire_realtime.errors import ForbiddenError, RefusedError
from runwire_realtime.scope import Grant
from runwire_realtime.subscription import (
    BatchTarget,
    RunsTarget,
    RunTarget,
    Subscription,
    TagsTarget,
    Target,
)

# How far a tag feed looks back unless it says otherwise.
_TAGS_SECONDS: Final = 24 * 60 * 60.0
_MAX_SECONDS: Final = 366 * 24 * 60 * 60.0
_MAX_NAMES: Final = 64
_MAX_ID: Final = 128


def subscription_of(message: Subscribe, grant: Grant, now: float) -> Subscription:
    """Return the subscription that a message asks for. Raises RefusedError."""
    target = _target(message)
    _allow(grant, target)
    streams = message.streams or {}
    _check_names(streams, "stream key")
    if not may_read_streams(grant, streams):
        raise ForbiddenError("the token does not allow reading this stream")
    fields = message.fields
    if fields is not None:
        _check_names(fields, "field")
    return Subscription(
        sub=message.sub,
        target=target,
        mode=message.mode,
        fields=None if fields is None else frozenset(fields),
        streams=streams,
        cursor=_cursor(message.cursor, target),
        resumed_from=message.cursor or "",
        positions=message.positions,
        holds_nothing=message.whole,
        awaited_until=now + message.wait if message.wait else None,
    )


def _target(message: Subscribe) -> Target:
    to = message.to
    given = [name for name in ("run", "tags", "batch", "runs") if getattr(to, name) is not None]
    if len(given) != 1:
        raise _malformed("`to` names exactly one of run, tags, batch, runs")
    if to.run is not None:
        return RunTarget(_id(to.run))
    if to.batch is not None:
        return BatchTarget(_id(to.batch))
    if to.tags is not None:
        _check_names(to.tags, "tag")
        since = _TAGS_SECONDS if to.created_at is None else _since(to.created_at)
        return TagsTarget(tuple(dict.fromkeys(to.tags)), since)
    assert to.runs is not None
    for names in (to.runs.task, to.runs.status):
        _check_names(names or (), "name")
    return RunsTarget(
        None if to.runs.task is None else frozenset(to.runs.task),
        None if to.runs.status is None else frozenset(to.runs.status),
        None if to.runs.created_at is None else _since(to.runs.created_at),
    )


def _allow(grant: Grant, target: Target) -> None:
    if not may_follow(grant, target):
        raise ForbiddenError("the token does not allow following this")


def may_follow(grant: Grant, target: Target) -> bool:
    """Say whether a credential may follow a feed; a run's row decides that of the run."""
    match target:
        case RunTarget():
            return True
        case TagsTarget(tags):
            return grant.may_read_tag_feed(tags)
        case BatchTarget(batch_id):
            return grant.may_read_batch(batch_id)
        case RunsTarget(tasks):
            is_covered = bool(tasks) and all(map(grant.may_read_task, tasks or ()))
            return grant.may_read_runs() or is_covered


def may_read_streams(grant: Grant, keys: Iterable[str]) -> bool:
    """Say whether a credential may read all streams that are asked for by name."""
    return all(key == "*" or grant.may_read_stream(key) for key in keys)


def _since(given: str | float) -> datetime | float:
    """Return a time, or how many seconds ago."""
    if isinstance(given, str) and len(given) > _MAX_ID:
        raise _malformed("createdAt is not a time or a duration")
    try:
        ago = seconds(given)
    except InvalidValueError:
        return _time(str(given))
    if not 0 <= ago <= _MAX_SECONDS:
        raise _malformed("createdAt is between now and a year ago")
    return ago


def _time(given: str) -> datetime:
    try:
        at = datetime.fromisoformat(given)
    except ValueError:
        raise _malformed("createdAt is not a time or a duration") from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _cursor(given: str | None, target: Target) -> Cursor | None:
    if given is None:
        return None
    cursor = parse_cursor(given)
    fits = RunCursor if isinstance(target, RunTarget) else FeedCursor
    if not isinstance(cursor, fits):
        raise _malformed("the cursor is not one of this kind of subscription")
    return cursor


def _check_names(names: Iterable[str], what: str) -> None:
    for count, name in enumerate(names):
        if count >= _MAX_NAMES:
            raise _malformed(f"more than {_MAX_NAMES} times a {what}")
        if not 1 <= len(name) <= _MAX_ID or "\x00" in name:
            raise _malformed(f"a {what} has 1 to {_MAX_ID} characters, none of them NUL")


def _id(text: str) -> str:
    if not text or len(text) > _MAX_ID or not text.isprintable():
        raise RefusedError(ErrorCode.NOT_FOUND, "there is nothing by that id")
    return text


def _malformed(message: str) -> RefusedError:
    return RefusedError(ErrorCode.MALFORMED, message)
