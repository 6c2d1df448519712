"""Bells between a Doorbell and a Listener, over a real Postgres and a breaking network."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio
import psycopg
import pytest

from runwire_engine.bells import (
    MAX_PAYLOAD,
    Bell,
    ChunkRow,
    Control,
    Ringing,
    StreamMoved,
    decode,
    encode,
)
from runwire_engine.doorbell import Doorbell
from runwire_engine.listener import Listener
from tests.support.faultproxy import fault_proxy
from tests.support.pooler import pooler

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def ringing(dsn: str) -> AsyncGenerator[Doorbell]:
    async with anyio.create_task_group() as tasks:
        bell = Doorbell(dsn)
        tasks.start_soon(bell.run)
        yield bell
        tasks.cancel_scope.cancel()


@pytest.fixture
async def bell(database_url: str, anyio_backend: str) -> AsyncGenerator[Doorbell]:
    async with ringing(database_url) as opened:
        yield opened


async def until(listener: Listener, wanted: Callable[[Bell], object], within: float = 10.0) -> Bell:
    """Return the first bell that fulfils a condition."""
    with anyio.fail_after(within):
        async for heard in listener:
            if wanted(heard):
                return heard
    raise AssertionError("a listener never ends")


async def flag(listener: Listener, wanted: bool) -> None:
    """Wait until the listener knows that it hears, or does not."""
    with anyio.fail_after(60):
        while listener.listening is not wanted:  # a plain flag
            await anyio.sleep(0.01)


def chunk(seq: int, body: str = '"x"') -> ChunkRow:
    return ChunkRow(seq, 1, 1, None, body)


async def test_the_first_bell_says_scan_and_the_next_what_rang(
    bell: Doorbell, database_url: str
) -> None:
    async with Listener(database_url) as listener:
        assert (await until(listener, lambda heard: True)).scan
        bell.ring_work(1, ["emails"])
        assert (await until(listener, lambda heard: heard.work)).work == {"emails"}
        moved = StreamMoved("run_1", "log", 2, (chunk(0), chunk(1)))
        bell.ring_feed(7, ["run_1"], [moved])
        heard = await until(listener, lambda heard: heard.streams)
        assert heard.runs_moved and not heard.scan
        assert heard.streams == (StreamMoved("run_1", "log", 2, moved.chunks, environment_id=7),)
        bell.ring_control(7, "cancel", "run_1")
        heard = await until(listener, lambda heard: heard.control)
        assert heard.control == (Control("cancel", "run_1", 7),)


async def test_a_listener_of_one_environment_hears_no_other(
    bell: Doorbell, database_url: str
) -> None:
    async with Listener(database_url, environment_id=2) as listener:
        await until(listener, lambda heard: heard.scan)
        bell.ring_work(1, ["ours not"])
        bell.ring_work(2, ["ours"])
        assert (await until(listener, lambda heard: heard.work)).work == {"ours"}


async def test_ringing_never_waits_and_a_burst_becomes_one_bell(
    bell: Doorbell, database_url: str
) -> None:
    async with Listener(database_url) as listener:
        await until(listener, lambda heard: heard.scan)
        for n in range(500):
            bell.ring_feed(1, [], [StreamMoved("run_1", "log", n + 1, (chunk(n, str(n)),))])
        heard = await until(listener, lambda heard: heard.streams)
        assert [row.seq for row in heard.streams[0].chunks] == list(range(500))


async def test_bells_that_only_say_that_runs_moved_are_apart(
    bell: Doorbell, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runwire_engine.doorbell._GAP", 0.1)
    async with Listener(database_url) as listener:
        await until(listener, lambda heard: heard.scan)
        began = anyio.current_time()
        for _ in range(4):
            bell.ring_feed(1, ["run_1"])
            await until(listener, lambda heard: heard.runs_moved)
        # From the first, which is sent at once, to when the last is heard.
        assert anyio.current_time() - began >= 0.25


async def test_a_lost_listen_session_is_opened_again_and_says_scan(
    bell: Doorbell, database_url: str
) -> None:
    async with Listener(database_url, ping_every=0.1) as listener:
        await until(listener, lambda heard: heard.scan)
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as admin:
            await admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and application_name = 'runwire-listen'"
            )
        await until(listener, lambda heard: heard.scan, within=5)
        bell.ring_work(1, ["after"])
        assert "after" in (await until(listener, lambda heard: heard.work)).work


async def test_a_half_open_connection_is_noticed_by_the_ping(
    bell: Doorbell, database_url: str
) -> None:
    async with (
        fault_proxy(database_url) as proxy,
        Listener(proxy.dsn(database_url), ping_every=0.1, ping_within=0.3) as listener,
    ):
        await until(listener, lambda heard: heard.scan)
        await flag(listener, True)
        proxy.stall()
        await flag(listener, False)
        proxy.cut()
        proxy.flow()
        await until(listener, lambda heard: heard.scan)
        bell.ring_work(1, ["after"])
        assert "after" in (await until(listener, lambda heard: heard.work)).work


async def test_a_bell_whose_connection_broke_asks_everybody_to_scan(database_url: str) -> None:
    async with fault_proxy(database_url) as proxy, Listener(database_url) as listener:
        async with ringing(proxy.dsn(database_url)) as bell:
            await until(listener, lambda heard: heard.scan)
            bell.ring_work(1, ["before"])
            await until(listener, lambda heard: heard.work)
            proxy.cut()
            bell.ring_work(1, ["while away"])
            await until(listener, lambda heard: heard.scan or "while away" in heard.work)
            bell.ring_work(1, ["after"])
            assert "after" in (await until(listener, lambda heard: heard.work)).work


@pytest.mark.faults
async def test_behind_a_pooler_a_bell_is_rung_but_not_heard(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pooler(database_url) as dsn:
        async with (
            Listener(dsn, ping_within=0.5) as deaf,
            Listener(database_url) as direct,
            ringing(dsn) as bell,
        ):
            await until(direct, lambda heard: heard.scan)
            with anyio.fail_after(60):
                while not deaf.is_poll_only:  # a plain flag
                    await anyio.sleep(0.01)
            bell.ring_work(1, ["emails"])
            assert "emails" in (await until(direct, lambda heard: heard.work)).work
            assert not deaf.listening and deaf.take() == Bell()
    assert [line for line in caplog.messages if "poll-only" in line] == caplog.messages


def _heard(bell: Bell) -> Bell:
    into = Ringing()
    for channel, payload in encode(3, bell):
        assert len(payload.encode()) <= MAX_PAYLOAD
        decode(channel, payload, into)
    return into.take()


def test_what_does_not_fit_is_said_without_hints_and_then_as_scan() -> None:
    small = tuple(StreamMoved(f"run_{n}", "log", 2, (chunk(1),)) for n in range(20))
    heard = _heard(Bell(streams=small))
    assert [len(moved.chunks) for moved in heard.streams] == [1] * 20
    large = StreamMoved("run_x", "log", 2, (chunk(1, "ü" * 5_000),))
    heard = _heard(Bell(streams=(large, *small)))
    assert [len(moved.chunks) for moved in heard.streams] == [0] + [1] * 20
    many = tuple(StreamMoved(f"run_{n:025}", "log", 2) for n in range(500))
    heard = _heard(Bell(streams=many, runs_moved=True))
    assert heard.scan and heard.runs_moved and not heard.streams
    heard = _heard(Bell(work=frozenset(f"{n:060}" for n in range(500))))
    assert heard.scan and not heard.work


def test_a_run_is_alone_until_other_work_rings() -> None:
    lone = Bell(work=frozenset({"emails"}), lone_run="run_1")
    assert _heard(lone) == lone
    into = Ringing()
    for rings in (
        [(["emails"], "run_1"), (["emails"], "run_2")],
        [(["a"], None), (["b"], "run_1")],
    ):
        for queues, run_id in rings:
            into.add_work(queues, run_id)
        assert into.take().lone_run is None
    into.add_work(["emails"], "run_3")
    assert into.take().lone_run == "run_3"


def test_hints_are_joined_only_where_they_continue_each_other() -> None:
    into = Ringing()
    into.add_stream(StreamMoved("r", "k", 2, (chunk(1),)))
    into.add_stream(StreamMoved("r", "k", 4, (chunk(2), chunk(3))))
    into.add_stream(StreamMoved("r", "k", 3, (chunk(2),)))  # late
    assert [row.seq for row in into.take().streams[0].chunks] == [1, 2, 3]
    into.add_stream(StreamMoved("r", "k", 2, (chunk(1),)))
    into.add_stream(StreamMoved("r", "k", 9, (chunk(8),), ended=True))
    (moved,) = into.take().streams
    assert [row.seq for row in moved.chunks] == [8] and moved.ended


def test_what_waits_is_bounded() -> None:
    into = Ringing()
    for n in range(2_000):
        into.add_stream(StreamMoved(f"run_{n}", "k", 1, (chunk(0, "x" * 1_000),)))
        into.add_work([f"q{n}"])
        into.add_control(Control("cancel", f"run_{n}"))
    assert into.scan
    assert max(len(into.streams), len(into.work), len(into.control)) <= 1_000
    assert into.hint_bytes <= 256 * 1024


@pytest.mark.parametrize(
    "payload", ["", "[]", "{}", '{"v":2,"e":1}', '{"v":1,"e":1,"s":[[1]]}', "x"]
)
def test_a_payload_nobody_understands_means_scan(payload: str) -> None:
    into = Ringing()
    decode("runwire_feed", payload, into)
    assert into.scan
