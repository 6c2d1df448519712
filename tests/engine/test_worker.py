"""A worker's life: cancel, stop, lost leases, lost connections, blocked loops."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import pytest

from runwire import _context
from runwire._context import Context, Runtime
from runwire.errors import FencedError
from runwire.tasks import AnyTask
from runwire_engine import executor
from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.claims import ClaimedRun, Claims
from runwire_engine.outcomes import Canceled
from runwire_engine.verdicts import Interruption
from runwire_engine.wanted_runs import NewRun
from runwire_engine.worker import Worker
from tests.support.working import (
    WAIT,
    Bench,
    defined,
    opened_bench,
    settings_of,
    statuses,
    until,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        yield opened


@pytest.fixture
def short_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stubborn functions be given up soon."""
    monkeypatch.setitem(executor.BUDGETS, Interruption.CANCEL, 0.5)
    monkeypatch.setitem(executor.BUDGETS, Interruption.RELEASE, 0.3)
    monkeypatch.setattr(executor, "HOOK_AFTER", 0.1)


def here() -> Runtime:
    return _context.require("this test")


async def announce(bench: Bench, made: AnyTask) -> None:
    await bench.engine.catalogue.announce(bench.env, [TaskAnnouncement(made.id, made.queue.name)])


async def test_a_started_worker_is_registered_and_gone_when_stopped(bench: Bench) -> None:
    async def idle() -> None: ...

    async with bench.worker(defined(idle)) as worker:
        assert await bench.engine.workers.heartbeat(worker.worker_id or "")
        worker_id = worker.worker_id or ""
    assert not await bench.engine.workers.heartbeat(worker_id)


@pytest.mark.parametrize("slots", [1, 40])
async def test_as_many_functions_execute_as_there_are_slots_and_no_more(
    bench: Bench, slots: int
) -> None:
    """Though a worker with many slots claims for half of them at a time."""
    inside, most = 0, 0
    all_inside, go_on = anyio.Event(), anyio.Event()

    async def crowded() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if inside == slots:
            all_inside.set()
        await go_on.wait()
        inside -= 1

    made = defined(crowded)
    await announce(bench, made)
    results = await bench.engine.runs.trigger_many(bench.env, [NewRun(made.id)] * (3 * slots))
    ids = [result.id for result in results if not isinstance(result, Exception)]
    async with bench.worker(made, concurrency=slots):
        with anyio.fail_after(30):
            await all_inside.wait()
        go_on.set()
        for run_id in ids:
            await bench.until(run_id, "COMPLETED")
    assert most == slots


# Cancel ------------------------------------------------------------------------------------------


async def test_an_async_task_is_cancelled_and_may_still_write(bench: Bench) -> None:
    started = anyio.Event()

    async def endless() -> None:
        started.set()
        try:
            await anyio.sleep(60)
        finally:
            # Cancelled once, as asyncio does it: what is awaited here is not.
            await asyncio.sleep(0.01)
            await here().stream_append("self", "last", ['"words"'])

    made = defined(endless)
    async with bench.worker(made):
        run_id = await bench.start(made)
        await started.wait()
        asked = await bench.engine.runs.cancel(bench.env, run_id)
        assert asked.status == "EXECUTING" and asked.cancel_requested_at is not None
        row = await bench.until(run_id)
    assert (row.status, row.output, row.error) == ("CANCELED", None, None)
    assert await bench.chunks(run_id, "last") == ["words"]
    (stream,) = await bench.engine.streams.streams_of(bench.env, run_id)
    assert stream.eof_reason == "canceled"


async def test_the_cancel_hook_gets_the_payload_and_writes(bench: Bench) -> None:
    started = threading.Event()
    told: list[Any] = []

    def until_told(payload: str, signal: Any) -> str:
        started.set()
        return "told" if signal.wait(WAIT) else "forgotten"

    def tell(payload: str, ctx: Context) -> None:
        told.append((payload, ctx.run.id))
        here().metadata_apply("self", {"type": "set", "key": "canceled", "value": True})

    made = defined(until_told, on_cancel=tell)
    async with bench.worker(made):
        run_id = await bench.start(made, "p")
        await anyio.to_thread.run_sync(started.wait)
        await bench.engine.runs.cancel(bench.env, run_id)
        row = await bench.until(run_id)
    assert row.status == "CANCELED"
    assert told == [("p", run_id)]
    assert await bench.metadata(run_id) == {"canceled": True}


async def test_a_failing_async_cancel_hook_does_not_hold_the_run(bench: Bench) -> None:
    started = anyio.Event()

    async def endless_again() -> None:
        started.set()
        await anyio.sleep(60)

    async def fail() -> None:
        raise ValueError("in the hook")

    made = defined(endless_again, on_cancel=fail)
    async with bench.worker(made):
        run_id = await bench.start(made)
        await started.wait()
        await bench.engine.runs.cancel(bench.env, run_id)
        assert (await bench.until(run_id)).status == "CANCELED"


