"""What a metadata operation does to a document: the one reducer, with a TypeScript twin. [core]

Operations are JSON objects in the form users of Trigger.dev know:

    {"type": "set", "key": k, "value": v}          replace the value
    {"type": "delete", "key": k}                   drop it
    {"type": "update", "value": {…}}               replace the whole document
    {"type": "append", "key": k, "value": v}       push; nothing there: [v]; no list there: [old, v]
    {"type": "remove", "key": k, "value": v}       drop every element equal to v; no list: nothing
    {"type": "increment", "key": k, "value": n}    add n; what is no number counts as 0

A key that starts with "$." is a path: names after dots, indexes in brackets, as in
`$.steps[0].done`. A write makes the objects and lists it needs on its way; an index is of an
element that exists, or the one after the last. Every other key is a name at the top, as it is.

Both twins read tests/wire/metadata.json. Increments and appends of several writers commute, since
each is applied to the stored document under the run's row lock; no operation is ever reordered.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Final, TypeAlias, TypeGuard, cast

from runwire.errors import InvalidValueError
from runwire.wire import Json, JsonObject

Path: TypeAlias = tuple[str | int, ...]

MAX_INTEGER: Final = 2**53  # beyond it JavaScript rounds
MAX_PATH_STEPS: Final = 32

_KEYED: Final = frozenset({"set", "delete", "append", "remove", "increment"})
_VALUED: Final = frozenset({"set", "update", "append", "remove", "increment"})
# In JavaScript these name the prototype, not a member.
_FORBIDDEN: Final = frozenset({"__proto__", "constructor", "prototype"})
_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(0|[1-9][0-9]{0,6})\]")
_MISSING: Final = object()


def apply(document: JsonObject, operations: Sequence[JsonObject]) -> JsonObject:
    """Return the document after the operations, in order; the one given is left as it was.

    The result shares what did not change with the document and the operations. Raises
    InvalidValueError (code "operation", "key", "path" or "number") when one cannot be applied.
    """
    for operation in operations:
        document = _apply_one(document, validate(operation))
    return document


def validate(operation: Mapping[str, Json]) -> JsonObject:
    """Return the operation without what does not belong there. Raises InvalidValueError."""
    kind = operation.get("type")
    if not isinstance(kind, str) or (kind not in _KEYED and kind not in _VALUED):
        raise _refused(f"{str(kind)[:40]!r} is not a metadata operation", "operation")
    checked: JsonObject = {"type": kind}
    if kind in _KEYED:
        checked["key"] = operation.get("key")
        path_of(checked["key"])
    if kind in _VALUED:
        if "value" not in operation:
            raise _refused(f"{kind} needs a value", "operation")
        checked["value"] = operation["value"]
    if kind == "update":
        _check_document(checked["value"])
    if kind == "increment" and not _is_number(checked["value"]):
        raise _refused("increment needs a number that JavaScript can hold", "number")
    return checked


def path_of(key: Json) -> Path:
    """Return the steps to what a key names. Raises InvalidValueError (code "key" or "path")."""
    if not isinstance(key, str) or not key:
        raise _refused("a metadata key is a string of at least one character", "key")
    path = _steps(key) if key.startswith("$.") else (key,)
    for step in path:
        if step in _FORBIDDEN:
            raise _refused(f"{step!r} cannot be a metadata key", "key")
    return path


def collapse(
    operations: Sequence[JsonObject], document: JsonObject | None = None
) -> list[JsonObject]:
    """Return fewer operations with the very same effect, in the same order.

    Only neighbours on one key are joined: a set after a set, an update after an update, and whole
    increments where the number they count from is known (from `document`, the one the operations
    will be applied to, or from a set before), because fractions round differently in another order.
    """
    counted = _Counted(document)
    collapsed: list[JsonObject] = []
    for raw in operations:
        operation = validate(raw)
        joined = _join(collapsed[-1], operation, counted) if collapsed else None
        counted.observe(operation)
        if joined is None:
            collapsed.append(operation)
        else:
            collapsed[-1] = joined
    return collapsed


def equal(left: Json, right: Json) -> bool:
    """Compare two values as JSON: 1 is 1.0, and neither is true."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if _is_object(left) and _is_object(right):
        return left.keys() == right.keys() and all(equal(v, right[k]) for k, v in left.items())
    if _is_list(left) and _is_list(right):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def _apply_one(document: JsonObject, operation: JsonObject) -> JsonObject:
    value: Json = operation.get("value")
    match operation["type"]:
        case "update":
            return cast(JsonObject, value)
        case "set":
            return _write(document, operation, lambda _: value)
        case "append":
            return _write(document, operation, lambda held: _appended(held, value))
        case "increment":
            return _write(document, operation, lambda held: _added(held, value))
        case "remove":
            return cast(JsonObject, _touch(document, path_of(operation["key"]), _Without(value)))
        case _:
            return cast(JsonObject, _drop(document, path_of(operation["key"])))


