"""Triggering: from what is wanted to runs in the database, many in one transaction.

Run ids are made before the first statement, so that a flush whose COMMIT got no answer may be
repeated: what it made is recognised by id. Locks are taken in one order by everybody (parents,
request keys, tokens, debounce keys, idempotency keys, queues, each sorted), so that triggers cannot
deadlock.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from runwire.errors import FencedError
from runwire_engine.database import Parameters, Row, Statements, Transaction
from runwire_engine.debounces import DebouncedTrigger, debounced_runs, hold_keys, shown_payload
from runwire_engine.debouncing import Debounced
from runwire_engine.errors import (
    LockHeldError,
    StatementError,
    TokenUsedError,
    UnknownTaskError,
)
from runwire_engine.queue_groups import declare_queues, mention_queues
from runwire_engine.wanted_runs import (
    NewRun,
    Parent,
    TriggerAnswer,
    TriggerResult,
    Wanted,
    columns,
    number_or_none,
)

# How often a key is claimed anew that a failing run freed between the claim and the look at it.
_KEY_TRIES: Final = 5


class Triggering:
    """Triggers runs of one environment in one transaction."""

    def __init__(
        self,
        tx: Statements,
        environment_id: int,
        wanted: Sequence[Wanted],
        *,
        waits: bool = True,
        is_brief: bool = True,
        tasks: Sequence[Row] | None = None,
        last: Callable[[str, Parameters], Awaitable[list[Row]]] | None = None,
    ) -> None:
        """Say whether to wait for keys that another transaction is claiming (else their triggers
        are answered with LockHeldError), whether the transaction ends at once, so that it may keep
        what others need, what `triggers.tasks` would return, where that is known, and what runs a
        last statement and commits, where the transaction is for these triggers alone."""
        # The runs that were made, and what the repeated transaction had made; with their queues.
        self.made: list[Row] = []
        self.found: list[Row] = []
        self._tx = tx
        self._environment_id = environment_id
        self._wanted = list(wanted)
        self._waits = waits
        self._is_brief = is_brief
        self._known_tasks = tasks
        self._last = last
        self._answers: dict[str, TriggerAnswer] = {}
        # Wanted runs that are answered like another one of this transaction, by both ids.
        self._follows: dict[str, str] = {}
        # The requests whose key is ours to fill in.
        self._requests: list[Wanted] = []
        self._tasks: Mapping[str, Row] = {}
        self._parents: Mapping[str, Row] = {}
        self._now: datetime | None = None

    async def run(self, *, repeated: bool = False) -> list[TriggerAnswer]:
        """Return an answer or an error for each; `repeated` after a COMMIT without an answer."""
        await self._find_tasks()
        if repeated:
            await self._recognise()
        self._refuse_unknown()
        await self._hold_parents()
        await self._claim_requests()
        await self._use_tokens()
        if repeated:
            # What was still committing a moment ago has used its tokens itself.
            await self._recognise()
        await self._hold_debounces()
        await self._claim_keys()
        await self._give_back_tokens()
        await self._debounce()
        await self._note_queues()
        await self._insert()
        await self._settle_requests()
        await self._list_in_batches()
        return [self._answer(wanted) for wanted in self._wanted]

    @property
    def _open(self) -> list[Wanted]:
        """What has no answer yet and follows nothing."""
        return [
            wanted
            for wanted in self._wanted
            if wanted.id not in self._answers and wanted.id not in self._follows
        ]

    def _answer(self, wanted: Wanted) -> TriggerAnswer:
        leader = self._follows.get(wanted.id)
        return self._answers[wanted.id if leader is None else leader]

    def _with(self, **parameters: object) -> dict[str, object]:
        return {"environment_id": self._environment_id, "now": self._now, **parameters}

    async def _recognise(self) -> None:
        """Answer what the repeated transaction has made already; it may not have been told of."""
        ids = [wanted.id for wanted in self._wanted]
        self.found = await self._tx.all("triggers.existing", self._with(ids=ids))
        for row in self.found:
            self._answers[row["id"]] = TriggerResult(row["id"], is_cached=False)

    async def _find_tasks(self) -> None:
        names = sorted({wanted.new.task for wanted in self._wanted})
        rows = self._known_tasks
        if rows is None:
            rows = await self._tx.all("triggers.tasks", self._with(tasks=names))
        self._now = rows[0]["now"]
        self._tasks = {row["id"]: row for row in rows}

    def _refuse_unknown(self) -> None:
        for wanted in self._open:
            if wanted.new.task not in self._tasks:
                self._answers[wanted.id] = UnknownTaskError(wanted.new.task)

    async def _hold_parents(self) -> None:
        """Keep the executions that trigger from losing their runs before this commits."""
        ids = {wanted.new.parent.run_id for wanted in self._open if wanted.new.parent}
        if not ids:
            return
        name = "triggers.hold_parents" if self._is_brief else "triggers.parents"
        rows = await self._tx.all(name, self._with(ids=sorted(ids)))
        self._parents = {row["id"]: row for row in rows}
        for wanted in self._open:
            parent = wanted.new.parent
            row = self._parents.get(parent.run_id) if parent else None
            if parent is not None and (row is None or row["execution"] != parent.execution):
                self._answers[wanted.id] = fenced(parent.run_id)

    async def _claim_requests(self) -> None:
        """Answer calls that were answered before; claim the keys of the others."""
        leaders: dict[str, Wanted] = {}
        for wanted in self._open:
            if wanted.new.request_key is None:
                continue
            leader = leaders.setdefault(wanted.new.request_key, wanted)
            if leader is not wanted:
                self._follows[wanted.id] = leader.id
        if not leaders:
            return
        parameters = self._with(
            keys=sorted(leaders), ids=[leaders[key].id for key in sorted(leaders)]
        )
        claimed = {row["key"] for row in await self._tx.all("triggers.claim_requests", parameters)}
        self._requests = [leaders[key] for key in sorted(claimed)]
        others = sorted(leaders.keys() - claimed)
        if not others:
            return
        rows = await self._tx.all("triggers.answered_requests", self._with(keys=others))
        for row in rows:
            self._answers[leaders[row["key"]].id] = TriggerResult(
                row["target_id"], row["is_cached"]
            )
        _same_number(rows, others, "request keys")

    async def _use_tokens(self) -> None:
        paid = {w.id: w.new.one_time_jti for w in self._open if w.new.one_time_jti is not None}
        if not paid:
            return
        first = {jti: (id, expires) for id, (jti, expires) in reversed(paid.items())}
        parameters = self._with(jtis=sorted(first), expire=[first[jti][1] for jti in sorted(first)])
        rows = await self._tx.all("triggers.use_tokens", parameters)
        good = {first[row["jti"]][0] for row in rows}
        for id in paid.keys() - good:
            self._answers[id] = TokenUsedError()

    async def _claim_keys(self) -> None:
        """Answer triggers whose idempotency key has a run; claim the keys of the others."""
        leaders: dict[tuple[str, str], Wanted] = {}
        cached: list[tuple[Wanted, tuple[str, str]]] = []
        for wanted in self._open:
            if wanted.new.idempotency_key is None:
                continue
            name = (wanted.new.task, wanted.new.idempotency_key)
            if leaders.setdefault(name, wanted) is not wanted:
                cached.append((wanted, name))
        if not leaders:
            return
        held: dict[tuple[str, str], str] = {}
        open_names = sorted(leaders)
        for _ in range(_KEY_TRIES if self._waits else 1):
            claimed = await self._claimed_keys(leaders, open_names)
            open_names = [name for name in open_names if name not in claimed]
            held.update(await self._held_keys(open_names))
            open_names = [name for name in open_names if name not in held]
            if not open_names:
                break
        for name in held:
            leader = leaders[name]
            self._answers[leader.id] = TriggerResult(held[name], held[name] != leader.id)
        for name in open_names:
            self._answers[leaders[name].id] = LockHeldError(
                "another transaction is claiming this idempotency key"
            )
        for wanted, name in cached:
            self._answers[wanted.id] = (
                self._answers[leaders[name].id]
                if name in open_names
                else TriggerResult(held.get(name, leaders[name].id), is_cached=True)
            )

    async def _claimed_keys(
        self, leaders: Mapping[tuple[str, str], Wanted], names: Sequence[tuple[str, str]]
    ) -> set[tuple[str, str]]:
        rows = await self._tx.all(
            "triggers.claim_keys",
            self._with(
                waits=self._waits,
                tasks=[task for task, _ in names],
                keys=[key for _, key in names],
                ids=[leaders[name].id for name in names],
                ttls=[float(leaders[name].new.idempotency_ttl) for name in names],
            ),
        )
        return {(row["task"], row["key"]) for row in rows}

    async def _held_keys(self, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        if not names:
            return {}
        tasks, keys = zip(*names, strict=True)
        rows = await self._tx.all(
            "triggers.held_keys", self._with(tasks=list(tasks), keys=list(keys))
        )
        return {(row["task"], row["key"]): row["run_id"] for row in rows}

    async def _give_back_tokens(self) -> None:
        """Leave the one-time tokens of triggers that are to come again unused."""
        jtis = [
            wanted.new.one_time_jti[0]
            for wanted in self._wanted
            if wanted.new.one_time_jti is not None
            and isinstance(self._answers.get(wanted.id), LockHeldError)
        ]
        if jtis:
            await self._tx.run("triggers.free_tokens", self._with(jtis=jtis))

    async def _hold_debounces(self) -> None:
        """Hold debounce keys, before any key leads to a run that these then do not make."""
        asked = [w for w in self._open if w.new.debounce is not None]
        if not asked:
            return
        names = {w.id: (w.new.task, w.new.debounce.key) for w in asked if w.new.debounce}
        ours = await hold_keys(self._tx, self._environment_id, names.values(), waits=self._waits)
        for id, name in names.items():
            if name not in ours:
                self._answers[id] = LockHeldError(
                    "another transaction is claiming this debounce key"
                )

    async def _debounce(self) -> None:
        """Answer triggers whose debounce key has a run that waits, and have that wait longer."""
        asked = {w.id: w for w in self._open if w.new.debounce is not None}
        if not asked:
            return
        triggers = [
            DebouncedTrigger(w.id, w.new.task, w.new.debounce)
            for w in asked.values()
            if w.new.debounce is not None
        ]
        moved: dict[str, str] = {}
        for run in await debounced_runs(self._tx, self._environment_id, self._now, triggers):
            source = None if run.source is None else asked[run.source].new
            if run.is_new:
                first = asked[run.run_id]
                at = self._wanted.index(first)
                self._wanted[at] = replace(first, new=_debounced(first.new, source, run.delay))
            else:
                keys = [asked[id].new.idempotency_key for id in run.triggers]
                key = next((key for key in keys if key is not None), None)
                await self._push(run, source, key)
            moved.update((id, run.run_id) for id in run.triggers if id != run.run_id)
        self._answers.update((id, TriggerResult(moved[id], is_cached=True)) for id in moved)
        await self._move_keys([asked[id] for id in moved], moved)

    async def _push(self, run: Debounced, source: NewRun | None, key: str | None) -> None:
        """Have a run wait longer, and take what the last trigger says if that asks for it."""
        given = source or NewRun("")
        await self._tx.run(
            "debounces.push",
            self._with(
                run_id=run.run_id,
                delay=run.delay,
                takes=source is not None,
                payload=given.payload,
                payload_type=given.payload_type,
                payload_shown=shown_payload(given.payload, given.payload_type),
                metadata=given.metadata,
                tags=list(given.tags) or None,
                max_attempts=given.max_attempts,
                max_duration=number_or_none(given.max_duration),
                idempotency_key=key,
            ),
        )

    async def _move_keys(self, wanted: Sequence[Wanted], moved: Mapping[str, str]) -> None:
        """Point idempotency keys at the runs that debounced triggers led to."""
        keyed = [w for w in wanted if w.new.idempotency_key is not None]
        if not keyed:
            return
        await self._tx.run(
            "debounces.move_keys",
            self._with(
                tasks=[w.new.task for w in keyed],
                keys=[w.new.idempotency_key for w in keyed],
                ids=[moved[w.id] for w in keyed],
            ),
        )
        for id, answer in self._answers.items():
            if isinstance(answer, TriggerResult) and answer.id in moved:
                self._answers[id] = TriggerResult(moved[answer.id], is_cached=True)

    async def _note_queues(self) -> None:
        """Write down the queues that triggers name, with the limits they give them."""
        named = {w.new.queue for w in self._open if w.new.queue is not None}
        limits = {
            self._queue(wanted): wanted.new.concurrency_limit
            for wanted in self._open
            if wanted.new.concurrency_limit is not None
        }
        if named - limits.keys():
            await mention_queues(self._tx, self._environment_id, named - limits.keys())
        if limits:
            await declare_queues(self._tx, self._environment_id, limits)

    def _queue(self, wanted: Wanted) -> str:
        return wanted.new.queue or str(self._tasks[wanted.new.task]["queue"])

    def _root(self, wanted: Wanted) -> tuple[str | None, int]:
        """Return the root of the tree that a run becomes part of, and how deep it is in it."""
        if wanted.new.parent is None:
            return None, 0
        parent = self._parents[wanted.new.parent.run_id]
        return parent["root_id"] or parent["id"], parent["depth"] + 1

    async def _insert(self) -> None:
        wanted = self._open
        if not wanted:
            return
        insert = self._tx.all if self._last is None or self._goes_on() else self._last
        roots = [self._root(w) for w in wanted]
        self.made = await insert(
            "triggers.insert",
            {
                **columns(wanted),
                **self._with(
                    makes_groups=self._is_brief,
                    root_ids=[root for root, _ in roots],
                    depths=[depth for _, depth in roots],
                ),
            },
        )
        for w in wanted:
            self._answers[w.id] = TriggerResult(w.id, is_cached=False)

    def _goes_on(self) -> bool:
        """Whether something is to be written after the runs themselves."""
        settles = any(wanted.id in self._answers for wanted in self._requests)
        return settles or any(wanted.new.batch is not None for wanted in self._wanted)

    async def _settle_requests(self) -> None:
        """Correct the keys of calls that led to an earlier run, free those of refused calls."""
        moved: list[tuple[str, str]] = []
        refused: list[str] = []
        for wanted in self._requests:
            answer = self._answers[wanted.id]
            if isinstance(answer, Exception):
                refused.append(wanted.new.request_key or "")
            elif answer.is_cached:
                moved.append((wanted.new.request_key or "", answer.id))
        if moved:
            await self._tx.run(
                "triggers.move_requests",
                self._with(keys=[key for key, _ in moved], ids=[id for _, id in moved]),
            )
        if refused:
            await self._tx.run("triggers.free_requests", self._with(keys=refused))

    async def _list_in_batches(self) -> None:
        items = [
            (wanted.new.batch, answer.id)
            for wanted in self._wanted
            if wanted.new.batch is not None
            and isinstance(answer := self._answer(wanted), TriggerResult)
        ]
        if items:
            await self._tx.run(
                "triggers.list_in_batches",
                self._with(
                    batch_ids=[batch for (batch, _), _ in items],
                    indexes=[index for (_, index), _ in items],
                    ids=[id for _, id in items],
                ),
            )


def fenced(run_id: str) -> FencedError:
    """Return the error of a write by an execution that does not hold its run."""
    return FencedError(f"run {run_id} is no longer this execution's", run_id=run_id)


async def hold_parent(tx: Transaction, environment_id: int, parent: Parent) -> None:
    """Keep an execution from losing its run before this commits. Raises FencedError."""
    parameters = {"environment_id": environment_id, "ids": [parent.run_id]}
    rows = await tx.all("triggers.hold_parents", parameters)
    if not rows or rows[0]["execution"] != parent.execution:
        raise fenced(parent.run_id)


def _debounced(first: NewRun, source: NewRun | None, delay: float) -> NewRun:
    """Return the run of several triggers: what the last does not say, the first does."""
    last = source or first
    return replace(
        first,
        delay=delay,
        payload=last.payload,
        payload_type=last.payload_type,
        metadata=first.metadata if last.metadata is None else last.metadata,
        tags=last.tags or first.tags,
        max_attempts=last.max_attempts or first.max_attempts,
        max_duration=last.max_duration or first.max_duration,
    )


def _same_number(rows: Sequence[Row], asked: Iterable[object], what: str) -> None:
    """Have the transaction repeated where a key vanished between two of its statements."""
    if len(rows) < len(list(asked)):
        raise StatementError(f"{what} were freed meanwhile", sqlstate="40001", repeatable=True)
