"""The feed with a real Postgres that loses bells, sessions and its voice."""

import os
import signal

import anyio
import pytest
from psycopg import AsyncConnection

from runwire_engine.bells import Bell
from runwire_engine.changes import EventRow
from runwire_engine.database import Database
from runwire_engine.following import Following
from runwire_engine.wanted_runs import NewRun
from runwire_realtime.feed import Feed
from runwire_realtime.hub import Hub
from runwire_realtime.limits import HubLimits
from runwire_realtime.reads import Reads
from tests.support.engines import query
from tests.support.hub_world import World
from tests.support.sockets import chunks_of, of_type, open_socket, until_true
from tests.support.stage import Stage

pytestmark = pytest.mark.anyio


async def sessions(stage: Stage, name: str = "%") -> list[int]:
    """Return the process ids of sessions with this database but our own."""
    rows = await query(
        stage.engine.database,
        "select pid from pg_stat_activity where datname = current_database()"
        " and pid <> pg_backend_pid() and application_name like %s",
        name,
    )
    return [row["pid"] for row in rows]


async def terminate(stage: Stage, name: str) -> int:
    pids = await sessions(stage, name)
    for pid in pids:
        await query(stage.engine.database, "select pg_terminate_backend(%s)", pid)
    return len(pids)


async def test_whether_bells_arrive_is_not_known_before_the_first(database: Database) -> None:
    hub = Hub(HubLimits())
    feed = Feed(hub, Reads(hub, Following(database)), database)
    assert feed.notifications == "starting"


async def test_chunks_that_ring_after_a_reconnect_are_read_until_the_history_is_known(
    database: Database,
) -> None:
    world, run_id = World(HubLimits()), "run_a0000000"
    feed = Feed(world.hub, Reads(world.hub, Following(database)), database)
    await feed.start()
    world.create(run_id)
    world.status(run_id, "EXECUTING")
    world.append(run_id, "log", '"a"')
    world.connect().subscribe("s", {"run": run_id}, streams={"log": {"from": "start"}})
    world.settle()
    (topic,) = world.hub.streams.topics.values()
    assert topic.end == 1

    feed.rang(Bell(scan=True, streams=(world.append(run_id, "log", '"b"'),)))
    assert topic.end == 1 and topic.is_behind
    world.settle()
    assert topic.end == 2
    await feed.read_tail()
    feed.rang(Bell(streams=(world.append(run_id, "log", '"c"'),)))
    assert topic.end == 3


async def test_without_any_bell_everything_comes_with_the_poll(stage: Stage) -> None:
    run_id = await stage.trigger("t")
    execution = await stage.start(run_id)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, streams={"*": {}})
        await socket.subscribe("b", {"tags": ["t"]})
        await socket.until("live", sub="b")
        with anyio.fail_after(60):
            while await terminate(stage, "runwire-bell"):
                await anyio.sleep(0.01)
            await stage.append(run_id, execution, "a")
            await terminate(stage, "runwire-bell")
            await stage.append(run_id, execution, "b", "c")
            await terminate(stage, "runwire-bell")
            other = await stage.trigger("t")
            await stage.complete(run_id, execution)
            messages = await socket.until("done")
            if not of_type(socket.messages, "joined"):
                await socket.until("joined")
    assert chunks_of(messages, "text") == ["a", "b", "c"]
    assert of_type(socket.messages, "joined")[-1]["run"] == other


async def test_lost_sessions_lose_nothing(stage: Stage) -> None:
    run_id = await stage.trigger()
    execution = await stage.start(run_id)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, streams={"*": {}}, mode="every")
        await socket.until("live")
        for number in range(30):
            await stage.append(run_id, execution, number)
            if number % 10 == 5:
                await terminate(stage, "runwire-listen")
                await stage.set_metadata(run_id, execution, n=number)
        await stage.complete(run_id, execution)
        messages = await socket.until("done")
    assert chunks_of(messages, "text") == list(range(30))
    revisions = [m["revision"] for m in of_type(messages, "patch")]
    assert revisions == list(range(revisions[0], revisions[0] + len(revisions)))


async def test_a_silent_database_is_told_and_so_is_its_return(stage: Stage) -> None:
    run_id = await stage.trigger()
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id})
        await socket.until("live")
        pids = await sessions(stage)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            with anyio.fail_after(60):
                assert (await socket.until("state"))[-1]["state"] == "stale"
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        await stage.engine.runs.cancel(stage.env, run_id)
        with anyio.fail_after(60):
            messages = await socket.until("done")
            if not of_type(socket.messages, "state")[-1]["state"] == "live":
                messages += await socket.until("state", state="live")
    assert messages


