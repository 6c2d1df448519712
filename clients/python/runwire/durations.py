"""Durations as users write them: seconds, timedelta, or text like "1h30m"."""

import re
from datetime import timedelta
from typing import TypeAlias

from runwire.errors import InvalidValueError

Duration: TypeAlias = int | float | str | timedelta

_UNITS = {"w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_WORDS = {
    "hr": "h",
    "hour": "h",
    "min": "m",
    "minute": "m",
    "sec": "s",
    "second": "s",
    "day": "d",
    "week": "w",
}
_PART = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([a-z]{1,8})")


def seconds(duration: Duration) -> float:
    """Return a duration in seconds. Raises InvalidValueError for text that is not one."""
    match duration:
        case timedelta():
            return duration.total_seconds()
        case bool():
            raise _refused(duration)
        case int() | float():
            return float(duration)
        case str():
            return _parse(duration)


def _parse(text: str) -> float:
    rest = text.strip().lower()
    total = 0.0
    while rest:
        part = _PART.match(rest)
        if part is None:
            raise _refused(text)
        total += float(part[1]) * _unit(part[2], text)
        rest = rest[part.end() :].lstrip()
    if not text.strip():
        raise _refused(text)
    return total


def _unit(word: str, text: str) -> float:
    short = _WORDS.get(word, _WORDS.get(word.removesuffix("s"), word))
    if short not in _UNITS:
        raise _refused(text)
    return _UNITS[short]


def _refused(value: object) -> InvalidValueError:
    return InvalidValueError(
        f'{value!r} is not a duration: give seconds, a timedelta, or text like "1h30m" or "90s"',
        code="duration",
    )
