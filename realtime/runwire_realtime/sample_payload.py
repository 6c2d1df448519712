"""A payload that a task takes, made of the JSON schema it announced: for a line to try. [core]"""

from collections.abc import Mapping, Sequence
from typing import Final, cast

import orjson

from runwire.wire import Json, JsonObject

# A schema may contain itself; what a person is to paste ends long before.
_DEEPEST: Final = 6
_TEXTS: Final = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1M",
    "email": "me@example.com",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uri": "https://example.com",
    "uuid": "01234567-89ab-4def-8123-456789abcdef",
}


def sample_payload(schema: JsonObject) -> str:
    """Return JSON that fits a schema: the required fields by their types, defaults left out."""
    definitions = cast(Mapping[str, JsonObject], schema.get("$defs", {}))
    return orjson.dumps(_sample(schema, definitions, _DEEPEST)).decode()


def _sample(schema: JsonObject, definitions: Mapping[str, JsonObject], depth: int) -> Json:
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return _sample(definitions.get(name, {}), definitions, depth - 1)
    for known in ("default", "const"):
        if known in schema:
            return schema[known]
    for choice in ("examples", "enum"):
        if schema.get(choice):
            return schema[choice][0]
    for choice in ("anyOf", "oneOf", "allOf"):
        if schema.get(choice):
            return _sample(_simplest(schema[choice]), definitions, depth)
    return _of_type(schema, definitions, depth)


def _simplest(choices: Sequence[JsonObject]) -> JsonObject:
    return next((each for each in choices if each.get("type") == "null"), choices[0])


def _of_type(schema: JsonObject, definitions: Mapping[str, JsonObject], depth: int) -> Json:
    match schema.get("type", "object"):
        case "object" if depth > 0:
            fields = cast(Mapping[str, JsonObject], schema.get("properties", {}))
            required = cast(Sequence[str], schema.get("required", ()))
            return {
                name: _sample(fields.get(name, {}), definitions, depth - 1) for name in required
            }
        case "array" if depth > 0:
            places = cast(Sequence[JsonObject], schema.get("prefixItems", ()))
            least = int(schema.get("minItems", 0))
            items = [*places, *[cast(JsonObject, schema.get("items", {}))] * least]
            return [
                _sample(item, definitions, depth - 1) for item in items[: max(least, len(places))]
            ]
        case "string":
            return _text(schema)
        case "integer" | "number" as kind:
            return _number(schema, 1 if kind == "integer" else 0.5)
        case "boolean":
            return False
        case "array":
            return []
        case "null":
            return None
        case _:
            return {}


def _text(schema: JsonObject) -> str:
    if schema.get("format") in _TEXTS:
        return _TEXTS[schema["format"]]
    text = str(schema.get("title") or "text").lower()
    return text.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]


def _number(schema: JsonObject, step: float) -> float:
    """Return the plainest number within the bounds."""
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    least, most = schema.get("minimum"), schema.get("maximum")
    candidates: list[float | None] = [
        least,
        1,
        0,
        most,
        None if above is None else above + step,
        None if below is None else below - step,
        None if above is None or below is None else (above + below) / 2,
    ]
    for number in candidates:
        if (
            number is not None
            and (least is None or number >= least)
            and (most is None or number <= most)
            and (above is None or number > above)
            and (below is None or number < below)
        ):
            return number
    return 0