def _write(
    document: JsonObject, operation: JsonObject, change: Callable[[Json], Json]
) -> JsonObject:
    return cast(JsonObject, _place(document, path_of(operation["key"]), change))


def _place(held: Json, path: Path, change: Callable[[Json], Json]) -> Json:
    """Return `held` with what is at the path changed; what is missing on the way is made."""
    if not path:
        return change(held)
    step, rest = path[0], path[1:]
    if isinstance(step, str):
        members = _members(held, step)
        return {**members, step: _place(members.get(step, _MISSING), rest, change)}
    elements = _elements(held, step)
    there = elements[step] if step < len(elements) else _MISSING
    return [*elements[:step], _place(there, rest, change), *elements[step + 1 :]]


def _members(held: Json, step: str) -> JsonObject:
    if held is _MISSING:
        return {}
    if not _is_object(held):
        raise _refused(f"there is no object to hold {step!r}", "path")
    return held


def _elements(held: Json, step: int) -> list[Json]:
    elements: Json = [] if held is _MISSING else held
    if not _is_list(elements):
        raise _refused(f"there is no list to hold [{step}]", "path")
    if step > len(elements):
        raise _refused(f"[{step}] is beyond the end of a list of {len(elements)}", "path")
    return elements


def _touch(held: Json, path: Path, change: Callable[[Json], Json]) -> Json:
    """Return `held` with what is at the path changed; where nothing is, nothing changes."""
    if not path:
        return change(held)
    step, rest = path[0], path[1:]
    if isinstance(step, str) and _is_object(held) and step in held:
        return {**held, step: _touch(held[step], rest, change)}
    if isinstance(step, int) and _is_list(held) and step < len(held):
        return [*held[:step], _touch(held[step], rest, change), *held[step + 1 :]]
    return cast(Json, held)


def _drop(held: Json, path: Path) -> Json:
    """Return `held` without what is at the path."""
    last = path[-1]

    def without(parent: Json) -> Json:
        if isinstance(last, str) and _is_object(parent):
            return {k: v for k, v in parent.items() if k != last}
        if isinstance(last, int) and _is_list(parent):
            return [v for at, v in enumerate(parent) if at != last]
        return parent

    return _touch(held, path[:-1], without)


class _Without:
    """Drops every element that equals a value; leaves what is no list."""

    def __init__(self, value: Json) -> None:
        self._value = value

    def __call__(self, held: Json) -> Json:
        if not _is_list(held):
            return held
        return [each for each in held if not equal(each, self._value)]


def _appended(held: Json, value: Json) -> Json:
    if held is _MISSING:
        return [value]
    return [*held, value] if _is_list(held) else [held, value]


