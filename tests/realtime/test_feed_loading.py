"""What a feed reads when it begins or resumes, while more happens between the reads."""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager

import anyio
import pytest

from runwire_engine.database import Database
from runwire_engine.followed import FollowedRun, Member
from runwire_engine.following import Following
from runwire_engine.run_metadata import MetadataWrite
from runwire_engine.runs import NewRun
from runwire_realtime.feed_loading import FeedLoading
from runwire_realtime.limits import HubLimits
from runwire_realtime.scope import Grant
from tests.support.history import check, read_ledger
from tests.support.hub_world import World as HubWorld
from tests.support.model_world import TASK, Wire, World
from tests.support.postgres import TestServer
from tests.support.protocol_client import ProtocolClient

TAGGED = NewRun(TASK, tags=("sea",))


@pytest.fixture
def world(postgres: TestServer) -> Generator[World]:
    """An engine and two hubs that move step by step."""
    dsn = postgres.create_database()
    world = World(dsn, [HubLimits(), HubLimits()])
    yield world
    world.close()
    postgres.drop_database(dsn)


@pytest.mark.parametrize("reads_before", range(4))
def test_what_happens_between_two_reads_of_a_resume_is_told(
    world: World, reads_before: int
) -> None:
    env = world.step(world.new_environment())
    grant = Grant(env, api_key=True)
    run_id = world.step(world.runs.trigger(env, TAGGED)).id
    client = ProtocolClient("resumes", {"sea": {"to": {"tags": ["sea"]}}})
    hub = world.hubs[0]

    def turns() -> bool:
        return any([wire.turn() for _ in range(20)])

    wire = world.call(lambda: Wire(hub, client, grant, world.clock))
    world.step(world.settle(turns))
    world.call(wire.close)

    hub.following.is_closed = True
    wire = world.call(lambda: Wire(hub, client, grant, world.clock))
    for _ in range(reads_before):
        if hub.following.waiting:
            world.call(lambda: hub.following.release(0))
    # No bell is heard and no time passes: the hub knows of this only by what it reads.
    world.step(world.runs.trigger(env, TAGGED))
    world.step(
        world.metadata.apply(env, MetadataWrite(run_id, [{"type": "set", "key": "a", "value": 1}]))
    )
    world.call(hub.following.open)
    world.step(world.settle(turns))

    ledger = world.step(read_ledger(world.dsn, env))
    assert len(ledger.runs) == 2
    assert check(ledger, [client.finish()]) == []


RUN = "run_a0000000"


class Read(Following):
    """Reads of a feed by status, from a database in memory."""

    def __init__(self, world: HubWorld) -> None:
        super().__init__(Database("postgresql://nowhere"))
        self._world = world

    async def recent(self, *_: object, **__: object) -> list[Member]:
        return [Member(row.id, False, row.revision) for row in self._world.rows.values()]

    async def rows(self, *_: object, **__: object) -> dict[str, FollowedRun]:
        return {row.id: FollowedRun(row, {}) for row in self._world.rows.values()}


@pytest.mark.anyio
async def test_after_a_gap_the_snapshot_holds_each_run_whole() -> None:
    world = HubWorld(HubLimits())
    world.create(RUN)
    client = world.connect()
    client.subscribe("a", {"runs": {"status": ["QUEUED", "EXECUTING"]}}, mode="every")
    world.settle()
    world.status(RUN, "EXECUTING")
    # As when Postgres has crashed under a feed in `every` of which nobody knows what has left it.
    world.jump()
    world.hub.recovery = "00000001"
    loading = FeedLoading(world.hub, Read(world))

    @asynccontextmanager
    async def turn() -> AsyncGenerator[None]:
        yield

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(loading.run)
            feed = world.take_load()
            await anyio.wait_all_tasks_blocked()
            while feed.is_loading:
                loading.begin(feed, turn)
                await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
    world.settle()
    said = [each["type"] for each in client.messages]
    assert said.count("gap") == 1
    snapshot = client.messages[said.index("gap") + 1]
    assert [each["id"] for each in snapshot["runs"]] == [RUN]
