"""The hub as a whole, without a loop: whatever happens in whatever order, clients end up right."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from runwire.wire import JsonObject
from runwire_engine.bells import StreamMoved
from runwire_engine.followed import FollowedRun, Touched
from runwire_realtime.feed_members import FeedMembers
from runwire_realtime.limits import HubLimits
from runwire_realtime.run_view import View, is_final, run_bytes
from runwire_realtime.scope import Grant, parse_scopes
from tests.support.hub_world import ENV, Client, Held, World

# So small that everything overflows: rings, kept steps, slots, frames, patches.
TIGHT = HubLimits(
    inbound_burst=10_000,
    steps_kept=3,
    steps_bytes=2000,
    patch_bytes=400,
    ring_bytes=400,
    rings_bytes=700,
    turn_bytes=60,
    text_bytes=120,
    frame_bytes=7000,
    rows_held=2,
    finals_kept=1,
)
RUNS = ("run_a0000000", "run_b0000000", "run_c0000000")
TAGS = {RUNS[0]: ("x", "y"), RUNS[1]: ("x",), RUNS[2]: ("y", "x")}
KEYS = ("log", "text")
STARTS = st.sampled_from(["start", "latest", -2, 0])


def document_of(world: World, run_id: str) -> JsonObject:
    document: JsonObject = orjson.loads(
        run_bytes(FollowedRun(world.rows[run_id], {}), View(is_internal=True))
    )
    return document


class Walk(RuleBasedStateMachine):
    """Commits, bells, reads, writers and clients, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(TIGHT)
        self.clients = [self.world.connect(), self.world.connect(is_direct=False)]
        self.bells: list[StreamMoved] = []
        self.answers: list[Callable[[], None]] = []
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"s{self.count}"

    # Commits

    @rule(run_id=st.sampled_from(RUNS))
    def create_or_start(self, run_id: str) -> None:
        row = self.world.rows.get(run_id)
        if row is None:
            self.world.create(run_id, TAGS[run_id])
        elif row.status == "QUEUED":
            self.world.status(run_id, "EXECUTING")

    def _is_executing(self, run_id: str) -> bool:
        row = self.world.rows.get(run_id)
        return row is not None and row.status == "EXECUTING"

    @rule(run_id=st.sampled_from(RUNS), amount=st.integers(1, 3), is_large=st.booleans())
    def set_metadata(self, run_id: str, amount: int, is_large: bool) -> None:
        if run_id in self.world.rows:
            operations = [{"type": "increment", "key": "n", "value": 1}] * amount
            if is_large:
                operations.append({"type": "set", "key": "big", "value": "m" * 300})
            self.world.change(run_id, {}, operations)

    @rule(
        run_id=st.sampled_from(RUNS),
        key=st.sampled_from(KEYS),
        count=st.integers(1, 5),
        ends_in_number=st.booleans(),
    )
    def append(self, run_id: str, key: str, count: int, ends_in_number: bool) -> None:
        if self._is_executing(run_id):
            bodies = [f'"{key}-{"c" * number * 9}"' for number in range(count)]
            if ends_in_number:
                bodies[-1] = "7"
            self.bells.append(self.world.append(run_id, key, *bodies))

    @rule(run_id=st.sampled_from(RUNS))
    def retry(self, run_id: str) -> None:
        if self._is_executing(run_id):
            self.world.status(run_id, "QUEUED")

    @rule(run_id=st.sampled_from(RUNS))
    def finish(self, run_id: str) -> None:
        if self._is_executing(run_id):
            self.world.status(run_id, "COMPLETED")

    # What the hub hears and reads

    @rule()
    def tail(self) -> None:
        self.world.tail()

    @precondition(lambda self: len(self.world.events) > 20)
    @rule()
    def jump(self) -> None:
        self.world.jump()

    @precondition(lambda self: self.bells)
    @rule(data=st.data(), is_lost=st.booleans())
    def ring(self, data: st.DataObject, is_lost: bool) -> None:
        bell = self.bells.pop(data.draw(st.integers(0, len(self.bells) - 1)))
        if not is_lost:
            self.world.hub.rang(bell)

    @rule(which=st.sampled_from(["rows", "heads", "fills", "pages", "history"]))
    def begin_read(self, which: str) -> None:
        read: Callable[[], Callable[[], None]] = getattr(self.world, f"read_{which}")
        if which in {"rows", "heads", "fills"}:
            # One of these is under way at a time; answered in place of being kept.
            self.answers = [a for a in self.answers if not self._answer_if(a, which)]
        answer = read()
        answer.which = which  # type: ignore[attr-defined]
        self.answers.append(answer)

    @staticmethod
    def _answer_if(answer: Any, which: str) -> bool:
        if answer.which == which:
            answer()
            return True
        return False

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def end_read(self, data: st.DataObject) -> None:
        self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1)))()

    @rule()
    def load(self) -> None:
        self.world.load()

    @rule()
    def push(self) -> None:
        self.world.push()

    @rule(which=st.integers(0, 1))
    def write(self, which: int) -> None:
        self.clients[which].turn()

    # Clients

    @rule(
        which=st.integers(0, 1),
        run_id=st.sampled_from(RUNS),
        is_every=st.booleans(),
        key=st.sampled_from([None, "*", "log"]),
        start=STARTS,
        form=st.sampled_from(["chunks", "text"]),
    )
    def follow_run(
        self, which: int, run_id: str, is_every: bool, key: str | None, start: Any, form: str
    ) -> None:
        options: JsonObject = {"mode": "every" if is_every else "latest"}
        if key is not None:
            options["streams"] = {key: {"from": start, "as": form}}
        self.clients[which].subscribe(self.name(), {"run": run_id}, **options)

    @rule(
        which=st.integers(0, 1),
        tags=st.sampled_from([["x"], ["y"], ["x", "y"]]),
        start=st.one_of(st.none(), STARTS),
    )
    def follow_tags(self, which: int, tags: list[str], start: Any) -> None:
        streams = {} if start is None else {"*": {"from": start}}
        self.clients[which].subscribe(self.name(), {"tags": tags}, streams=streams)

    @rule(which=st.integers(0, 1), data=st.data())
    def leave(self, which: int, data: st.DataObject) -> None:
        client = self.clients[which]
        if client.subscriptions:
            client.unsubscribe(data.draw(st.sampled_from(sorted(client.subscriptions))))

    @rule(which=st.integers(0, 1))
    def reconnect(self, which: int) -> None:
        self.clients[which].reconnect()

    @rule(which=st.integers(0, 1), run_id=st.sampled_from(RUNS))
    def refetch(self, which: int, run_id: str) -> None:
        self.clients[which].refetched.add(run_id)
        self.clients[which].send({"type": "refetch", "run": run_id})

    # At the end everybody has everything

    def teardown(self) -> None:
        for answer in self.answers:
            answer()
        self.world.settle()
        for client in self.clients:
            for held in client.subscriptions.values():
                self.check(client, held)
        self.check_bounds()

    def check(self, client: Client, held: Held) -> None:
        to = held.request["to"]
        if "run" in to:
            assert held.is_live
            self.check_run(client, held, to["run"])
            if held.request["mode"] == "every" and to["run"] not in client.refetched:
                revisions = sorted(set(held.revisions))
                assert len(revisions) == revisions[-1] - revisions[0] + 1
            assert held.is_done == is_final(self.world.rows[to["run"]].status)
            return
        expected = {r for r, row in self.world.rows.items() if set(to["tags"]) <= set(row.tags)}
        assert held.is_live and not held.is_done
        assert held.runs == expected
        for run_id in expected:
            self.check_run(client, held, run_id)

    def check_run(self, client: Client, held: Held, run_id: str) -> None:
        if not held.is_done:
            # A run that was followed to its end is not followed any further.
            assert client.views[run_id] == document_of(self.world, run_id)
        for key in KEYS:
            name = (run_id, key)
            stream = self.world.streams.get(name)
            if stream is None or not (key in held.streams or "*" in held.streams):
                continue
            first = client.first.get(name, len(stream.chunks))
            bodies = [orjson.loads(chunk.body) for chunk in stream.chunks[first:]]
            assert client.chunks.get(name, []) == bodies
            request = held.streams.get(key) or held.streams["*"]
            if request["from"] in ("start", 0):
                assert first == 0 or not stream.chunks
            if is_final(self.world.rows[run_id].status):
                assert client.eofs[name]["next"] == len(stream.chunks)

    def check_bounds(self) -> None:
        """Nothing stays behind once everybody has left."""
        hub = self.world.hub
        for client in self.clients:
            assert client.outbox.closing is None
            client.subscriber.close()
        assert not hub.runs and not hub.streams.topics and not hub.followers
        assert not list(hub.feeds())
        for client in self.clients:
            assert client.outbox.free_slots == TIGHT.rows_held
        assert self.world.held_texts == 0


