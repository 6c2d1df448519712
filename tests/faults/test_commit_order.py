"""Transactions that commit late, in reverse, not at all, or all at once: nobody misses a revision.

RUNWIRE_FOREIGN_SECONDS keeps a stranger's transaction open for longer (3).
"""

import logging
import os
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from statistics import median

import anyio
import psycopg
import pytest

from runwire._async import AsyncRunwire
from runwire_engine import changes, statements
from tests.support.engines import query
from tests.support.history import ClientLog, check, read_ledger
from tests.support.postgres import opened_database
from tests.support.processes import until
from tests.support.stage import Stage, open_stage
from tests.support.watching import TAG, watched_traffic

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

FOREIGN = float(os.environ.get("RUNWIRE_FOREIGN_SECONDS", "3"))
PATIENCE = 40.0
Record = Callable[[str, object], None]

# One more revision of a run, as the engine writes one.
MOVE = """
with changed as (
    update runwire.runs set revision = revision + 1, updated_at = now()
     where environment_id = %s and id = %s
    returning *
)
insert into runwire.run_events (bucket, environment_id, run_id, revision, type, delta, task, tags)
select bucket, environment_id, id, revision, 'metadata', '{"metadata":[]}', task, tags from changed
"""
# So many revisions of each run with the tag, in one transaction.
FLOOD = """
with moved as (
    update runwire.runs set revision = revision + %s, updated_at = now()
     where environment_id = %s and tags @> array['watched'] and id = any(%s::text[]) returning *)
insert into runwire.run_events
       (bucket, environment_id, run_id, revision, type, delta, task, tags)
select bucket, environment_id, id, number, 'metadata', '{"metadata":[]}', task, tags
  from moved, generate_series(revision - %s + 1, revision) as number
"""


async def follow(client: AsyncRunwire, log: ClientLog, run_id: str | None = None) -> None:
    """Follow one run, or all with the tag, for ever."""
    if run_id is None:
        updates = client.runs.subscribe_to_runs_with_tag(TAG, mode=log.mode)
    else:
        updates = client.runs.subscribe_to_run(run_id, mode=log.mode)
    async for run in updates:
        if run.gap is not None:
            log.saw_gap(run.id)
        log.saw_run(run.id, run.revision, run.status)


@asynccontextmanager
async def watched(stage: Stage, ids: list[str]) -> AsyncGenerator[list[ClientLog]]:
    """Follow runs for a block, by id and by tag, in both modes; check what was seen at its end."""
    async with (
        AsyncRunwire(api_url=stage.url, access_token=stage.key) as client,
        anyio.create_task_group() as tasks,
    ):
        logs: list[ClientLog] = []
        for name, mode in (("every", "every"), ("newest", "latest")):
            by_tag, by_id = ClientLog(f"{name} by tag", mode), ClientLog(f"{name} by id", mode)  # type: ignore[arg-type]
            logs += [by_tag, by_id]
            tasks.start_soon(follow, client, by_tag)
            for run_id in ids:
                by_tag.follows(run_id)
                by_id.follows(run_id)
                tasks.start_soon(follow, client, by_id, run_id)
        await until(lambda: all(all(log.runs[id] for id in ids) for log in logs))
        yield logs
        ledger = await read_ledger(stage.engine.database.dsn, stage.env)
        with anyio.move_on_after(PATIENCE):
            while check(ledger, logs):
                await anyio.sleep(0.1)  # it is a walk over everything
        assert check(ledger, logs) == []
        tasks.cancel_scope.cancel()


async def test_commits_in_reverse_with_rollbacks_lose_and_reorder_nothing(
    database_url: str,
) -> None:
    chance = random.Random(22)
    async with (
        open_stage(database_url) as stage,
        opened_database(database_url, max_size=20) as others,
    ):
        ids = [await stage.trigger(TAG) for _ in range(20)]
        async with watched(stage, ids):
            for _ in range(15):
                async with AsyncExitStack() as stack:
                    # Left in reverse: the one that wrote first commits last.
                    for run_id in ids:
                        tx = await stack.enter_async_context(others.transaction())
                        await tx.connection.execute(MOVE.encode(), (stage.env, run_id))
                        if chance.random() < 0.1:
                            await tx.connection.execute("rollback; begin")