async def test_a_cancel_whose_bell_is_lost_is_found_by_looking(bench: Bench) -> None:
    started = anyio.Event()

    async def endless_still() -> None:
        started.set()
        await anyio.sleep(60)

    made = defined(endless_still)
    async with bench.worker(made):
        run_id = await bench.start(made)
        await started.wait()
        # As Runs.cancel does it, but without a bell.
        await bench.engine.database.all(
            "cancellations.cancel", {"environment_ids": [bench.env], "ids": [run_id]}
        )
        assert (await bench.until(run_id)).status == "CANCELED"


async def test_tasks_that_ignore_their_cancellation_are_left_behind_and_fenced(
    bench: Bench, short_budgets: None
) -> None:
    started, gate = threading.Event(), threading.Event()
    refused: list[Exception] = []

    def stubborn() -> None:
        runtime = here()
        started.set()
        gate.wait(WAIT)
        try:
            runtime.stream_append_blocking("self", "late", ["1"])
        except Exception as error:
            refused.append(error)

    made = defined(stubborn)
    async with bench.worker(made, concurrency=1):
        run_id = await bench.start(made)
        await anyio.to_thread.run_sync(started.wait)
        await bench.engine.runs.cancel(bench.env, run_id)
        assert (await bench.until(run_id)).status == "CANCELED"
        # Its thread is written off: the only slot is free again.
        started.clear()
        await bench.start(made)
        assert await anyio.to_thread.run_sync(started.wait, WAIT)
        gate.set()
        await until(lambda: bool(refused))
    assert await bench.chunks(run_id, "late") == []


async def test_an_async_task_that_swallows_its_cancellation_is_left_behind(
    bench: Bench, short_budgets: None
) -> None:
    started, gate, ended = anyio.Event(), anyio.Event(), anyio.Event()

    async def deaf() -> str:
        started.set()
        while not gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await gate.wait()
        ended.set()
        return "too late"

    made = defined(deaf)
    async with bench.worker(made) as worker:
        run_id = await bench.start(made)
        await started.wait()
        await bench.engine.runs.cancel(bench.env, run_id)
        assert (await bench.until(run_id)).status == "CANCELED"
        await until(lambda: not worker.held)
        gate.set()
        await ended.wait()
    assert (await bench.row(run_id)).output is None


async def test_cancels_racing_completions_leave_exactly_one_end(bench: Bench) -> None:
    async def quick() -> int:
        await anyio.sleep(0.002)
        return 1

    made = defined(quick)
    async with bench.worker(made, concurrency=50):
        results = await bench.engine.runs.trigger_many(bench.env, [NewRun(made.id)] * 100)
        ids = [result.id for result in results if not isinstance(result, Exception)]
        async with anyio.create_task_group() as cancels:
            for run_id in ids:
                cancels.start_soon(bench.engine.runs.cancel, bench.env, run_id)
        for run_id in ids:
            row = await bench.until(run_id)
            assert row.status in ("COMPLETED", "CANCELED")
            events = await bench.engine.runs.events(bench.env, run_id)
            assert [event.revision for event in events] == list(range(1, row.revision + 1))
            assert [event.type for event in events].count("final") <= 1


# Leases ------------------------------------------------------------------------------------------


async def test_a_zombie_writes_nothing_and_its_run_starts_elsewhere(bench: Bench) -> None:
    started: list[int] = []
    refused: list[Exception] = []
    gate = anyio.Event()

    async def contested() -> int:
        runtime = here()
        execution = runtime.ctx.attempt.execution
        started.append(execution)
        await runtime.stream_append("self", "s", [str(execution)])
        if execution > 1:
            return execution
        try:
            await gate.wait()
        except asyncio.CancelledError:
            for write in (
                lambda: runtime.stream_append("self", "s", ['"zombie"']),
                runtime.metadata_flush,
            ):
                try:
                    await write()
                except FencedError as error:
                    refused.append(error)
            with pytest.raises(FencedError):
                runtime.metadata_apply("self", {"type": "set", "key": "z", "value": 1})
            raise
        return -1

    made = defined(contested, retry={"max_attempts": 3})
    async with bench.worker(made) as worker:
        run_id = await bench.start(made)
        await until(lambda: started == [1])
        before = worker.worker_id
        # Somebody counts the worker as dead: as after a SIGSTOP longer than its lease.
        await bench.sql(
            "update runwire.workers set stopped_at = now() where id = %(id)s", id=before
        )
        row = await bench.until(run_id)
        assert worker.worker_id != before
        await until(lambda: len(refused) == 2)
    assert (row.status, row.output, row.execution) == ("COMPLETED", "2", 2)
    assert await bench.chunks(run_id, "s") == [1, 2]
    assert await bench.metadata(run_id) is None


