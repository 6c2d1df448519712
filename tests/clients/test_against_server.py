"""The clients against the real thing: a server, a worker and Postgres, over real sockets."""

import random
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.to_thread
import pytest
from pydantic import BaseModel

from runwire import (
    AsyncRunwire,
    Context,
    Event,
    Run,
    Runwire,
    UnauthorizedError,
    _connection,
    metadata,
    streams,
    task,
)
from runwire.batch import BatchItem
from runwire.errors import (
    BatchTriggerError,
    ConflictError,
    FencedError,
    ForbiddenError,
    MalformedError,
    NotFoundError,
)
from runwire.queues import QueueName, QueueOptions
from runwire.tasks import AnyTask
from runwire.wire import StreamStart
from tests.support.faultproxy import fault_proxy
from tests.support.server import TestRealtime, running_realtime
from tests.support.working import Bench, opened_bench

pytestmark = pytest.mark.anyio


class Prompt(BaseModel):
    topic: str
    words: int = 20
    pause: float = 0.0


class Story(BaseModel):
    text: str


async def tokens(payload: Prompt) -> AsyncIterator[str]:
    for index in range(payload.words):
        await anyio.sleep(payload.pause)  # stands for a model that thinks
        yield f"{payload.topic}-{index} "


@task(id="client-story", retry={"max_attempts": 1})
async def story(payload: Prompt, ctx: Context) -> Story:
    metadata.set("status", "writing").set("attempt", ctx.attempt.number)
    text = ""
    async for token in await metadata.stream("text", tokens(payload)):
        text += token
    metadata.set("status", "written")
    return Story(text=text)


@task(id="client-blocking-story", retry={"max_attempts": 1})
def blocking_story(payload: Prompt) -> Story:
    words = [f"{payload.topic}-{index} " for index in range(payload.words)]
    text = "".join(metadata.sync.stream("text", words))
    streams.sync.append("log", {"words": len(words)})
    return Story(text=text)


@task(id="client-parent", retry={"max_attempts": 1})
async def parent(payload: int) -> str:
    handle = await story.batch_trigger(
        [{"payload": Prompt(topic=str(number), words=2)} for number in range(payload)]
    )
    return handle.batch_id


@task(id="client-flaky", retry={"max_attempts": 2, "min_timeout": 0.05, "randomize": False})
async def flaky(payload: None, ctx: Context) -> int:
    await streams.append("log", f"attempt {ctx.attempt.number}")
    if ctx.attempt.number == 1:
        raise RuntimeError("the first attempt fails")
    return ctx.attempt.number


@task(id="client-sleeper", retry={"max_attempts": 1})
async def sleeper(payload: None = None) -> None:
    await anyio.sleep_forever()


TASKS: list[AnyTask] = [story, blocking_story, parent, flaky, sleeper]


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened, opened.worker(*TASKS):
        yield opened


def text_of(events: list[Event], key: str = "text") -> str:
    return "".join(event.chunk for event in events if event.type == key)


async def test_a_run_is_followed_from_its_trigger_to_its_output(client: AsyncRunwire) -> None:
    handle = await client.tasks.trigger(story, Prompt(topic="sea"), tags=["user:1"])
    with anyio.fail_after(60):
        events = [event async for event in client.runs.subscribe_to_run(handle.id).with_streams()]
    last = [event.run for event in events if event.type == "run"][-1]
    assert last.is_success and last.tags == ("user:1",)
    assert last.metadata == {"status": "written", "attempt": 1}
    assert text_of(events) == story.parse_output(last.output).text
    assert [event.seq for event in events if event.type == "text"] == list(range(20))
    assert {event.attempt for event in events if event.type == "text"} == {1}
    retrieved = await client.runs.retrieve(handle)
    assert (retrieved.revision, retrieved.output) == (last.revision, last.output)


