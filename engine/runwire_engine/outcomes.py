"""How attempts end: outcomes in, one transition each, fenced and committed in groups.

An outcome names the run and the execution it belongs to, and is refused (FencedError) once another
execution, the sweep or a cancellation has taken the run. Handing the same outcome in twice is one
revision and two successes, so a flush whose COMMIT got no answer is simply repeated.

Where a cancellation was requested first, the run becomes CANCELED whatever the attempt ended with.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

import orjson

from runwire.errors import FencedError
from runwire_engine.database import Database, Row, Transaction
from runwire_engine.direct_call import DirectCalls
from runwire_engine.doorbell import Doorbell
from runwire_engine.endings import Endings, entails_nothing
from runwire_engine.flusher import Flusher
from runwire_engine.states import FINAL, RunStatus
from runwire_engine.waits import Waits

# Rows of one statement, and what they may weigh; a flush takes as many transactions as it needs.
_GROUP: Final = 250
_GROUP_BYTES: Final = 8 * 1024 * 1024
# What waits is bounded by the slots of the worker; this only guards against a mistake in that.
_MAX_WAITING: Final = 100_000
_MAX_WAITING_BYTES: Final = 256 * 1024 * 1024

WORKER_LOST: Final = orjson.dumps(
    {
        "name": "WorkerLostError",
        "message": "the worker that executed the run went away, and no attempt was left",
        "code": "WORKER_LOST",
    }
).decode()


@dataclass(frozen=True, slots=True)
class Completed:
    """The task returned; `output` is JSON text."""

    run_id: str
    execution: int
    output: str | None
    output_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Failed:
    """The task raised; `error` is JSON text. With `retry_in` (seconds) it is tried again."""

    run_id: str
    execution: int
    error: str
    retry_in: float | None = None


@dataclass(frozen=True, slots=True)
class Canceled:
    """The task was stopped because somebody asked for it."""

    run_id: str
    execution: int


@dataclass(frozen=True, slots=True)
class TimedOut:
    """max_duration passed; `error` is JSON text."""

    run_id: str
    execution: int
    error: str


@dataclass(frozen=True, slots=True)
class Crashed:
    """What executed the run died; `error` is JSON text. `is_ours`: it was our fault."""

    run_id: str
    execution: int
    error: str
    is_ours: bool = False


@dataclass(frozen=True, slots=True)
class Released:
    """The worker gives the run back unfinished; the attempt does not count."""

    run_id: str
    execution: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The worker is gone: another attempt if one is left, else CRASHED. Only the sweep says so."""

    run_id: str
    execution: int


Outcome: TypeAlias = Completed | Failed | Canceled | TimedOut | Crashed | Released | Lost


@dataclass(frozen=True, slots=True)
class Finished:
    """An outcome that is committed, and the status it led to."""

    run_id: str
    status: RunStatus


@dataclass(frozen=True, slots=True)
class _Change:
    """An outcome as the statement takes it."""

    run_id: str
    execution: int
    status: RunStatus
    output: str | None = None
    output_type: str | None = None
    error: str | None = None
    delay: float | None = None
    # One of the events of a run that goes back to its queue.
    released: bool = False
    lost: bool = False


def _change(outcome: Outcome) -> _Change:
    run_id, execution = outcome.run_id, outcome.execution
    match outcome:
        case Completed():
            return _Change(
                run_id,
                execution,
                RunStatus.COMPLETED,
                output=outcome.output,
                output_type=None if outcome.output is None else outcome.output_type,
            )
        case Failed(retry_in=None):
            return _Change(run_id, execution, RunStatus.FAILED, error=outcome.error)
        case Failed(retry_in=delay):
            status = RunStatus.DELAYED if delay and delay > 0 else RunStatus.QUEUED
            return _Change(
                run_id, execution, status, error=outcome.error, delay=float(delay or 0.0)
            )
        case Canceled():
            return _Change(run_id, execution, RunStatus.CANCELED)
        case TimedOut():
            return _Change(run_id, execution, RunStatus.TIMED_OUT, error=outcome.error)
        case Crashed():
            status = RunStatus.SYSTEM_FAILURE if outcome.is_ours else RunStatus.CRASHED
            return _Change(run_id, execution, status, error=outcome.error)
        case Released():
            return _Change(run_id, execution, RunStatus.QUEUED, released=True)
        case Lost():
            return _Change(run_id, execution, RunStatus.CRASHED, error=WORKER_LOST, lost=True)
        case _:
            assert_never(outcome)


