"""What a feed reads when it begins or resumes, while more happens between the reads."""

from collections.abc import Generator

import pytest

from runwire_engine.run_metadata import MetadataWrite
from runwire_engine.runs import NewRun
from runwire_realtime.limits import HubLimits
from runwire_realtime.scope import Grant
from tests.support.history import check, read_ledger
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
