"""What an executing run writes: metadata, streams, children."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import anyio
import anyio.lowlevel
import orjson
import pytest

from runwire import _context
from runwire._context import Runtime
from runwire.errors import FencedError, InvalidValueError, NotInRunError
from runwire.requests import BatchItem, TriggerOptions
from runwire_engine.outcomes import Canceled
from runwire_engine.runs import RunQuery
from runwire_engine.wanted_runs import NewRun, Parent
from tests.support.working import Bench, defined, error_of, opened_bench

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        yield opened


def here() -> Runtime:
    return _context.require("this test")


def increment(key: str, amount: int = 1) -> dict[str, Any]:
    return {"type": "increment", "key": key, "value": amount}


def put(key: str, value: Any) -> dict[str, Any]:
    return {"type": "set", "key": key, "value": value}


async def test_metadata_is_seen_at_once_and_stored_before_the_run_is_over(bench: Bench) -> None:
    async def noting() -> Any:
        runtime = here()
        assert runtime.metadata_current() == {"given": True}
        runtime.metadata_apply("self", put("step", "one"))
        runtime.metadata_apply("self", {"type": "append", "key": "log", "value": 1})
        return runtime.metadata_current()

    made = defined(noting)
    async with bench.worker(made):
        row = await bench.finished(made, metadata='{"given":true}')
    assert row.output is not None
    expected = {"given": True, "step": "one", "log": [1]}
    assert orjson.loads(row.output) == expected
    assert await bench.metadata(row.id) == expected
    kinds = [event.type for event in await bench.engine.runs.events(bench.env, row.id)]
    assert kinds[-2:] == ["metadata", "final"]


async def test_what_a_caller_does_to_the_metadata_it_read_stays_its_own(bench: Bench) -> None:
    async def meddling() -> Any:
        runtime = here()
        runtime.metadata_apply("self", put("list", [1]))
        runtime.metadata_current()["list"].append(2)
        return runtime.metadata_current()

    made = defined(meddling)
    async with bench.worker(made):
        assert (await bench.finished(made)).output == '{"list":[1]}'


async def test_flush_waits_for_the_commit_on_the_loop_and_in_a_thread(bench: Bench) -> None:
    async def on_loop() -> Any:
        runtime = here()
        runtime.metadata_apply("self", put("a", 1))
        await runtime.metadata_flush()
        return await bench.metadata(runtime.ctx.run.id)

    flushed = anyio.Event()
    looked = anyio.Event()

    def in_thread(signal: Any) -> None:
        runtime = here()
        runtime.metadata_apply("self", put("a", 1))
        runtime.metadata_flush_blocking()
        anyio.from_thread.run_sync(flushed.set, token=token)
        anyio.from_thread.run(looked.wait, token=token)

    token = anyio.lowlevel.current_token()
    first, second = defined(on_loop), defined(in_thread)
    async with bench.worker(first, second):
        assert (await bench.finished(first)).output == '{"a":1}'
        run_id = await bench.start(second)
        await flushed.wait()
        assert await bench.metadata(run_id) == {"a": 1}
        looked.set()
        await bench.until(run_id)


async def test_metadata_over_its_limit_fails_the_run_with_a_clear_error(bench: Bench) -> None:
    async def hoarding() -> None:
        here().metadata_apply("self", put("large", "x" * 300_000))

    made = defined(hoarding, retry={"max_attempts": 3})
    async with bench.worker(made):
        row = await bench.finished(made)
    assert (row.status, row.attempt) == ("FAILED", 1)
    assert "at most 262144" in error_of(row)["message"]


async def test_a_failed_flush_is_raised_by_the_next_call(bench: Bench) -> None:
    async def hoarding_on() -> str:
        runtime = here()
        runtime.metadata_apply("self", put("large", "x" * 300_000))
        with pytest.raises(InvalidValueError):
            await runtime.metadata_flush()
        with pytest.raises(InvalidValueError):
            runtime.metadata_apply("self", put("small", 1))
        return "both"

    made = defined(hoarding_on)
    async with bench.worker(made):
        row = await bench.finished(made)
    assert row.status == "FAILED"


async def test_increments_of_twenty_children_at_once_add_up_on_parent_and_root(
    bench: Bench,
) -> None:
    def child(payload: int) -> None:
        runtime = here()
        for _ in range(payload):
            runtime.metadata_apply("parent", increment("done"))
            runtime.metadata_apply("root", increment("seen", 2))

    worker_task = defined(child)

    async def parent() -> str:
        items = [BatchItem(index=index, task=worker_task.id, payload="10") for index in range(20)]
        batch = await here().trigger_batch(items, None, "call")
        return batch.id

    made = defined(parent)
    async with bench.worker(made, worker_task):
        row = await bench.finished(made)
        assert row.output is not None
        batch = await bench.engine.batches.retrieve(bench.env, orjson.loads(row.output))
        assert batch is not None and len(batch.run_ids) == 20
        for run_id in batch.run_ids:
            done = await bench.until(run_id)
            assert (done.status, done.parent_id, done.depth) == ("COMPLETED", row.id, 1)
    assert await bench.metadata(row.id) == {"done": 200, "seen": 400}


async def test_parent_operations_of_a_root_fall_to_itself(bench: Bench) -> None:
    async def rooted() -> Any:
        here().metadata_apply("parent", increment("n"))
        return here().metadata_current()

    made = defined(rooted)
    async with bench.worker(made):
        row = await bench.finished(made)
    assert row.output == '{"n":1}'
    assert await bench.metadata(row.id) == {"n": 1}


async def test_chunks_keep_their_order_and_are_all_there_before_the_end(bench: Bench) -> None:
    count = 2_500

    async def pouring() -> None:
        for number in range(count):
            await here().stream_write("self", "numbers", str(number))

    def pouring_in_thread() -> None:
        for number in range(count):
            here().stream_write_blocking("self", "numbers", str(number))

    tasks = defined(pouring), defined(pouring_in_thread)
    async with bench.worker(*tasks):
        for made in tasks:
            row = await bench.finished(made)
            assert row.status == "COMPLETED"
            (stream,) = await bench.engine.streams.streams_of(bench.env, row.id)
            assert (stream.next_seq, stream.eof_reason) == (count, "completed")
            assert stream.ended_execution == 1
            page = await bench.engine.streams.read(bench.env, row.id, "numbers", limit_chunks=count)
            assert [chunk.body for chunk in page.chunks] == [str(n) for n in range(count)]
            assert {chunk.attempt for chunk in page.chunks} == {1}


async def test_append_answers_with_the_next_seq_once_stored(bench: Bench) -> None:
    async def appending() -> Any:
        runtime = here()
        first = await runtime.stream_append("self", "s", ["1", "2"])
        stored = len(await bench.chunks(runtime.ctx.run.id, "s"))
        await runtime.stream_write("self", "s", "3")
        second = await runtime.stream_append("self", "s", ["4"])
        await runtime.stream_end("self", "s")
        return [first, stored, second]

    def appending_in_thread() -> Any:
        runtime = here()
        first = runtime.stream_append_blocking("self", "s", ["1", "2"])
        runtime.stream_write_blocking("self", "s", "3")
        second = runtime.stream_append_blocking("self", "s", ["4"])
        runtime.stream_end_blocking("self", "s")
        return [first, 2, second]

    tasks = defined(appending), defined(appending_in_thread)
    async with bench.worker(*tasks):
        for made in tasks:
            assert (await bench.finished(made)).output == "[2,2,4]"


async def test_a_retry_writes_on_under_its_own_attempt(bench: Bench) -> None:
    async def twice() -> None:
        runtime = here()
        await runtime.stream_write("self", "s", str(runtime.ctx.attempt.number))
        runtime.metadata_apply("self", increment("tries"))
        if runtime.ctx.attempt.number == 1:
            raise ValueError("once more")
        assert runtime.metadata_current() == {"tries": 2}

    made = defined(twice, retry={"max_attempts": 2, "min_timeout": 0.01})
    async with bench.worker(made):
        row = await bench.finished(made)
    assert row.status == "COMPLETED"
    page = await bench.engine.streams.read(bench.env, row.id, "s")
    assert [(chunk.body, chunk.attempt) for chunk in page.chunks] == [("1", 1), ("2", 2)]
    assert page.stream is not None
    assert [mark.from_seq for mark in page.stream.attempts] == [0, 1]


async def test_a_child_writes_into_a_stream_of_its_parent(bench: Bench) -> None:
    async def telling() -> None:
        await here().stream_append("parent", "news", ['"from the child"'])

    child = defined(telling)

    async def waiting() -> str:
        handle = await here().trigger(child.id, None, TriggerOptions(), "key")
        await bench.until(handle.id)
        return handle.id

    made = defined(waiting)
    async with bench.worker(made, child):
        row = await bench.finished(made)
    page = await bench.engine.streams.read(bench.env, row.id, "news")
    ((body, writer),) = [(chunk.body, chunk.writer) for chunk in page.chunks]
    assert body == '"from the child"'
    assert row.output == f'"{writer}"'


async def test_a_write_to_another_run_that_is_over_is_fenced_and_loses_nobody_its_run(
    bench: Bench,
) -> None:
    async def quick() -> None: ...

    async def late(target: str) -> str:
        with pytest.raises(FencedError) as refused:
            await here().stream_append(target, "news", ["1"])
        raise ValueError(refused.value.run_id)

    first, second = defined(quick), defined(late, retry={"max_attempts": 1})
    async with bench.worker(first, second):
        over = await bench.finished(first)
        row = await bench.finished(second, over.id)
    assert row.status == "FAILED"
    assert (error_of(row)["name"], error_of(row)["message"]) == ("ValueError", over.id)


async def test_a_trigger_names_its_parent_and_is_not_repeated_under_one_key(bench: Bench) -> None:
    async def leaf() -> None: ...

    child = defined(leaf)

    def branching() -> Any:
        options = TriggerOptions(tags=["kind:leaf"], delay="1h", queue="slow")
        handles = [here().trigger_blocking(child.id, None, options, "one") for _ in range(2)]
        return [handle.id for handle in handles]

    made = defined(branching)
    async with bench.worker(made, child):
        row = await bench.finished(made)
    first, second = orjson.loads(cast(str, row.output))
    assert first == second
    leaf_row = await bench.row(first)
    assert (leaf_row.status, leaf_row.queue, leaf_row.tags) == ("DELAYED", "slow", ("kind:leaf",))
    assert (leaf_row.parent_id, leaf_row.root_id, leaf_row.depth) == (row.id, row.id, 1)


async def test_a_batch_whose_execution_died_before_its_items_were_in_is_filled_by_the_next(
    bench: Bench,
) -> None:
    async def leaf() -> None: ...

    child = defined(leaf)

    async def batching() -> Any:
        runtime = here()
        execution = Parent(runtime.ctx.run.id, runtime.ctx.attempt.execution)
        await bench.engine.batches.create(bench.env, 2, "one key", execution)
        items = [BatchItem(index=n, task=child.id, options=TriggerOptions()) for n in range(2)]
        first = await runtime.trigger_batch(items, "one key", "call")
        second = await runtime.trigger_batch(items, "one key", "call-2")
        assert first.id == second.id
        return [first.is_cached, second.is_cached, first.id]

    made = defined(batching)
    async with bench.worker(made, child):
        row = await bench.finished(made)
        assert row.status == "COMPLETED", row.error
        *cached, batch_id = orjson.loads(cast(str, row.output))
        batch = await bench.engine.batches.retrieve(bench.env, batch_id)
    assert cached == [False, True]
    assert batch is not None and batch.sealed and len(batch.run_ids) == 2


async def test_a_refused_trigger_or_tag_stops_the_task_that_lost_its_run(bench: Bench) -> None:
    ended: list[str] = []

    async def leaf() -> None: ...

    child = defined(leaf)

    async def robbed_of_it(payload: str) -> None:
        runtime = here()
        await bench.engine.outcomes.finish(bench.env, Canceled(runtime.ctx.run.id, 1))
        try:
            if payload == "tag":
                await runtime.add_tags(["late"])
            else:
                await runtime.trigger(child.id, None, TriggerOptions(), "key")
        except FencedError:
            ended.append(payload)
        try:
            # Only the refusal can end this in time: heartbeats look once a minute.
            await anyio.sleep(60)
        finally:
            ended.append(f"stopped after a {payload}")

    made = defined(robbed_of_it)
    kinds = ("tag", "trigger")
    async with bench.worker(made, child, lease=180.0, heartbeat=60.0) as worker:
        rows = [await bench.finished(made, kind) for kind in kinds]
        with anyio.fail_after(60):
            while worker.held:
                await anyio.sleep(0.01)
    assert sorted(ended) == sorted([*kinds, *(f"stopped after a {kind}" for kind in kinds)])
    assert [row.tags for row in rows] == [(), ()]
    assert (await bench.engine.runs.list(bench.env, RunQuery(task=(child.id,)))).runs == []


async def test_triggering_an_unknown_task_is_an_error_in_the_run(bench: Bench) -> None:
    async def lost() -> None:
        await here().trigger("no-such-task", None, TriggerOptions(), "key")

    made = defined(lost)
    async with bench.worker(made):
        row = await bench.finished(made)
    assert (row.status, error_of(row)["name"]) == ("FAILED", "UnknownTaskError")


async def test_tags_are_added_to_the_run(bench: Bench) -> None:
    async def tagging() -> None:
        await here().add_tags(["a", "b"])

    made = defined(tagging)
    async with bench.worker(made):
        row = await bench.finished(made, tags=("a",))
    assert row.tags == ("a", "b")


async def test_what_outlives_its_run_can_write_no_more(bench: Bench) -> None:
    kept: list[Runtime] = []

    async def leaking() -> None:
        kept.append(here())
        await here().stream_write("self", "s", "1")

    made = defined(leaking)
    async with bench.worker(made):
        row = await bench.finished(made)
        for write in (
            lambda: kept[0].stream_write("self", "s", "2"),
            lambda: kept[0].trigger(made.id, None, TriggerOptions(), "key"),
        ):
            with pytest.raises(NotInRunError):
                await write()
        with pytest.raises(NotInRunError):
            kept[0].metadata_apply("self", increment("n"))
    assert await bench.chunks(row.id, "s") == [1]


async def test_streams_of_many_runs_at_once_stay_apart(bench: Bench) -> None:
    async def many(payload: int) -> None:
        for number in range(50):
            await here().stream_write("self", "s", str(payload * 1000 + number))
            if number % 10 == 0:
                await anyio.lowlevel.checkpoint()

    made = defined(many)
    async with bench.worker(made):
        new = [NewRun(made.id, str(number)) for number in range(30)]
        results = await bench.engine.runs.trigger_many(bench.env, new)
        for number, result in enumerate(results):
            assert not isinstance(result, Exception)
            await bench.until(result.id)
            expected = [number * 1000 + at for at in range(50)]
            assert await bench.chunks(result.id, "s") == expected


async def test_options_are_read_inside_a_run_as_they_are_over_http(bench: Bench) -> None:
    async def leaf() -> None: ...

    child = defined(leaf)
    due = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)

    async def branching() -> list[str]:
        naive = TriggerOptions(delay=due.replace(tzinfo=None).isoformat())
        handle = await here().trigger(child.id, None, naive, "delayed")
        with pytest.raises(InvalidValueError, match="ttl"):
            await here().trigger(child.id, None, TriggerOptions(ttl=0), "refused")
        return [handle.id]

    made = defined(branching)
    async with bench.worker(made, child):
        row = await bench.finished(made)
    (leaf_id,) = orjson.loads(cast(str, row.output))
    assert (await bench.row(leaf_id)).delayed_until == due


@pytest.mark.parametrize("blocking", [False, True])
async def test_tags_beyond_ten_are_ignored_with_a_warning(
    bench: Bench, caplog: pytest.LogCaptureFixture, blocking: bool
) -> None:
    async def tagging() -> str:
        await here().add_tags(["c", "d"])
        return "went on"

    def tagging_blocking() -> str:
        here().add_tags_blocking(["c", "d"])
        return "went on"

    made = defined(tagging_blocking if blocking else tagging)
    nine = tuple(str(n) for n in range(9))
    async with bench.worker(made):
        row = await bench.finished(made, tags=nine)
    assert (row.status, row.tags) == ("COMPLETED", nine)
    assert "tags.add(c, d) was ignored" in caplog.text