def test_a_stream_that_is_asked_for_twice_and_read_by_nobody_disturbs_nothing() -> None:
    world, run_id = World(TIGHT), RUNS[0]
    world.create(run_id)
    world.status(run_id, "EXECUTING")
    world.append(run_id, "log", '"a"')
    client = world.connect()
    client.subscribe("s", {"run": run_id}, mode="latest", streams={"text": {"from": "start"}})
    world.settle()
    world.hub.wants.head(1, run_id, None)
    world.hub.wants.head(1, run_id, "log")
    world.read_heads()()
    world.append(run_id, "text", '"b"')
    world.settle()
    assert client.chunks == {(run_id, "text"): ["b"]}


def test_what_changed_while_a_resume_was_read_is_told() -> None:
    world = World(HubLimits())
    client = world.connect()
    world.create(RUNS[0], TAGS[RUNS[0]])
    client.subscribe("a", {"tags": ["x"]})
    world.settle()
    client.reconnect()
    feed = world.take_load()
    world.status(RUNS[0], "EXECUTING")
    feed.is_resumed = True
    feed.held([FollowedRun(world.rows[RUNS[0]], {})], {RUNS[0]: 1}, {})
    feed.complete()
    world.settle()
    assert client.views[RUNS[0]] == document_of(world, RUNS[0])


