"""What the events of runs say about limits and fairness between the keys of a queue."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import combinations

WINDOW = timedelta(seconds=5)


@dataclass(frozen=True)
class Execution:
    """One execution of a run, from its events."""

    queue: str
    key: str
    started: datetime
    ended: datetime


def most_at_once(executions: Sequence[Execution]) -> int:
    """Return how many of them executed at once."""
    moves = sorted(
        move for each in executions for move in ((each.started, 1), (each.ended, -1))
    )  # an end comes before a start of the same moment
    count = most = 0
    for _, step in moves:
        count += step
        most = max(most, count)
    return most


def by_key(executions: Sequence[Execution]) -> Mapping[str, Mapping[str, list[Execution]]]:
    """Return executions by queue and key, in the order they started."""
    grouped: dict[str, dict[str, list[Execution]]] = defaultdict(lambda: defaultdict(list))
    for each in sorted(executions, key=lambda one: one.started):
        grouped[each.queue][each.key].append(each)
    return grouped


def widest_difference(keys: Mapping[str, Sequence[Execution]], window: timedelta = WINDOW) -> int:
    """Return by how much the starts of two keys differ, at most, in any window.

    Both have runs that wait: everything was queued before the first start, so a key has a backlog
    until its last start.
    """
    starts = {key: [each.started for each in runs] for key, runs in keys.items()}
    return max(
        (_difference(starts[a], starts[b], window) for a, b in combinations(starts, 2)), default=0
    )


def _difference(first: Sequence[datetime], second: Sequence[datetime], window: timedelta) -> int:
    over = min(first[-1], second[-1])
    moves = sorted([(at, 1) for at in first] + [(at, -1) for at in second])
    widest = balance = begin = 0
    for at, step in moves:
        if at > over:
            break
        balance += step
        while moves[begin][0] <= at - window:
            balance -= moves[begin][1]
            begin += 1
        widest = max(widest, abs(balance))
    return widest
