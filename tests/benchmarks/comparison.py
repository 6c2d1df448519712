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
from typing import TypeAlias

from tests.benchmarks.environment import UnavailableError
from tests.benchmarks.generator import BENCH, LIMIT

Figures: TypeAlias = Mapping[str, float]
Alternatives: TypeAlias = Mapping[str, Callable[[], Figures]]
OURS = "runwire"
# The figure that says how busy the generator was, where there is one.
GENERATOR = "generator"


@dataclass(frozen=True)
class Column:
    """One figure of each row: under which title, and in which format, it is printed."""

    figure: str
    title: str
    format: str = ",.0f"


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
    made = [table.title]
    head = " ".join(f"{column.title:>18}" for column in table.columns)
    made.append(f"  {'':{width}} {head}")
    made += [f"  {row:{width}} {_cells(table, row)}" for row in table.rounds]
    made += [f"  {name} was not measured: {why}" for name, why in table.left_out.items()]
    made += [f"  {_goal(table, goal)}" for goal in table.goals]
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


def _goal(table: Comparison, goal: Goal) -> str:
    title = next((c.title for c in table.columns if c.figure == goal.figure), goal.figure)
    value = table.reached(goal)
    bound = f"{'at most' if goal.most else 'at least'} {goal.bound:,g}"
    what = f"goal: {goal.row}, {title}, {bound}" + (f" × {goal.peer}" if goal.peer else "")
    if value is None:
        return f"{what}: not measured"
    met = value <= goal.bound if goal.most else value >= goal.bound
    return f"{what}: {value:,.2f}{' ×' if goal.peer else ''}, {'reached' if met else 'missed'}"


def write(name: str, tables: Sequence[Comparison]) -> None:
    """Keep the figures of a benchmark as JSON, in .runwire/bench/NAME.json."""
    BENCH.mkdir(parents=True, exist_ok=True)
    made = [
        {
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
                }
                for goal in table.goals
            ],
        }
        for table in tables
    ]
    at = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({"benchmark": name, "at": at, "tables": made}, indent=2)
    (BENCH / f"{name}.json").write_text(f"{text}\n")
