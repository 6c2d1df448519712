"""Readers that stand at the same place share a frame; who does not keep up goes on alone."""

from functools import partial

from runwire_realtime.limits import HubLimits
from tests.support.hub_world import Client, World
from tests.support.pushing import joined, send

RUN = "run_a0000000"
LIMITS = HubLimits()


def following(count: int) -> tuple[World, list[Client]]:
    """Return a run that executes, and clients that have got everything of its stream."""
    world = World(LIMITS)
    world.create(RUN)
    world.status(RUN, "EXECUTING")
    append(world, "a")
    clients = [world.connect() for _ in range(count)]
    for client in clients:
        client.subscribe("s1", {"run": RUN}, streams={"log": {"from": "start"}})
    world.settle()
    return world, clients


def append(world: World, *bodies: str) -> None:
    world.hub.rang(world.append(RUN, "log", *(f'"{body}"' for body in bodies)))


def read(client: Client) -> list[object]:
    return client.chunks[RUN, "log"]


def sizes(world: World) -> list[int]:
    return [len(each.members) for each in world.hub.streams.topics[1, RUN, "log"].cohorts]


def test_what_is_the_same_for_many_is_made_once() -> None:
    world, clients = following(3)
    append(world, "b")
    (cohort,) = world.hub.streams.topics[1, RUN, "log"].cohorts
    frames: list[bytes] = []
    for line in cohort.members.values():
        line.write = frames.append
    cohort.push(joined, LIMITS, partial(send, world.now))
    assert len(frames) == len(clients) and len({id(frame) for frame in frames}) == 1


def test_who_is_behind_gets_the_rest_and_comes_back() -> None:
    world, (first, second) = following(2)
    second.outbox.say(b'{"type":"pong"}')  # it waits: the socket is not free
    append(world, "b")
    world.push()
    assert read(first) == ["a", "b"] and read(second) == ["a"]
    assert sizes(world) == [1]
    append(world, "c")
    world.push()
    while second.turn():
        pass
    assert read(first) == read(second) == ["a", "b", "c"]
    assert sizes(world) == [2]
    assert [m["type"] for m in second.messages[-2:]] == ["pong", "chunks"]


def test_an_answer_goes_before_what_is_pushed() -> None:
    world, (client,) = following(1)
    append(world, "b")
    client.send({"type": "ping"})
    world.push()
    assert read(client) == ["a"]
    client.turn()
    assert [m["type"] for m in client.messages[-2:]] == ["pong", "chunks"]


def test_nothing_is_pushed_to_a_connection_that_is_to_be_closed() -> None:
    world, (client,) = following(1)
    client.outbox.close(4000, "revoked")
    append(world, "b")
    world.push()
    client.turn()
    assert read(client) == ["a"]


def test_another_execution_is_announced_to_each() -> None:
    world, clients = following(2)
    attempt = world.rows[RUN].attempt
    world.begin_anew(RUN)
    append(world, "b")
    world.push()
    world.settle()
    for client in clients:
        assert client.attempts[RUN, "log"] == [(1, attempt)]
        assert read(client) == ["a", "b"]


def test_a_subscription_that_begins_elsewhere_takes_its_reader_along() -> None:
    world, (first, second) = following(2)
    append(world, "b")
    world.push()
    second.chunks.clear()
    second.first.clear()
    second.subscribe("s2", {"run": RUN}, streams={"log": {"from": 0}})
    append(world, "c")
    world.push()
    world.settle()
    assert read(first) == read(second) == ["a", "b", "c"]


def test_who_leaves_is_written_to_no_more() -> None:
    world, (first, second) = following(2)
    append(world, "b")
    second.unsubscribe("s1")
    world.push()
    assert read(first) == ["a", "b"] and read(second) == ["a"]
    assert sizes(world) == [1]


def test_what_does_not_fit_into_a_frame_comes_with_the_next() -> None:
    world, (client,) = following(1)
    bodies = [str(at) * 60_000 for at in range(4)]
    append(world, *bodies)
    (cohort,) = world.hub.streams.topics[1, RUN, "log"].cohorts
    small = HubLimits(frame_bytes=130_000)
    assert cohort.push(joined, small, partial(send, world.now))
    assert read(client) == ["a", *bodies[:2]]
    assert not cohort.push(joined, small, partial(send, world.now))
    assert read(client) == ["a", *bodies]