async def record(tx: Transaction, environment_id: int, outcomes: Iterable[Outcome]) -> list[Row]:
    """Change the runs whose execution still holds them; return those that changed.

    What a final status entails besides (see Endings) is the caller's to do in the same transaction.
    """
    return await tx.all("outcomes.record", _parameters(environment_id, outcomes))


def _parameters(
    environment_id: int, outcomes: Iterable[Outcome], *, alone: bool = False
) -> dict[str, object]:
    changes = _changes(outcomes)
    return {
        **_ends(environment_id, changes),
        "alone": alone,
        "statuses": [str(change.status) for change in changes],
        "errors": [change.error for change in changes],
        "delays": [change.delay for change in changes],
        "released": [change.released for change in changes],
        "lost": [change.lost for change in changes],
    }


def _ends(environment_id: int, changes: Sequence[_Change]) -> dict[str, object]:
    """Return what is said of runs that returned."""
    return {
        "environment_id": environment_id,
        "ids": [change.run_id for change in changes],
        "executions": [change.execution for change in changes],
        "outputs": [change.output for change in changes],
        "output_types": [change.output_type for change in changes],
    }


def _changes(outcomes: Iterable[Outcome]) -> list[_Change]:
    """Return them in the order in which everybody locks runs."""
    return [_change(outcome) for outcome in sorted(outcomes, key=lambda o: o.run_id)]


class Outcomes:
    """Takes outcomes and answers once they are committed. `run` belongs into a task group."""

    def __init__(
        self,
        database: Database,
        bell: Doorbell,
        waits: Waits | None = None,
        canceled: Callable[[], None] | None = None,
        hot: DirectCalls | None = None,
    ) -> None:
        """Take who is told of what ended, and what calls the statement of every flush."""
        self._database = database
        self._hot = hot or database
        self._bell = bell
        self._waits = waits
        self._canceled = canceled
        # Whether the last outcomes were of runs whose end entails nothing more.
        self._alone = True
        self._flusher: Flusher[tuple[int, Outcome], Finished] = Flusher(
            "outcomes",
            self._flush,
            max_items=_MAX_WAITING,
            max_bytes=_MAX_WAITING_BYTES,
            size=lambda item: _weight(item[1]),
        )

    async def run(self) -> None:
        """Flush outcomes until `close`, and everything handed in before it."""
        await self._flusher.run()

    def close(self) -> None:
        """Take no more outcomes."""
        self._flusher.close()

    async def drain(self) -> None:
        """Wait until every outcome handed in so far is stored or refused."""
        await self._flusher.drain()

    async def finish(self, environment_id: int, outcome: Outcome) -> Finished:
        """Store an outcome and return once it is committed.

        Raises FencedError, DataRefusedError (Postgres cannot hold the output or error), and
        DatabaseUnavailableError once Postgres has stayed away for 30 s.
        """
        return await self._flusher.submit((environment_id, outcome))

    def submit_nowait(self, environment_id: int, outcome: Outcome) -> "asyncio.Future[Finished]":
        """Queue an outcome and return the promise of its answer."""
        return self._flusher.submit_nowait((environment_id, outcome))

    async def finish_many(
        self, environment_id: int, outcomes: Sequence[Outcome]
    ) -> list[Finished | Exception]:
        """Store several outcomes and return an answer or an error for each."""
        promises = [await self._flusher.put((environment_id, outcome)) for outcome in outcomes]
        return [await _answer(promise) for promise in promises]

    async def _flush(self, items: Sequence[tuple[int, Outcome]]) -> Sequence[Finished | Exception]:
        answers: dict[int, Finished | Exception] = {}
        for group in _groups(items):
            environment_id = items[group[0]][0]
            outcomes = [items[at][1] for at in group]
            stored = await self._store(environment_id, outcomes)
            answers.update(zip(group, stored, strict=True))
        return [answers[at] for at in range(len(items))]

    async def _store(
        self, environment_id: int, outcomes: Sequence[Outcome]
    ) -> list[Finished | Exception]:
        """Store outcomes, each run's at most once; the others look again."""
        first = {outcome.run_id: outcome for outcome in reversed(outcomes)}
        changed = await self._record_alone(environment_id, first) if self._alone else []
        ended = {row["id"] for row in changed}
        left = {id: outcome for id, outcome in first.items() if id not in ended}
        others = [outcome for outcome in outcomes if first[outcome.run_id] is not outcome]
        seen: Mapping[str, Row] = {}
        if left or others:
            more, seen = await self._record_rest(environment_id, left, others)
            changed += more
        done = {row["id"]: Finished(row["id"], RunStatus(row["status"])) for row in changed}
        return [
            done[outcome.run_id]
            if outcome.run_id in done and first[outcome.run_id] is outcome
            else _repeated(outcome, seen.get(outcome.run_id))
            for outcome in outcomes
        ]

    async def _record_alone(
        self, environment_id: int, outcomes: Mapping[str, Outcome]
    ) -> list[Row]:
        """Store in one round trip what entails nothing more; return the runs that changed."""
        completed = [o for o in outcomes.values() if isinstance(o, Completed)]
        if len(completed) == len(outcomes):
            # As nearly all flushes are: for much less.
            changed = await self._hot.all(
                "outcomes.complete", _ends(environment_id, _changes(completed))
            )
        else:
            changed = await self._hot.all(
                "outcomes.record", _parameters(environment_id, outcomes.values(), alone=True)
            )
        endings = Endings(self._bell, self._waits, self._canceled)
        endings.note(changed)
        endings.ring()
        return changed

    async def _record_rest(
        self, environment_id: int, outcomes: Mapping[str, Outcome], others: Sequence[Outcome]
    ) -> tuple[list[Row], Mapping[str, Row]]:
        """Store outcomes and what they entail; return the runs that changed, and how those stand
        that did not or that others are of.
        """
        endings = Endings(self._bell, self._waits, self._canceled)
        async with self._database.transaction(lazy=True) as tx:
            changed = await record(tx, environment_id, outcomes.values()) if outcomes else []
            await endings.settle(tx, changed)
            ended = {row["id"] for row in changed}
            refused = [outcome for id, outcome in outcomes.items() if id not in ended]
            seen = await _statuses(tx, environment_id, [*refused, *others])
        endings.ring()
        if outcomes:
            self._alone = not changed or any(entails_nothing(row) for row in changed)
        return changed, seen


