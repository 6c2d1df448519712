"""Runs that wait: how they give up their place, and how they go on.

What is waited for is a fact in another row. Entering WAITING looks for it under the lock of the
waiting run; whoever makes the fact leaves a row in runwire.wakes, and a second transaction, here,
looks in the same way under the same lock. So a fact is either seen on entering or finds the run
WAITING. The sweep looks at wakes that were left behind; each step may be done twice.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from runwire_engine.database import Database, Row, Transaction
from runwire_engine.doorbell import Doorbell
from runwire_engine.errors import EngineError
from runwire_engine.journal import Mark, Place, Step, load_marks
from runwire_engine.repeating import WHEN_WOKEN, Repeating
from runwire_engine.triggers import fenced

logger = logging.getLogger("runwire.waits")

# Of one transaction: facts whose waiters are looked at, and runs whose time has come.
_AT_ONCE: Final = 500
# What is remembered of ends; beyond it, the sweep finds them.
_MAX_ENDED: Final = 100_000
_AGAIN_SECONDS: Final = 1.0
_STEP: Final = (
    "branch",
    "ordinal",
    "kind",
    "target",
    "batch_id",
    "waitpoint_id",
    "stream_key",
    "seq",
    "due_at",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """What an execution asked for since it last said so, and which waits it is at now."""

    run_id: str
    execution: int
    generation: int
    worker_id: str
    steps: Sequence[Step]
    # Every wait it is at, those of `steps` included.
    open: Sequence[Place]
    # How far its branches have come, as JSON; None leaves what is stored.
    marks: str | None = None
    # Whether to give up its place, if no wait is over.
    park: bool = True


@dataclass(frozen=True, slots=True)
class Entered:
    """What came of it: the run is WAITING, or goes on because of waits that are over."""

    is_parked: bool
    over: frozenset[Place] = frozenset()
    # Seconds until the first of its waits ends by time.
    due_in: float | None = None


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended; output and error are JSON text."""

    id: str
    task: str
    status: str
    output: str | None
    output_type: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Journal:
    """What earlier executions of a run's code have done."""

    # Each with whether it is over.
    steps: Sequence[tuple[Step, bool]]
    marks: Mapping[str, Mark]


class Waits(Repeating):
    """Lets runs wait, and, woken, lets those go on that wait for what has ended."""

    def __init__(self, database: Database, bell: Doorbell) -> None:
        super().__init__()
        self._database = database
        self._bell = bell
        # Ended runs and completed waitpoints, in order, that somebody may wait for.
        self._ended: dict[tuple[int, str], None] = {}

    def ended(self, environment_id: int, ids: Iterable[str]) -> None:
        """Note runs that are over, or waitpoints that are completed, that somebody waits for."""
        for id in ids:
            if len(self._ended) < _MAX_ENDED:
                self._ended[environment_id, id] = None
        self.wake()

    async def enter(self, environment_id: int, entry: Entry) -> Entered:
        """Write what a run waits for; and make it WAITING, unless one of its waits is over.

        It stays EXECUTING where it shall be canceled. Raises FencedError.
        """
        rang: list[Row] = []

        async def work(tx: Transaction) -> Entered:
            rang.clear()
            name: dict[str, object] = {"environment_id": environment_id, "run_id": entry.run_id}
            if await _is_parked_already(tx, name, entry):
                return Entered(is_parked=True)
            await tx.together(*_written(name, entry))
            if entry.park:
                rang.extend(
                    await tx.all(
                        "waits.park",
                        {
                            **name,
                            "generation": entry.generation,
                            "execution": entry.execution,
                            "worker_id": entry.worker_id,
                        },
                    )
                )
            if rang:
                return Entered(is_parked=True, due_in=rang[0]["due_in"])
            await tx.run("waits.note_journal", name)
            over = await tx.all("waits.over", {**name, "ids": [entry.run_id]})
            return Entered(False, frozenset((row["branch"], row["ordinal"]) for row in over))

        entered = await self._database.surely(work)
        for row in rang:
            self._bell.ring_feed(environment_id, [entry.run_id])
            if row["limited"]:
                self._bell.ring_work(environment_id, {row["queue"]})
        return entered

    async def journal(self, environment_id: int, run_id: str, generation: int) -> Journal:
        """Return what a replay is answered from."""
        name = {"environment_id": environment_id, "run_id": run_id, "generation": generation}
        rows = await self._database.all("waits.journal", name)
        marked = await self._database.one("waits.marks", name)
        return Journal(
            [(_step(row), row["is_over"]) for row in rows],
            {} if marked is None else load_marks(orjson.loads(marked["marks"])),
        )

    async def over(self, environment_id: int, ids: Sequence[str]) -> dict[str, set[Place]]:
        """Return which waits of runs are over."""
        rows = await self._database.all(
            "waits.over", {"environment_id": environment_id, "ids": list(ids)}
        )
        over: dict[str, set[Place]] = {}
        for row in rows:
            over.setdefault(row["run_id"], set()).add((row["branch"], row["ordinal"]))
        return over

    async def results(self, environment_id: int, ids: Sequence[str]) -> dict[str, RunResult]:
        """Return how runs ended, by id."""
        rows = await self._database.all(
            "waits.results", {"environment_id": environment_id, "ids": list(ids)}
        )
        return {row["id"]: RunResult(**row) for row in rows}

    async def input(
        self, environment_id: int, run_id: str, generation: int, place: Place
    ) -> str | None:
        """Return what a wait for input was answered with, as JSON text; None: it timed out."""
        row = await self._database.one(
            "waits.input",
            {
                "environment_id": environment_id,
                "run_id": run_id,
                "generation": generation,
                "branch": place[0],
                "ordinal": place[1],
            },
        )
        return None if row is None else str(row["body"])

    async def resume(self, environment_id: int, run_id: str) -> None:
        """Queue a WAITING run though it still waits: something else of it goes on."""

        async def work(tx: Transaction) -> list[Row]:
            return await _resume(tx, [(environment_id, run_id)], anyway=True)

        self._ring(await self._database.surely(work))

    async def still_parked(
        self, environment_id: int, worker_id: str, executions: dict[str, int]
    ) -> set[str]:
        """Return which of the runs parked at a worker still wait for their code there."""
        rows = await self._database.all(
            "waits.parked",
            {
                "environment_id": environment_id,
                "worker_id": worker_id,
                "ids": list(executions),
                "executions": list(executions.values()),
            },
        )
        return {row["id"] for row in rows}

    async def wake_due(self, environment_id: int | None = None) -> float | None:
        """Queue runs whose waits end by time; return the seconds until the next, None without."""
        rows = await self._database.all(
            "waits.due", {"environment_id": environment_id, "limit": _AT_ONCE}
        )
        due = [(row["environment_id"], row["id"]) for row in rows if row["seconds"] <= 0]
        if due:

            async def work(tx: Transaction) -> list[Row]:
                return await _look(tx, due)

            self._ring(await self._database.surely(work))
        later = [row["seconds"] for row in rows if row["seconds"] > 0]
        if len(due) == _AT_ONCE:
            return 0.0
        return min(later, default=None)

    async def sweep(self) -> bool:
        """Look at what was left behind; say whether there is more to do at once."""
        left = await self._wake(None)
        next_due = await self.wake_due()
        return left >= _AT_ONCE or next_due == 0.0

    # -------------------------------------------------------------------------------------------

    async def _step(self) -> float:
        """Wake who waits for some of what has ended; what is left at `close` is the sweep's."""
        targets = list(self._ended)[:_AT_ONCE]
        if not targets:
            return WHEN_WOKEN
        try:
            await self._wake(targets)
        except EngineError as error:
            logger.warning("who waits could not be woken and is tried again: %s", error)
            await self._pause(_AGAIN_SECONDS)
            return 0.0
        for target in targets:
            del self._ended[target]
        return 0.0 if self._ended else WHEN_WOKEN

    async def _wake(self, targets: Sequence[tuple[int, str]] | None) -> int:
        """Look at who waits for facts, or for the oldest ones; return how many facts."""

        async def work(tx: Transaction) -> tuple[int, list[Row]]:
            taken = await _take(tx, targets)
            if not taken:
                return 0, []
            facts = _named([(row["environment_id"], row["target_id"]) for row in taken])
            waiters = await tx.all("waits.waiters", facts)
            changed = await _look(tx, [(row["environment_id"], row["run_id"]) for row in waiters])
            await tx.run("waits.drop_wakes", facts)
            return len(taken), changed

        count, changed = await self._database.surely(work)
        self._ring(changed)
        return count

    def _ring(self, rows: Sequence[Row]) -> None:
        """Tell about runs that go on, and about waits of runs that execute."""
        for environment_id in {row["environment_id"] for row in rows}:
            own = [row for row in rows if row["environment_id"] == environment_id]
            queued = [row for row in own if row["queue"] is not None]
            if queued:
                self._bell.ring_work(environment_id, {row["queue"] for row in queued})
                self._bell.ring_feed(environment_id, [row["id"] for row in queued])
            for row in own:
                if row["queue"] is None:
                    self._bell.ring_control(environment_id, "wake", row["id"])


async def _take(tx: Transaction, targets: Sequence[tuple[int, str]] | None) -> list[Row]:
    """Take these facts, or the oldest ones."""
    if targets is None:
        return await tx.all("waits.take_wakes", {"limit": _AT_ONCE})
    return await tx.all("waits.take_wakes_of", {**_named(targets), "limit": _AT_ONCE})


async def _look(tx: Transaction, waiters: Sequence[tuple[int, str]]) -> list[Row]:
    """Queue those waiters of which a wait is over; return them, and those that execute."""
    if not waiters:
        return []
    # Many children of one batch end: all but the last find their parent waiting on.
    idle = await tx.all("waits.unresolved", _runs(waiters))
    waiting = {(row["environment_id"], row["id"]) for row in idle}
    return await _resume(tx, [waiter for waiter in waiters if waiter not in waiting])


async def _resume(
    tx: Transaction, waiters: Sequence[tuple[int, str]], *, anyway: bool = False
) -> list[Row]:
    if not waiters:
        return []
    # A second statement, whose snapshot is taken under the locks, sees what is over.
    locked = await tx.all("waits.lock_waiters", _runs(waiters))
    waiting = [(r["environment_id"], r["id"]) for r in locked if r["status"] == "WAITING"]
    executing = [{**row, "queue": None} for row in locked if row["status"] == "EXECUTING"]
    resumed = await tx.all("waits.resume", {**_runs(waiting), "anyway": anyway}) if waiting else []
    return resumed + executing


async def _is_parked_already(tx: Transaction, name: dict[str, object], entry: Entry) -> bool:
    """Lock the run, and note what it waits for that is not its own. Raises FencedError.

    It is parked already where this is repeated because a COMMIT got no answer.
    """
    foreign = sorted({id for step in entry.steps for id in step.cached_ids})
    rows = await tx.all("waits.lock", {**name, "ids": sorted({entry.run_id, *foreign})})
    run = next((row for row in rows if row["id"] == entry.run_id), None)
    if run is None or run["execution"] != entry.execution:
        raise fenced(entry.run_id)
    if run["status"] != "EXECUTING":
        if run["parked_by"] == entry.worker_id and run["status"] in ("WAITING", "QUEUED"):
            return True
        raise fenced(entry.run_id)
    points = {step.waitpoint_id for step in entry.steps if step.waitpoint_id is not None}
    if any(step.kind == "input" for step in entry.steps):
        # What is sent to it is news of the run itself.
        points.add(entry.run_id)
    if foreign:
        await tx.run("waits.await_runs", {**name, "targets": foreign})
    if foreign or points:
        await tx.run("waits.note_targets", {**name, "targets": sorted({*foreign, *points})})
    return False


def _written(name: dict[str, object], entry: Entry) -> list[tuple[str, dict[str, object] | None]]:
    """Return the statements that write an entry."""
    of_generation: dict[str, object] = {**name, "generation": entry.generation}
    steps = entry.steps
    statements: list[tuple[str, dict[str, object] | None]] = []
    if steps:
        columns: dict[str, object] = {
            "branches": [step.branch for step in steps],
            "ordinals": [step.ordinal for step in steps],
            "kinds": [step.kind for step in steps],
            "step_targets": [step.target for step in steps],
            "run_ids": [" ".join(step.run_ids) for step in steps],
            "cached_ids": [" ".join(step.cached_ids) for step in steps],
            "batch_ids": [step.batch_id for step in steps],
            "waitpoint_ids": [step.waitpoint_id for step in steps],
            "stream_keys": [step.stream_key for step in steps],
            "seqs": [step.seq for step in steps],
            "dues": [step.due_at for step in steps],
            "dues_in": [step.due_in for step in steps],
        }
        statements.append(("waits.store", {**of_generation, **columns}))
    opened: dict[str, object] = {
        "open_branches": [branch for branch, _ in entry.open],
        "open_ordinals": [ordinal for _, ordinal in entry.open],
    }
    statements.append(("waits.keep_open", {**of_generation, **opened}))
    if entry.marks is not None:
        statements.append(("waits.keep_marks", {**of_generation, "marks": entry.marks}))
    return statements


def _step(row: Row) -> Step:
    values: dict[str, Any] = {name: row[name] for name in _STEP}
    return Step(**values, run_ids=tuple(row["run_ids"]), cached_ids=tuple(row["cached_ids"]))


def _named(targets: Sequence[tuple[int, str]]) -> dict[str, object]:
    return {
        "environment_ids": [environment_id for environment_id, _ in targets],
        "targets": [target for _, target in targets],
    }


def _runs(runs: Sequence[tuple[int, str]]) -> dict[str, object]:
    return {
        "environment_ids": [environment_id for environment_id, _ in runs],
        "ids": [run_id for _, run_id in runs],
    }