def test_what_a_resume_is_told_of_meanwhile_skips_no_revision() -> None:
    world = World(HubLimits())
    client = world.connect()
    world.create(RUNS[0], TAGS[RUNS[0]])
    client.subscribe("a", {"tags": ["x"]}, mode="every")
    world.settle()
    client.reconnect()
    feed = world.take_load()
    world.status(RUNS[0], "EXECUTING")
    world.status(RUNS[0], "COMPLETED")
    world.tail()
    feed.is_resumed = True
    feed.held([FollowedRun(world.rows[RUNS[0]], {})], {RUNS[0]: 1}, {})
    feed.complete()
    said = len(client.messages)
    world.settle()
    patches = [m for m in client.messages[said:] if m["type"] == "patch"]
    assert [m["revision"] for m in patches] == [2, 3]
    assert client.views[RUNS[0]] == document_of(world, RUNS[0])


def test_a_run_begins_with_its_creation_whichever_feed_it_enters_first() -> None:
    world = World(HubLimits())
    client = world.connect()
    client.subscribe("a", {"tags": ["late"]}, mode="latest")
    client.subscribe("b", {"tags": ["x"]}, mode="every")
    world.settle()
    world.create(RUNS[0], ("x",))
    world.change(RUNS[0], {"tags": ["x", "late"]}, tags=("x", "late"))
    world.tail()
    run = FollowedRun(world.rows[RUNS[0]], {})
    for feed in sorted(world.hub.feeds(), key=lambda each: each.sub):
        feed.row_read(run, RUNS[0])
    world.settle()
    runs = [m["run"]["revision"] for m in client.messages if m["type"] == "run"]
    patches = [m["revision"] for m in client.messages if m["type"] == "patch"]
    assert (runs, patches) == ([1], [2])
    assert client.subscriptions["a"].runs == client.subscriptions["b"].runs == {RUNS[0]}


def told_of(client: Client, run_id: str) -> list[int]:
    """Return the revisions of a run in the order in which they were told."""
    told: list[int] = []
    for message in client.messages:
        match message["type"]:
            case "run" if message["run"]["id"] == run_id:
                told.append(message["run"]["revision"])
            case "patch" if message["run"] == run_id:
                told.append(message["revision"])
            case "snapshot":
                told += [each["revision"] for each in message["runs"] if each["id"] == run_id]
            case _:
                pass
    return told


def feed_of(world: World, sub: str) -> FeedMembers:
    return next(each for each in world.hub.feeds() if each.sub == sub)


@pytest.mark.parametrize("mode", ["latest", "every"])
def test_no_snapshot_runs_ahead_of_a_feed_that_saw_a_run_come(mode: str) -> None:
    world = World(HubLimits())
    client = world.connect()
    client.subscribe("b", {"tags": ["x"]}, mode="every")
    world.settle()
    world.create(RUNS[0], ("x", "y"))
    world.status(RUNS[0], "EXECUTING")
    world.tail()
    # The feed is about to read the row; another one begins, and its snapshot comes first.
    client.subscribe("a", {"tags": ["y"]}, mode=mode)
    feed = world.take_load()
    feed.page([FollowedRun(world.rows[RUNS[0]], {})], cursor=None, more=False)
    feed.complete()
    world.settle()
    assert told_of(client, RUNS[0]) == [1, 2]
    assert client.subscriptions["a"].runs == client.subscriptions["b"].runs == {RUNS[0]}