async def test_a_run_is_followed_by_code_without_a_loop(server: TestRealtime) -> None:
    def follow() -> tuple[list[Event], list[Any], Run]:
        with Runwire(api_url=server.url, access_token=server.key) as client:
            handle = client.tasks.trigger(blocking_story, Prompt(topic="sea"))
            events = list(client.runs.subscribe_to_run(handle.id).with_streams())
            log = list(client.streams.read(handle.id, "log"))
            return events, log, client.runs.retrieve(handle)

    with anyio.fail_after(60):
        events, log, run = await anyio.to_thread.run_sync(follow, abandon_on_cancel=True)
    assert text_of(events) == blocking_story.parse_output(run.output).text
    assert log == [{"words": 20}]


async def test_the_token_of_a_trigger_reads_that_run_and_no_other(
    server: TestRealtime, client: AsyncRunwire
) -> None:
    mine = await client.tasks.trigger(story, Prompt(topic="mine", words=1))
    other = await client.tasks.trigger(story, Prompt(topic="other", words=1))
    token = mine.public_access_token
    assert token is not None
    async with AsyncRunwire(api_url=server.url, access_token=token) as browser:
        with anyio.fail_after(60):
            states = [run async for run in browser.runs.subscribe_to_run(mine)]
            assert states[-1].is_success
            with pytest.raises((ForbiddenError, NotFoundError)):
                [run async for run in browser.runs.subscribe_to_run(other)]
            with pytest.raises((ForbiddenError, NotFoundError)):
                await browser.runs.retrieve(other)


@pytest.mark.parametrize("credential", ["tr_dev_sk_000000000000000000000000", "a.b.c", "x"])
async def test_a_wrong_credential_is_an_error_everywhere(
    server: TestRealtime, credential: str
) -> None:
    async with AsyncRunwire(api_url=server.url, access_token=credential) as client:
        with anyio.fail_after(60):
            with pytest.raises(UnauthorizedError):
                await client.tasks.trigger("client-story", {"topic": "a"})
            with pytest.raises(UnauthorizedError):
                [run async for run in client.runs.subscribe_to_run("run_x")]
            with pytest.raises(UnauthorizedError):
                [chunk async for chunk in client.streams.read("run_x", "text")]


async def test_what_does_not_exist_is_an_error(client: AsyncRunwire) -> None:
    unknown = "run_" + "0" * 25
    with anyio.fail_after(60):
        with pytest.raises(NotFoundError):
            await client.tasks.trigger("no-such-task")
        with pytest.raises(NotFoundError):
            await client.runs.retrieve(unknown)
        with pytest.raises(NotFoundError):
            [run async for run in client.runs.subscribe_to_run(unknown)]
        with pytest.raises(NotFoundError):
            await client.runs.cancel(unknown)


async def test_queues_are_seen_paused_and_limited(client: AsyncRunwire) -> None:
    with anyio.fail_after(60):
        names = [queue.name async for queue in client.queues.list(per_page=2)]
        assert sorted(names) == sorted(made.id for made in TASKS)
        paused = await client.queues.pause(sleeper)
        assert (paused.name, paused.type, paused.paused) == ("client-sleeper", "task", True)
        handle = await client.tasks.trigger(sleeper)
        for reference in (
            paused.id,
            "task/client-sleeper",
            QueueOptions("task/client-sleeper"),
            QueueName(type="task", name="client-sleeper"),
        ):
            queue = await client.queues.retrieve(reference)
            assert (queue.id, queue.queued, queue.running) == (paused.id, 1, 0)
        limited = await client.queues.override_concurrency_limit(sleeper, 2)
        assert (limited.concurrency_limit, limited.concurrency.base) == (2, None)
        assert limited.concurrency.overridden_at is not None
        assert (await client.queues.reset_concurrency_limit(sleeper)).concurrency_limit is None
        assert not (await client.queues.resume(sleeper)).paused
        async for run in client.runs.subscribe_to_run(handle):
            if run.status == "EXECUTING":
                break
        with pytest.raises(NotFoundError, match="no queue"):
            await client.queues.retrieve("nobody/named it")
        with pytest.raises(MalformedError, match="not overridden"):
            await client.queues.reset_concurrency_limit(sleeper)


