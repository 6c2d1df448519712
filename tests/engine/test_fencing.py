"""Whatever an execution that lost its run still tries is refused with a typed error, traceless."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from runwire.errors import FencedError
from runwire.wire import JsonObject
from runwire_engine.claims import ClaimedRun
from runwire_engine.engine import Engine
from runwire_engine.outcomes import Completed, Failed, Released
from runwire_engine.run_metadata import MetadataWrite
from runwire_engine.streams import Append
from runwire_engine.wanted_runs import NewRun, Parent
from tests.support.engines import ALL_TASKS, claimed, query

pytestmark = pytest.mark.anyio

# Flushers note how far they are; that is of the process, not of the run.
NOT_OF_RUNS = {"writers"}
SET: JsonObject = {"type": "set", "key": "of a zombie", "value": 1}
ADD: JsonObject = {"type": "increment", "key": "of a zombie", "value": 1}

Write = Callable[[Engine, int, ClaimedRun], Awaitable[object]]


def _append(key: str = "log", *, to_parent: bool = False, end: bool = False) -> Write:
    def write(engine: Engine, env: int, run: ClaimedRun) -> Awaitable[object]:
        target = run.parent_id if to_parent else run.id
        writer, attempt = (run.id, None) if to_parent else (None, run.attempt)
        append = Append(
            target or "",
            key,
            ('"of a zombie"',),
            execution=run.execution,
            attempt=attempt,
            writer=writer,
            end=end,
        )
        return engine.streams.append(env, append)

    return write


def _metadata(engine: Engine, env: int, run: ClaimedRun) -> Awaitable[object]:
    return engine.metadata.apply(env, MetadataWrite(run.id, (SET,), run.execution))


def _parent_metadata(engine: Engine, env: int, run: ClaimedRun) -> Awaitable[object]:
    write = MetadataWrite(run.parent_id or "", (ADD,), run.execution, writer=run.id)
    return engine.metadata.apply(env, write)


def _trigger(engine: Engine, env: int, run: ClaimedRun) -> Awaitable[object]:
    new = NewRun("plain", parent=Parent(run.id, run.execution), idempotency_key="k", tags=("t",))
    return engine.runs.trigger(env, new)


def _batch(engine: Engine, env: int, run: ClaimedRun) -> Awaitable[object]:
    return engine.batches.create(env, 2, "key of the batch", Parent(run.id, run.execution))


def _tags(engine: Engine, env: int, run: ClaimedRun) -> Awaitable[object]:
    return engine.runs.add_tags(env, run.id, ["of a zombie"], execution=run.execution)


def _complete(engine: Engine, env: int, run: ClaimedRun) -> Awaitable[object]:
    return engine.outcomes.finish(env, Completed(run.id, run.execution, '"of a zombie"'))


def _fail(engine: Engine, env: int, run: ClaimedRun) -> Awaitable[object]:
    return engine.outcomes.finish(env, Failed(run.id, run.execution, "{}", retry_in=5.0))


def _release(engine: Engine, env: int, run: ClaimedRun) -> Awaitable[object]:
    return engine.outcomes.finish(env, Released(run.id, run.execution))


WRITES: dict[str, Write] = {
    "a chunk": _append(),
    "a chunk of a new stream": _append("new"),
    "the end of a stream": _append(end=True),
    "a chunk of the parent's": _append(to_parent=True),
    "metadata": _metadata,
    "an operation on the parent": _parent_metadata,
    "a child": _trigger,
    "a batch of children": _batch,
    "tags": _tags,
    "a completion": _complete,
    "a failure": _fail,
    "a release": _release,
}


async def _everything(engine: Engine) -> dict[str, list[Any]]:
    """Return every row of every table, system columns included."""
    tables = await query(
        engine.database,
        "select relname as name from pg_class where relnamespace = 'runwire'::regnamespace"
        " and relkind = 'r' order by 1",
    )
    return {
        table["name"]: [
            row["found"]
            for row in await query(
                engine.database,
                f"select concat(xmin, ' ', t::text) as found from runwire.{table['name']} t"
                " order by 1",
            )
        ]
        for table in tables
        if table["name"] not in NOT_OF_RUNS
    }


async def _lost(engine: Engine, env: int, holder: str) -> ClaimedRun:
    """Return a child's execution that was counted as dead, and where the run is now."""
    parent = await claimed(engine, env)
    run = await claimed(engine, env, NewRun("plain", parent=Parent(parent.id, parent.execution)))
    log = Append(run.id, "log", ('"first"',), execution=run.execution, attempt=run.attempt)
    await engine.streams.append(env, log)
    await engine.workers.stop("w1")
    await engine.workers.register(env, "w2")
    again = {each.id: each for each in await engine.claims.claim(env, "w2", ALL_TASKS, 10)}
    assert set(again) == {parent.id, run.id}
    match holder:
        case "another execution":
            pass
        case "nobody":
            await engine.outcomes.finish(env, Released(run.id, again[run.id].execution))
        case _:
            await engine.outcomes.finish(env, Completed(run.id, again[run.id].execution, "1"))
    return run


@pytest.mark.parametrize("holder", ["another execution", "nobody", "no one any more: it is over"])
async def test_an_execution_that_lost_its_run_leaves_no_trace(
    engine: Engine, env: int, holder: str
) -> None:
    run = await _lost(engine, env, holder)
    before = await _everything(engine)
    for what, write in WRITES.items():
        with pytest.raises(FencedError) as caught:
            await write(engine, env, run)
        assert caught.value.run_id == run.id, what
        assert await _everything(engine) == before, what
    assert not await engine.workers.heartbeat("w1")
    assert await engine.claims.claim(env, "w1", ALL_TASKS, 10) == []
    assert await _everything(engine) == before


async def test_the_same_writes_of_the_execution_that_holds_the_run_are_taken(
    engine: Engine, env: int
) -> None:
    parent = await claimed(engine, env)
    for what, write in WRITES.items():
        new = NewRun("other", parent=Parent(parent.id, parent.execution))
        run = await claimed(engine, env, new)
        await write(engine, env, run)
        if what not in {"a completion", "a failure", "a release"}:
            await engine.outcomes.finish(env, Completed(run.id, run.execution, "1"))
        for each in await engine.claims.claim(env, "w1", ALL_TASKS, 10):
            await engine.outcomes.finish(env, Completed(each.id, each.execution, "1"))