async def test_a_lost_execution_is_noticed_at_its_next_write(bench: Bench) -> None:
    ended: list[str] = []

    async def robbed() -> None:
        runtime = here()
        await bench.engine.outcomes.finish(bench.env, Canceled(runtime.ctx.run.id, 1))
        try:
            await runtime.stream_append("self", "s", ["1"])
        except FencedError:
            ended.append("fenced")
            raise

    made = defined(robbed, retry={"max_attempts": 3})
    async with bench.worker(made) as worker:
        row = await bench.finished(made)
        await until(lambda: not worker.held)
    assert (row.status, ended) == ("CANCELED", ["fenced"])
    assert await bench.chunks(row.id, "s") == []


async def test_a_blocked_loop_keeps_its_lease_and_is_named(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "runwire.watchdog")

    # On a loop of its own, since blocking is what is tested.
    async def blocking() -> int:
        time.sleep(2.5)  # noqa: ASYNC251
        return here().ctx.attempt.execution

    made = defined(blocking)
    worker = Worker(settings_of(bench.database_url, lease=1.0, heartbeat=0.2), {made.id: made})
    await announce(bench, made)
    run_id = await bench.start(made)
    thread = threading.Thread(target=lambda: asyncio.run(worker.run()))
    thread.start()
    try:
        await until(lambda: bool(worker.held))
        worker_id = worker.worker_id
        row = await bench.until(run_id)
        assert (row.output, worker.worker_id) == ("1", worker_id)
    finally:
        worker.stop(grace=0)
        await anyio.to_thread.run_sync(thread.join)
    assert f"by run {row.id}" in caplog.text
    assert "in blocking" in caplog.text


# Stops -------------------------------------------------------------------------------------------


async def test_a_stopping_worker_claims_nothing_and_lets_its_tasks_finish(bench: Bench) -> None:
    started, gate = anyio.Event(), anyio.Event()

    async def finishing() -> str:
        started.set()
        await gate.wait()
        return "whole"

    made = defined(finishing)
    worker = Worker(settings_of(bench.database_url), {made.id: made})
    first = second = ""
    async with anyio.create_task_group() as group:
        await group.start(worker.run)
        first = await bench.start(made)
        await started.wait()
        worker.stop()
        second = await bench.start(made)
        gate.set()
        assert (await bench.until(first)).output == '"whole"'
    assert await statuses(bench, [first, second]) == ["COMPLETED", "QUEUED"]
    assert worker.left_behind == 0


async def test_what_outlasts_the_grace_is_released_uncounted(
    bench: Bench, short_budgets: None
) -> None:
    started: list[str] = []
    gate = threading.Event()
    unwound = anyio.Event()

    async def endless_async() -> None:
        started.append("async")
        try:
            await here().stream_write("self", "s", "1")
            await anyio.sleep(60)
        finally:
            unwound.set()

    def endless_def() -> None:
        started.append("def")
        gate.wait(WAIT)

    tasks = defined(endless_async), defined(endless_def)
    worker = Worker(settings_of(bench.database_url, grace=0.2), {made.id: made for made in tasks})
    ids: list[str] = []
    async with anyio.create_task_group() as group:
        await group.start(worker.run)
        ids = [await bench.start(made) for made in tasks]
        await until(lambda: len(started) == 2)
        worker.stop()
    assert unwound.is_set()
    assert worker.left_behind == 1
    for run_id in ids:
        row = await bench.row(run_id)
        assert (row.status, row.attempt, row.execution) == ("QUEUED", 0, 1)
    assert await bench.chunks(ids[0], "s") == [1]
    gate.set()


async def test_a_cancelled_worker_leaves_no_thread_and_gives_its_runs_back(bench: Bench) -> None:
    started = anyio.Event()

    async def endless_too() -> None:
        started.set()
        await anyio.sleep(60)

    made = defined(endless_too)
    worker = Worker(settings_of(bench.database_url), {made.id: made})
    run_id = ""
    async with anyio.create_task_group() as group:
        await group.start(worker.run)
        run_id = await bench.start(made)
        await started.wait()
        group.cancel_scope.cancel()
    assert (await bench.row(run_id)).status == "QUEUED"
    assert not any(thread.name == "runwire-engine" for thread in threading.enumerate())


async def test_a_worker_may_be_stopped_before_it_ever_starts(bench: Bench) -> None:
    async def never() -> None: ...

    made = defined(never)
    worker = Worker(settings_of("host=/nonexistent dbname=x"), {made.id: made})
    worker.stop()
    with anyio.fail_after(WAIT):
        await worker.run()


