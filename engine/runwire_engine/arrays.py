"""Lists as parameters: one literal, built quickly, of a type that the statement says.

Statements take many rows as arrays, one for each column, and cast each (`%(ids)s::text[]`). psycopg
walks a list three times in Python, looking at each element for a type it need not know here, and
prepares a statement anew for each combination of types it finds: a list of None, of small numbers.
"""

from datetime import date
from typing import Any, cast

from psycopg import DataError, adapters
from psycopg.adapt import AdaptersMap, Dumper


class ArrayDumper(Dumper):
    """Dumps a list of str, numbers, bool, dates, times or None, and lists of those."""

    def dump(self, obj: Any) -> bytes:
        return dumped(_array(obj))


def parameter(value: object) -> bytes | None:
    """Return a value as a parameter of a statement that says its type."""
    match value:
        case None:
            return None
        case bool():
            return b"t" if value else b"f"
        case str():
            return dumped(value)
        case int() | float():
            return repr(value).encode()
        case date():
            return value.isoformat().encode()
        case list():
            return dumped(_array(cast(list[object], value)))
        case _:
            raise TypeError(f"a parameter of {type(value).__name__} is not known here")


def dumped(text: str) -> bytes:
    """Return a text as Postgres takes it. Raises DataError where it cannot hold it."""
    encoded = text.encode()
    if b"\0" in encoded:
        raise DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
    return encoded


def with_arrays() -> AdaptersMap:
    """Return psycopg's adapters with this one for lists."""
    own = AdaptersMap(adapters)
    own.register_dumper(list, ArrayDumper)
    return own


def _array(values: list[object]) -> str:
    kinds = set(map(type, values))
    if kinds == {str}:
        return _strings(cast(list[str], values))
    if kinds <= {int, float, type(None)}:
        return "{" + ",".join(map(_number, values)) + "}"
    return "{" + ",".join(map(_element, values)) + "}"


def _strings(values: list[str]) -> str:
    joined = '","'.join(values)
    if "\\" in joined or joined.count('"') != 2 * (len(values) - 1):
        return "{" + ",".join(map(_quoted, values)) + "}"
    return f'{{"{joined}"}}'


def _number(value: object) -> str:
    return "NULL" if value is None else repr(value)


def _element(value: object) -> str:
    match value:
        case None:
            return "NULL"
        case bool():
            return "t" if value else "f"
        case str():
            return _quoted(value)
        case int() | float():
            return repr(value)
        case date():
            return f'"{value.isoformat()}"'
        case list():
            return _array(cast(list[object], value))
        case _:
            raise TypeError(f"an array of {type(value).__name__} is not known here")


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