def test_a_run_that_leaves_a_feed_while_its_row_is_read_is_not_left_in_it() -> None:
    world = World(HubLimits())
    client = world.connect()
    client.subscribe("a", {"runs": {"status": ["QUEUED"]}})
    world.settle()
    world.create(RUNS[0])
    world.tail()
    answer = world.read_rows()
    world.status(RUNS[0], "CANCELED")
    world.tail()
    answer()  # the row as it was before
    world.settle()
    assert client.subscriptions["a"].runs == set()


def test_a_final_run_that_was_let_go_is_told_when_it_leaves() -> None:
    world = World(HubLimits(finals_kept=1))
    client = world.connect()
    client.subscribe("a", {"tags": ["x"]}, mode="every")
    world.settle()
    for run_id in RUNS[:3]:
        world.create(run_id, ("x",))
        world.settle()
        world.status(run_id, "COMPLETED")
        world.settle()
    assert client.subscriptions["a"].runs == set(RUNS[:3])
    assert (1, RUNS[0]) not in world.hub.runs, "it was let go"
    world.change(RUNS[0], {"tags": []}, tags=())
    world.settle()
    assert client.subscriptions["a"].runs == set(RUNS[1:3])


def test_a_feed_of_one_task_is_not_looked_at_for_runs_of_others() -> None:
    world = World(HubLimits())
    client = world.connect()
    client.subscribe("a", {"runs": {"task": ["own", "second"]}})
    world.settle()
    hub = world.hub
    assert [hub.follows(1, RUNS[0], task, (), None) for task in ("own", "second")] == [True, True]
    assert not hub.follows(1, RUNS[0], "other", (), None)
    assert [feed.sub for feed in hub.feeds()] == ["a"]
    client.subscribe("b", {"runs": {}})
    world.settle()
    assert hub.follows(1, RUNS[0], "other", (), None)


def test_a_run_that_leaves_one_feed_as_it_enters_another_comes_whole() -> None:
    world = World(HubLimits())
    client = world.connect()
    client.subscribe("a", {"runs": {"status": ["QUEUED"]}})
    client.subscribe("b", {"tags": ["late"]})
    world.create(RUNS[0], ("x",))
    world.settle()
    world.change(RUNS[0], {"tags": ["x", "late"]}, tags=("x", "late"))
    world.tail()
    world.read_rows()()
    world.status(RUNS[0], "EXECUTING")
    world.tail()
    said = len(client.messages)
    world.settle()
    # Told that it left, and of no other feed that holds it, the client let it go.
    told = [each for each in client.messages[said:] if each["type"] == "run"]
    assert [each["run"]["revision"] for each in told] == [3]
    assert client.subscriptions["b"].runs == {RUNS[0]}
    assert client.views[RUNS[0]] == document_of(world, RUNS[0])


def test_a_run_that_is_asked_for_as_a_feed_sees_it_come_begins_with_its_creation() -> None:
    world = World(HubLimits())
    client = world.connect()
    client.subscribe("b", {"tags": ["x"]}, mode="every")
    world.settle()
    world.create(RUNS[0], ("x",))
    world.status(RUNS[0], "EXECUTING")
    world.tail()
    client.subscribe("a", {"run": RUNS[0]})
    topic = world.topic(RUNS[0])
    world.hub.take_rows()
    topic.considered_by.clear()
    # The row that was asked for by name is read first.
    world.hub.row_read(topic, FollowedRun(world.rows[RUNS[0]], {}))
    client.turn()
    feed_of(world, "b").row_read(FollowedRun(world.rows[RUNS[0]], {}), RUNS[0])
    world.settle()
    assert told_of(client, RUNS[0]) == [1, 2, 2]
    assert client.subscriptions["a"].is_live


def test_nothing_is_conflated_while_a_feed_that_wants_each_revision_resumes() -> None:
    world = World(HubLimits())
    client = world.connect()
    world.create(RUNS[0], ("x", "y"))
    client.subscribe("a", {"tags": ["x"]}, mode="latest")
    client.subscribe("b", {"tags": ["y"]}, mode="every")
    world.settle()
    client.reconnect()
    every, latest = world.take_load(), world.take_load()
    before = FollowedRun(world.rows[RUNS[0]], {})
    for feed in (latest, every):
        feed.is_resumed = True
    latest.held([before], {RUNS[0]: 1}, {})
    latest.complete()
    world.status(RUNS[0], "EXECUTING")
    world.change(RUNS[0], {}, [{"type": "set", "key": "a", "value": 1}])
    world.tail()
    client.turn()
    said = len(client.messages)
    every.held([before], {RUNS[0]: 1}, {})
    every.complete()
    world.settle()
    patches = [m["revision"] for m in client.messages if m["type"] == "patch"]
    assert patches == [2, 3], client.messages[said:]


