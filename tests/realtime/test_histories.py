"""Between the moment another history answers and the moment everybody knows: nothing is mixed."""

import pytest

from runwire_engine.changes import place
from runwire_engine.database import Database
from runwire_engine.following import Following
from runwire_realtime.feed import Feed
from runwire_realtime.hub import Hub
from runwire_realtime.limits import HubLimits
from runwire_realtime.reads import Reads
from runwire_realtime.run_topic import RunTopic
from tests.support.engines import query
from tests.support.hub_world import World

RUN = "run_a0000000"


def test_who_comes_before_the_others_have_left_gets_nothing_of_theirs() -> None:
    world = World(HubLimits())
    world.create(RUN, ("x",))
    world.status(RUN, "EXECUTING")
    early = world.connect()
    early.subscribe("run", {"run": RUN}, streams={"*": {"from": "start"}})
    early.subscribe("tag", {"tags": ["x"]})
    world.settle()
    world.hub.rang(world.append(RUN, "log", '"old"', '"older"'))
    world.settle()
    assert early.chunks[RUN, "log"] == ["old", "older"]
    old_topic = world.topic(RUN)

    # The same revisions and the same seqs, of another history.
    [stream] = world.streams.values()
    stream.chunks[:] = [chunk._replace(body='"new"') for chunk in stream.chunks]
    world.hub.epoch = "e1"
    world.hub.start_over()
    late = world.connect()
    late.subscribe("run", {"run": RUN}, streams={"*": {"from": "start"}})
    world.clients.remove(early)
    world.settle()
    assert late.chunks[RUN, "log"] == ["new", "new"]
    assert world.topic(RUN) is not old_topic
    assert isinstance(old_topic, RunTopic) and not old_topic.readers
    assert early.outbox.closing is not None and early.outbox.closing[0] == 4010
    early.subscriber.close()
    late.subscriber.close()
    assert not world.hub.followers and not world.hub.runs and not list(world.hub.feeds())


@pytest.mark.anyio
async def test_a_connection_to_another_history_sends_everybody_away_before_it_is_read(
    database: Database,
) -> None:
    world = World(HubLimits())
    hub: Hub = world.hub
    feed = Feed(hub, Reads(hub, Following(database)), database, listen_dsn=database.dsn)
    await feed.start()
    client = world.connect()
    async with database.session() as session:
        await feed.connected(session)
        assert client.outbox.closing is None
        before = hub.epoch
        await query(database, "update runwire.generations set generation = gen_random_uuid()")
        await feed.connected(session)
        assert client.outbox.closing is not None and not hub.followers
        assert hub.epoch == (await place(session)).epoch != before
        # One who comes in between is asked once more, when the tail has begun anew; not each time.
        late = world.connect()
        await feed.connected(session)
        assert late.outbox.closing is None
