"""What one execution of a run's code asks for, by place, so that a replay finds it again. [core]

A place is a branch (the path of asyncio tasks that led there) and an ordinal in it. The code of a
replay comes by the same places in the same order, as far as it is deterministic between its waits.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["trigger", "run", "batch", "time", "token", "input"]
# A branch's name and an ordinal in it.
Place: TypeAlias = tuple[str, int]
# A branch's name, and its mark: steps, fork, rest, forks.
StoredMark: TypeAlias = tuple[str, int, str | None, dict[str, int], dict[str, int]]

# Longer names of branches are hashed: they are part of keys.
_LONGEST_NAME: Final = 200


@dataclass(frozen=True, slots=True)
class Step:
    """Something that the code asked for: a child, or a wait."""

    branch: str
    ordinal: int
    kind: Kind
    # What was asked for, as a replay must ask for it again.
    target: str
    run_ids: tuple[str, ...] = ()
    cached_ids: tuple[str, ...] = ()
    batch_id: str | None = None
    waitpoint_id: str | None = None
    stream_key: str | None = None
    seq: int | None = None
    due_at: datetime | None = None
    # Seconds from when it is written.
    due_in: float | None = None

    @property
    def place(self) -> Place:
        return self.branch, self.ordinal


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a branch had come: what it wrote before that is stored, and not written again."""

    # All its steps below this one, and, if a fork is named, what came before that fork.
    steps: int = 0
    fork: str | None = None
    # What it wrote after that: how many operations, by what they went to.
    rest: Mapping[str, int] = field(default_factory=dict[str, int])
    # How many tasks it had started, by what they run: those of which nothing is marked had ended.
    forks: Mapping[str, int] = field(default_factory=dict[str, int])


NOTHING: Final = Mark()
# Of a branch that had ended before.
EVERYTHING: Final = Mark(steps=2**62)