async def test_more_changes_at_once_than_a_tail_reads_reach_everybody(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_stage(database_url) as stage:
        ids = [await stage.trigger(TAG) for _ in range(3)]
        async with watched(stage, ids) as logs:
            # Of its own making while the flood comes: nobody knows it yet.
            late = await stage.trigger(TAG)
            for log in logs:
                if log.name.endswith("by tag"):
                    log.follows(late)
            await query(stage.engine.database, FLOOD, 2_100, stage.env, ids, 2_100)
            await stage.engine.runs.cancel(stage.env, ids[0])
        assert any(len(log.runs[ids[1]]) > 2_100 for log in logs)
    assert "too much changed at once" in caplog.text, "the tail did not jump"


def _no_connection(tail: changes.Tail) -> nullcontext[None]:
    """Leave a tail to the pool."""
    return nullcontext()


async def test_a_tail_that_takes_too_long_is_made_up_for(
    database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, slow = statements.statement, [True]

    def lookup(name: str) -> str:
        if name == "changes.tail" and slow:
            slow.clear()
            return "select pg_sleep(30)"
        return original(name)

    # A statement that is prepared keeps its text: here it is looked up for each read.
    monkeypatch.setattr(changes.Tail, "own_connection", _no_connection)
    async with open_stage(database_url) as stage:
        ids = [await stage.trigger(TAG) for _ in range(3)]
        async with watched(stage, ids) as logs:
            monkeypatch.setattr(changes, "statement", lookup)
            for run_id in ids:
                await query(stage.engine.database, MOVE, stage.env, run_id)
            late = await stage.trigger(TAG)
            for log in logs:
                if log.name.endswith("by tag"):
                    log.follows(late)
            await stage.engine.runs.cancel(stage.env, ids[0])
    assert not slow and "everything followed is read again" in caplog.text


async def test_a_strangers_open_transaction_delays_nothing_and_is_told(
    database_url: str,
    record_property: Record,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RUNWIRE_SWEEP", "0.3")
    monkeypatch.setenv("RUNWIRE_HORIZON_ALARM", "1")
    with caplog.at_level(logging.WARNING, "runwire.alarms"):
        async with open_stage(database_url) as stage, watched_traffic(stage) as traffic:
            began = time.monotonic()
            await anyio.sleep(FOREIGN / 2)  # delays to compare with
            before = traffic.delays(began)
            alarms = stage.engine.sweep.alarms
            async with await psycopg.AsyncConnection.connect(database_url) as stranger:
                await stranger.execute("select pg_current_xact_id()")
                opened = time.monotonic()
                await _resume(stage, traffic.runs)
                await until(lambda: bool(alarms.sounding))
                await anyio.sleep(max(0.0, FOREIGN - (time.monotonic() - opened)))
                during = traffic.delays(opened)
                async with stage.server.client() as http:
                    said = (await http.get("/readyz")).json()
                assert said["ready"] and "kept Postgres from cleaning up" in said["warnings"][0]
            await until(lambda: not alarms.sounding)
            record_property("p99_before", round(_p99(before), 3))
            record_property("p99_during", round(_p99(during), 3))
            # Held up by it, all would be; one of a hundred a busy machine may hold up.
            assert median(during) < median(before) + 0.5
    assert len(caplog.messages) == 2 and caplog.messages[1].startswith("it is over"), caplog.text


def _p99(delays: list[float]) -> float:
    return delays[int(len(delays) * 0.99)]


async def _resume(stage: Stage, runs: dict[str, int]) -> None:
    """Follow, leave, and go on from the cursor elsewhere: each revision comes once."""
    seen: dict[str, list[int]] = {run_id: [] for run_id in runs}
    cursor: str | None = None
    for _ in range(3):
        async with AsyncRunwire(api_url=stage.url, access_token=stage.key) as client:
            updates = client.runs.subscribe_to_runs_with_tag(TAG, mode="every", cursor=cursor)
            left = 30
            async for run in updates:
                assert run.gap is None
                seen[run.id].append(run.revision)
                left -= 1
                if left == 0:
                    break
            cursor = updates.cursor
    for revisions in seen.values():
        assert revisions == list(range(revisions[0], revisions[0] + len(revisions)))
