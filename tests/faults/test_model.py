"""The engine and two hubs on a real Postgres against a model, whatever happens in whatever order.

Hypothesis chooses the steps: writes of workers and zombies, transactions that commit late or never,
bells that come or are lost, clients that drop and resume elsewhere. In the end the database holds
what was acknowledged, and every client what the database holds; on the way nobody saw what the
protocol forbids.

    RUNWIRE_MODEL_EXAMPLES=2000 RUNWIRE_MODEL_STEPS=80     longer (40 examples of 50 steps)
    RUNWIRE_FAULTS_SEED=7                                  the same again: the seed is printed
"""

import os
import random
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import AsyncExitStack
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import orjson
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

import runwire_engine
from runwire.errors import FencedError
from runwire_engine.database import Transaction
from runwire_engine.endings import Endings
from runwire_engine.errors import EngineError, RunFinalError
from runwire_engine.outcomes import Canceled, Completed, Failed, Outcome, Released, record
from runwire_engine.run_metadata import MetadataWrite
from runwire_engine.states import FINAL
from runwire_engine.streams import Append
from runwire_engine.triggers import Triggering
from runwire_engine.wanted_runs import NewRun, Wanted
from runwire_realtime.limits import HubLimits
from runwire_realtime.scope import Grant
from tests.support.history import Fault, Finding, Ledger, check, read_ledger
from tests.support.model_world import TASK, WatchedDatabase, Wire, World
from tests.support.postgres import TestServer
from tests.support.protocol_client import JsonObject, ProtocolClient, folded

EXAMPLES = int(os.environ.get("RUNWIRE_MODEL_EXAMPLES", "40"))
STEPS = int(os.environ.get("RUNWIRE_MODEL_STEPS", "50"))
# Every day the same histories; the long ones (`make faults`) are others each time.
USUAL = "0" if "RUNWIRE_MODEL_EXAMPLES" in os.environ else "7"
SEED = int(os.environ.get("RUNWIRE_FAULTS_SEED", USUAL)) or random.randrange(1, 2**31)

SHRINKS = "RUNWIRE_MODEL_SHRINK" in os.environ

# So small that everything overflows, as in tests/realtime/test_hub.py; and as in production.
TIGHT = HubLimits(
    inbound_burst=10_000,
    steps_kept=3,
    steps_bytes=2000,
    patch_bytes=400,
    ring_bytes=400,
    rings_bytes=700,
    turn_bytes=60,
    frame_bytes=3000,
    rows_held=2,
    finals_kept=1,
    rows_per_read=2,
)
ROOMY = HubLimits(inbound_burst=10_000)

TAGS = ("x", "y")
KEYS = ("log", "text")
WORKERS = ("w1", "w2")
MAX_RUNS = 8
MAX_CLIENTS = 5
ATTEMPTS = 3
OVER = {str(status) for status in FINAL}
T = TypeVar("T")


@dataclass
class ModelRun:
    """What the acknowledgements say about a run."""

    id: str
    tags: list[str]
    status: str = "QUEUED"
    execution: int = 0
    attempt: int = 0
    worker: str | None = None
    cancel_requested: bool = False
    metadata: JsonObject = field(default_factory=dict[str, Any])
    # An open transaction holds its row.
    is_held: bool = False

    @property
    def is_over(self) -> bool:
        return self.status in OVER


@dataclass
class Open:
    """A transaction that has written events and not committed."""

    stack: AsyncExitStack
    tx: Transaction
    endings: Endings
    runs: list[ModelRun]
    # What the runs are once it is committed.
    becomes: list[ModelRun]