def _added(held: Json, amount: float) -> float:
    start = held if _is_number(held) else 0
    if isinstance(start, int) and isinstance(amount, int) and abs(start + amount) <= MAX_INTEGER:
        return start + amount
    # As JavaScript adds, so that both twins end at the same number.
    total = float(start) + float(amount)
    if not isfinite(total):
        raise _refused("the sum is beyond what JSON can hold", "number")
    return total


class _Counted:
    """The whole numbers that top-level keys are known to count from."""

    def __init__(self, document: JsonObject | None) -> None:
        self._document = document
        self._known: dict[str, Json] = {}

    def at(self, path: Path) -> int | None:
        """Return the whole number an increment at the path starts from, if that is known."""
        name = path[0]
        if len(path) > 1 or not isinstance(name, str):
            return None
        if name in self._known:
            return _start(self._known[name])
        return None if self._document is None else _start(self._document.get(name))

    def observe(self, operation: JsonObject) -> None:
        """Take note of what an operation makes known, or unknown."""
        if operation["type"] == "update":
            self._document, self._known = operation["value"], {}
            return
        path = path_of(operation["key"])
        value: Json = operation.get("value")
        match operation["type"] if len(path) == 1 else "deep":
            case "set":
                self._known[str(path[0])] = value
            case "increment":
                self._known[str(path[0])] = _sum_of(self.at(path), value)
            case "remove":
                pass  # a list counts as 0 with or without the element, and nothing else changes
            case "delete" | "append":
                self._known[str(path[0])] = None  # nothing, or a list: counts as 0
            case _:
                self._known[str(path[0])] = _UNKNOWN


# A fraction: an increment from here cannot be joined with another.
_UNKNOWN: Final = 0.5


def _start(held: Json) -> int | None:
    if not _is_number(held):
        return 0
    return held if isinstance(held, int) else None


def _sum_of(start: int | None, amount: Json) -> Json:
    if start is None or not isinstance(amount, int) or abs(start + amount) > MAX_INTEGER:
        return _UNKNOWN
    return start + amount


def _join(last: JsonObject, operation: JsonObject, counted: _Counted) -> JsonObject | None:
    """Return one operation that does what two neighbours do, if there is one."""
    kind = operation["type"]
    if last["type"] != kind:
        return None
    if kind == "update":
        return operation
    path = path_of(operation["key"])
    if kind not in ("set", "increment") or path_of(last["key"]) != path:
        return None
    if kind == "set":
        return {**last, "value": operation["value"]}
    # What is counted here already holds the neighbour's amount.
    after = _sum_of(counted.at(path), operation["value"])
    total: Json = last["value"] + operation["value"]
    whole = isinstance(after, int) and isinstance(last["value"], int)
    return {**last, "value": total} if whole and abs(total) <= MAX_INTEGER else None


def _steps(key: str) -> Path:
    steps: list[str | int] = []
    at = 1
    while at < len(key):
        step = _STEP.match(key, at)
        if step is None or len(steps) == MAX_PATH_STEPS:
            raise _refused(f"{key[:80]!r} is not a path like $.steps[0].done", "path")
        name, index = step.groups()
        steps.append(name if name is not None else int(index))
        at = step.end()
    if not steps:
        raise _refused(f"{key[:80]!r} is not a path like $.steps[0].done", "path")
    return tuple(steps)


def _check_document(value: Json) -> None:
    if not _is_object(value):
        raise _refused("metadata is an object; update needs one", "operation")
    for name in value:
        if name in _FORBIDDEN or not name:
            raise _refused(f"{name!r} cannot be a metadata key", "key")


def _is_object(value: Json) -> TypeGuard[JsonObject]:
    return isinstance(value, dict)


def _is_list(value: Json) -> TypeGuard[list[Json]]:
    return isinstance(value, list)


def _is_number(value: Json) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= MAX_INTEGER if isinstance(value, int) else isfinite(value)


def _refused(message: str, code: str) -> InvalidValueError:
    return InvalidValueError(message, code=code)