async def _statuses(
    tx: Transaction, environment_id: int, outcomes: Sequence[Outcome]
) -> dict[str, Row]:
    if not outcomes:
        return {}
    ids = [outcome.run_id for outcome in outcomes]
    rows = await tx.all("outcomes.statuses", {"environment_id": environment_id, "ids": ids})
    return {row["id"]: row for row in rows}


def _repeated(outcome: Outcome, row: Row | None) -> Finished | Exception:
    """Answer an outcome that changed nothing: a success if it is what has happened already."""
    if row is not None and row["execution"] == outcome.execution:
        status = RunStatus(row["status"])
        wanted = _change(outcome).status
        canceled = status is RunStatus.CANCELED and row["cancel_requested_at"] is not None
        back = {RunStatus.DELAYED, RunStatus.QUEUED}
        if status is wanted or canceled or (status in back and wanted in back):
            return Finished(outcome.run_id, status)
    reason = "is over" if row and row["status"] in FINAL else "is held by another execution"
    return FencedError(f"run {outcome.run_id} {reason}", run_id=outcome.run_id)


def _groups(items: Sequence[tuple[int, Outcome]]) -> Iterable[list[int]]:
    """Yield positions of items that go together: of one environment, neither many nor heavy."""
    by_environment: dict[int, list[int]] = {}
    for at, (environment_id, _) in enumerate(items):
        by_environment.setdefault(environment_id, []).append(at)
    for places in by_environment.values():
        group: list[int] = []
        weight = 0
        for at in places:
            weight += _weight(items[at][1])
            if group and (len(group) == _GROUP or weight > _GROUP_BYTES):
                yield group
                group, weight = [], _weight(items[at][1])
            group.append(at)
        yield group


def _weight(outcome: Outcome) -> int:
    match outcome:
        case Completed():
            return len(outcome.output or "")
        case Failed() | TimedOut() | Crashed():
            return len(outcome.error)
        case Canceled() | Released() | Lost():
            return 0
        case _:
            assert_never(outcome)


async def _answer(promise: "asyncio.Future[Finished]") -> Finished | Exception:
    try:
        return await promise
    except Exception as error:
        return error