async def test_queues_are_listed_by_code_without_a_loop(server: TestRealtime) -> None:
    def listed() -> tuple[list[str], int]:
        with Runwire(api_url=server.url, access_token=server.key) as client:
            queues = client.queues.list(per_page=2)
            return [queue.name for queue in queues], queues.page(2).count

    names, count = await anyio.to_thread.run_sync(listed)
    assert len(names) == count == len(TASKS)


async def test_a_delayed_run_is_rescheduled_and_a_debounced_one_pushed_back(
    client: AsyncRunwire,
) -> None:
    delayed = await client.tasks.trigger(story, Prompt(topic="late", words=1), delay="1h")
    with anyio.fail_after(60):
        run = await client.runs.reschedule(delayed, delay=timedelta(hours=2))
        assert run.status == "DELAYED" and run.delayed_until is not None
        assert run.delayed_until > run.created_at + timedelta(minutes=119)
        await client.runs.reschedule(delayed, delay=datetime.now(UTC))
        assert (await client.runs.poll(delayed, interval=0.05)).is_success
        with pytest.raises(ConflictError, match="cannot be rescheduled"):
            await client.runs.reschedule(delayed, delay=1)
    handles = [
        await client.tasks.trigger(
            story,
            Prompt(topic=topic, words=1),
            debounce={"key": "d", "delay": "1h", "mode": "trailing"},
        )
        for topic in ("first", "last")
    ]
    assert handles[0].id == handles[1].id and handles[1].is_cached
    assert (await client.runs.retrieve(handles[0])).payload["topic"] == "last"


async def test_a_tag_is_followed_across_runs_from_before_and_after(client: AsyncRunwire) -> None:
    before = await client.tasks.trigger(story, Prompt(topic="a", words=1), tags=["t", "u"])
    done: set[str] = set()
    wanted = {before.id}
    with anyio.fail_after(60):
        async for run in client.runs.subscribe_to_runs_with_tag(["t", "u"]):
            assert {"t", "u"} <= set(run.tags)
            if len(wanted) == 1:
                after = await client.tasks.trigger(
                    story, Prompt(topic="b", words=1), tags=["u", "t"]
                )
                wanted.add(after.id)
                await client.tasks.trigger(story, Prompt(topic="c", words=1), tags=["t"])
            if run.is_completed:
                done.add(run.id)
            if done == wanted:
                break
    assert done == wanted and len(done) == 2


async def test_a_batch_that_a_run_started_is_followed_to_its_end(client: AsyncRunwire) -> None:
    handle = await client.tasks.trigger(parent, 5)
    with anyio.fail_after(60):
        finished = [run async for run in client.runs.subscribe_to_run(handle)][-1]
        batch_id = parent.parse_output(finished.output)
        final: dict[str, Run] = {}
        async for run in client.runs.subscribe_to_batch(batch_id):
            final[run.id] = run
    assert len(final) == 5 and all(run.is_success for run in final.values())
    assert all(run.parent_id == handle.id for run in final.values())
    held = await client.batch.retrieve(batch_id)
    assert held.is_completed and set(held.run_ids) == set(final)
    assert {run.id async for run in client.runs.list(parent=handle)} == set(final)
    assert [run async for run in client.runs.list(parent=next(iter(final)))] == []


async def test_the_first_runs_of_an_iterable_are_over_before_its_last_item_is_there(
    client: AsyncRunwire,
) -> None:
    async def items() -> AsyncIterator[BatchItem]:
        yield {"task": story, "payload": Prompt(topic="first", words=1), "options": {"tags": "one"}}
        with anyio.fail_after(60):
            async for run in client.runs.subscribe_to_runs_with_tag("one"):
                if run.is_success:
                    break
        yield {"task": "client-blocking-story", "payload": {"topic": "second", "words": 1}}

    handle = await client.batch.trigger(items(), idempotency_key="an import")
    with anyio.fail_after(60):
        final = [run async for run in client.runs.subscribe_to_batch(handle.batch_id)]
    assert {run.task_identifier for run in final} == {story.id, blocking_story.id}
    held = await client.batch.retrieve(handle.batch_id)
    assert (held.status, held.run_count, handle.run_count) == ("COMPLETED", 2, 2)

    async def unread() -> AsyncIterator[BatchItem]:
        yield {"task": story, "payload": Prompt(topic="third", words=1)}
        raise AssertionError("a batch that is there reads no further")

    again = await client.batch.trigger(unread(), idempotency_key="an import")
    assert (again.is_cached, again.batch_id, again.run_count) == (True, handle.batch_id, 2)


async def test_a_batch_by_task_over_http_has_a_handle_for_each_run(
    client: AsyncRunwire, server: TestRealtime
) -> None:
    handle = await client.batch.trigger_by_task(
        (
            {"task": story, "payload": Prompt(topic="a", words=1)},
            {"task": blocking_story, "payload": Prompt(topic="b", words=1)},
        )
    )
    first, second = handle.runs
    token = first.public_access_token
    assert token is not None
    async with AsyncRunwire(api_url=server.url, access_token=token) as reader:
        done = await reader.runs.poll(first, interval=0.02, timeout=60)
        assert story.parse_output(done.output) == Story(text="a-0 ")
        assert (await reader.runs.retrieve(second)).task_identifier == blocking_story.id


async def test_a_batch_with_a_task_that_nobody_has_is_given_up(client: AsyncRunwire) -> None:
    items: list[BatchItem] = [{"task": story, "payload": Prompt(topic="a")}, {"task": "nobody"}]
    with pytest.raises(BatchTriggerError, match="'nobody'") as raised:
        await client.batch.trigger(items)
    error = raised.value
    assert (error.phase, isinstance(error.cause, NotFoundError)) == ("stream", True)
    assert error.batch_id is not None
    held = await client.batch.retrieve(error.batch_id)
    assert (held.status, held.run_ids) == ("ABORTED", ())
    [refused] = held.processing_errors
    assert (refused.index, refused.task_identifier) == (1, "nobody")
    with anyio.fail_after(60):
        assert [run async for run in client.runs.subscribe_to_batch(error.batch_id)] == []


async def test_a_key_that_is_reset_starts_a_new_run(client: AsyncRunwire) -> None:
    key = ["order", "7"]
    first = await client.tasks.trigger(sleeper, idempotency_key=key)
    assert (await client.tasks.trigger(sleeper, idempotency_key=key)).id == first.id
    assert await client.idempotency_keys.reset(sleeper, key)
    assert not await client.idempotency_keys.reset(sleeper, key)
    second = await client.tasks.trigger(sleeper, idempotency_key=key)
    assert second.id != first.id and not second.is_cached


async def test_a_batch_over_http_has_one_run_for_each_item(client: AsyncRunwire) -> None:
    handle = await client.batch.trigger(
        [
            {"task": story, "payload": Prompt(topic="a", words=1)},
            {"task": "client-flaky", "options": {"tags": "x"}},
        ]
    )
    with anyio.fail_after(60):
        final = {run.id: run async for run in client.runs.subscribe_to_batch(handle.batch_id)}
    assert sorted(run.task_identifier for run in final.values()) == [
        "client-flaky",
        "client-story",
    ]


async def test_a_run_that_a_worker_gave_back_starts_over_in_its_stream(
    database_url: str, anyio_backend: str
) -> None:
    @task(id="client-released", retry={"max_attempts": 1})
    async def released(payload: None, ctx: Context) -> None:
        await streams.append("log", ctx.attempt.execution)
        if ctx.attempt.execution == 1:
            await anyio.sleep_forever()

    async with (
        opened_bench(database_url) as bench,
        running_realtime(database_url) as server,
        AsyncRunwire(api_url=server.url, access_token=server.key) as client,
    ):
        chunks: list[tuple[Any, int | None, bool]] = []
        begun, again = anyio.Event(), anyio.Event()

        async def read(run_id: str) -> None:
            source = client.streams.read(run_id, "log")
            async for chunk in source:
                chunks.append((chunk, source.attempt, source.is_restart))
                begun.set()
            again.set()

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                async with bench.worker(released):
                    handle = await client.tasks.trigger(released, None)
                    tasks.start_soon(read, handle.id)
                    await begun.wait()
                async with bench.worker(released):
                    await again.wait()
        assert chunks == [(1, 1, False), (2, 1, True)]


