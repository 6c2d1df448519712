"""From a trigger's options to the run they ask for: everything checked and normalised here.

The one mapping for both doors: HTTP, where anybody may have written the options, and `trigger`
inside an executing run.
"""

import re
from datetime import UTC, datetime
from typing import Final, NoReturn

from runwire.durations import seconds
from runwire.errors import InvalidValueError
from runwire.requests import MAX_TAGS, QueueOption, TriggerOptions
from runwire.values import MAX_METADATA_BYTES, MAX_PAYLOAD_BYTES, check_text, decode, encode
from runwire_engine.debouncing import Debounce
from runwire_engine.wanted_runs import DEFAULT_IDEMPOTENCY_TTL, NewRun, Parent

PAYLOAD_TYPES: Final = ("application/json", "application/super+json", "text/plain")
# A year: longer is a mistake in the unit, and beyond some centuries Postgres has no time for it.
LONGEST_SPAN: Final = 366 * 86_400.0
_LARGEST_PRIORITY: Final = 1e9
_ISO_TIME = re.compile(r"\d{4}-\d{2}-\d{2}([T ].{1,40})?")
_TASK = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,128}")

_NOT_BUILT: Final = {
    "machine": "machine presets are not offered: a worker runs with what its host has",
    "region": "regions are not offered: a worker runs where you start it",
    "lock_to_version": "lockToVersion is not offered yet: runs start on any worker of the task",
}


def new_run(
    task: str,
    payload: str | None,
    options: TriggerOptions,
    *,
    request_key: str | None = None,
    one_time: tuple[str, datetime] | None = None,
    parent: Parent | None = None,
    batch: tuple[str, int] | None = None,
) -> NewRun:
    """Return the run a trigger asks for, with a payload that was checked where it came in.

    Raises InvalidValueError, naming the option, for what cannot be.
    """
    _refuse_unbuilt(options)
    queue, limit = _queue(options.queue)
    delay = None if options.delay is None else delay_of(options.delay)
    return NewRun(
        task=_task(task),
        payload=payload,
        payload_type=options.payload_type,
        queue=queue,
        concurrency_limit=limit,
        concurrency_key=_plain(options.concurrency_key or "", "concurrencyKey"),
        tags=tags_of(options.tags),
        metadata=_metadata(options),
        delay_until=delay if isinstance(delay, datetime) else None,
        delay=None if isinstance(delay, datetime) else delay,
        debounce=None if options.debounce is None else _debounce(options),
        ttl=_span(options.ttl, "ttl"),
        max_attempts=options.max_attempts,
        max_duration=_span(options.max_duration, "maxDuration"),
        priority=_priority(options.priority),
        idempotency_key=_idempotency_key(options.idempotency_key),
        idempotency_ttl=_span(options.idempotency_key_ttl, "idempotencyKeyTTL")
        or DEFAULT_IDEMPOTENCY_TTL,
        request_key=request_key,
        one_time_jti=one_time,
        parent=parent,
        batch=batch,
        is_test=options.test,
    )


def check_payload(payload: str | None, kind: str) -> str | None:
    """Return a payload that can be stored as what `kind` says it is. Raises InvalidValueError."""
    if kind == "application/store":
        _refuse("application/store is not offered: send the payload inline, up to 3 MB")
    if kind not in PAYLOAD_TYPES:
        _refuse(f"payloadType must be one of {', '.join(PAYLOAD_TYPES)}")
    if payload is None:
        return None
    if kind == "text/plain":
        encode(payload, what="payload", limit=MAX_PAYLOAD_BYTES)
        return payload
    check_text(payload, what="payload", limit=MAX_PAYLOAD_BYTES)
    if kind == "application/super+json" and not _is_super_json(payload):
        _refuse("a payload of application/super+json is an object with the member json")
    return payload


def tags_of(tags: str | list[str] | None) -> tuple[str, ...]:
    """Return tags without repetitions, in the order they came."""
    listed = [tags] if isinstance(tags, str) else list(tags or [])
    unique = tuple(dict.fromkeys(_plain(tag, "tags") for tag in listed))
    if len(unique) > MAX_TAGS:
        _refuse(f"a run has at most {MAX_TAGS} tags, not {len(unique)}")
    return unique