def test_no_patch_joins_changes_of_which_the_client_may_hold_some() -> None:
    world = World(HubLimits())
    client, other = world.connect(), world.connect()
    world.create(RUNS[0], ("x", "y"))
    other.subscribe("run", {"run": RUNS[0]})
    client.subscribe("latest", {"tags": ["y"]})
    client.subscribe("every", {"runs": {"status": ["QUEUED", "EXECUTING"]}}, mode="every")
    world.settle()
    # The client is told more after its last cursors.
    for status in ("EXECUTING", "QUEUED", "EXECUTING"):
        world.status(RUNS[0], status)
    world.settle()
    client.reconnect()
    # What it lacks is on its way when the run leaves the feed that wants each revision.
    world.load()
    world.read_rows()()
    world.status(RUNS[0], "COMPLETED")
    world.tail()
    world.settle()
    assert client.views[RUNS[0]] == document_of(world, RUNS[0])
    assert client.subscriptions["every"].runs == set()


def test_a_feed_that_resumes_too_late_for_what_it_lacks_is_told_so() -> None:
    world = World(HubLimits())
    client = world.connect()
    client.subscribe("b", {"tags": ["x"]}, mode="every")
    world.settle()
    world.now += 10
    world.settle()
    late = client.subscriptions.pop("b")
    assert late.cursor
    client.reconnect()
    world.create(RUNS[0], ("x", "y"))
    world.status(RUNS[0], "EXECUTING")
    world.settle()
    client.subscribe("a", {"tags": ["y"]})
    world.settle()
    # Asked for only now: the other one was told the run as it is.
    client.subscribe("b", {"tags": ["x"]}, mode="every", cursor=late.cursor)
    world.settle()
    held = client.subscriptions["b"]
    assert (held.gaps, held.runs, held.is_live) == (["overflow"], {RUNS[0]}, True)


def test_a_run_resumed_in_every_too_late_for_what_it_lacks_is_told_so() -> None:
    world = World(HubLimits())
    client = world.connect()
    world.create(RUNS[0], ("x",))
    client.subscribe("a", {"run": RUNS[0]}, mode="every")
    world.settle()
    client.subscriptions.clear()
    client.reconnect()
    world.status(RUNS[0], "EXECUTING")
    world.change(RUNS[0], {}, [{"type": "set", "key": "a", "value": 1}])
    client.subscribe("b", {"run": RUNS[0]})
    world.settle()
    client.subscribe("a", {"run": RUNS[0]}, mode="every", cursor="r1.e0.1")
    world.settle()
    assert client.subscriptions["a"].gaps == ["overflow"]
    assert client.subscriptions["a"].is_live


def test_each_revision_is_told_also_where_one_had_a_value_that_only_its_row_had() -> None:
    world = World(HubLimits())
    client = world.connect()
    world.create(RUNS[0], ("x",))
    client.subscribe("a", {"run": RUNS[0]}, mode="every")
    world.settle()
    large = {"$large": {"bytes": 9000}}
    for number in range(3):
        world.change(RUNS[0], {"output": large}, output=f'"{number}"')
    world.status(RUNS[0], "EXECUTING")
    world.settle()
    assert sorted(set(told_of(client, RUNS[0]))) == [1, 2, 3, 4, 5]
    assert client.views[RUNS[0]] == document_of(world, RUNS[0])
    # At rest each value comes with its revision.
    world.change(RUNS[0], {"output": large}, output='"last"')
    world.settle()
    assert client.messages[-1]["run"]["output"] == "last"
    assert [m["type"] for m in client.messages if m.get("revision") == 6] == []


