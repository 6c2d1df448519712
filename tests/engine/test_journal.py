"""What a replay leaves out: random programs, cut off anywhere, against what they should do."""

import os
import random
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TypeAlias

from hypothesis import given, note, settings
from hypothesis import strategies as st

from runwire_engine.journal import Branch, Mark, Place, dump_marks, key_of, load_marks

# ("write", target) | ("wait",) | ("fork", label, program) | ("join",)
Instruction: TypeAlias = tuple[str, str, "Program"]
Program: TypeAlias = tuple[Instruction, ...]
# A write, by the branch and the place in its program.
Write: TypeAlias = tuple[str, int]

_write = st.tuples(st.just("write"), st.sampled_from("ab"), st.just(()))
_wait = st.tuples(st.just("wait"), st.just(""), st.just(()))
LEAVE: Instruction = ("leave", "", ())
_join = st.tuples(st.just("join"), st.just(""), st.just(()))
programs: st.SearchStrategy[Program] = st.recursive(
    st.lists(st.one_of(_write, _wait), max_size=4).map(tuple),
    lambda inner: st.lists(
        st.one_of(
            _write,
            _wait,
            _join,
            st.just(LEAVE),
            st.tuples(st.just("fork"), st.sampled_from("fg"), inner),
        ),
        max_size=6,
    ).map(tuple),
    max_leaves=5,
)


@dataclass
class Store:
    """What is committed."""

    writes: Counter[Write] = field(default_factory=Counter[Write])
    marks: dict[str, Mark] = field(default_factory=dict[str, Mark])
    over: set[Place] = field(default_factory=set[Place])
    # Writes that may be done once more: since the last checkpoint that holds them.
    loose: set[Write] = field(default_factory=set[Write])


class Crash(Exception):
    pass


class Execution:
    """One execution of a program, up to its end or a crash."""

    def __init__(self, program: Program, store: Store, chance: random.Random) -> None:
        self.store = store
        self.chance = chance
        self.marks = dict(store.marks)
        self.main = Branch("main")
        self.buffer: list[Write] = []
        self.blocked: dict[Place, Branch] = {}
        self.running: dict[Branch, Generator[None]] = {}
        self.ended: set[Branch] = set()
        # Of this execution: every write of each branch so far, left out or not.
        self.passed: dict[Branch, list[Write]] = {}
        self.before_fork: dict[Branch, int] = {}
        self.parents: dict[Branch, Branch] = {}
        mark = self.marks.pop("main", None)
        if mark is not None:
            self.main.begin_replay(mark)
        self.running[self.main] = self.perform(self.main, program)

    def perform(self, branch: Branch, program: Program) -> Generator[None]:
        forked: list[Branch] = []
        passed = self.passed.setdefault(branch, [])
        for at, (kind, name, inner) in enumerate(program):
            match kind:
                case "write":
                    write = (branch.name, at)
                    passed.append(write)
                    if branch.admits(name):
                        self.buffer.append(write)
                case "wait":
                    place = branch.next_place()
                    if place not in self.store.over:
                        branch.waits += 1
                        self.blocked[place] = branch
                        while place in self.blocked:
                            yield
                case "fork":
                    child = branch.fork(name, self.marks)
                    self.marks.pop(child.name, None)
                    self.parents[child] = branch
                    self.before_fork[child] = len(passed)
                    forked.append(child)
                    self.running[child] = self.perform(child, inner)
                case "leave":
                    pass
                case _:
                    while any(child not in self.ended for child in forked):
                        yield
            yield
        # Some leave tasks behind, and end.
        while program[-1:] != (LEAVE,) and any(child not in self.ended for child in forked):
            yield

    def run(self, steps: int) -> None:
        """Take so many steps, in any order, or come to the end."""
        while self.running and steps:
            steps -= 1
            if self.main.is_waiting():
                self.checkpoint()
            elif self.blocked and self.chance.random() < 0.2:
                self.checkpoint()
            if self.blocked and (self.main.is_waiting() or self.chance.random() < 0.2):
                self.wake()
            branch = self.chance.choice(list(self.running))
            try:
                next(self.running[branch])
            except StopIteration:
                self.end(branch)
            if self.chance.random() < 0.3:
                self.flush(self.chance.randint(0, len(self.buffer)))
        if self.running:
            raise Crash
        self.flush(len(self.buffer))

    def end(self, branch: Branch) -> None:
        del self.running[branch]
        self.ended.add(branch)
        if branch.parent is not None:
            branch.parent.end(branch)

    def wake(self) -> None:
        place = self.chance.choice(sorted(self.blocked))
        if place[0] in {branch.name for branch in self.blocked.values()}:
            self.store.over.add(place)
            self.blocked.pop(place).waits -= 1

    def checkpoint(self) -> None:
        waits = self.main.is_waiting()
        marks = {**self.marks, **self.main.marks()}
        self.flush(len(self.buffer))
        self.store.marks = load_marks(dump_marks(marks))
        if waits:
            # All that this execution came by; what an earlier one did beyond is done again.
            for passed in self.passed.values():
                self.store.loose.difference_update(passed)
        for branch in self.blocked.values():
            self.hold(branch, len(self.passed[branch]))

    def hold(self, branch: Branch, count: int) -> None:
        """What a branch wrote before its wait, and before it was begun, is not done again."""
        self.store.loose -= set(self.passed[branch][:count])
        parent = self.parents.get(branch)
        if parent is not None:
            self.hold(parent, self.before_fork[branch])

    def flush(self, count: int) -> None:
        for write in self.buffer[:count]:
            if self.store.writes[write]:
                assert write in self.store.loose, write
            self.store.writes[write] += 1
            self.store.loose.add(write)
        del self.buffer[:count]


def all_writes(name: str, program: Program) -> set[Write]:
    forks: Counter[str] = Counter()
    writes: set[Write] = set()
    for at, (kind, label, inner) in enumerate(program):
        if kind == "write":
            writes.add((name, at))
        elif kind == "fork":
            writes |= all_writes(f"{name}/{label}.{forks[label]}", inner)
            forks[label] += 1
    return writes


@settings(max_examples=int(os.environ.get("RUNWIRE_JOURNALS", "100")))
@given(programs, st.randoms(use_true_random=False), st.lists(st.integers(0, 25), max_size=6))
def test_nothing_before_the_last_wait_is_doubled_and_nothing_at_all_is_lost(
    program: Program, chance: random.Random, crashes: list[int]
) -> None:
    note(f"{program} cut off after {crashes}")
    store = Store()
    for steps in [*crashes, 10_000]:
        try:
            Execution(program, store, chance).run(steps)
        except Crash:
            continue
        break
    assert set(store.writes) == all_writes("main", program)


def test_a_key_tells_places_generations_and_requests_apart() -> None:
    keys = {
        key_of("run_a", 0, ("main", 0)),
        key_of("run_a", 1, ("main", 0)),
        key_of("run_a", 0, ("main", 1)),
        key_of("run_a", 0, ("main/f.0", 0)),
        key_of("run_b", 0, ("main", 0)),
        key_of("run_a", 0, ("main", 0), "task"),
    }
    assert len(keys) == 6


def test_long_names_of_branches_stay_short_and_apart() -> None:
    branch = Branch("main")
    names: set[str] = set()
    for _ in range(100):
        branch = branch.fork("a_function_with_a_rather_long_name", {})
        names.add(branch.name)
    assert len(names) == 100
    assert max(map(len, names)) <= 200
