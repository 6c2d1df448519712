"""Runs: trigger, read, cancel, reschedule, replay, tag: for whoever is not executing them.

Each change is one transaction: the run's row with its next revision, and the event that says what
changed. Bells ring once the commit is acknowledged.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from itertools import count
from typing import Final

import anyio

from runwire_engine.cancellations import Cancellations
from runwire_engine.changes import EventRow
from runwire_engine.database import Database, Row, Transaction
from runwire_engine.direct_call import DirectCalls
from runwire_engine.doorbell import Doorbell
from runwire_engine.errors import (
    CommitUnknownError,
    DatabaseUnavailableError,
    DataRefusedError,
    EngineError,
    LockHeldError,
    NotDelayedError,
    RunFinalError,
    RunNotFoundError,
    StatementError,
    TooManyTagsError,
)
from runwire_engine.flusher import RETRY_FOR, Flusher
from runwire_engine.ids import new_run_id
from runwire_engine.run_pages import RunPage as RunPage
from runwire_engine.run_pages import RunQuery as RunQuery
from runwire_engine.run_pages import read_page
from runwire_engine.run_row import RunRow as RunRow
from runwire_engine.run_row import run_row
from runwire_engine.states import FINAL
from runwire_engine.triggers import Triggering, fenced
from runwire_engine.wanted_runs import (
    NewRun,
    TriggerAnswer,
    TriggerResult,
    Wanted,
    lone_columns,
    plain_columns,
)

MAX_TAGS: Final = 10
# A run's timeline is read whole; a run with more revisions than this shows its first ones.
MAX_EVENTS: Final = 10_000
_MAX_FLUSH_BYTES: Final = 16 * 1024 * 1024
_COMMIT_TRIES: Final = 5


class Runs:
    """The runs of every environment. `run` belongs into a task group, for `trigger`."""

    def __init__(
        self,
        database: Database,
        bell: Doorbell,
        cancellations: Cancellations,
        hot: DirectCalls | None = None,
    ) -> None:
        """Take who cancels, and what calls the statement of every trigger."""
        self._database = database
        self._hot = hot or database
        self._bell = bell
        self._cancellations = cancellations
        self._flushed = 0
        self._flusher: Flusher[tuple[int, Wanted], TriggerResult] = Flusher(
            "triggers",
            numbered=self._flush,
            max_bytes=_MAX_FLUSH_BYTES,
            size=lambda item: len(item[1].new.payload or "") + len(item[1].new.metadata or ""),
        )

    async def run(self) -> None:
        """Flush triggers until `close`, and everything handed in before it."""
        await self._flusher.run()

    def close(self) -> None:
        """Take no more triggers."""
        self._flusher.close()

    async def drain(self) -> None:
        """Wait until every trigger handed in so far is stored or refused."""
        await self._flusher.drain()

    async def trigger(self, environment_id: int, new: NewRun) -> TriggerResult:
        """Start a run and return its id once it is committed.

        Raises UnknownTaskError, TokenUsedError, FencedError (the parent lost its run),
        DataRefusedError; DatabaseUnavailableError once Postgres has stayed away for 30 s, or an
        open transaction has held the idempotency key for so long.
        """
        wanted = Wanted(new_run_id(), new)
        deadline = anyio.current_time() + RETRY_FOR
        pauses = (min(0.02 * 2**tried, 0.5) for tried in count())
        while True:
            try:
                return await self._flusher.submit((environment_id, wanted))
            except LockHeldError:
                if anyio.current_time() > deadline:
                    raise
            await anyio.sleep(next(pauses))

    async def trigger_many(
        self, environment_id: int, new: Sequence[NewRun]
    ) -> Sequence[TriggerResult | Exception]:
        """Start runs in one transaction and return an answer or an error for each."""
        wanted = [Wanted(new_run_id(), each) for each in new]
        for tried in range(_COMMIT_TRIES):
            try:
                return await self._store(environment_id, wanted, repeated=tried > 0)
            except CommitUnknownError:
                await anyio.sleep(0.1 * 2**tried)
        return await self._store(environment_id, wanted, repeated=True)

    async def retrieve(self, environment_id: int, run_id: str) -> RunRow | None:
        """Return a run, or None when there is none by that id."""
        found = await self.retrieve_many(environment_id, [run_id])
        return found[0] if found else None

    async def retrieve_many(self, environment_id: int, ids: Sequence[str]) -> list[RunRow]:
        """Return those of the runs that there are, in the order asked for."""
        rows = await self._database.all(
            "runs.retrieve", {"environment_id": environment_id, "ids": list(ids)}
        )
        by_id = {row["id"]: run_row(row) for row in rows}
        return [by_id[id] for id in dict.fromkeys(ids) if id in by_id]

    async def events(self, environment_id: int, run_id: str) -> list[EventRow]:
        """Return the revisions of a run, oldest first."""
        rows = await self._database.all(
            "runs.events",
            {"environment_id": environment_id, "run_id": run_id, "limit": MAX_EVENTS},
        )
        return [_event(row) for row in rows]

    async def cancel(self, environment_id: int, run_id: str) -> RunRow:
        """Cancel a run: at once, or, while it executes, by asking its worker to.

        Its children are canceled after it, and theirs. A run that is over is returned as it is.
        Raises RunNotFoundError.
        """
        await self._cancellations.cancel(environment_id, run_id)
        return await self._there(environment_id, run_id)

    async def reschedule(self, environment_id: int, run_id: str, delay: datetime | float) -> RunRow:
        """Have a run that waits for its time wait until another, or so many seconds from now.

        Raises RunNotFoundError, and NotDelayedError for a run that is queued or has started.
        """
        until = delay if isinstance(delay, datetime) else None
        named = {
            "environment_id": environment_id,
            "run_id": run_id,
            "until": until,
            "delay": None if isinstance(delay, datetime) else float(delay),
        }

        async def work(tx: Transaction) -> bool:
            return await tx.one("runs.reschedule", named) is not None

        moved = await self._database.surely(work)
        run = await self._there(environment_id, run_id)
        if not moved:
            raise NotDelayedError(run_id, run.status)
        self._bell.ring_feed(environment_id, [run_id])
        return run

    async def replay(
        self,
        environment_id: int,
        run_id: str,
        *,
        payload: str | None = None,
        payload_type: str | None = None,
        request_key: str | None = None,
    ) -> TriggerResult:
        """Start a new run like an old one; its metadata, batch, parent and keys are left behind.

        Raises RunNotFoundError, and what `trigger` raises.
        """
        old = await self._there(environment_id, run_id)
        new = NewRun(
            task=old.task,
            payload=old.payload if payload is None else payload,
            payload_type=payload_type or old.payload_type,
            queue=old.queue,
            concurrency_key=old.concurrency_key,
            tags=old.tags,
            ttl=old.ttl,
            max_attempts=old.max_attempts,
            max_duration=old.max_duration,
            priority=old.priority,
            request_key=request_key,
            is_test=old.is_test,
        )
        return await self.trigger(environment_id, new)

    async def reset_key(self, environment_id: int, task: str, key: str) -> bool:
        """Free an idempotency key of a task: its next trigger makes a new run. False if none was
        held; the run that it led to goes on."""
        name = {"environment_id": environment_id, "task": task, "key": key}
        return await self._database.run("runs.reset_key", name) > 0

    async def add_tags(
        self,
        environment_id: int,
        run_id: str,
        tags: Sequence[str],
        *,
        execution: int | None = None,
    ) -> RunRow:
        """Add tags to a run that is not over; those it has are left alone.

        The run itself gives its `execution`. Raises RunNotFoundError, RunFinalError, FencedError
        (another execution holds the run), and TooManyTagsError beyond ten tags.
        """
        if await self._database.surely(partial(_add_tags, environment_id, run_id, tags, execution)):
            self._bell.ring_feed(environment_id, [run_id])
        return await self._there(environment_id, run_id)

    async def list(self, environment_id: int, query: RunQuery) -> RunPage:
        """Return a page of runs, newest first, without payloads and outputs."""
        return await read_page(self._database, environment_id, query)

    async def _there(self, environment_id: int, run_id: str) -> RunRow:
        found = await self.retrieve(environment_id, run_id)
        if found is None:
            raise RunNotFoundError(run_id)
        return found

    async def _flush(
        self, number: int, items: Sequence[tuple[int, Wanted]]
    ) -> Sequence[TriggerAnswer]:
        repeated, self._flushed = number == self._flushed, number
        answers: dict[str, TriggerAnswer] = {}
        for environment_id in sorted({environment_id for environment_id, _ in items}):
            wanted = [wanted for at, wanted in items if at == environment_id]
            # Nobody waits for a key that others may hold for long: that would hold up everybody.
            stored = await self._store(environment_id, wanted, repeated=repeated, waits=False)
            answers.update((w.id, answer) for w, answer in zip(wanted, stored, strict=True))
        return [answers[wanted.id] for _, wanted in items]

    async def _store(
        self, environment_id: int, wanted: Sequence[Wanted], *, repeated: bool, waits: bool = True
    ) -> Sequence[TriggerAnswer]:
        """Trigger runs; once more, with their partition, on the first of a new day."""

        async def store() -> Sequence[TriggerAnswer]:
            if repeated or not all(each.new.is_plain for each in wanted):
                return await self._trigger(environment_id, wanted, repeated, waits)
            if len(wanted) == 1:
                return [await self._trigger_lone(environment_id, wanted[0], waits)]
            return await self._trigger_plain(environment_id, wanted, waits)

        try:
            return await store()
        except DataRefusedError:
            await self._database.run("runs.make_partitions")
            return await store()

    async def _trigger_lone(
        self, environment_id: int, wanted: Wanted, waits: bool
    ) -> TriggerAnswer:
        """Trigger a plain run by a statement that rings for it, too; in a second transaction where
        nobody knows its task, or its call was made before.
        """
        rings = self._bell.takes_notify
        named = {"environment_id": environment_id, **lone_columns(wanted), "rings": rings}
        try:
            ((queue,),) = [row.values() for row in await self._hot.all("triggers.lone", named)]
        except DatabaseUnavailableError:
            raise  # whoever flushes it again looks first whether it is made
        except EngineError:
            # Perhaps that of the bell, which rings behind the commit.
            sought = {"environment_id": environment_id, "ids": [wanted.id]}
            made = await self._database.all("triggers.existing", sought)
            if not made:
                raise
            self._ring(environment_id, made)
            return TriggerResult(wanted.id, is_cached=False)
        if queue is None:
            [answer] = await self._trigger(environment_id, [wanted], False, waits)
            return answer
        if not rings:
            self._ring(environment_id, [{"id": wanted.id, "queue": queue}])
        return TriggerResult(wanted.id, is_cached=False)

    async def _trigger_plain(
        self, environment_id: int, wanted: Sequence[Wanted], waits: bool
    ) -> Sequence[TriggerAnswer]:
        """Trigger by one statement; in a second transaction those whose task nobody knows, or whose
        call was made before.
        """
        made = await self._hot.all(
            "triggers.insert", {"environment_id": environment_id, **plain_columns(wanted)}
        )
        self._ring(environment_id, made)
        answers: dict[str, TriggerAnswer] = {
            row["id"]: TriggerResult(row["id"], is_cached=False) for row in made
        }
        left = [each for each in wanted if each.id not in answers]
        if left:
            try:
                others = await self._trigger(environment_id, left, False, waits)
            except StatementError as error:
                # Not for those that are made, and would be made again.
                others = [error] * len(left)
            answers.update((each.id, other) for each, other in zip(left, others, strict=True))
        return [answers[each.id] for each in wanted]

    async def _trigger(
        self, environment_id: int, wanted: Sequence[Wanted], repeated: bool, waits: bool
    ) -> Sequence[TriggerAnswer]:
        """Trigger in one transaction, whatever is asked for beside."""

        async def work(tx: Transaction) -> tuple[Sequence[TriggerAnswer], Sequence[Row]]:
            last = partial(tx.last, one_plan=True)
            triggering = Triggering(tx, environment_id, wanted, waits=waits, last=last)
            answers = await triggering.run(repeated=repeated)
            return answers, [*triggering.made, *triggering.found]

        answers, made = await self._database.retrying(work, lazy=True)
        self._ring(environment_id, made)
        return answers

    def _ring(self, environment_id: int, made: Sequence[Row]) -> None:
        if made:
            self._bell.ring_work(environment_id, {row["queue"] for row in made})
            self._bell.ring_feed(environment_id, [row["id"] for row in made])


def _event(row: Row) -> EventRow:
    values = dict(row)
    values["tags"] = tuple(row["tags"])
    return EventRow(**values)


async def _add_tags(
    environment_id: int,
    run_id: str,
    tags: Sequence[str],
    execution: int | None,
    tx: Transaction,
) -> bool:
    """Add tags under the run's lock; False when the run has them all."""
    name = {"environment_id": environment_id, "run_id": run_id}
    row = await tx.one("runs.lock", name)
    if row is None:
        raise RunNotFoundError(run_id)
    added = [tag for tag in dict.fromkeys(tags) if tag not in row["tags"]]
    if execution is not None and not (row["executing"] and row["execution"] == execution):
        raise fenced(run_id)
    if row["status"] in FINAL:
        raise RunFinalError(run_id, row["status"])
    if len(row["tags"]) + len(added) > MAX_TAGS:
        raise TooManyTagsError(run_id, MAX_TAGS)
    if added:
        await tx.run("runs.add_tags", {**name, "tags": added})
    return bool(added)
