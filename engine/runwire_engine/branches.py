"""Which asyncio tasks the code of a run has started, and whether all of them wait.

The task loop has a task factory: a task that is started inside of a run begins a branch of its
own, named by what it runs, so that a replay finds the same branches. A run gives up its slot only
when every branch waits: what computes or streams beside a wait keeps it executing.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, TypeAlias

from runwire_engine.journal import Branch, DivergedError, Kind, Mark, Place, Step

_Coroutine: TypeAlias = Coroutine[Any, Any, Any] | Generator[Any, None, Any]
_Factory: TypeAlias = Callable[..., "asyncio.Future[Any]"]


class Branches:
    """The branches of one attempt; any thread may ask."""

    def __init__(self, ended: Callable[[], None]) -> None:
        """Take whom to tell that a branch has ended."""
        self.lock = threading.Lock()
        self.main = Branch("main")
        # How far an earlier execution had come, by branch.
        self._marks: dict[str, Mark] = {}
        # What it asked for, and whether that is over.
        self._steps: Mapping[Place, tuple[Step, bool]] = {}
        self._ended = ended

    def enter(self) -> None:
        """Be the main branch for the rest of this context."""
        _here.set(_Here(self, self.main))

    def current(self) -> Branch:
        """Return the branch of the code that asks."""
        here = _here.get()
        return here.branch if here is not None and here.branches is self else self.main

    def replay(self, steps: Iterable[tuple[Step, bool]], marks: Mapping[str, Mark]) -> None:
        """Begin again what an earlier execution has done: its steps, and whether each is over."""
        self._steps = {step.place: (step, is_over) for step, is_over in steps}
        self._marks = dict(marks)
        mark = self._marks.pop(self.main.name, None)
        if mark is not None:
            self.main.begin_replay(mark)

    def next_step(self, kind: Kind, target: str) -> tuple[Branch, Place, Step | None, bool]:
        """Take the next step here: its branch and place, and what an earlier execution made of it.

        Raises DivergedError where that one asked for something else.
        """
        branch = self.current()
        with self.lock:
            place = branch.next_place()
        step, is_over = self._steps.get(place, (None, False))
        if step is not None and (step.kind, step.target) != (kind, target):
            raise DivergedError(step, kind, target)
        return branch, place, step, is_over

    def admits(self, target: str) -> bool:
        """Count an operation of the code that asks; False when an earlier execution has done it."""
        branch = self.current()
        with self.lock:
            return branch.admits(target)

    def marks(self) -> dict[str, Mark]:
        """Return how far every branch has come; those that have not begun again are as before."""
        with self.lock:
            return {**self._marks, **self.main.marks()}

    def fork(self, parent: Branch, label: str) -> Branch:
        with self.lock:
            branch = parent.fork(label, self._marks)
            self._marks.pop(branch.name, None)
            return branch

    @contextmanager
    def apart(self, label: str) -> Generator[None]:
        """Do what is in the block in a branch of its own, which a replay may leave out."""
        parent = self.current()
        branch = self.fork(parent, label)
        token = _here.set(_Here(self, branch))
        try:
            yield
        finally:
            _here.reset(token)
            self.end(parent, branch)

    def has_ended(self, label: str) -> bool:
        """Say whether such a block of the main branch was over in what is replayed."""
        with self.lock:
            begun = self.main.covered.get(label, 0) > 0
            return begun and f"{self.main.name}/{label}.0" not in self._marks

    def end(self, parent: Branch, branch: Branch) -> None:
        """Note that a task has ended; tasks that it leaves behind are its parent's from now on."""
        with self.lock:
            # By now somebody else may be its parent: its own has ended.
            (branch.parent or parent).end(branch)
        self._ended()


@dataclass(frozen=True, slots=True)
class _Here:
    branches: Branches
    branch: Branch


_here: ContextVar[_Here | None] = ContextVar("runwire_branch", default=None)


def forking(inner: _Factory | None) -> _Factory:
    """Return a task factory that gives each task of a run its branch, around another factory."""
    make: _Factory = _plain if inner is None else inner

    def factory(
        loop: asyncio.AbstractEventLoop, coroutine: _Coroutine, **options: Any
    ) -> "asyncio.Future[Any]":
        here = _here.get()
        # A context that was given is somebody's own, and maybe shared by many tasks.
        if here is None or options.get("context") is not None:
            return make(loop, coroutine, **options)
        context = copy_context()
        branches = here.branches
        branch = branches.fork(here.branch, _label(coroutine))
        context.run(_here.set, _Here(branches, branch))
        task = make(loop, coroutine, **{**options, "context": context})
        task.add_done_callback(lambda _: branches.end(here.branch, branch))
        return task

    return factory


def _plain(
    loop: asyncio.AbstractEventLoop, coroutine: _Coroutine, **options: Any
) -> "asyncio.Future[Any]":
    return asyncio.Task(coroutine, loop=loop, **options)


def _label(coroutine: _Coroutine) -> str:
    """Name what a task runs: a function, also one that a task group of anyio has wrapped."""
    frame = getattr(coroutine, "cr_frame", None)
    inner = None if frame is None else frame.f_locals.get("coro")
    named = inner if hasattr(inner, "__qualname__") else coroutine
    return str(getattr(named, "__qualname__", type(coroutine).__name__))
