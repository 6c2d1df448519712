"""The client on a real server: over websockets, and over events where those do not pass."""

import random
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import anyio
import pytest

from runwire import (
    AsyncRunwire,
    Event,
    Run,
    UnauthorizedError,
    _connection,
    _subscription,
    metadata,
    streams,
    task,
)
from runwire._following import Events
from runwire._progress import Progress
from runwire.batch import BatchItem
from runwire.errors import NotFoundError
from runwire.tasks import AnyTask
from runwire_engine.run_metadata import MetadataWrite
from runwire_engine.wanted_runs import NewRun
from tests.support.faultproxy import FaultProxy, fault_proxy
from tests.support.history import ClientLog, Fault, check, read_ledger
from tests.support.server import TestRealtime, running_realtime
from tests.support.working import Bench, opened_bench

pytestmark = pytest.mark.anyio


@task(id="carried", retry={"max_attempts": 1})
async def carried(payload: int) -> int:
    """Write two streams and metadata, a little at a time."""
    for number in range(payload):
        await streams.append("log", {"number": number, "is": "é" * 40})
        if number % 3 == 0:
            await streams.append("text", f"{number} ")
            metadata.set("number", number)
        await anyio.sleep(0.01)  # stands for work
    return payload


@task(id="carried-flaky", retry={"max_attempts": 2, "min_timeout": 0.05, "randomize": False})
async def flaky(payload: int) -> AsyncIterator[int]:
    await streams.append("log", "begun")
    raise RuntimeError("each attempt fails")


TASKS: list[AnyTask] = [carried, flaky]


@dataclass
class Place:
    """A server behind a network, and what an application is given to reach it."""

    server: TestRealtime
    proxy: FaultProxy
    bench: Bench

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"

    def client(self, access_token: Any = None) -> AsyncRunwire:
        return AsyncRunwire(api_url=self.url, access_token=access_token or self.server.key)


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened, opened.worker(*TASKS):
        yield opened


@pytest.fixture(params=["pass", "refused", "swallowed"])
async def place(
    request: pytest.FixtureRequest, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Place]:
    """A server that websockets reach, and one that they do not."""
    monkeypatch.setattr(_connection, "FIRST_WAIT", 0.02)
    websockets: Literal["pass", "refused", "swallowed"] = request.param
    if websockets == "swallowed":
        monkeypatch.setattr(_connection, "OPEN_TIMEOUT", 0.3)
    async with running_realtime(bench.database_url) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        async with fault_proxy((host, int(port))) as proxy:
            proxy.websockets = websockets
            yield Place(server, proxy, bench)


@dataclass
class Follower:
    """What one application saw."""

    log: ClientLog
    events: list[Event] = field(default_factory=list[Event])

    def see(self, event: Event) -> None:
        self.events.append(event)
        if event.gap is not None:
            self.log.saw_gap(event.run.id)
        if event.type == "run":
            self.log.saw_run(event.run.id, event.run.revision, event.run.status)
        else:
            self.log.saw_chunk(event.run.id, event.type, event.seq or 0, event.chunk)


async def test_a_run_is_followed_from_its_trigger_to_its_output(place: Place) -> None:
    async with place.client() as client:
        handle = await client.tasks.trigger("carried", 10)
        with anyio.fail_after(60):
            following = client.runs.subscribe_to_run(handle.id, mode="every").with_streams()
            events = [event async for event in following]
    chunks = [event.chunk["number"] for event in events if event.type == "log"]
    assert chunks == list(range(10))
    revisions = [event.run.revision for event in events if event.type == "run"]
    assert revisions == list(range(revisions[0], revisions[-1] + 1))
    assert events[-1].run.is_success and events[-1].run.output == 10
    assert (place.proxy.websockets_stopped > 0) is (place.proxy.websockets != "pass")