def test_a_run_that_leaves_a_feed_and_comes_back_is_read_on_from_where_it_was() -> None:
    world = World(HubLimits(left_kept=1))
    client = world.connect()
    to = {"runs": {"status": ["EXECUTING"]}}
    client.subscribe("a", to, streams={"*": {"from": "latest"}})
    for run_id in RUNS[:2]:
        world.create(run_id, ("x",))
        world.status(run_id, "EXECUTING")
        world.append(run_id, "log", '"unread"')
    world.settle()
    for run_id in RUNS[:2]:
        world.append(run_id, "log", '"read"')
    world.settle()
    for run_id in RUNS[:2]:
        world.status(run_id, "QUEUED")
        world.settle()
        assert run_id not in client.subscriptions["a"].runs
    for run_id in RUNS[:2]:
        world.status(run_id, "EXECUTING")
        world.append(run_id, "log", '"written meanwhile"')
        world.append(run_id, "text", '"new"')
        world.settle()
    # Of more than it can remember, it reads from the start: the client drops what it has.
    for run_id in RUNS[:2]:
        whole = [orjson.loads(each.body) for each in world.streams[run_id, "log"].chunks]
        first = client.first[run_id, "log"]
        assert client.chunks[run_id, "log"] == whole[first:]
        assert client.chunks[run_id, "text"] == ["new"]


@pytest.mark.parametrize("start", ["latest", -1, 1])
def test_a_feed_has_no_cursor_before_it_is_known_where_its_streams_begin(start: str | int) -> None:
    world = World(HubLimits())
    client = world.connect()
    world.create(RUNS[0], ("x",))
    world.status(RUNS[0], "EXECUTING")
    world.append(RUNS[0], "log", '"unread"')
    world.now += 10
    client.subscribe("a", {"tags": ["x"]}, streams={"*": {"from": start}})
    world.load()
    while client.turn():
        pass  # all that can be said; the list of the run's streams is still being read
    held = client.subscriptions["a"]
    assert held.is_live and held.cursor is None
    world.settle()
    client.turn()
    assert held.cursor is not None


def test_a_run_that_joins_after_a_resume_is_read_on_from_where_its_client_is() -> None:
    world = World(HubLimits())
    client = world.connect()
    world.create(RUNS[0], ("x", "y"))
    world.status(RUNS[0], "EXECUTING")
    world.append(RUNS[0], "log", '"unread"')
    world.settle()
    client.subscribe("a", {"tags": ["x"]}, streams={"log": {"from": "latest"}})
    client.subscribe("b", {"tags": ["y"]}, mode="every")
    world.settle()
    world.append(RUNS[0], "log", '"read"')
    world.settle()
    world.now += 10
    world.settle()
    client.reconnect()
    every, latest = world.take_load(), world.take_load()
    world.append(RUNS[0], "log", '"missed"')
    world.change(RUNS[0], {}, [{"type": "set", "key": "a", "value": 1}])
    world.change(RUNS[0], {}, [{"type": "set", "key": "a", "value": 2}])
    row, first = FollowedRun(world.rows[RUNS[0]], {}), world.rows[RUNS[0]].revision - 1
    for feed in (every, latest):
        feed.is_resumed = True
        feed.resumed([row], {RUNS[0]: Touched(first)}, {})
        feed.complete()
    world.settle()
    assert client.chunks[RUNS[0], "log"] == ["read", "missed"]


@pytest.mark.parametrize("to", [{"tags": ["x"]}, {"run": RUNS[0]}], ids=["feed", "run"])
@pytest.mark.parametrize("mode", ["latest", "every"])
def test_who_holds_nothing_is_told_first_what_was_held(to: JsonObject, mode: str) -> None:
    world = World(HubLimits())
    world.create(RUNS[0], ("x",))
    world.change(RUNS[0], {}, [{"type": "set", "key": "list", "value": [1]}])
    world.status(RUNS[0], "EXECUTING")
    world.change(RUNS[0], {}, [{"type": "append", "key": "list", "value": 2}])
    first = world.connect()
    first.subscribe("a", to, mode=mode)
    world.settle()
    world.now += 10
    world.settle()
    held, cursor = first.views[RUNS[0]], first.subscriptions["a"].cursor
    if "run" in to:
        cursor = "r1.e0.4"
    first.unsubscribe("a")
    resting = world.connect()
    resting.subscribe("a", to, mode=mode, cursor=cursor, whole=True)
    world.settle()
    assert [m["type"] for m in resting.messages if m["type"] in ("base", "run")] == ["base"]
    assert resting.views[RUNS[0]] == held
    for value in (3, 4):
        world.change(RUNS[0], {}, [{"type": "append", "key": "list", "value": value}])
    world.change(RUNS[0], {"output": {"$large": {"bytes": 9000}}}, output='"large"')
    second = world.connect()
    second.subscribe("a", to, mode=mode, cursor=cursor, whole=True)
    world.settle()
    bases = [m["run"] for m in second.messages if m["type"] == "base"]
    assert second.views[RUNS[0]] == resting.views[RUNS[0]] == document_of(world, RUNS[0])
    assert second.subscriptions["a"].is_live
    if mode == "every":
        assert bases == [held]
        assert told_of(second, RUNS[0]) == [5, 6, 7]
    else:
        assert bases == [] and told_of(second, RUNS[0]) == [7]