@dataclass(eq=False, slots=True)
class Branch:
    """One asyncio task of a run's code, or its only thread."""

    name: str
    # How far an earlier execution of the same code had come, until this one has come as far.
    replayed: Mark | None = None
    # Where that is stored as such; NOTHING for a branch that was new.
    marked: Mark = NOTHING
    # Which moment of this execution that is: steps, and forks if one is named.
    marked_at: tuple[int, int] = (0, 0)
    parent: "Branch | None" = None
    # Steps taken so far.
    steps: int = 0
    # Operations since the last step, by what they went to.
    written: dict[str, int] = field(default_factory=dict[str, int])
    # Of `replayed.rest`, what is still to be left out.
    rest: dict[str, int] = field(default_factory=dict[str, int])
    # Of tasks that an earlier execution had started here, how many had begun.
    covered: Mapping[str, int] = field(default_factory=dict[str, int])
    # How many tasks were started, by what they run; and in all.
    forks: dict[str, int] = field(default_factory=dict[str, int])
    forked: int = 0
    # Tasks that were started here and have not ended.
    live: set["Branch"] = field(default_factory=set["Branch"])
    # Waits that this very branch is at.
    waits: int = 0
    # Where its parent stood when it was started: steps, operations since the last, and its place
    # among the parent's forks.
    began: tuple[int, Mapping[str, int], int] = (0, {}, 0)
    # The task of its parent's that it came of: itself, or one that ended before it.
    origin: str = ""

    def fork(self, label: str, marks: Mapping[str, Mark]) -> "Branch":
        """Begin the branch of a task that is started here; tasks that run the same are counted."""
        number = self.forks.get(label, 0)
        self.forks[label] = number + 1
        self.forked += 1
        name = _bounded(f"{self.name}/{label}.{number}")
        branch = Branch(name, parent=self, origin=name)
        branch.began = (self.steps, dict(self.written) if self.written else {}, self.forked)
        had_ended = self.replayed is not None or number < self.covered.get(label, 0)
        mark = marks.get(branch.name, EVERYTHING if had_ended else NOTHING)
        if mark is not NOTHING:
            branch.begin_replay(mark)
        self.live.add(branch)
        self._pass(branch.name)
        return branch

    def end(self, branch: "Branch") -> None:
        """Note that a task has ended; those it leaves behind are of here from now on."""
        self.live.discard(branch)
        for left in branch.live:
            left.parent, left.began, left.origin = self, branch.began, branch.origin
        self.live |= branch.live

    def begin_replay(self, mark: Mark) -> None:
        """Leave out what an earlier execution has written up to this mark."""
        self.marked = self.replayed = mark
        self.covered = mark.forks
        self._pass(None)

    def next_place(self) -> Place:
        """Return the place of the next step."""
        place = self.name, self.steps
        self.steps += 1
        self.written.clear()
        self.rest.clear()
        self._pass(None)
        return place

    def admits(self, target: str) -> bool:
        """Count an operation; False when an earlier execution has done it."""
        self.written[target] = self.written.get(target, 0) + 1
        if self.replayed is not None:
            return False
        left = self.rest.get(target, 0)
        if left:
            self.rest[target] = left - 1
        return not left

    def is_waiting(self) -> bool:
        """Whether nothing goes on here: it waits, or everything that it started does.

        A task with tasks of its own that have not ended counts as waiting for those.
        """
        if self.live:
            return all(branch.is_waiting() for branch in self.live)
        return self.waits > 0

    def marks(self) -> dict[str, Mark]:
        """Return how far this branch and all that live below it have come.

        Of branches in which something goes on, only what came before a task that waits.
        """
        marks = {self.name: self._mark()}
        for branch in self.live:
            marks.update(branch.marks())
        return marks

    def _mark(self) -> Mark:
        if self.replayed is not None or any(self.rest.values()):
            return self.marked
        last = max((b for b in self.live if b.has_waits()), key=_age, default=None)
        if self.is_waiting():
            self._mark_here(last)
        elif last is not None and (last.began[0], last.began[2]) > self.marked_at:
            self.marked, self.marked_at = (
                Mark(last.began[0], last.origin),
                (last.began[0], _age(last)),
            )
        elif self.waits and (self.steps, 0) > self.marked_at:
            self.marked, self.marked_at = Mark(self.steps), (self.steps, 0)
        return self.marked

    def _mark_here(self, last: "Branch | None") -> None:
        """Mark here and now, given the last task that was started and lives."""
        rest, fork, age = dict(self.written), None, 0
        if last is not None and last.began[0] == self.steps:
            fork, age = last.origin, _age(last)
            for target, count in last.began[1].items():
                rest[target] -= count
        self.marked = Mark(self.steps, fork, rest, dict(self.forks))
        self.marked_at = (self.steps, age)

    def has_waits(self) -> bool:
        """Whether this branch, or one that lives below it, is at a wait."""
        return self.waits > 0 or any(branch.has_waits() for branch in self.live)

    def _pass(self, fork: str | None) -> None:
        """Go live once the earlier execution has been caught up with."""
        mark = self.replayed
        if mark is None or self.steps < mark.steps:
            return
        if self.steps > mark.steps or mark.fork is None or mark.fork == fork:
            self.replayed = None
            self.marked_at = (mark.steps, self.forked if mark.fork is not None else 0)
            self.rest = dict(mark.rest) if self.steps == mark.steps else {}


def _age(branch: Branch) -> int:
    return branch.began[2]


def dump_marks(marks: Mapping[str, Mark]) -> list[StoredMark]:
    """Return marks as they are stored, JSON to be."""
    return [
        (name, mark.steps, mark.fork, dict(mark.rest), dict(mark.forks))
        for name, mark in marks.items()
    ]


def load_marks(stored: Iterable[StoredMark]) -> dict[str, Mark]:
    """Return marks as `dump_marks` gave them."""
    return {name: Mark(steps, fork, rest, forks) for name, steps, fork, rest, forks in stored}


class DivergedError(Exception):
    """A replay asks for something else than the execution before it."""

    def __init__(self, step: Step, kind: Kind, target: str) -> None:
        super().__init__(f"{kind} {target} is not {step.kind} {step.target}")
        self.step = step
        self.kind = kind
        self.target = target


def key_of(run_id: str, generation: int, place: Place, *rest: str) -> str:
    """Return a key that only a replay of the same step has."""
    parts = [run_id, str(generation), place[0], str(place[1]), *rest]
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()


def _bounded(name: str) -> str:
    if len(name) <= _LONGEST_NAME:
        return name
    return hashlib.sha256(name.encode()).hexdigest()