async def test_it_stays_stale_until_the_streams_have_been_looked_up(
    stage: Stage, database_url: str
) -> None:
    run_id = await stage.trigger()
    execution = await stage.start(run_id)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, streams={"text": {}})
        await socket.until("live")
        pids = await sessions(stage)
        async with await AsyncConnection.connect(database_url) as blocker:
            # Before they are stopped, as one of them may be looking at the streams just then.
            await blocker.execute("lock table runwire.streams in access exclusive mode")
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                await socket.until("state", state="stale")
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            # The tail is read again, and tells of runs; where streams stand cannot be seen.
            for number in range(2):
                await stage.set_metadata(run_id, execution, n=number)
                assert of_type(await socket.until("patch", "run"), "state") == []
        assert (await socket.until("state"))[-1]["state"] == "live"


async def test_too_many_changes_at_once_are_made_up_for(stage: Stage) -> None:
    followed = await stage.trigger("t")
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("run", {"run": followed})
        await socket.subscribe("tag", {"tags": ["t"]})
        await socket.until("live", sub="tag")
        if not any(m["type"] == "live" and m["sub"] == "run" for m in socket.messages):
            await socket.until("live", sub="run")
        late = (await stage.engine.runs.trigger(stage.env, NewRun("task", tags=("t",)))).id
        await query(stage.engine.database, FLOOD, stage.env, followed)
        seen = set[str]()
        with anyio.fail_after(60):
            while late not in seen or followed not in seen:
                message = await socket.next()
                if message["type"] == "joined":
                    seen.add(message["run"])
                if message["type"] == "run" and message["run"]["revision"] == 6001:
                    seen.add(message["run"]["id"])


@pytest.mark.parametrize("mode", ["latest", "every"])
async def test_an_event_that_was_lost_is_found_and_made_up_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    run_id = await stage.trigger("t")
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("run", {"run": run_id}, mode=mode)
        await socket.subscribe("tag", {"tags": ["t"]}, mode=mode)
        await socket.until("live", sub="tag")
        lost: list[int] = []

        def loses(self: Feed, row: EventRow) -> bool:
            lost.append(row.revision)
            return False

        monkeypatch.setattr(Feed, "_concerns", loses)
        execution = await stage.start(run_id)
        await stage.set_metadata(run_id, execution, step="one")
        await until_true(lambda: 3 in lost)
        monkeypatch.undo()
        revisions = [2, 3] if mode == "every" else [3]
        for revision in revisions:
            message = (await socket.until("run", "patch"))[-1]
            told = message["run"]["revision"] if message["type"] == "run" else message["revision"]
            assert told == revision
    assert [record for record in caplog.records if run_id in record.getMessage()]


async def test_an_item_that_the_poll_finds_first_begins_with_its_creation(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = await stage.engine.batches.create(stage.env, 1)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"batch": batch.id}, mode="every")
        await socket.until("live")

        # The tail is behind: it tells of none of this.
        def concerns_nobody(feed: Feed, row: object) -> bool:
            return False

        monkeypatch.setattr(Feed, "_concerns", concerns_nobody)
        item = NewRun("task", batch=(batch.id, 0))
        await stage.engine.batches.add_items(stage.env, batch.id, [(0, item)])
        run_id = (await query(stage.engine.database, "select id from runwire.runs"))[0]["id"]
        await stage.complete(run_id, await stage.start(run_id))
        told = await socket.until("patch", revision=3)
    first = of_type(told, "run")[0]["run"]
    assert (first["id"], first["revision"], first["status"]) == (run_id, 1, "QUEUED")
    assert [patch["revision"] for patch in of_type(told, "patch")] == [2, 3]


async def test_runs_that_are_as_far_as_was_heard_are_left_in_peace(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [await stage.trigger("t") for _ in range(3)]
    realtime = stage.server.services.realtime
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("tag", {"tags": ["t"]})
        await socket.until("live")
        assert realtime.statistics().runs == 3
        for number in range(8):
            for run_id in runs:
                await stage.engine.runs.add_tags(stage.env, run_id, [f"n{number}"])
            await socket.until("patch")
            # Several looks, each in the middle of changes: they come once a second.
            await anyio.sleep(0.4)
    assert not [record for record in caplog.records if "read again" in record.getMessage()]


async def test_a_failure_that_nobody_foresaw_makes_everybody_resume(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Hub, moved: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("planted")

    run_id = await stage.trigger()
    execution = await stage.start(run_id)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, streams={"*": {}})
        await socket.until("live")
        monkeypatch.setattr(Hub, "rang", broken)
        await stage.append(run_id, execution, 1)
        assert await socket.closed() == 4010
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, streams={"*": {}})
        await stage.append(run_id, execution, 2)
        while chunks_of(socket.messages, "text") != [1, 2]:
            await socket.next()


# More revisions of one run than a tail reads, in one transaction.
FLOOD = """
with moved as (
    update runwire.runs set revision = 6001, updated_at = now()
     where environment_id = %s and id = %s returning *)
insert into runwire.run_events
       (bucket, environment_id, run_id, revision, type, delta, task, tags)
select bucket, environment_id, id, number, 'metadata', '{}', task, tags
  from moved, generate_series(2, 6001) as number
"""
