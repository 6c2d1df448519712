"""The options of a trigger, as users write them, and as they travel."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Required, TypedDict, cast

import orjson
from pydantic import ValidationError

from runwire import idempotency_keys
from runwire._task_options import QueueOptions
from runwire.durations import Duration, seconds
from runwire.errors import InvalidValueError
from runwire.requests import MAX_TAGS, DebounceOption, QueueOption, TriggerOptions
from runwire.values import MAX_METADATA_BYTES, encode
from runwire.wire import JsonObject


class QueueChoice(TypedDict, total=False):
    name: str
    concurrency_limit: int | None


class DebounceKeywords(TypedDict, total=False):
    """One run for all triggers of a key that come while it waits `delay` after the last of them."""

    key: Required[str]
    delay: Required[Duration]
    # Whose payload and options the run has: the first trigger's (leading), or the last one's.
    mode: Literal["leading", "trailing"]
    # A trigger that would have the run wait longer than this, in all, makes the next run.
    max_delay: Duration


class TriggerKeywords(TypedDict, total=False):
    """The keyword options of every trigger. Durations are seconds, timedelta or text ("1h30m")."""

    tags: str | Sequence[str]
    metadata: Mapping[str, object]
    # Wait before the run is queued: a duration, or the time when it becomes due.
    delay: Duration | datetime
    debounce: DebounceKeywords
    # How long it may wait to start, once it is due, before it expires.
    ttl: Duration
    # The same key of the same task leads to the same run; plain text counts within the run.
    idempotency_key: str | Sequence[str]
    # How long the key is good: 30 days unless told otherwise.
    idempotency_key_ttl: Duration
    queue: str | QueueOptions | QueueChoice
    # One copy of the queue, with its own concurrency limit, for each value.
    concurrency_key: str
    max_attempts: int
    max_duration: Duration
    # Seconds by which the run moves forward in its queue.
    priority: float
    test: bool


def trigger_options(given: TriggerKeywords) -> TriggerOptions:
    """Return the options as they travel.

    Raises TypeError for a name that is no option, InvalidValueError for a value that cannot be one.
    """
    unknown = sorted(set(given) - set(TriggerKeywords.__annotations__))
    if unknown:
        raise TypeError(f"trigger has no option {', '.join(unknown)}")
    if given.get("idempotency_key_ttl") is not None and given.get("idempotency_key") is None:
        raise InvalidValueError("idempotency_key_ttl needs an idempotency_key", code="option")
    try:
        values: dict[str, Any] = {
            name: _VALUE[name](value) if name in _VALUE else value
            for name, value in given.items()
            if value is not None
        }
        return TriggerOptions(**values)
    except ValidationError as error:
        raise InvalidValueError(f"a trigger option is wrong: {error}", code="option") from error


def _tags(value: object) -> list[str]:
    tags = [value] if isinstance(value, str) else list(cast(Sequence[str], value))
    if len(tags) > MAX_TAGS:
        raise InvalidValueError(f"a run has at most {MAX_TAGS} tags", code="tags")
    return tags


def _metadata(value: object) -> JsonObject:
    text = encode(value, what="metadata", limit=MAX_METADATA_BYTES)
    document = orjson.loads(text)
    if not isinstance(document, dict):
        raise InvalidValueError("metadata is a JSON object", code="metadata")
    return cast(JsonObject, document)


def travelling_delay(value: object) -> str | float:
    """Return a delay as it travels: seconds, or an ISO 8601 time."""
    if isinstance(value, datetime):
        return value.astimezone().isoformat()
    if isinstance(value, str) and _is_time(value):
        return value
    return seconds(cast(Duration, value))


def _is_time(text: str) -> bool:
    try:
        return bool(datetime.fromisoformat(text))
    except ValueError:
        return False


def _queue(value: object) -> QueueOption | str:
    if isinstance(value, str):
        return value
    if isinstance(value, QueueOptions):
        return QueueOption(name=value.name, concurrency_limit=value.concurrency_limit)
    given = cast(Mapping[str, Any], value)
    unknown = sorted(set(given) - {"name", "concurrency_limit"})
    if unknown:
        raise TypeError(f"queue has no option {', '.join(unknown)}")
    return QueueOption(**given)


def _debounce(value: object) -> DebounceOption:
    given = dict(cast(Mapping[str, Any], value))
    unknown = sorted(set(given) - set(DebounceKeywords.__annotations__))
    if unknown:
        raise TypeError(f"debounce has no option {', '.join(unknown)}")
    for name in ("delay", "max_delay"):
        if given.get(name) is not None:
            given[name] = seconds(given[name])
    return DebounceOption(**given)


def _seconds(value: object) -> float:
    return seconds(cast(Duration, value))


def _hashed(value: object) -> str:
    return idempotency_keys.create(cast(str | Sequence[str], value))


_VALUE = {
    "tags": _tags,
    "metadata": _metadata,
    "delay": travelling_delay,
    "debounce": _debounce,
    "ttl": _seconds,
    "idempotency_key": _hashed,
    "idempotency_key_ttl": _seconds,
    "queue": _queue,
    "max_duration": _seconds,
}
