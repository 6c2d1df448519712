"""A line of a run's log as it is stored: always JSON, always bounded, never an error. [core]

A log must not fail the code that writes it. So what cannot be stored is told as well as it can be:
long text is cut, and a value that has no JSON form stands as its `repr`.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias, get_args

import orjson

from runwire.values import encode
from runwire.wire import Json, JsonObject

LogLevel: TypeAlias = Literal["debug", "info", "log", "warn", "error"]

# From the least to the most urgent, as Trigger.dev's logger has them.
LEVELS: Final[tuple[LogLevel, ...]] = get_args(LogLevel)
MAX_MESSAGE: Final = 16 * 1024  # characters
MAX_ATTRIBUTES: Final = 16 * 1024  # bytes of JSON
_MAX_REPR: Final = 500  # characters of a value that has no JSON form


def is_at_least(level: LogLevel, least: LogLevel) -> bool:
    """Say whether a line of one level is wanted where another is the least."""
    return LEVELS.index(level) >= LEVELS.index(least)


def log_line(
    at: datetime,
    level: LogLevel,
    message: object,
    attributes: Mapping[str, object] | None = None,
    logger: str | None = None,
) -> str:
    """Return a line as JSON text."""
    line: JsonObject = {
        "time": at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level,
        "message": _cut(_text(message, str), MAX_MESSAGE),
    }
    if attributes:
        line["attributes"] = orjson.Fragment(_attributes(attributes))
    if logger is not None:
        line["logger"] = _cut(_text(logger, str), 256)
    return orjson.dumps(line).decode()


def _attributes(attributes: Mapping[str, object]) -> str:
    text = _json(dict(attributes))
    if text is None:
        told = {_text(name, str): _told(value) for name, value in attributes.items()}
        text = orjson.dumps(told).decode()
    size = len(text.encode())
    if size <= MAX_ATTRIBUTES:
        return text
    names = [_cut(_text(name, str), 100) for name in list(attributes)[:20]]
    left_out = f"{size} bytes of attributes; at most {MAX_ATTRIBUTES} are stored"
    return orjson.dumps({"$omitted": left_out, "$names": names}).decode()


def _told(value: object) -> Json:
    text = _json(value)
    return _cut(_text(value, repr), _MAX_REPR) if text is None else orjson.Fragment(text)


def _json(value: object) -> str | None:
    try:
        return encode(value, what="attributes")
    except Exception:
        return None


def _text(value: object, spell: Callable[[Any], str]) -> str:
    try:
        text = spell(value)
    except Exception as error:
        text = f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"
    # Postgres holds no NUL, and UTF-8 no lone surrogate.
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit} more characters)"