def test_values_that_stand_elsewhere_come_with_the_run_whole_to_who_holds_nothing() -> None:
    world = World(HubLimits())
    world.create(RUNS[0], ("x",))
    large = {"$large": {"bytes": 9000}}
    world.change(RUNS[0], {"output": large}, output='"large"')
    world.status(RUNS[0], "EXECUTING")
    client = world.connect()
    to = {"run": RUNS[0]}
    client.subscribe("a", to, mode="every", cursor="r1.e0.2", whole=True)
    world.settle()
    assert [m["run"]["output"] for m in client.messages if m["type"] == "base"] == [large]
    assert client.views[RUNS[0]] == document_of(world, RUNS[0])


@pytest.mark.parametrize(("limit", "reason"), [(100, "overflow"), (10_000, "retention")])
def test_what_cannot_be_folded_is_a_gap(limit: int, reason: str) -> None:
    world = World(HubLimits(past_bytes=limit))
    world.create(RUNS[0], ("x",))
    for value in range(6):
        world.change(RUNS[0], {}, [{"type": "set", "key": "n", "value": value}])
    if reason == "retention":
        del world.history[RUNS[0]][:2]
    client = world.connect()
    client.subscribe("a", {"run": RUNS[0]}, mode="every", cursor="r1.e0.5", whole=True)
    world.settle()
    held = client.subscriptions["a"]
    assert (held.gaps, held.is_live) == ([reason], True)
    assert client.views[RUNS[0]] == document_of(world, RUNS[0])


def test_a_snapshot_that_waits_for_every_revision_still_names_its_runs() -> None:
    world = World(HubLimits())
    client = world.connect()
    world.create(RUNS[0], TAGS[RUNS[0]])
    client.subscribe("a", {"tags": ["x"]}, mode="latest")
    client.subscribe("b", {"tags": ["y"]}, mode="every")
    world.settle()
    world.status(RUNS[0], "EXECUTING")
    held = client.subscriptions["a"]
    feed = next(each for each in world.hub.feeds() if each.sub == "a")
    # As after a crash of Postgres: the feed reads a snapshot although it has members.
    feed.missed_events()
    world.take_load()
    held.runs.clear()
    feed.page([FollowedRun(world.rows[RUNS[0]], {})], cursor=None, more=False)
    feed.complete()
    world.settle()
    assert held.runs == {RUNS[0]}


def jumped_feed(**options: Any) -> tuple[World, Held, FeedMembers]:
    """Return a feed whose only run leaves it among events that are not told one by one."""
    world = World(HubLimits())
    client = world.connect()
    world.create(RUNS[0], ("x",))
    client.subscribe("a", {"tags": ["x"]}, **options)
    world.settle()
    held = client.subscriptions["a"]
    assert held.runs == {RUNS[0]}
    world.change(RUNS[0], {"tags": []}, tags=())
    world.jump()
    return world, held, world.take_load()


def test_a_run_that_left_a_feed_where_events_were_missed_is_removed() -> None:
    world, held, feed = jumped_feed()
    feed.is_resumed = True
    feed.resumed([FollowedRun(world.rows[RUNS[0]], {})], {RUNS[0]: Touched(2)}, {})
    feed.complete()
    world.settle()
    assert held.runs == set() and not world.hub.runs


def test_a_run_that_left_before_a_feed_reads_a_snapshot_again_is_let_go() -> None:
    world, held, feed = jumped_feed()
    # As after a crash of Postgres: a snapshot, which replaces what is held.
    feed.keep([])
    held.runs.clear()
    feed.page([], cursor=None, more=False)
    feed.complete()
    world.settle()
    assert not world.hub.runs
    world.change(RUNS[0], {"tags": ["x"]}, tags=("x",))
    world.settle()
    assert held.runs == {RUNS[0]}