async def test_a_run_that_is_over_takes_no_chunk_and_says_which(client: AsyncRunwire) -> None:
    handle = await client.tasks.trigger("client-flaky")
    with anyio.fail_after(60):
        [run async for run in client.runs.subscribe_to_run(handle)]
    with pytest.raises(FencedError) as refused:
        await client.streams.append("log", "late", target=handle.id)
    assert refused.value.run_id == handle.id


async def test_a_later_attempt_of_a_stream_is_marked(client: AsyncRunwire) -> None:
    handle = await client.tasks.trigger("client-flaky")
    with anyio.fail_after(60):
        events = [event async for event in client.runs.subscribe_to_run(handle).with_streams("log")]
    chunks = [event for event in events if event.type == "log"]
    assert [(chunk.chunk, chunk.attempt, chunk.is_restart) for chunk in chunks] == [
        ("attempt 1", 1, False),
        ("attempt 2", 2, True),
    ]


async def test_more_runs_are_followed_at_once_than_fit_on_one_socket(client: AsyncRunwire) -> None:
    handle = await client.batch.trigger(
        [{"task": sleeper, "options": {"delay": "1h"}} for _ in range(250)]
    )
    run_ids = (await client.batch.retrieve(handle.batch_id)).run_ids
    begun: set[str] = set()
    ended: set[str] = set()

    async def follow(run_id: str) -> None:
        async for run in client.runs.subscribe_to_run(run_id):
            begun.add(run_id)
            if run.is_cancelled:
                ended.add(run_id)

    with anyio.fail_after(100):
        async with anyio.create_task_group() as tasks:
            for run_id in run_ids:
                tasks.start_soon(follow, run_id)
            while len(begun) < 250:
                await anyio.sleep(0.05)
            for run_id in run_ids:
                await client.runs.cancel(run_id)
    assert len(ended) == 250


async def test_every_revision_is_told_to_who_asks_for_it(client: AsyncRunwire) -> None:
    handle = await client.tasks.trigger("client-flaky", delay=0.3)
    with anyio.fail_after(60):
        told = [run.revision async for run in client.runs.subscribe_to_run(handle, mode="every")]
    assert told == list(range(told[0], told[-1] + 1))
    assert told[-1] == (await client.runs.retrieve(handle)).revision


async def test_a_run_that_is_stopped_ends_its_subscription(client: AsyncRunwire) -> None:
    handle = await client.tasks.trigger("client-sleeper")
    with anyio.fail_after(60):
        async for run in client.runs.subscribe_to_run(handle):
            if run.is_executing:
                await client.runs.cancel(handle)
    assert (await client.runs.retrieve(handle)).is_cancelled


async def test_the_same_key_starts_one_run(client: AsyncRunwire) -> None:
    first = await client.tasks.trigger("client-flaky", idempotency_key="k")
    second = await client.tasks.trigger("client-flaky", idempotency_key="k")
    assert first.id == second.id and (first.is_cached, second.is_cached) == (False, True)


async def test_runs_are_listed_and_replayed_and_polled(client: AsyncRunwire) -> None:
    handles = [
        await client.tasks.trigger(story, Prompt(topic=str(number), words=1), tags=["listed"])
        for number in range(5)
    ]
    with anyio.fail_after(60):
        for handle in handles:
            await client.runs.poll(handle, interval=0.05)
        again = await client.runs.replay(handles[0])
        replayed = await client.runs.poll(again, interval=0.05)
    assert replayed.output == (await client.runs.retrieve(handles[0])).output
    listed = [run.id async for run in client.runs.list(tag="listed", page_size=2)]
    assert set(listed) >= {handle.id for handle in handles} and len(listed) == len(set(listed))