def delay_of(delay: str | float) -> datetime | float:
    """Return the time until which a run waits, or how many seconds. Raises InvalidValueError."""
    if isinstance(delay, str) and _ISO_TIME.fullmatch(delay):
        until = parse_time(delay, "delay")
        if until.year > datetime.now(UTC).year + 1:
            _refuse("delay: a run can be delayed by at most a year")
        return until
    return _seconds(delay, "delay", zero=True)


def parse_time(text: str, what: str) -> datetime:
    """Return an ISO 8601 time, in UTC unless it says otherwise."""
    try:
        time = datetime.fromisoformat(text)
        aware = time if time.tzinfo else time.replace(tzinfo=UTC)
        return aware.astimezone(UTC)
    except (ValueError, OverflowError):
        _refuse(f"{what}: {text[:40]!r} is not an ISO 8601 time")


def _refuse_unbuilt(options: TriggerOptions) -> None:
    for name, sentence in _NOT_BUILT.items():
        if getattr(options, name) is not None:
            _refuse(sentence)


def _task(task: str) -> str:
    if _TASK.fullmatch(task) is None:
        _refuse("a task id has 1 to 128 characters, none of them a control character")
    return task


def _is_super_json(payload: str) -> bool:
    value = decode(payload)
    return isinstance(value, dict) and "json" in value


def _queue(queue: QueueOption | str | None) -> tuple[str | None, int | None]:
    match queue:
        case None:
            return None, None
        case str():
            return _plain(queue, "queue", least=1), None
        case QueueOption():
            return _plain(queue.name, "queue.name", least=1), queue.concurrency_limit


def _debounce(options: TriggerOptions) -> Debounce:
    given = options.debounce
    assert given is not None
    if options.delay is not None:
        _refuse("give delay or debounce.delay, not both")
    delay = _seconds(given.delay, "debounce.delay")
    longest = _span(given.max_delay, "debounce.maxDelay")
    if longest is not None and longest <= delay:
        _refuse("debounce.maxDelay must be more than debounce.delay")
    return Debounce(
        key=_plain(given.key, "debounce.key", least=1, longest=512),
        delay=delay,
        is_trailing=given.mode == "trailing",
        max_delay=longest,
    )


def _span(value: str | float | None, what: str) -> float | None:
    return None if value is None else _seconds(value, what)


def _seconds(value: str | float, what: str, *, zero: bool = False) -> float:
    try:
        # Official clients send a bare number of seconds as text, too.
        span = float(value) if _is_number(value) else seconds(value)
    except InvalidValueError as error:
        raise InvalidValueError(f"{what}: {error}", code=error.code) from None
    if not 0 <= span <= LONGEST_SPAN or (span == 0 and not zero):
        _refuse(f"{what} must be more than nothing and at most 366 days")
    return span


def _is_number(value: str | float) -> bool:
    return not isinstance(value, str) or re.fullmatch(r"\d{1,12}(\.\d{1,6})?", value) is not None


def _priority(priority: float | None) -> float:
    if priority is None:
        return 0.0
    if not -_LARGEST_PRIORITY <= priority <= _LARGEST_PRIORITY:
        _refuse("priority is a number of seconds between -1e9 and 1e9")
    return float(priority)


def _idempotency_key(key: str | None) -> str | None:
    return None if key is None else _plain(key, "idempotencyKey", longest=2048)


def _metadata(options: TriggerOptions) -> str | None:
    if options.metadata is None:
        return None
    return encode(options.metadata, what="metadata", limit=MAX_METADATA_BYTES)


def _plain(text: str, what: str, *, least: int = 0, longest: int = 128) -> str:
    if not least <= len(text) <= longest:
        _refuse(f"{what} must have {least} to {longest} characters")
    if any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in text):
        _refuse(f"{what} holds a control character")
    return text


def _refuse(message: str) -> NoReturn:
    raise InvalidValueError(message, code="option")