# Postgres away -----------------------------------------------------------------------------------


async def test_connections_cut_in_the_middle_lose_and_double_nothing(bench: Bench) -> None:
    started = anyio.Event()
    count = 300

    async def streaming() -> int:
        runtime = here()
        for number in range(count):
            await runtime.stream_write("self", "s", str(number))
            runtime.metadata_apply("self", {"type": "increment", "key": "n", "value": 1})
            if number == 50:
                started.set()
            await anyio.sleep(0.002)
        return count

    made = defined(streaming)
    async with bench.worker(made) as worker:
        before = worker.worker_id
        run_id = await bench.start(made)
        await started.wait()
        for _ in range(3):
            await bench.sql(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
            await anyio.sleep(0.1)  # between cuts, so that work goes on in between
        row = await bench.until(run_id)
        assert worker.worker_id == before
    assert (row.status, row.execution) == ("COMPLETED", 1)
    assert await bench.chunks(run_id, "s") == list(range(count))
    assert await bench.metadata(run_id) == {"n": count}


# Claims ------------------------------------------------------------------------------------------


async def test_no_more_runs_execute_at_once_than_there_are_slots(bench: Bench) -> None:
    now: list[int] = [0]
    most: list[int] = [0]

    async def counting() -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        await anyio.sleep(0.01)
        now[0] -= 1

    made = defined(counting)
    async with bench.worker(made, concurrency=3):
        results = await bench.engine.runs.trigger_many(bench.env, [NewRun(made.id)] * 20)
        for result in results:
            assert not isinstance(result, Exception)
            assert (await bench.until(result.id)).status == "COMPLETED"
    assert most[0] == 3


async def test_an_idle_worker_claims_the_run_that_a_bell_names(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = _lone_runs(monkeypatch)

    async def brief() -> None: ...

    made = defined(brief)
    async with bench.worker(made, poll=WAIT):
        await _until_named(bench, made, named)


async def test_a_run_whose_bell_was_lost_is_found_between_runs_that_bells_name(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = _lone_runs(monkeypatch)

    async def brief() -> None: ...

    made = defined(brief)
    async with bench.worker(made, poll=0.5):
        silent = await bench.start(made, delay=600.0)
        await _until_named(bench, made, named)
        await bench.sql(
            "update runwire.runs set status = 'QUEUED', queued_at = now(), sort_at = now(),"
            " delayed_until = null where id = %(id)s",
            id=silent,
        )
        with anyio.fail_after(WAIT):
            # Each of them comes before the worker would look by itself.
            while (await bench.row(silent)).status != "COMPLETED":
                await bench.finished(made)


def _lone_runs(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Keep what claims are told to be the only run."""
    claim = Claims.claim
    named: list[str | None] = []

    async def kept(*arguments: Any, lone_run: str | None = None) -> list[ClaimedRun]:
        named.append(lone_run)
        return await claim(*arguments, lone_run=lone_run)

    monkeypatch.setattr(Claims, "claim", kept)
    return named


async def _until_named(bench: Bench, made: AnyTask, named: list[str | None]) -> None:
    """Let runs finish until one was claimed by its name, since a worker looks for all at first."""
    with anyio.fail_after(WAIT):
        while (await bench.finished(made)).id not in named:
            pass


async def test_a_limited_queue_is_kept_and_its_next_run_starts_at_once(bench: Bench) -> None:
    now: list[int] = [0]
    most: list[int] = [0]

    async def alone() -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        await anyio.sleep(0.005)
        now[0] -= 1

    made = defined(alone, queue={"concurrency_limit": 1})
    # With a poll this long, only bells can be what starts the next run.
    async with bench.worker(made, poll=600.0):
        results = await bench.engine.runs.trigger_many(bench.env, [NewRun(made.id)] * 10)
        for result in results:
            assert not isinstance(result, Exception)
            assert (await bench.until(result.id)).status == "COMPLETED"
    assert most[0] == 1


async def test_four_workers_execute_every_run_once(bench: Bench) -> None:
    seen: list[str] = []

    async def once() -> None:
        seen.append(here().ctx.run.id)

    made = defined(once)
    async with (
        bench.worker(made, pool_size=2),
        bench.worker(made, pool_size=2),
        bench.worker(made, pool_size=2),
        bench.worker(made, pool_size=2),
    ):
        results = await bench.engine.runs.trigger_many(bench.env, [NewRun(made.id)] * 400)
        ids = [result.id for result in results if not isinstance(result, Exception)]
        await bench.until(ids[-1])
        for run_id in ids:
            row = await bench.until(run_id)
            assert (row.status, row.execution) == ("COMPLETED", 1)
    assert sorted(seen) == sorted(ids)