class Model(RuleBasedStateMachine):
    """Commits, bells, time, and clients, in any order."""

    shared: ClassVar[World | None] = None
    server: ClassVar[TestServer]

    def __init__(self) -> None:
        super().__init__()
        if Model.shared is None:
            Model.shared = World(Model.server.create_database(), [TIGHT, ROOMY])
        self.world = Model.shared
        self.world.findings.clear()
        self.env = self.world.step(self.world.new_environment())
        self.grant = Grant(self.env, api_key=True)
        self.runs: dict[str, ModelRun] = {}
        self.chunks: dict[tuple[str, str], list[Any]] = {}
        self.batches: dict[str, list[str]] = {}
        # Executions that lost their run.
        self.zombies: list[tuple[str, int]] = []
        self.open: list[Open] = []
        self.wires: list[Wire] = []
        self.count = 0
        self.is_clean = False
        self.lives: dict[str, int] = dict.fromkeys(WORKERS, 0)
        for worker in WORKERS:
            self._register(worker)

    # Short ways

    def _register(self, worker: str) -> None:
        self.lives[worker] += 1
        self.world.step(self.world.workers.register(self.env, self._id(worker)))

    def _id(self, worker: str) -> str:
        return f"{worker}-{self.env}-{self.lives[worker]}"

    def _runs(self, *statuses: str, free: bool = True) -> list[ModelRun]:
        return [
            run
            for run in self.runs.values()
            if (not statuses or run.status in statuses) and not (free and run.is_held)
        ]

    def _executing(self) -> list[ModelRun]:
        return self._runs("EXECUTING")

    def _hasten(self) -> list[ModelRun]:
        """Have the time come of all retries that no transaction holds; return them."""
        delayed = self._runs("DELAYED")
        self.world.step(self.world.execute(_HASTEN, self.env, [run.id for run in delayed]))
        return delayed

    def _next(self) -> int:
        self.count += 1
        return self.count

    def _found(self, fault: Fault, run_id: str, **where: Any) -> None:
        self.world.findings.append(Finding(fault, run_id, **where))

    # Triggers

    @precondition(lambda self: len(self.runs) < MAX_RUNS)
    @rule(tags=st.lists(st.sampled_from(TAGS), unique=True), amount=st.integers(1, 2))
    def trigger(self, tags: list[str], amount: int) -> None:
        new = [self._new(tags) for _ in range(amount)]
        for answer in self.world.step(self.world.runs.trigger_many(self.env, new)):
            assert not isinstance(answer, Exception)
            self.runs[answer.id] = ModelRun(answer.id, list(tags))

    def _new(self, tags: Sequence[str]) -> NewRun:
        return NewRun(TASK, '{"a":1}', tags=tuple(tags), max_attempts=ATTEMPTS)

    @precondition(lambda self: len(self.batches) < 2)
    @rule()
    def create_batch(self) -> None:
        batch = self.world.step(self.world.batches.create(self.env, 2))
        self.batches[batch.id] = []

    @precondition(lambda self: any(len(items) < 2 for items in self.batches.values()))
    @rule(data=st.data())
    def add_item(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(b for b, i in self.batches.items() if len(i) < 2)))
        items = self.batches[name]
        new = NewRun(TASK, '{"a":1}', tags=("x",), max_attempts=ATTEMPTS, batch=(name, len(items)))
        self.world.step(self.world.batches.add_items(self.env, name, [(len(items), new)]))
        batch = self.world.step(self.world.batches.retrieve(self.env, name))
        assert batch is not None
        items[:] = batch.run_ids
        self.runs.setdefault(items[-1], ModelRun(items[-1], ["x"]))

    # Workers

    @rule(worker=st.sampled_from(WORKERS), slots=st.integers(1, 3))
    def claim(self, worker: str, slots: int) -> None:
        ready = {run.id for run in self._runs("QUEUED")}
        claimed = self.world.step(
            self.world.claims.claim(self.env, self._id(worker), {TASK: ATTEMPTS}, slots)
        )
        assert len(claimed) == min(slots, len(ready))
        for row in claimed:
            run = self.runs[row.id]
            assert row.id in ready, "a run was claimed that was not ready"
            assert row.execution == run.execution + 1
            run.status, run.worker = "EXECUTING", self._id(worker)
            run.execution, run.attempt = row.execution, row.attempt

    @rule(worker=st.sampled_from(WORKERS))
    def heartbeat(self, worker: str) -> None:
        assert self.world.step(self.world.workers.heartbeat(self._id(worker)))

    @precondition(lambda self: self._executing())
    @rule(data=st.data(), amount=st.integers(1, 3), is_large=st.booleans())
    def progress(self, data: st.DataObject, amount: int, is_large: bool) -> None:
        run = self._pick(data, self._executing())
        operations: list[JsonObject] = [{"type": "increment", "key": "n", "value": 1}] * amount
        if is_large:
            operations.append({"type": "set", "key": "big", "value": "m" * 300})
        write = MetadataWrite(run.id, operations, run.execution)
        self.world.step(self.world.metadata.apply(self.env, write))
        run.metadata = folded(run.metadata, operations)

    @precondition(lambda self: self._runs())
    @rule(data=st.data())
    def progress_from_outside(self, data: st.DataObject) -> None:
        run = self._pick(data, self._runs())
        operations: list[JsonObject] = [{"type": "append", "key": "seen", "value": self._next()}]
        self.world.step(self.world.metadata.apply(self.env, MetadataWrite(run.id, operations)))
        run.metadata = folded(run.metadata, operations)

    @precondition(lambda self: self._executing())
    @rule(data=st.data(), key=st.sampled_from(KEYS), amount=st.integers(0, 4), end=st.booleans())
    def append(self, data: st.DataObject, key: str, amount: int, end: bool) -> None:
        run = self._pick(data, self._executing())
        self._append(run, key, amount, end=end, execution=run.execution, attempt=run.attempt)

    @precondition(lambda self: self._runs("QUEUED", "EXECUTING", "DELAYED"))
    @rule(data=st.data(), key=st.sampled_from(KEYS), amount=st.integers(1, 3))
    def append_from_outside(self, data: st.DataObject, key: str, amount: int) -> None:
        run = self._pick(data, self._runs("QUEUED", "EXECUTING", "DELAYED"))
        writers = [other for other in self._executing() if other is not run]
        writer = data.draw(st.sampled_from([None, *writers]))
        if writer is None:
            self._append(run, key, amount, writer="backend")
        else:
            self._append(run, key, amount, writer=writer.id, execution=writer.execution)

    def _append(self, run: ModelRun, key: str, amount: int, **by: Any) -> None:
        values = [f"{key}-{self._next()}" + "c" * (each * 9) for each in range(amount)]
        held = self.chunks.setdefault((run.id, key), [])
        bodies = tuple(orjson.dumps(value).decode() for value in values)
        append = Append(run.id, key, bodies, **by)
        answer = self.world.step(self.world.streams.append(self.env, append))
        assert answer.from_seq == len(held), "chunks were placed where others are"
        held += values

    @precondition(lambda self: self._executing())
    @rule(data=st.data(), key=st.sampled_from(KEYS))
    def append_whose_commit_fails(self, data: st.DataObject, key: str) -> None:
        run = self._pick(data, self._executing())
        body = orjson.dumps(f"never-{self._next()}").decode()
        append = Append(run.id, key, (body,), execution=run.execution, attempt=run.attempt)
        self.world.step(self.world.execute("insert into public.refusals values (%s)", run.id))
        try:
            self.world.step(self.world.streams.append(self.env, append))
            raise AssertionError("the commit was to fail")
        except EngineError:
            pass
        finally:
            self.world.step(self.world.execute("delete from public.refusals"))

    @precondition(lambda self: self._executing())
    @rule(data=st.data(), how=st.sampled_from(["complete", "fail", "retry", "release", "cancel"]))
    def finish(self, data: st.DataObject, how: str) -> None:
        run = self._pick(data, self._executing())
        self.world.step(self.world.outcomes.finish(self.env, _outcome(run, how)))
        self._end(run, how)

    def _end(self, run: ModelRun, how: str) -> None:
        """Take an outcome as the engine does: a requested cancellation beats it."""
        self.zombies.append((run.id, run.execution))
        _finish(run, how)

    @precondition(lambda self: self._runs("DELAYED"))
    @rule()
    def promote(self) -> None:
        """The times of all retries have come."""
        delayed = self._hasten()
        self.world.step(self.world.claims.promote_due(self.env))
        for run in delayed:
            run.status = "QUEUED"

    @precondition(lambda self: self._runs())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        run = self._pick(data, self._runs())
        self.world.step(self.world.runs.cancel(self.env, run.id))
        if run.status == "EXECUTING":
            run.cancel_requested = True
        elif not run.is_over:
            run.status = "CANCELED"

    @precondition(lambda self: not self.open)
    @rule(worker=st.sampled_from(WORKERS))
    def lease_ends(self, worker: str) -> None:
        """A worker is silent for too long; it comes back under another id."""
        lost = self._id(worker)
        delayed = self._hasten()
        self.world.step(
            self.world.execute(
                "update runwire.workers set expires_at = now() - interval '1 s' where id = %s", lost
            )
        )
        self.world.step(self.world.sweep())
        for run in self._executing():
            if run.worker == lost and run.status == "EXECUTING":
                self._end(run, "lost")
        for run in delayed:
            run.status = "QUEUED"  # the sweep promotes, too
        self._register(worker)

    @precondition(lambda self: self.zombies)
    @rule(data=st.data(), key=st.sampled_from(KEYS), what=st.sampled_from(["chunk", "set", "end"]))
    def zombie_writes(self, data: st.DataObject, key: str, what: str) -> None:
        self._write_as_zombie(*data.draw(st.sampled_from(self.zombies)), key, what)

    @precondition(lambda self: self._executing())
    @rule(data=st.data(), key=st.sampled_from(KEYS), what=st.sampled_from(["chunk", "set", "end"]))
    def overtaken(self, data: st.DataObject, key: str, what: str) -> None:
        """A run starts again elsewhere while its old execution still writes."""
        run = self._pick(data, self._executing())
        execution = run.execution
        self.world.step(self.world.outcomes.finish(self.env, _outcome(run, "release")))
        self._end(run, "release")
        self.claim(WORKERS[0], 3)
        self._write_as_zombie(run.id, execution, key, what)

    def _write_as_zombie(self, run_id: str, execution: int, key: str, what: str) -> None:
        run = self.runs[run_id]
        if run.is_held:
            return
        try:
            self.world.step(self._write_as(run_id, execution, key, what))
        except (FencedError, RunFinalError):
            return
        self._found(Fault.ZOMBIE_ACCEPTED, run_id, stream=key, number=execution)

    async def _write_as(self, run_id: str, execution: int, key: str, what: str) -> None:
        world = self.world
        if what == "chunk":
            append = Append(run_id, key, ('"zombie"',), execution=execution, attempt=1)
            await world.streams.append(self.env, append)
        elif what == "set":
            operations = [{"type": "set", "key": "zombie", "value": True}]
            await world.metadata.apply(self.env, MetadataWrite(run_id, operations, execution))
        else:
            outcome = Failed(run_id, execution, '{"name":"Z","message":"z"}')
            answer = await world.outcomes.finish(self.env, outcome)
            if answer.status == self.runs[run_id].status:
                # It was told what has happened, as one whose answer was lost is.
                raise FencedError("nothing was written", run_id=run_id)

    # Tags

    @precondition(lambda self: any(not run.is_over for run in self._runs()))
    @rule(data=st.data(), tag=st.sampled_from(TAGS))
    def add_tag(self, data: st.DataObject, tag: str) -> None:
        run = self._pick(data, [run for run in self._runs() if not run.is_over])
        self.world.step(self.world.runs.add_tags(self.env, run.id, [tag]))
        if tag not in run.tags:
            run.tags.append(tag)

    @precondition(lambda self: any(run.tags and not run.is_over for run in self._runs()))
    @rule(data=st.data())
    def remove_tag(self, data: st.DataObject) -> None:
        """As the engine would; nothing in it removes a tag yet, but the hub knows how to."""
        run = self._pick(data, [run for run in self._runs() if run.tags and not run.is_over])
        tag = data.draw(st.sampled_from(run.tags))
        self.world.step(self.world.execute(_REMOVE_TAG, tag, self.env, run.id, tag, tag))
        self.world.bell.ring_feed(self.env, [run.id])
        run.tags.remove(tag)

    # Transactions that stay open

    @precondition(lambda self: len(self.open) < 3 and len(self.runs) < MAX_RUNS)
    @rule(tags=st.lists(st.sampled_from(TAGS), unique=True), amount=st.integers(1, 2))
    def begin_trigger(self, tags: list[str], amount: int) -> None:
        wanted = [Wanted(self.world.new_run_id(), self._new(tags)) for _ in range(amount)]
        made = [ModelRun(each.id, list(tags), is_held=True) for each in wanted]

        async def work(tx: Transaction, endings: Endings) -> None:
            await Triggering(tx, self.env, wanted).run()

        self._begin([], made, work)

    @precondition(lambda self: len(self.open) < 3 and any(not r.is_over for r in self._runs()))
    @rule(data=st.data(), tag=st.sampled_from(TAGS))
    def begin_add_tag(self, data: st.DataObject, tag: str) -> None:
        run = self._pick(data, [run for run in self._runs() if not run.is_over])
        if tag in run.tags:
            return

        async def work(tx: Transaction, endings: Endings) -> None:
            name = {"environment_id": self.env, "run_id": run.id}
            await tx.one("runs.lock", name)
            await tx.run("runs.add_tags", {**name, "tags": [tag]})

        self._begin([run], [_copy(run, tags=[*run.tags, tag])], work)

    @precondition(lambda self: len(self.open) < 3 and self._executing())
    @rule(data=st.data(), how=st.sampled_from(["complete", "fail", "retry", "cancel"]))
    def begin_finish(self, data: st.DataObject, how: str) -> None:
        run = self._pick(data, self._executing())
        after = _copy(run)
        _finish(after, how)

        async def work(tx: Transaction, endings: Endings) -> None:
            await endings.settle(tx, await record(tx, self.env, [_outcome(run, how)]))

        self._begin([run], [after], work)

    def _begin(self, runs: list[ModelRun], becomes: list[ModelRun], work: Any) -> None:
        async def begin() -> Open:
            stack = AsyncExitStack()
            database = WatchedDatabase(self.world.dsn, max_size=1)
            await database.open()
            stack.push_async_callback(database.close)
            tx = await stack.enter_async_context(database.transaction())
            await tx.connection.execute("set idle_in_transaction_session_timeout = 0")
            endings = Endings(self.world.bell)
            await work(tx, endings)
            return Open(stack, tx, endings, runs, becomes)

        self.open.append(self.world.step(begin()))
        for run in runs:
            run.is_held = True

    @precondition(lambda self: self.open)
    @rule(data=st.data(), commits=st.sampled_from([True, True, False]), rings=st.booleans())
    def end_transaction(self, data: st.DataObject, commits: bool, rings: bool) -> None:
        which = data.draw(st.integers(0, len(self.open) - 1))
        self._resolve(self.open.pop(which), commits=commits, rings=rings)

    def _resolve(self, held: Open, *, commits: bool, rings: bool) -> None:
        async def resolve() -> None:
            if commits:
                await held.stack.aclose()
                return
            try:
                async with held.stack:
                    raise InterruptedError
            except InterruptedError:
                pass

        self.world.step(resolve())
        for run in held.runs:
            run.is_held = False
        if not commits:
            return
        for run in held.runs:
            if held.becomes[0].status != run.status:
                self.zombies.append((run.id, run.execution))
        self.runs.update({run.id: _copy(run, is_held=False) for run in held.becomes})
        if rings:
            held.endings.ring()
            self.world.bell.ring_feed(self.env, [run.id for run in held.becomes])

    # What the hubs hear

    @rule(which=st.integers(0, 1), is_lost=st.sampled_from([False, False, True]))
    def bells(self, which: int, is_lost: bool) -> None:
        hub = self.world.hubs[which]
        if is_lost:
            hub.unheard.clear()
        else:
            self.world.call(hub.hear)

    @rule(seconds=st.sampled_from([0.5, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.step(self.world.pass_time(seconds))

    @rule(which=st.integers(0, 1))
    def listening_is_interrupted(self, which: int) -> None:
        hub = self.world.hubs[which]
        hub.unheard.clear()
        self.world.call(hub.reconnect_listener)

    @rule(which=st.integers(0, 1))
    def reads_are_slow(self, which: int) -> None:
        self.world.hubs[which].following.is_closed = True

    @rule(which=st.integers(0, 1), at=st.integers(0, 7))
    def read_arrives(self, which: int, at: int) -> None:
        following = self.world.hubs[which].following
        if following.waiting:
            self.world.call(lambda: following.release(at % len(following.waiting)))

    @rule(which=st.integers(0, 1))
    def reads_are_quick(self, which: int) -> None:
        self.world.call(self.world.hubs[which].following.open)

    # Clients

    @precondition(lambda self: len(self.wires) < MAX_CLIENTS)
    @rule(
        data=st.data(),
        which=st.integers(0, 1),
        modes=st.lists(st.sampled_from(["latest", "every"]), min_size=1, max_size=3),
    )
    def subscribe(self, data: st.DataObject, which: int, modes: list[str]) -> None:
        # Two readers of one stream share a position: only alone one begins in the middle.
        starts = RUN_STREAMS if len(modes) == 1 else RUN_STREAMS[:3]
        subs = {
            f"s{at}": {**self._subscription(data, starts), "mode": mode}
            for at, mode in enumerate(modes)
        }
        client = ProtocolClient(
            f"client {len(self.wires)}",
            subs,
            mode="every" if "every" in modes else "latest",
            allowed_gaps=["epoch_changed"],
            existing=lambda: self.runs,
        )
        self.wires.append(self.world.call(lambda: self._wire(which, client)))

    def _subscription(self, data: st.DataObject, starts: list[JsonObject]) -> JsonObject:
        kinds = ["tags", "runs", "status"]
        kinds += ["run", "run"] if self.runs else []
        kinds += ["batch"] if self.batches else []
        kind = data.draw(st.sampled_from(kinds))
        streams = data.draw(st.sampled_from([{}, {"*": {"from": "start"}}]))
        match kind:
            case "run":
                to: JsonObject = {"run": data.draw(st.sampled_from(sorted(self.runs)))}
                streams = data.draw(st.sampled_from(starts))
            case "tags":
                to = {"tags": data.draw(st.sampled_from([["x"], ["y"], ["x", "y"]]))}
            case "batch":
                to = {"batch": data.draw(st.sampled_from(sorted(self.batches)))}
            case "status":
                to = {"runs": {"status": ["EXECUTING", "QUEUED"]}}
            case _:
                to = {"runs": {}}
        return {"to": to, "streams": streams}

    def _wire(self, which: int, client: ProtocolClient) -> Wire:
        return Wire(self.world.hubs[which], client, self.grant, self.world.clock)

    @precondition(lambda self: self.wires)
    @rule(data=st.data(), frames=st.integers(1, 5))
    def receive(self, data: st.DataObject, frames: int) -> None:
        wire = self.wires[data.draw(st.integers(0, len(self.wires) - 1))]
        self.world.call(lambda: [wire.turn() for _ in range(frames)])

    @precondition(lambda self: self.wires)
    @rule(data=st.data(), which=st.integers(0, 1))
    def drop_and_resume(self, data: st.DataObject, which: int) -> None:
        """Lose the connection with what is under way on it, and go on at this or the other hub."""
        at = data.draw(st.integers(0, len(self.wires) - 1))
        self.world.call(lambda: self._resume(at, which))

    @precondition(lambda self: self.wires)
    @rule(data=st.data(), which=st.integers(0, 1), changes=st.integers(0, 3))
    def go_on_in_another_process(self, data: st.DataObject, which: int, changes: int) -> None:
        """Hand over where a client is, and none of its runs, which change meanwhile."""
        at = data.draw(st.integers(0, len(self.wires) - 1))
        wire = self.wires[at]
        self.world.call(lambda: [wire.turn() for _ in range(20)])
        self.world.call(wire.close)
        wire.client.change_process()
        for run in self._runs("QUEUED", "EXECUTING", "DELAYED"):
            for _ in range(changes):
                self._push(run)
        self.world.call(lambda: self._resume(at, which))

    def _push(self, run: ModelRun) -> None:
        operations = [{"type": "append", "key": "pushed", "value": self._next()}]
        self.world.step(self.world.metadata.apply(self.env, MetadataWrite(run.id, operations)))
        run.metadata = folded(run.metadata, operations)

    def _resume(self, at: int, which: int) -> None:
        self.wires[at].close()
        self.wires[at] = self._wire(which, self.wires[at].client)

    @precondition(lambda self: self.count > 30 and self.wires)
    @rule(chance=st.integers(0, 3))
    def epoch_changes(self, chance: int) -> None:
        if chance == 0:
            self.world.step(self.world.set_epoch())

    # In the end

    def teardown(self) -> None:
        try:
            self._finish()
            self.is_clean = True
        finally:
            if not self.is_clean:
                # Whatever it left behind must not disturb the next example.
                world, Model.shared = self.world, None
                world.close()

    def _finish(self) -> None:
        for held in self.open:
            self._resolve(held, commits=True, rings=False)
        for hub in self.world.hubs:
            self.world.call(hub.following.open)
            hub.unheard.clear()
        self.world.step(self.world.settle(self._turn_all))
        ledger = self.world.step(read_ledger(self.world.dsn, self.env))
        for wire in self.wires:
            wire.client.note_streams(ledger.streams)
        logs = [wire.client.finish() for wire in self.wires]
        findings = [*self.world.findings, *self._wrong(ledger), *check(ledger, logs)]
        for finding in findings[:3]:
            sys.stdout.write(f"FOUND {finding}\n")
            self._tell(finding)
        assert not findings, "\n".join(map(str, findings[:20]))
        self._check_nothing_is_left()

    def _tell(self, finding: Finding) -> None:
        for wire in self.wires:
            if wire.client.log.name == finding.client:
                hub = self.world.hubs.index(wire.process)
                sys.stdout.write(
                    f"-- {finding}, at hub {hub}\n{wire.client.story(finding.run_id)}\n"
                )

    def _turn_all(self) -> bool:
        is_busy = False
        for at, wire in enumerate(self.wires):
            for _ in range(100):
                if not wire.turn():
                    break
                is_busy = True
            if wire.is_closed and not wire.client.is_over:
                self._resume(at, at % 2)
                is_busy = True
        return is_busy

    def _wrong(self, ledger: Ledger) -> Iterable[Finding]:
        """Compare the database with what was acknowledged."""
        for run_id in sorted(self.runs.keys() ^ ledger.runs.keys()):
            yield Finding(Fault.WRONG_LEDGER, run_id)
        for run_id, run in self.runs.items():
            row = ledger.runs.get(run_id)
            if row is None:
                continue
            stored: tuple[str, list[str], Any] = (row.status, sorted(row.tags), row.metadata or {})
            expected = (run.status, sorted(run.tags), run.metadata)
            if stored != expected:
                sys.stdout.write(f"stored {stored}\nexpected {expected}\n")
                yield Finding(Fault.WRONG_LEDGER, run_id, number=row.revision)
        for key, values in self.chunks.items():
            stream = ledger.streams.get(key)
            kept = (
                []
                if stream is None
                else [orjson.loads(c) for _, c in sorted(stream.chunks.items())]
            )
            if kept != values:
                yield Finding(Fault.WRONG_LEDGER, key[0], stream=key[1])

    def _check_nothing_is_left(self) -> None:
        self.world.call(self._close_all)
        for process in self.world.hubs:
            hub = process.hub
            assert not hub.followers and not list(hub.feeds())
            assert not hub.runs and not hub.streams.topics

    def _close_all(self) -> None:
        for wire in self.wires:
            wire.close()

    @staticmethod
    def _pick(data: st.DataObject, runs: Sequence[ModelRun]) -> ModelRun:
        return runs[data.draw(st.integers(0, len(runs) - 1))]


RUN_STREAMS: list[JsonObject] = [
    {},
    {"*": {"from": "start"}},
    {"*": {"from": "start", "as": "text"}},
    {"log": {"from": "latest"}},
    {"log": {"from": -2}, "text": {"from": 0}},
]
# Retries are due at once; those of lost workers are put off by a random time otherwise.
_HASTEN = """
update runwire.runs set delayed_until = now() - interval '1 s'
 where environment_id = %s and id = any(%s)
"""
_REMOVE_TAG = """
with changed as (
    update runwire.runs set tags = array_remove(tags, %s), revision = revision + 1,
           updated_at = runwire.now_v1()
     where environment_id = %s and id = %s
    returning *
), unlisted as (
    delete from runwire.run_tags t using changed c
     where t.environment_id = c.environment_id and t.run_id = c.id and t.tag = %s
)
insert into runwire.run_events
       (bucket, environment_id, run_id, revision, type, delta, created_at, task, tags, batch_id)
select bucket, environment_id, id, revision, 'tags',
       json_build_object('set', json_build_object('tags', to_json(tags)))::text,
       updated_at, task, tags || %s::text, batch_id
  from changed
"""


def _outcome(run: ModelRun, how: str) -> Outcome:
    error = '{"name":"Error","message":"it failed"}'
    match how:
        case "complete":
            return Completed(run.id, run.execution, '"done"')
        case "fail":
            return Failed(run.id, run.execution, error)
        case "retry":
            return Failed(run.id, run.execution, error, retry_in=60.0)
        case "release":
            return Released(run.id, run.execution)
        case _:
            return Canceled(run.id, run.execution)


def _finish(run: ModelRun, how: str) -> None:
    run.worker = None
    if run.cancel_requested:
        run.status = "CANCELED"
        return
    match how:
        case "complete":
            run.status = "COMPLETED"
        case "fail":
            run.status = "FAILED"
        case "retry":
            run.status = "DELAYED"
        case "cancel":
            run.status = "CANCELED"
        case "lost" if run.attempt >= ATTEMPTS:
            run.status = "CRASHED"
        case "lost" if run.attempt > 1:
            run.status = "DELAYED"  # who lost two workers comes back later
        case "release":
            run.status, run.attempt = "QUEUED", run.attempt - 1
        case _:
            run.status = "QUEUED"


def _copy(run: ModelRun, **changes: Any) -> ModelRun:
    return replace(deepcopy(run), **changes)


@pytest.fixture
def world(postgres: TestServer) -> Generator[None]:
    Model.server = postgres
    yield
    if Model.shared is not None:
        Model.shared.close()
        Model.shared = None


@pytest.mark.faults
@pytest.mark.usefixtures("world")
@pytest.mark.timeout(60 + 3 * EXAMPLES)
def test_whatever_happens_in_whatever_order_nobody_is_told_wrong_or_too_little() -> None:
    # Shown when it fails.
    sys.stdout.write(f"RUNWIRE_FAULTS_SEED={SEED}\n")
    sys.stdout.write(f"runwire_engine of {runwire_engine.__file__}\n")
    run_state_machine_as_test(
        seed(SEED)(Model),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            # Shrinking takes minutes: RUNWIRE_MODEL_SHRINK=1 for a smaller history of a failure.
            phases=[Phase.generate, *([Phase.shrink] if SHRINKS else [])],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            report_multiple_bugs=False,
        ),
    )
