"""A database that has grown: rows of every kind, made by SQL, and what its statements cost there.

Everything that a big installation holds in millions stands here in thousands, beside a second
environment whose rows come first in every order, so that a plan that reads what it does not return
reads many times what it should.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeAlias

import psycopg
from psycopg.sql import SQL, Identifier, Literal

from runwire_engine.statements import statement

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
Parameters: TypeAlias = Mapping[str, object]

_BLOCK: Final = re.compile(r"^-- ([a-z_0-9]+) --$", re.MULTILINE)
_PARAMETER: Final = re.compile(r"%\((\w+)\)s")

# What psycopg says of its values; of texts and times in texts Postgres finds out by itself.
_TYPES: Final = {"environment_id": "smallint", "limit": "smallint", "now": "timestamptz"}

_FILL: Final = Path(__file__).with_suffix(".sql")
_TABLES: Final = """
    select c.relname from pg_class c
     where c.relnamespace = 'runwire'::regnamespace and c.relkind = 'r'
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one execution of a statement did."""

    # Rows that it returned or wrote.
    answered: int
    # Pages that it looked at.
    pages: int
    # What its plan does that it should not, in words.
    faults: tuple[str, ...]


def statement_names() -> Iterator[str]:
    """Name every statement that there is."""
    for file in sorted((files("runwire_engine") / "sql").iterdir(), key=lambda each: each.name):
        if file.name.endswith(".sql"):
            for name in _BLOCK.findall(file.read_text(encoding="utf-8")):
                yield f"{file.name.removesuffix('.sql')}.{name}"


def keep_statistics(connection: Connection) -> None:
    """Have nobody look at the tables by themselves."""
    connection.execute("select runwire.make_partitions_v2(current_date, current_date)")
    for (table,) in connection.execute(_TABLES).fetchall():
        name = Identifier("runwire", table)
        connection.execute(SQL("alter table {} set (autovacuum_enabled = off)").format(name))


def grow(connection: Connection, runs: int) -> None:
    """Fill the tables."""
    text = _FILL.read_text(encoding="utf-8").replace("%(runs)s", str(runs))
    for each in text.strip().split(";\n"):
        connection.execute(each.encode())


def prepare(connection: Connection, name: str) -> None:
    """Prepare a statement under its own name."""
    names: list[str] = []

    def placed(found: re.Match[str]) -> str:
        if found[1] not in names:
            names.append(found[1])
        return f"${names.index(found[1]) + 1}"

    text = _PARAMETER.sub(placed, statement(name)).replace("%%", "%")
    types = ", ".join(_TYPES.get(each, "unknown") for each in names)
    types = f"({types})" if types else ""
    connection.execute(f'prepare "{name}"{types} as {text}'.encode())


def execute(connection: Connection, name: str, parameters: Parameters) -> Cost:
    """Execute a prepared statement, look at what it did, and take it back."""
    wanted = dict.fromkeys(_PARAMETER.findall(statement(name)))
    values = SQL(", ").join(Literal(parameters[each]) for each in wanted)
    call = SQL("execute {}").format(Identifier(name))
    if wanted:
        call = SQL("{}({})").format(call, values)
    with connection.transaction(force_rollback=True):
        if name in SETTLED:
            connection.execute("set local enable_seqscan = off")
        row = connection.execute(
            SQL("explain (analyze, buffers, timing off, format json) {}").format(call)
        ).fetchone()
    assert row is not None
    return _cost(row[0][0]["Plan"])


# What the tail reads under settings of its own.
SETTLED: Final = {"changes.tail", "following.touched"}
# Beyond this much, and this many times what is answered, a plan reads what it does not return.
_SLACK: Final = 150
_TIMES: Final = 3


def _cost(plan: dict[str, Any]) -> Cost:
    answered = max([_rows(plan), *(_written(node) for node in _nodes(plan))])
    # What a CTE writes is not counted where nobody reads it.
    pages = max(node["Shared Hit Blocks"] + node["Shared Read Blocks"] for node in _nodes(plan))
    return Cost(answered, pages, tuple(_faults(plan, answered)))


def _faults(plan: dict[str, Any], answered: int) -> Iterator[str]:
    enough = _SLACK + _TIMES * answered
    for node in _nodes(plan):
        kind = node["Node Type"]
        where = f"{kind} {node.get('Index Name') or node.get('Relation Name') or ''}".strip()
        removed = sum(
            value * node["Actual Loops"]
            for key, value in node.items()
            if key.startswith("Rows Removed")
        )
        read = round(_rows(node) + removed)
        if kind == "Seq Scan" and node["Actual Loops"] and read > _SLACK:
            yield f"{where} of {read} rows"
        elif "Scan" in kind and read > enough:
            yield f"{where} reads {read} rows for {answered}"
        if "Sort" in kind and (rows := round(sum(map(_rows, node["Plans"])))) > enough:
            yield f"{kind} of {rows} rows for {answered}"


def _written(node: dict[str, Any]) -> int:
    if node["Node Type"] != "ModifyTable":
        return 0
    return round(max(_rows(node), *map(_rows, node["Plans"])))


def _rows(node: dict[str, Any]) -> int:
    rows: float = node["Actual Rows"] * node["Actual Loops"]
    return round(rows)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for each in plan.get("Plans", ()):
        yield from _nodes(each)
