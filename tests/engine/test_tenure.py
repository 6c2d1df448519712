"""A worker whose connections to Postgres stall, break, or lose the answer of a COMMIT."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import replace

import anyio
import psycopg
import pytest

from runwire import _context
from runwire._context import Runtime
from tests.support.engines import query
from tests.support.faultproxy import FaultProxy, fault_proxy
from tests.support.working import WAIT, Bench, defined, opened_bench, until

pytestmark = pytest.mark.anyio

# Shown with: pytest -o log_cli=true --log-cli-level=INFO
measured = logging.getLogger("runwire.measured")

# So long that, in a test, nothing happens but by a bell.
NEVER = 60.0


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    """The engine on a straight line to Postgres."""
    async with opened_bench(database_url) as opened:
        yield opened


@pytest.fixture
async def proxy(database_url: str, anyio_backend: str) -> AsyncGenerator[FaultProxy]:
    async with fault_proxy(database_url) as opened:
        yield opened


def behind(proxy: FaultProxy, bench: Bench) -> Bench:
    """Return a bench whose workers reach Postgres through the proxy."""
    return replace(bench, database_url=proxy.dsn(bench.database_url))


def here() -> Runtime:
    return _context.require("this test")


async def test_a_worker_cut_off_aborts_its_tasks_a_fifth_before_its_lease_ends(
    bench: Bench, proxy: FaultProxy
) -> None:
    lease = 3.0
    aborted: list[float] = []
    ends: list[float] = []
    started = anyio.Event()

    async def endless() -> int:
        execution = here().ctx.attempt.execution
        if execution > 1:
            return execution
        started.set()
        try:
            await anyio.sleep(NEVER)
        except asyncio.CancelledError:
            aborted.append(time.time())
            raise
        return 0

    made = defined(endless, retry={"max_attempts": 3})
    async with behind(proxy, bench).worker(made, lease=lease, heartbeat=0.3) as worker:
        run_id = await bench.start(made)
        await started.wait()
        before = worker.worker_id
        proxy.stall()
        # A heartbeat that was under way may still arrive; none does later.
        await anyio.sleep(0.1)
        rows = await query(
            bench.engine.database,
            "select extract(epoch from expires_at)::float as ends from runwire.workers"
            " where stopped_at is null",
        )
        ends += [row["ends"] for row in rows]
        await until(lambda: bool(aborted))
        margin = (ends[0] - aborted[0]) / lease
        measured.info("aborted %.1f %% of the lease before its end", 100 * margin)
        # A quarter, where the loop comes to it in time; a busy machine may take some of that.
        assert margin >= 0.1
        assert (await bench.row(run_id)).status == "EXECUTING"
        # Somebody else's sweep gives the run back; cut off, this worker cannot claim it.
        await bench.until(run_id, "QUEUED")
        proxy.flow()
        row = await bench.until(run_id)
        assert worker.worker_id != before
    assert (row.status, row.output, row.attempt) == ("COMPLETED", "2", 2)


async def test_a_worker_cut_off_for_less_than_its_lease_goes_on_and_doubles_nothing(
    bench: Bench, proxy: FaultProxy
) -> None:
    lease, count = 3.0, 150
    started = anyio.Event()

    async def streaming_on() -> int:
        runtime = here()
        for number in range(count):
            await runtime.stream_write("self", "s", str(number))
            runtime.metadata_apply("self", {"type": "increment", "key": "n", "value": 1})
            if number == 20:
                started.set()
            await asyncio.sleep(0.01)
        return runtime.ctx.attempt.execution

    made = defined(streaming_on)
    async with behind(proxy, bench).worker(made, lease=lease, heartbeat=0.3) as worker:
        run_id = await bench.start(made)
        await started.wait()
        before = worker.worker_id
        proxy.stall()
        await anyio.sleep(lease / 2)  # the length of the cut is what is tested
        proxy.flow()
        row = await bench.until(run_id)
        assert worker.worker_id == before
    assert (row.status, row.output, row.attempt) == ("COMPLETED", "1", 1)
    assert await bench.chunks(run_id, "s") == list(range(count))
    assert await bench.metadata(run_id) == {"n": count}


async def test_a_claim_whose_answer_is_lost_is_executed_once(
    bench: Bench, proxy: FaultProxy
) -> None:
    seen: list[int] = []

    async def once() -> None:
        seen.append(here().ctx.attempt.execution)

    made = defined(once)
    async with behind(proxy, bench).worker(made, poll=NEVER, sweep=NEVER):
        await bench.finished(made)
        proxy.cut_next_commit(after=True)
        row = await bench.finished(made)
    assert proxy.commits_cut == 1
    assert (row.status, row.execution, seen) == ("COMPLETED", 1, [1, 1])


async def test_what_a_claim_brings_after_the_stop_is_given_back_unbegun(bench: Bench) -> None:
    began: list[str] = []

    def stubborn() -> None:
        began.append(here().ctx.run.id)

    made = defined(stubborn)
    calm = {"lease": WAIT, "heartbeat": WAIT, "sweep": NEVER}
    async with (
        bench.worker(made, grace=WAIT, **calm) as worker,
        await psycopg.AsyncConnection.connect(bench.database_url) as other,
    ):
        # A claim waits for this lock of its worker.
        await other.execute("select from runwire.workers for update")
        run_id = await bench.start(made)
        await _somebody_waits_for_a_lock(bench)
        worker.stop()
        await worker.claimed_last()
        assert not worker.held
        await other.rollback()
        with anyio.fail_after(WAIT):
            while (row := await bench.row(run_id)).execution == 0 or row.status == "EXECUTING":
                await anyio.sleep(0.01)  # polls the database
    assert (row.status, row.attempt, row.execution, began) == ("QUEUED", 0, 1, [])


async def _somebody_waits_for_a_lock(bench: Bench) -> None:
    waiting = (
        "select 1 from pg_stat_activity"
        " where datname = current_database() and wait_event_type = 'Lock'"
    )
    with anyio.fail_after(WAIT):
        while not await query(bench.engine.database, waiting):
            await anyio.sleep(0.01)  # polls the database


@pytest.mark.parametrize("after", [True, False])
async def test_an_outcome_whose_answer_is_lost_is_stored_once(
    bench: Bench, proxy: FaultProxy, after: bool
) -> None:
    async def cutting() -> str:
        proxy.cut_next_commit(after=after)
        return "done"

    made = defined(cutting)
    async with behind(proxy, bench).worker(made, poll=NEVER, sweep=NEVER) as worker:
        row = await bench.finished(made)
        await until(lambda: not worker.held)
    assert proxy.commits_cut == 1
    assert (row.status, row.output, row.execution) == ("COMPLETED", '"done"', 1)
    events = await bench.engine.runs.events(bench.env, row.id)
    assert [event.type for event in events] == ["created", "executing", "final"]


async def test_commits_lost_in_the_middle_of_a_stream_double_and_lose_nothing(
    bench: Bench, proxy: FaultProxy
) -> None:
    count = 200

    async def streaming() -> None:
        runtime = here()
        for number in range(count):
            await runtime.stream_write("self", "s", str(number))
            runtime.metadata_apply("self", {"type": "increment", "key": "n", "value": 1})
            if number % 40 == 20:
                proxy.cut_next_commit(after=number % 80 == 20)
                cuts = proxy.commits_cut
                with anyio.fail_after(WAIT):
                    await runtime.stream_append("self", "t", [str(number)])
                await until(lambda: proxy.commits_cut > cuts)  # noqa: B023
            await asyncio.sleep(0.001)

    made = defined(streaming)
    async with behind(proxy, bench).worker(made, sweep=NEVER):
        row = await bench.finished(made)
    assert proxy.commits_cut == count // 40
    assert (row.status, row.execution) == ("COMPLETED", 1)
    assert await bench.chunks(row.id, "s") == list(range(count))
    assert await bench.chunks(row.id, "t") == list(range(20, count, 40))
    assert await bench.metadata(row.id) == {"n": count}


async def test_a_worker_starts_as_soon_as_postgres_lets_it(bench: Bench, proxy: FaultProxy) -> None:
    async def late() -> str:
        return "here"

    made = defined(late)
    proxy.refuses = True
    through = behind(proxy, bench)
    async with anyio.create_task_group() as group:

        async def execute() -> None:
            async with through.worker(made):
                await bench.finished(made)

        group.start_soon(execute)
        await until(lambda: proxy.accepted > 0)
        proxy.refuses = False