async def test_a_public_token_narrows_what_is_seen(
    server: TestRealtime, client: AsyncRunwire
) -> None:
    handle = await client.tasks.trigger(story, Prompt(topic="a", words=2), tags=["seen"])
    token = await client.auth.create_public_token(
        scopes={"read": {"tags": ["seen"]}}, expiration_time="1m", fields=["status"]
    )
    async with AsyncRunwire(api_url=server.url, access_token=token) as browser:
        with anyio.fail_after(60):
            states = [run async for run in browser.runs.subscribe_to_run(handle)]
    assert states[-1].is_success
    assert all(run.output is None and not run.metadata and not run.tags for run in states)


async def test_a_subscription_goes_on_in_another_process_by_its_cursor(
    server: TestRealtime, client: AsyncRunwire
) -> None:
    handle = await client.tasks.trigger(story, Prompt(topic="a", words=30, pause=0.02))
    first: list[Event] = []
    with anyio.fail_after(60):
        following = client.runs.subscribe_to_run(handle).with_streams("text")
        async for event in following:
            first.append(event)
            if event.seq == 10:
                break
        async with AsyncRunwire(api_url=server.url, access_token=server.key) as other:
            again = other.runs.subscribe_to_run(handle, cursor=following.cursor)
            rest = [event async for event in again.with_streams("text")]
    seqs = [event.seq for event in first + rest if event.type == "text"]
    assert seqs == list(range(30))
    revisions = [event.run.revision for event in first + rest if event.type == "run"]
    assert revisions == sorted(set(revisions))


async def test_many_followers_see_the_same_through_a_network_that_breaks(
    server: TestRealtime, client: AsyncRunwire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connection, "FIRST_WAIT", 0.02)
    dice = random.Random(7)
    handle = await client.tasks.trigger(story, Prompt(topic="a", words=60, pause=0.02))
    told: dict[int, list[Event]] = {}

    async def follow(url: str, reader: int) -> None:
        async with AsyncRunwire(api_url=url, access_token=server.key) as mine:
            following = mine.runs.subscribe_to_run(handle).with_streams()
            told[reader] = [event async for event in following]

    host, _, port = server.url.removeprefix("http://").partition(":")
    with anyio.fail_after(30):
        async with fault_proxy((host, int(port))) as proxy:
            async with anyio.create_task_group() as tasks:
                for reader in range(5):
                    tasks.start_soon(follow, f"http://127.0.0.1:{proxy.port}", reader)
                for _ in range(8):
                    await anyio.sleep(dice.uniform(0.05, 0.2))  # faults at any moment
                    proxy.cut()
    final = await client.runs.retrieve(handle)
    for events in told.values():
        assert text_of(events) == story.parse_output(final.output).text
        revisions = [event.run.revision for event in events if event.type == "run"]
        assert revisions == sorted(set(revisions)) and revisions[-1] == final.revision


async def test_reading_may_begin_anywhere(client: AsyncRunwire) -> None:
    handle = await client.tasks.trigger(story, Prompt(topic="a", words=6))
    with anyio.fail_after(60):
        await client.runs.poll(handle, interval=0.05)
        whole = [chunk async for chunk in client.streams.read(handle.id, "text")]
        expected: dict[StreamStart, list[str]] = {
            0: whole,
            3: whole[3:],
            6: [],
            -2: whole[4:],
            -100: whole,
            "latest": [],
        }
        for start, rest in expected.items():
            assert [c async for c in client.streams.read(handle.id, "text", start=start)] == rest
        assert [chunk async for chunk in client.streams.read(handle.id, "nothing")] == []


async def test_a_stream_is_written_from_outside_of_its_run(client: AsyncRunwire) -> None:
    handle = await client.tasks.trigger("client-sleeper")
    with anyio.fail_after(60):
        assert await client.streams.append("notes", {"from": "outside"}, target=handle.id) == 1
        async for event in client.runs.subscribe_to_run(handle).with_streams("notes"):
            if event.type == "notes":
                assert event.chunk == {"from": "outside"} and event.attempt is None
                await client.runs.cancel(handle)
    assert (await client.runs.retrieve(handle)).is_cancelled