async def test_everybody_sees_the_same_through_a_network_that_breaks(place: Place) -> None:
    """Runs, a tag, a batch and streams, in both modes, while every connection is cut."""
    dice = random.Random(11)
    followers: list[Follower] = []

    async def follow(following: Any, follower: Follower) -> None:
        async for event in following:
            follower.see(event)

    async with place.client() as client:
        long: BatchItem = {"task": "carried", "payload": 90, "options": {"tags": ["carried"]}}
        fails: BatchItem = {**long, "task": "carried-flaky"}
        batch = await client.batch.trigger([long, long, long, fails])
        ids = list((await client.batch.retrieve(batch.batch_id)).run_ids)
        follow_run, follow_batch = client.runs.subscribe_to_run, client.runs.subscribe_to_batch
        kinds: list[tuple[ClientLog, list[str], Any]] = [
            (ClientLog("run", "every"), ids[:1], follow_run(ids[0], mode="every")),
            (ClientLog("same run"), ids[:1], follow_run(ids[0])),
            (ClientLog("tag"), ids, client.runs.subscribe_to_runs_with_tag("carried")),
            (ClientLog("batch", "every"), ids, follow_batch(batch.batch_id, mode="every")),
            (ClientLog("same batch"), ids, follow_batch(batch.batch_id)),
            (ClientLog("runs"), ids[:3], client.runs.subscribe_to_runs(task="carried")),
        ]
        asked: list[Events] = []
        with anyio.fail_after(100):
            async with anyio.create_task_group() as following:
                for log, runs, each in kinds:
                    follower = Follower(log)
                    followers.append(follower)
                    for run in runs:
                        log.follows(run, *(("log",) if run == ids[3] else ("log", "text")))
                    events = each.with_streams()
                    asked.append(events)
                    following.start_soon(follow, events, follower)
                # Before its first cursor a feed has no place to go on from.
                while not all(Progress.parse(each.cursor).cursor for each in asked):
                    await anyio.sleep(0.01)  # polls
                for _ in range(6):
                    await anyio.sleep(dice.uniform(0.05, 0.3))  # faults at any moment
                    place.proxy.resets = not place.proxy.resets
                    place.proxy.cut()
                for run in ids:
                    await client.runs.poll(run, interval=0.1)
                ledger = await read_ledger(place.bench.database_url, place.bench.env)
                unfinished = {Fault.NOT_CONVERGED, Fault.LOST_CHUNK}
                with anyio.move_on_after(10):
                    while unfinished & {
                        each.fault for each in check(ledger, [one.log for one in followers])
                    }:
                        await anyio.sleep(0.05)  # feeds have no end of their own
                following.cancel_scope.cancel()
    ledger = await read_ledger(place.bench.database_url, place.bench.env)
    findings = check(ledger, [follower.log for follower in followers])
    assert findings == [], "\n".join(map(str, findings))


async def test_subscriptions_that_come_and_go_leave_the_others_alone(place: Place) -> None:
    read: dict[int, list[Any]] = {}

    async def follow(client: AsyncRunwire, run: str, reader: int) -> None:
        read[reader] = []
        await anyio.sleep(0.03 * reader)  # each comes at another moment of the run
        async for chunk in client.streams.read(run, "log"):
            read[reader].append(chunk)
            if reader % 2 and len(read[reader]) == 3:
                return

    async with place.client() as client:
        handle = await client.tasks.trigger("carried", 30)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for reader in range(8):
                    tasks.start_soon(follow, client, handle.id, reader)
    for reader, chunks in read.items():
        numbers = [chunk["number"] for chunk in chunks]
        assert numbers == list(range(3 if reader % 2 else 30)), reader


async def test_a_reader_that_is_slower_than_its_run_is_left_and_taken_up_and_misses_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_subscription, "MAX_QUEUED", 10)
    slow: list[Any] = []
    fast: list[Any] = []
    states: set[str] = set()
    count = 60

    async def follow(client: AsyncRunwire, run: str, into: list[Any]) -> None:
        following = client.runs.subscribe_to_run(run).with_streams("log")
        async for event in following:
            states.add(following.state)
            if event.type == "log":
                into.append(event.seq)
                # The slow one is busy until it is more behind than may wait for it.
                while into is slow and len(fast) < min(count, len(slow) + 20):
                    await anyio.sleep(0.005)

    async with place.client() as client:
        handle = await client.tasks.trigger("carried", count)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow, client, handle.id, slow)
                tasks.start_soon(follow, client, handle.id, fast)
    assert slow == fast == list(range(count))
    assert "paused" in states


