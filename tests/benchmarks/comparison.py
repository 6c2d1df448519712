"""Alternatives measured in turn, their medians, and what our figures must reach.

Rounds go ours, peer, peer, ours, peer, …, so that a busy minute of the machine falls on all of
them. Only ratios inside one table mean anything elsewhere.
"""

import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from tests.benchmarks.environment import UnavailableError
from tests.benchmarks.generator import BENCH, LIMIT

Figures: TypeAlias = Mapping[str, float]
Alternatives: TypeAlias = Mapping[str, Callable[[], Figures]]
# Tables as they are kept, by title.
JsonTables: TypeAlias = Mapping[str, Mapping[str, Any]]
OURS = "runwire"
# The figure that says how busy the generator was, where there is one.
GENERATOR = "generator"
# Figures that a load is told as; `Counted.usage` has them.
SERVER = "server"
OTHER_CORES = "other"


@dataclass(frozen=True)
class Column:
    """One figure of each row: under which title, and in which format, it is printed."""

    figure: str
    title: str
    format: str = ",.0f"


# Who was busy: the last columns of a table that a load was measured for.
USAGE = (
    Column(SERVER, "server CPU", ".2f"),
    Column(GENERATOR, "generator CPU", ".2f"),
    Column(OTHER_CORES, "other cores", ".2f"),
)


@dataclass(frozen=True)
class Goal:
    """What must be reached: one of our figures, alone or divided by a peer's."""

    figure: str
    bound: float
    peer: str | None = None
    # At least the bound, or at most.
    most: bool = False
    row: str = OURS


@dataclass
class Comparison:
    """One table."""

    title: str
    columns: Sequence[Column]
    goals: Sequence[Goal]
    command: str
    rounds: dict[str, list[Figures]] = field(default_factory=dict[str, list[Figures]])
    # Alternatives that could not be measured, and why.
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    load_average: float = 0
    # Worked out once the rounds are over, from other columns.
    notes: list[str] = field(default_factory=list[str])

    def median(self, row: str, figure: str) -> float | None:
        """Return the median of the rounds, or None where it was not measured."""
        values = [figures[figure] for figures in self.rounds.get(row, []) if figure in figures]
        return statistics.median(values) if values else None

    def is_limited(self, row: str) -> bool:
        """Tell whether the generator may be what limited a row."""
        return (self.median(row, GENERATOR) or 0) >= LIMIT

    def reached(self, goal: Goal) -> float | None:
        """Return what a goal compares with its bound, or None where that was not measured."""
        ours = self.median(goal.row, goal.figure)
        if ours is None or goal.peer is None:
            return ours
        theirs = self.median(goal.peer, goal.figure)
        return None if not theirs else ours / theirs

    def in_each_round(self, goal: Goal) -> list[float]:
        """Return the same of each round by itself, which tells what the median is worth."""
        ours = [figures[goal.figure] for figures in self.rounds.get(goal.row, [])]
        if goal.peer is None:
            return ours
        theirs = [figures[goal.figure] for figures in self.rounds.get(goal.peer, [])]
        return [one / other for one, other in zip(ours, theirs, strict=False) if other]

    def is_met(self, goal: Goal) -> bool | None:
        """Tell whether a goal is reached, or None where it was not measured."""
        value = self.reached(goal)
        if value is None:
            return None
        return value <= goal.bound if goal.most else value >= goal.bound

    def add(self, earlier: Mapping[str, Sequence[Figures]]) -> None:
        """Put rounds that were measured before in front of these."""
        for row in [*self.rounds, *self.left_out]:
            if before := earlier.get(row):
                self.rounds[row] = [*before, *self.rounds.get(row, [])]


def in_turn(
    title: str,
    alternatives: Alternatives,
    *,
    rounds: int,
    columns: Sequence[Column],
    goals: Sequence[Goal] = (),
    command: str,
) -> Comparison:
    """Measure each alternative `rounds` times, in turn. One that cannot be is left out."""
    table = Comparison(title, columns, goals, command, load_average=os.getloadavg()[0])
    for number in range(rounds):
        for name, measure in alternatives.items():
            if name in table.left_out:
                continue
            sys.stderr.write(f"{title}: round {number + 1} of {rounds}, {name}\n")
            try:
                figures = measure()
            except UnavailableError as missing:
                table.left_out[name] = str(missing)
            except Exception as error:
                # What one cannot do is told, not hidden, and the others are measured all the same.
                table.left_out[name] = f"{type(error).__name__}: {error}"
                table.rounds.pop(name, None)
            else:
                table.rounds.setdefault(name, []).append(figures)
    return table


