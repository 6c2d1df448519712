"""Exact at the seams: the moment of a transition, of a subscription, of a tag; hot runs; pages.

RUNWIRE_TRIES makes them longer (100 tries; a run of 5 000 revisions, else of a million).
"""

import os
import random
from contextlib import AsyncExitStack
from itertools import pairwise

import anyio
import orjson
import pytest

from runwire.wire import MAX_FRAME_BYTES, Json, JsonObject
from runwire_engine.wanted_runs import NewRun
from runwire_realtime.limits import HubLimits
from tests.support.engines import query
from tests.support.hub_world import World
from tests.support.raw_socket import RawSocket, frame, raw_socket
from tests.support.sockets import Socket, of_type, open_socket, until_true
from tests.support.stage import Stage, open_stage

pytestmark = pytest.mark.anyio

TRIES = int(os.environ.get("RUNWIRE_TRIES", "100"))
RUN = "run_a0000000"


# Hot runs


@pytest.mark.parametrize("mode", ["latest", "every"])
def test_a_hot_run_is_bounded_in_memory_and_ends_at_its_newest(mode: str) -> None:
    limits = HubLimits()
    world = World(limits)
    world.create(RUN)
    world.status(RUN, "EXECUTING")
    awake, asleep = world.connect(), world.connect()
    for client in (awake, asleep):
        client.subscribe("a", {"run": RUN}, mode=mode)
    world.settle()
    seen = len(awake.messages)
    many, few = (5_000, 600) if TRIES <= 300 else (1_000_000, 20_000)
    revisions = many if mode == "latest" else few
    for number in range(revisions):
        operation = {"type": "set", "key": "n", "value": number}
        world.change(RUN, {}, [operation])
        if number % 100 == 99:
            world.tail()
            world.clients = [awake]
            world.settle()
            topic = world.topic(RUN)
            assert topic.steps_held <= limits.steps_kept
            # Nothing is kept for the one that sleeps.
            assert asleep.outbox.waiting_bytes < 1_000
    world.clients = [awake, asleep]
    world.settle(rounds=revisions)
    for client in (awake, asleep):
        assert client.views[RUN]["metadata"] == {"n": revisions - 1}
    held = asleep.subscriptions["a"].revisions
    if mode == "every":
        assert held == list(range(held[0], held[0] + len(held))) and len(held) > revisions
    else:
        assert len(held) < 10 and len(awake.messages) - seen < revisions


# The moment of a transition


def test_a_subscription_at_the_moment_of_a_transition_misses_and_doubles_nothing() -> None:
    for seed in range(max(TRIES, 1_000)):
        Moment(seed).check()


