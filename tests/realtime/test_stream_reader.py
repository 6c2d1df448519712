"""What a reader of a stream is sent when the run is executed anew, and of where it begins."""

from runwire.wire import Json, JsonObject
from runwire_realtime.limits import HubLimits
from tests.support.hub_world import Client, World

RUN = "run_a0000000"


def begun(*bodies: str) -> World:
    """Return a run that executes and wrote something."""
    world = World(HubLimits())
    world.create(RUN)
    world.status(RUN, "EXECUTING")
    append(world, *bodies)
    world.settle()
    return world


def append(world: World, *bodies: str) -> None:
    moved = world.append(RUN, "log", *(f'"{body}"' for body in bodies))
    world.hub.rang(moved)


def read(world: World, start: Json, form: str = "chunks") -> Client:
    client = world.connect()
    client.subscribe("s1", {"run": RUN}, streams={"log": {"from": start, "as": form}})
    world.settle()
    return client


def stream_of(client: Client) -> list[tuple[Json, ...]]:
    """Return what was said of the stream since the last look, without who and where."""
    messages, client.messages = client.messages, []
    return [said for message in messages if (said := _said(message))]


def _said(message: JsonObject) -> tuple[Json, ...]:
    match message["type"]:
        case "chunks":
            return "chunks", message["seq"], *message["data"]
        case "text":
            return "text", message["upTo"], message["value"]
        case "attempt":
            return "attempt", message["fromSeq"], message["attempt"]
        case _:
            return ()


def test_a_run_begun_anew_under_the_same_attempt_is_marked() -> None:
    world = begun("a", "b")
    client = read(world, "start")
    assert stream_of(client) == [("chunks", 0, "a", "b")]
    world.begin_anew(RUN)
    append(world, "a", "c")
    world.settle()
    assert stream_of(client) == [("attempt", 2, 1), ("chunks", 2, "a", "c")]


def test_a_late_reader_of_a_text_has_it_up_to_the_mark_then_the_rest_as_chunks() -> None:
    world = begun("a", "b")
    world.begin_anew(RUN)
    append(world, "a")
    client = read(world, "start", "text")
    assert stream_of(client) == [("text", 2, "ab"), ("attempt", 2, 1), ("chunks", 2, "a")]


def test_a_reader_that_resumes_hears_of_the_marks_from_there_on() -> None:
    world = begun("a", "b")
    world.begin_anew(RUN)
    append(world, "a", "c")
    assert stream_of(read(world, 1)) == [
        ("chunks", 1, "b"),
        ("attempt", 2, 1),
        ("chunks", 2, "a", "c"),
    ]
    assert stream_of(read(world, 2)) == [("attempt", 2, 1), ("chunks", 2, "a", "c")]
    assert stream_of(read(world, 3)) == [("chunks", 3, "c")]


def test_a_mark_is_repeated_for_a_reader_that_comes_in_where_it_is() -> None:
    world = begun("a", "b")
    world.begin_anew(RUN)
    append(world)  # it has begun, and written nothing yet
    client = read(world, "start")
    assert stream_of(client) == [("chunks", 0, "a", "b"), ("attempt", 2, 1)]
    client.subscribe("s2", {"run": RUN}, streams={"log": {"from": 2}})
    world.settle()
    append(world, "a")
    world.settle()
    assert stream_of(client) == [("attempt", 2, 1), ("chunks", 2, "a")]


def test_a_reader_of_the_latest_is_told_where_it_begins() -> None:
    world = begun("a", "b", "c")
    assert stream_of(read(world, "latest")) == [("chunks", 3)]
    assert stream_of(read(world, -2)) == [("chunks", 1), ("chunks", 1, "b", "c")]
    assert stream_of(read(world, -9)) == [("chunks", 0), ("chunks", 0, "a", "b", "c")]
    assert stream_of(read(world, 3)) == []


def late_reader(form: str) -> tuple[World, Client]:
    """Return a client that is about to read a stream from the log."""
    world = begun("a", "b")
    client = world.connect()
    client.subscribe("s0", {"run": RUN}, streams={"log": {"from": "latest"}})
    world.settle()
    topic = world.hub.streams.topics[1, RUN, "log"]
    topic.empty()
    client.subscribe("s1", {"run": RUN}, streams={"log": {"from": "start", "as": form}})
    return world, client


def test_a_reader_that_leaves_before_its_page_could_not_be_read_gives_its_place_back() -> None:
    world, client = late_reader("chunks")
    free = client.outbox.free_slots
    while not world.hub.wants.pages:
        world.read_rows()()
        world.read_heads()()
        client.turn()
    (reader,) = world.hub.wants.pages
    world.hub.wants.pages.clear()  # it is being read
    assert client.outbox.free_slots < free
    for sub in ("s0", "s1"):
        client.unsubscribe(sub)
    reader.page_failed()
    assert client.outbox.free_slots == free


def test_a_text_is_let_go_when_another_reader_wants_chunks() -> None:
    world = begun("a", "b")
    first = read(world, "latest")
    world.hub.streams.topics[1, RUN, "log"].empty()
    client = world.connect()
    client.subscribe("s1", {"run": RUN}, streams={"log": {"from": "start", "as": "text"}})
    while not world.hub.wants.texts:
        world.read_rows()()
        world.read_heads()()
        client.turn()
    client.subscribe("s2", {"run": RUN}, streams={"log": {"from": "start"}})
    client.turn()
    world.read_pages()()
    assert world.held_texts == 1
    world.read_rows()()  # the second one is let in, before anything was written
    world.settle()
    assert world.held_texts == 0
    assert client.chunks[RUN, "log"] == ["a", "b"] and first.errors == []