def lines(table: Comparison) -> list[str]:
    """Return a table as it is printed."""
    width = max(map(len, [*table.rounds, ""]))
    made = [f"{table.title} ({rounds_of(table)})"]
    head = " ".join(f"{column.title:>18}" for column in table.columns)
    made.append(f"  {'':{width}} {head}")
    made += [f"  {row:{width}} {_cells(table, row)}" for row in table.rounds]
    made += [f"  {name} was not measured: {why}" for name, why in table.left_out.items()]
    made += [f"  goal: {goal_line(table, goal)}" for goal in table.goals]
    made += [f"  {note}" for note in table.notes]
    if any(map(table.is_limited, table.rounds)):
        made.append(f"  † the generator used {LIMIT:.0%} of its core or more: a lower bound")
    made.append(f"  {table.command}; load average {table.load_average:.1f} when it began")
    return made


def _cells(table: Comparison, row: str) -> str:
    cells: list[str] = []
    for number, column in enumerate(table.columns):
        value = table.median(row, column.figure)
        text = "–" if value is None else f"{value:{column.format}}"
        if number == 0 and table.is_limited(row):
            text += " †"
        cells.append(f"{text:>18}")
    return " ".join(cells)


def rounds_of(table: Comparison) -> str:
    """Return how many rounds a table's medians are of."""
    count = max(map(len, table.rounds.values()), default=0)
    return f"median of {count} rounds" if count > 1 else f"{count or 'no'} round"


def goal_line(table: Comparison, goal: Goal) -> str:
    """Return a goal, what was measured, and between which rounds' figures that lies."""
    title = next((c.title for c in table.columns if c.figure == goal.figure), goal.figure)
    unit = " ×" if goal.peer else ""
    bound = f"{'at most' if goal.most else 'at least'} {goal.bound:,g}{unit}"
    what = f"{goal.row}, {title}, {bound}" + (f" {goal.peer}" if goal.peer else "")
    value = table.reached(goal)
    if value is None:
        return f"{what}: not measured"
    each = table.in_each_round(goal)
    spread = f" ({min(each):{_digits(value)}} to {max(each):{_digits(value)}})" if each[1:] else ""
    is_met = "reached" if table.is_met(goal) else "missed"
    return f"{what}: {value:{_digits(value)}}{unit}{spread}, {is_met}"


def _digits(value: float) -> str:
    return ",.0f" if value >= 100 else ",.2f"


def read(name: str, folder: Path = BENCH) -> JsonTables:
    """Return the tables that are kept of a benchmark, by title; none where it never ran."""
    kept = folder / f"{name}.json"
    if not kept.exists():
        return {}
    return {table["title"]: table for table in json.loads(kept.read_text())["tables"]}


def write(
    name: str, tables: Sequence[Comparison], kept: JsonTables | None = None, folder: Path = BENCH
) -> None:
    """Keep the figures of a benchmark as JSON, in NAME.json of this folder, beside kept ones."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {**(kept or {}), **{table.title: _as_json(table) for table in tables}}
    at = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({"benchmark": name, "at": at, "tables": list(made.values())}, indent=2)
    (folder / f"{name}.json").write_text(f"{text}\n")


def _as_json(table: Comparison) -> Mapping[str, Any]:
    return {
        "title": table.title,
        "command": table.command,
        "loadAverage": table.load_average,
        "medians": {
            row: {column.figure: table.median(row, column.figure) for column in table.columns}
            for row in table.rounds
        },
        "limited": [row for row in table.rounds if table.is_limited(row)],
        "rounds": table.rounds,
        "leftOut": table.left_out,
        "goals": [
            {
                "row": goal.row,
                "figure": goal.figure,
                "peer": goal.peer,
                "bound": goal.bound,
                "most": goal.most,
                "reached": table.reached(goal),
                "inEachRound": table.in_each_round(goal),
                "isMet": table.is_met(goal),
                "line": goal_line(table, goal),
            }
            for goal in table.goals
        ],
    }