class Moment:
    """A client subscribes while a run moves, and the hub reads, in any order."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.world = World(HubLimits())
        self.world.create(RUN, ("t",))
        self.client = self.world.connect()
        self.to: JsonObject = self.chance.choice([{"run": RUN}, {"tags": ["t"]}])
        self.mode = self.chance.choice(["latest", "every"])

    def subscribe(self) -> None:
        self.client.subscribe("a", self.to, mode=self.mode, streams={"*": {}})

    def commit(self) -> None:
        row = self.world.rows[RUN]
        if row.status == "QUEUED":
            self.world.status(RUN, "EXECUTING")
        elif row.status == "EXECUTING" and self.chance.random() < 0.5:
            self.world.hub.rang(self.world.append(RUN, "log", '"x"'))
        elif row.status == "EXECUTING":
            self.world.status(RUN, "COMPLETED")

    def read(self) -> None:
        self.world.read_rows()()
        self.world.read_heads()()

    def write(self) -> None:
        self.client.turn()

    def check(self) -> None:
        steps = [self.subscribe, self.world.tail, self.world.load]
        steps += [self.read, self.read, self.write, self.write, *[self.commit] * 4]
        self.chance.shuffle(steps)
        for step in steps:
            step()
        self.world.settle()
        view, row = self.client.views[RUN], self.world.rows[RUN]
        assert (view["status"], view["revision"]) == (row.status, row.revision), self.seed
        stream = self.world.streams.get((RUN, "log"))
        count = 0 if stream is None else len(stream.chunks)
        assert len(self.client.chunks.get((RUN, "log"), [])) == count, self.seed
        if "run" in self.to and self.mode == "every":
            # The client is strict besides: nothing goes back, every patch applies.
            revisions = sorted(set(self.client.subscriptions["a"].revisions))
            assert revisions == list(range(revisions[0], row.revision + 1)), self.seed


async def test_on_the_socket_too_a_transition_is_never_missed(stage: Stage) -> None:
    for number in range(max(10, TRIES // 30)):
        run_id = await stage.trigger()
        execution = await stage.start(run_id)
        async with open_socket(stage.url, stage.key) as socket:
            chance = random.Random(number)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stage.complete, run_id, execution)
                await anyio.sleep(chance.random() * 0.004)  # somewhere around the commit
                await socket.subscribe("a", {"run": run_id})
            told = await socket.until("done")
        documents = [message["runs"][0] for message in of_type(told, "snapshot")]
        revisions = [documents[0]["revision"], *(m["revision"] for m in of_type(told, "patch"))]
        assert revisions in ([3], [2, 3])


# Subscribing and leaving in one breath


def subscribing(sub: str, to: JsonObject, **options: Json) -> bytes:
    message = {"type": "subscribe", "sub": sub, "to": to, **options}
    return frame(orjson.dumps(message))


def leaving(sub: str) -> bytes:
    return frame(orjson.dumps({"type": "unsubscribe", "sub": sub}))


async def until_live(socket: RawSocket, sub: str) -> list[JsonObject]:
    """Return what comes up to the `live` of a subscription."""
    seen: list[JsonObject] = []
    while True:
        text = await socket.next()
        assert text is not None
        seen += orjson.loads(text)
        if any(m["type"] == "live" and m["sub"] == sub for m in seen):
            return seen


async def test_subscribing_leaving_and_subscribing_in_one_packet_is_right_and_leaks_nothing(
    database_url: str,
) -> None:
    async with open_stage(database_url, message_rate=100_000, message_burst=100_000) as stage:
        run_id = await stage.trigger("t")
        execution = await stage.start(run_id)
        await stage.append(run_id, execution, 1, 2)
        realtime = stage.server.services.realtime
        async with raw_socket(stage.url) as socket:
            await socket.send(frame(orjson.dumps({"type": "auth", "token": stage.key})))
            for number in range(max(100, TRIES)):
                to: JsonObject = {"run": run_id} if number % 2 else {"tags": ["t"]}
                streams: JsonObject = {"*": {}}
                one = subscribing("a", to, streams=streams)
                # The same feed twice, too, under two names.
                again = subscribing("b", to, streams=streams)
                await socket.send(one + leaving("a") + one + again)
                told = await until_live(socket, "b")
                while not [m for m in told if m["type"] == "live" and m["sub"] == "a"]:
                    told += await until_live(socket, "a")
                assert not of_type(told, "error"), number
                await socket.send(leaving("a") + leaving("b"))
            await until_true(lambda: realtime.statistics().subscriptions == 0)
            await until_true(lambda: realtime.statistics().runs == 0)
            left = realtime.statistics()
            assert (left.connections, left.streams) == (1, 0)


# One run, seen in many ways


async def test_tags_that_come_and_go_and_feeds_that_overlap_make_one_view(stage: Stage) -> None:
    batch = await stage.engine.batches.create(stage.env, 1)
    await stage.engine.batches.add_items(
        stage.env, batch.id, [(0, NewRun("task", tags=("x",), batch=(batch.id, 0)))]
    )
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("batch", {"batch": batch.id})
        run_id = (await socket.until("snapshot"))[-1]["runs"][0]["id"]
        for sub, to in FEEDS.items():
            await socket.subscribe(sub, to)
            await until_message(socket, "live", sub=sub)
        await socket.subscribe("run", {"run": run_id})
        await until_message(socket, "live", sub="run")
        await stage.engine.runs.add_tags(stage.env, run_id, ["y"])
        await until_message(socket, "joined", sub="y", run=run_id)
        await leave_tag(stage, run_id)
        await until_message(socket, "removed", sub="y", run=run_id)
        await stage.engine.runs.add_tags(stage.env, run_id, ["y"])
        await until_message(socket, "joined", sub="y", run=run_id, times=2)
        await stage.engine.runs.cancel(stage.env, run_id)
        await until_message(socket, "done", sub="run")
        await until_message(socket, "done", sub="batch")
        # Each revision came once, however many subscriptions hold the run.
        patches = [(m["from"], m["revision"]) for m in of_type(socket.messages, "patch")]
        assert len(patches) == len(set(patches))
        assert all(after == before for (_, after), (before, _) in pairwise(patches))


async def leave_tag(stage: Stage, run_id: str) -> None:
    """Take the tag "y" from a run, as no call does yet."""
    await query(
        stage.engine.database,
        """
        with moved as (
            update runwire.runs
               set tags = array['x'], revision = revision + 1, updated_at = now()
             where environment_id = %s and id = %s returning *)
        insert into runwire.run_events
               (bucket, environment_id, run_id, revision, type, delta, task, tags)
        select bucket, environment_id, id, revision, 'tags', '{"set":{"tags":["x"]}}', task,
               array['x', 'y']
          from moved
        """,
        stage.env,
        run_id,
    )


FEEDS: dict[str, JsonObject] = {"x": {"tags": ["x"]}, "y": {"tags": ["y"]}, "all": {"runs": {}}}


async def until_message(socket: Socket, type: str, times: int = 1, **fields: Json) -> None:
    def found() -> int:
        return sum(fields.items() <= m.items() for m in of_type(socket.messages, type))

    while found() < times:
        await socket.next()


# Pages


async def test_a_snapshot_of_large_runs_comes_in_pages_that_a_slow_reader_can_take(
    database_url: str,
) -> None:
    async with open_stage(database_url) as stage, AsyncExitStack() as stack:
        count = 50 if TRIES <= 300 else 1_000
        for number in range(count):
            body = orjson.dumps(f"{number:04}" + "x" * 16_000).decode()
            await stage.engine.runs.trigger(stage.env, NewRun("task", body, tags=("large",)))
        # Many feeds at once on a socket that nobody reads for a while: it is not closed for it.
        socket = await stack.enter_async_context(
            open_socket(stage.url, stage.key, max_queue=1, close_timeout=0.1)
        )
        for number in range(8):
            await socket.subscribe(f"s{number}", {"tags": ["large"]})
        await anyio.sleep(1.0)  # asleep
        followers = stage.server.services.realtime.hub.followers
        assert all(each.outbox.waiting_bytes < 4 * 1024 * 1024 for each in followers)
        frames: list[str | bytes] = []
        while len(of_type(socket.messages, "live")) < 8:
            text = await socket.connection.recv()
            frames.append(text)
            socket.messages += orjson.loads(text)
        assert max(map(len, frames)) <= MAX_FRAME_BYTES
        for number in range(8):
            mine = [m for m in of_type(socket.messages, "snapshot") if m["sub"] == f"s{number}"]
            assert [m["more"] for m in mine] == [True] * (len(mine) - 1) + [False]
            assert ["cursor" in m for m in mine] == [False] * (len(mine) - 1) + [True]
            ids = [run["id"] for m in mine for run in m["runs"]]
            assert len(ids) == len(set(ids)) == count
            assert all(len(run["payload"]) == 16_004 for m in mine for run in m["runs"])