async def test_a_refusal_is_an_error_at_once(place: Place) -> None:
    async with place.client() as client:
        with anyio.fail_after(60), pytest.raises(NotFoundError):
            _ = [run async for run in client.runs.subscribe_to_run("run_none")]
    async with place.client("not-a-token") as stranger:
        with anyio.fail_after(60), pytest.raises(UnauthorizedError):
            _ = [run async for run in stranger.runs.subscribe_to_run("run_none")]


async def test_a_subscription_goes_on_in_another_process_by_its_cursor(place: Place) -> None:
    first: list[Event] = []
    async with place.client() as client:
        handle = await client.tasks.trigger("carried", 20)
        with anyio.fail_after(60):
            following = client.runs.subscribe_to_run(handle).with_streams("log")
            async for event in following:
                first.append(event)
                if event.seq == 5:
                    break
            async with place.client() as other:
                again = other.runs.subscribe_to_run(handle, cursor=following.cursor)
                rest = [event async for event in again.with_streams("log")]
    assert [event.seq for event in first + rest if event.type == "log"] == list(range(20))
    revisions = [event.run.revision for event in first + rest if event.type == "run"]
    assert revisions == sorted(set(revisions))


@pytest.mark.parametrize("kind", ["run", "tag"])
async def test_each_state_is_told_once_across_processes(place: Place, kind: str) -> None:
    bench, seen = place.bench, list[Run]()
    later = datetime.now(UTC) + timedelta(hours=1)
    new = NewRun("carried", tags=("moving",), delay_until=later)
    run_id = (await bench.engine.runs.trigger(bench.env, new)).id
    amount = 0

    async def change(times: int) -> None:
        nonlocal amount
        for _ in range(times):
            amount += 1
            operation = {"type": "append", "key": "list", "value": amount}
            await bench.engine.metadata.apply(bench.env, MetadataWrite(run_id, [operation]))

    cursor: str | None = None
    for process in range(4):
        async with place.client() as client:
            updates = (
                client.runs.subscribe_to_run(run_id, mode="every", cursor=cursor)
                if kind == "run"
                else client.runs.subscribe_to_runs_with_tag("moving", mode="every", cursor=cursor)
            )
            # What it is told first has a cursor; a change after it is told once that was taken.
            with anyio.fail_after(60):
                async for run in updates:
                    seen.append(run)
                    if len(seen) == 1:
                        await change(1)
                    elif run.revision == 4 * process + 2:
                        break
            cursor = updates.cursor
        await change(4)
    assert [run.revision for run in seen] == list(range(1, 15))
    assert [run.gap for run in seen] == [None] * 14
    lists: list[Any] = [(run.metadata or {}).get("list", []) for run in seen]
    assert lists == [list(range(1, run.revision)) for run in seen]


async def test_events_are_kept_once_they_worked_and_then_websockets_are_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connection, "FIRST_WAIT", 0.02)
    async with running_realtime(bench.database_url) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        async with fault_proxy((host, int(port))) as proxy:
            proxy.websockets = "refused"
            place = Place(server, proxy, bench)
            async with place.client() as client:
                for _ in range(3):
                    handle = await client.tasks.trigger("carried", 1)
                    with anyio.fail_after(60):
                        states: list[Run] = [r async for r in client.runs.subscribe_to_run(handle)]
                    assert states[-1].is_success
                # What was learnt with the first subscription holds for the next.
                assert proxy.websockets_stopped == 2
                handle = await client.tasks.trigger("carried", 60)
                seen: list[object] = []
                opened = proxy.accepted
                with anyio.fail_after(60):
                    async for event in client.runs.subscribe_to_run(handle).with_streams("log"):
                        if event.type == "log":
                            seen.append(event.seq)
                        if event.seq == 5:
                            proxy.websockets = "pass"
                            opened = proxy.accepted
                            proxy.cut()
                    assert seen == list(range(60))
                    assert proxy.websockets_stopped == 2 and proxy.accepted > opened
