"""JSON values as Runwire stores them: checked once at the edge, kept as text from there on.

What is refused, and why: NaN and infinities (not JSON), NUL and lone surrogates (Postgres and
browsers cannot hold them), nesting over MAX_DEPTH (parsers recurse), integers beyond 2**53
(JavaScript would round them silently; send them as strings).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import orjson
from pydantic import BaseModel

from runwire.errors import InvalidValueError
from runwire.wire import Json

MAX_DEPTH = 64
MAX_INTEGER = 2**53
MAX_PAYLOAD_BYTES = 3 * 1024 * 1024
MAX_OUTPUT_BYTES = 10 * 1024 * 1024
MAX_METADATA_BYTES = 256 * 1024


_NUL = "\x00"


def encode(value: object, *, what: str = "value", limit: int | None = None) -> str:
    """Return value as JSON text; pydantic models and dataclasses are encoded by their fields.

    Raises InvalidValueError, naming `what` and the place in it, when the value has no JSON form.
    """
    plain = _plain(value, what, 0)
    text = orjson.dumps(plain, option=orjson.OPT_NON_STR_KEYS).decode()
    return _within(text, what, limit)


def decode(text: str | bytes, *, what: str = "value") -> Json:
    """Return the value of JSON text that came from outside, checked as `encode` would."""
    try:
        value = orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError) as error:
        raise InvalidValueError(f"{what} is not valid JSON: {error}", code="not_json") from None
    _plain(value, what, 0)
    return value


def check_text(text: str, *, what: str = "value", limit: int | None = None) -> str:
    """Return text unchanged when it is JSON that `encode` could have produced."""
    decode(text, what=what)
    return _within(text, what, limit)


def _within(text: str, what: str, limit: int | None) -> str:
    size = len(text.encode())
    if limit is not None and size > limit:
        raise InvalidValueError(
            f"{what} is {size} bytes as JSON; at most {limit} are stored", code="too_large"
        )
    return text


def _plain(value: Any, where: str, depth: int) -> Json:
    if depth > MAX_DEPTH:
        raise InvalidValueError(
            f"{where} is nested deeper than {MAX_DEPTH} levels", code="too_deep"
        )
    match value:
        case None | bool():
            return value
        case str():
            return _text(value, where)
        case int():
            return _integer(value, where)
        case float():
            return _number(value, where)
        case dict():
            items = cast(dict[object, object], value)
            return {
                _text(_key(key, where), where): _plain(item, f"{where}.{key}", depth + 1)
                for key, item in items.items()
            }
        case list() | tuple():
            members = cast(Sequence[object], value)
            return [_plain(item, f"{where}[{at}]", depth + 1) for at, item in enumerate(members)]
        case _:
            return _plain(_foreign(value, where), where, depth)


def _foreign(value: Any, where: str) -> Json:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, (set, frozenset)):
        return list(cast(set[object], value))
    try:
        # datetime, date, time, UUID, enums: what orjson writes by itself.
        return orjson.loads(orjson.dumps(value))
    except (TypeError, orjson.JSONEncodeError):
        raise InvalidValueError(
            f"{where} is a {type(value).__name__}, which has no JSON form; return plain values, "
            "a dataclass or a pydantic model",
            code="not_json",
        ) from None


def _key(key: object, where: str) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, (int, float, bool)) or key is None:
        return orjson.dumps(key).decode()
    raise InvalidValueError(f"{where} has a key that is not a string: {key!r}", code="not_json")


def _text(value: str, where: str) -> str:
    if _NUL in value:
        raise InvalidValueError(
            f"{where} holds a NUL character, which cannot be stored", code="nul"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidValueError(
            f"{where} holds a lone surrogate, which is not valid Unicode", code="surrogate"
        ) from None
    return value


def _integer(value: int, where: str) -> int:
    if not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise InvalidValueError(
            f"{where} is {str(value)[:40]}, beyond 2**53, where JavaScript rounds; send a string",
            code="integer",
        )
    return value


def _number(value: float, where: str) -> float:
    if value != value or value in (float("inf"), float("-inf")):
        raise InvalidValueError(f"{where} is {value}, which JSON cannot hold", code="not_finite")
    return value
