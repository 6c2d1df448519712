"""Named SQL statements, read from the .sql files beside this module.

A file holds blocks of `-- name --`, a sentence as a comment, and the statement. A statement is
called by "<file>.<name>". Nothing builds SQL from strings.
"""

import re
from functools import cache
from importlib.resources import files
from typing import LiteralString, cast

_NAME = re.compile(r"^-- ([a-z_0-9]+) --$", re.MULTILINE)
_PARAMETER = re.compile(r"%\(([a-z_0-9]+)\)s")


@cache
def statement(name: str) -> LiteralString:
    """Return a statement by its name. Raises KeyError for an unknown one."""
    file, _, key = name.partition(".")
    return _read(file)[key]


def by_position(name: str) -> tuple[str, tuple[str, ...]]:
    """Return a statement with $1, $2, … for its parameters, and which those are."""
    text = statement(name)
    words = tuple(dict.fromkeys(_PARAMETER.findall(text)))
    return _PARAMETER.sub(lambda match: f"${words.index(match[1]) + 1}", text), words


@cache
def _read(file: str) -> dict[str, LiteralString]:
    text = (files("runwire_engine") / "sql" / f"{file}.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)[1:]
    # The files are part of the package, as trustworthy as a literal in this one.
    return {
        name: cast(LiteralString, body.strip().rstrip(";"))
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }
