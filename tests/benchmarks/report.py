"""What is reached: every goal beside the figure, of the tables that are kept in .runwire/bench."""

from collections.abc import Iterable
from pathlib import Path

from tests.benchmarks.comparison import read


def lines(names: Iterable[str], folder: Path) -> list[str]:
    """Return the goals of these benchmarks, table by table, with medians and their spread."""
    made: list[str] = []
    met = measured = 0
    for name in names:
        for table in read(name, folder).values():
            rounds = max(map(len, table["rounds"].values()), default=0)
            made += ["", f"{table['title']}; rounds: {rounds}; {table['command']}"]
            made += [f"  {goal['line']}" for goal in table["goals"]]
            made += [f"  {row} was not measured: {why}" for row, why in table["leftOut"].items()]
            measured += sum(goal["isMet"] is not None for goal in table["goals"])
            met += sum(bool(goal["isMet"]) for goal in table["goals"])
    return [f"{met} of {measured} goals are reached", *made]