def test_a_run_that_leaves_before_its_page_is_read_is_not_told() -> None:
    world = World(HubLimits())
    client = world.connect()
    world.create(RUNS[0], ("x",))
    client.subscribe("a", {"tags": ["x"]})
    feed = world.take_load()
    world.change(RUNS[0], {"tags": []}, tags=())
    feed.page([FollowedRun(world.rows[RUNS[0]], {})], cursor=None, more=False)
    feed.complete()
    world.settle()
    assert client.views == {}


def token(*scopes: str, streams: frozenset[str] | None = None) -> Grant:
    return Grant(ENV, frozenset(parse_scopes(scopes)), expires_at=1e9, jti="j", streams=streams)


def test_a_row_that_was_read_before_a_narrower_token_came_lets_nobody_in() -> None:
    world = World(HubLimits())
    world.create(RUNS[0])
    client = world.connect(token("read:runs"))
    client.subscribe("a", {"run": RUNS[0]})
    world.settle()
    client.send({"type": "refetch", "run": RUNS[0]})
    client.turn()
    world.read_rows()()
    client.subscriber.authenticated(token(f"read:runs:{RUNS[1]}"), world.now, 0.0)
    world.status(RUNS[0], "EXECUTING")
    world.settle()
    assert [(each["sub"], each["code"]) for each in client.errors] == [("a", "not_found")]
    assert client.views[RUNS[0]]["status"] == "QUEUED"


def test_a_narrower_token_ends_the_streams_that_it_does_not_cover() -> None:
    world = World(HubLimits())
    world.create(RUNS[0])
    world.status(RUNS[0], "EXECUTING")
    for key in KEYS:
        world.append(RUNS[0], key, '"a"')
    client = world.connect(token("read:runs"))
    client.subscribe("all", {"run": RUNS[0]}, streams={"*": {}})
    client.subscribe("one", {"run": RUNS[0]}, streams={"log": {}})
    world.settle()
    narrow = token("read:runs", streams=frozenset({"text"}))
    client.subscriber.authenticated(narrow, world.now, 0.0)
    for key in KEYS:
        world.hub.rang(world.append(RUNS[0], key, '"b"'))
    world.settle()
    assert [(each["sub"], each["code"]) for each in client.errors] == [("one", "forbidden")]
    assert client.chunks == {(RUNS[0], "log"): ["a"], (RUNS[0], "text"): ["a", "b"]}


def test_a_page_of_a_feed_leaves_out_no_value_that_is_followed_whole() -> None:
    world = World(HubLimits())
    world.create(RUNS[0], ("x",))
    payload = "p" * 20_000
    world.rows[RUNS[0]] = world.rows[RUNS[0]]._replace(payload=f'"{payload}"')
    both, other = world.connect(), world.connect()
    both.subscribe("run", {"run": RUNS[0]})
    world.settle()
    both.subscribe("tag", {"tags": ["x"]})
    feed = world.take_load()
    # As the pages of feeds are read: without what is too large for feeds.
    row = world.rows[RUNS[0]]._replace(payload=None)
    feed.page([FollowedRun(row, {"payload": 20_002})], cursor=None, more=False)
    feed.complete()
    other.subscribe("run", {"run": RUNS[0]})
    world.settle()
    assert both.subscriptions["tag"].runs == {RUNS[0]}
    for client in (both, other):
        assert client.views[RUNS[0]]["payload"] == payload


def test_a_batch_ends_though_a_run_of_it_was_deleted_while_it_was_looked_up() -> None:
    world = World(HubLimits())
    client = world.connect()
    client.subscribe("a", {"batch": "b"})
    feed = world.take_load()
    feed.complete()
    feed.found([RUNS[0]], {}, is_sealed=True)
    world.settle()
    assert client.subscriptions["a"].is_done


@pytest.mark.parametrize("is_left", [False, True])
def test_a_connection_is_live_again_once_its_feeds_have_read_what_they_missed(
    is_left: bool,
) -> None:
    world = World(HubLimits())
    idle, client = world.connect(), world.connect()
    client.subscribe("a", {"tags": ["x"]})
    world.settle()
    world.hub.say_state("stale", "then")
    world.create(RUNS[0], ("x",))
    world.jump()
    world.hub.say_state("live", "now")
    world.read_rows()()
    for each in (idle, client):
        each.turn()
    assert states_of(idle) == ["stale", "live"] and states_of(client) == ["stale"]
    if is_left:
        client.unsubscribe("a")
    world.settle()
    assert states_of(client) == ["stale", "live"]


def states_of(client: Client) -> list[Any]:
    return [each["state"] for each in client.messages if each["type"] == "state"]


Walk.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    report_multiple_bugs=False,
)
TestWalk = Walk.TestCase
