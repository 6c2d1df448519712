"""What a feed reads when it begins or resumes, while more happens between the reads."""

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Literal

import anyio
import pytest

from runwire_engine.changes import Place
from runwire_engine.database import Database
from runwire_engine.followed import FollowedRun, Member, Touched
from runwire_engine.following import Following
from runwire_engine.run_metadata import MetadataWrite
from runwire_engine.wanted_runs import NewRun
from runwire_realtime.feed_loading import FeedLoading
from runwire_realtime.limits import HubLimits
from runwire_realtime.run_view import is_final
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


@pytest.mark.parametrize("changes_after", [0, 2])
@pytest.mark.parametrize("mode", ["latest", "every"])
def test_an_item_for_an_older_run_that_came_meanwhile_is_told_whole(
    world: World, mode: Literal["latest", "every"], changes_after: int
) -> None:
    env = world.step(world.new_environment())
    grant = Grant(env, api_key=True)
    older = NewRun(TASK, idempotency_key="k", tags=("sea",))
    run_id = world.step(world.runs.trigger(env, older)).id
    batch = world.step(world.batches.create(env, 2))
    client = ProtocolClient("resumes", {"b": {"to": {"batch": batch.id}}}, mode=mode)
    hub = world.hubs[0]
    # The cursor is of before the item.
    world.step(world.batches.add_items(env, batch.id, [(0, replace(TAGGED, batch=(batch.id, 0)))]))
    wires = [world.call(lambda: Wire(hub, client, grant, world.clock))]

    def turns() -> bool:
        return any([wires[0].turn() for _ in range(20)])

    world.step(world.settle(turns))
    world.call(wires[0].close)
    item = replace(older, batch=(batch.id, 1))
    world.step(world.batches.add_items(env, batch.id, [(1, item)]))
    for number in range(changes_after):
        operation = {"type": "set", "key": "a", "value": number}
        world.step(world.metadata.apply(env, MetadataWrite(run_id, [operation])))
    wires[0] = world.call(lambda: Wire(hub, client, grant, world.clock))
    world.step(world.settle(turns))
    ledger = world.step(read_ledger(world.dsn, env))
    assert len(ledger.runs) == 2
    assert check(ledger, [client.finish()]) == []


RUN = "run_a0000000"
BEFORE, AFTER = "00000001", "00000002"


class Read(Following):
    """Reads of a database in memory, in the second of its lives.

    Of the first it gives ids of transactions again: a position of it hides what happened since.
    """

    def __init__(self, world: HubWorld) -> None:
        super().__init__(Database("postgresql://nowhere"))
        self._world = world

    def _members(self, statuses: Sequence[str] | None) -> list[Member]:
        return [
            Member(row.id, is_final(row.status), row.revision)
            for row in self._world.rows.values()
            if statuses is None or row.status in statuses
        ]

    async def recent(
        self,
        environment_id: int,
        tasks: Sequence[str] | None,
        statuses: Sequence[str] | None,
        *_: object,
        **__: object,
    ) -> list[Member]:
        return self._members(statuses)

    async def rows(self, *_: object, **__: object) -> dict[str, FollowedRun]:
        return {row.id: FollowedRun(row, {}) for row in self._world.rows.values()}

    async def touched(self, *_: object, **__: object) -> dict[str, Touched]:
        return {}

    async def creations(self, *_: object, **__: object) -> dict[str, Touched]:
        return {id: Touched(1, events[0][1]) for id, events in self._world.history.items()}

    async def place(self) -> Place:
        return Place("e0", AFTER, "", 0, 0, frozenset())

    async def is_ahead(self, snapshot: str) -> bool:
        # The ids of the second life have not come so far.
        return True

    async def is_cut_off(self, snapshot: str) -> bool:
        return False


async def _read_all(world: HubWorld) -> None:
    """Have the feed that asked last read what it has to."""
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


STATUSES = {"runs": {"status": ["QUEUED", "EXECUTING"]}}


@pytest.mark.anyio
async def test_after_a_gap_the_snapshot_holds_each_run_whole() -> None:
    world = HubWorld(HubLimits())
    world.create(RUN)
    client = world.connect()
    client.subscribe("a", STATUSES, mode="every")
    world.settle()
    world.status(RUN, "EXECUTING")
    # As when Postgres has crashed under a feed in `every` of which nobody knows what has left it.
    world.jump()
    world.hub.recovery = AFTER
    await _read_all(world)
    said = [each["type"] for each in client.messages]
    assert said.count("gap") == 1
    snapshot = client.messages[said.index("gap") + 1]
    assert [each["id"] for each in snapshot["runs"]] == [RUN]


@pytest.mark.anyio
async def test_what_left_a_feed_by_its_status_around_a_crash_is_not_held_any_more() -> None:
    world = HubWorld(HubLimits())
    world.create(RUN)
    client = world.connect()
    client.subscribe("a", STATUSES, mode="every")
    world.settle()
    assert client.subscriptions["a"].runs == {RUN}
    client.subscriber.close()
    world.status(RUN, "COMPLETED")
    world.hub.recovery = AFTER
    again = world.connect()
    again.subscribe("a", STATUSES, mode="every", cursor=f"f1.e0{BEFORE}.2-2-")
    await _read_all(world)
    held = again.subscriptions["a"]
    assert (held.gaps, held.runs, held.is_live) == (["overflow"], set(), True)
    said = [each["type"] for each in again.messages]
    # The snapshot replaces what was held before.
    assert said[said.index("gap") + 1] == "snapshot"


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["latest", "every"])
async def test_a_cursor_from_before_a_crash_that_is_not_noticed_yet_hides_nothing(
    mode: str,
) -> None:
    world = HubWorld(HubLimits())
    world.create(RUN)
    world.status(RUN, "EXECUTING")
    world.hub.recovery = BEFORE
    client = world.connect()
    cursor = f"f1.e0{BEFORE}.2-2-"
    client.subscribe("a", {"runs": {}}, mode=mode, cursor=cursor)
    await _read_all(world)
    assert client.subscriptions["a"].gaps == []
    assert client.views[RUN]["revision"] == 2
    if mode == "every":
        told = [each for each in client.messages if each["type"] in ("run", "patch")]
        assert [told[0]["run"]["revision"], told[1]["revision"]] == [1, 2]
