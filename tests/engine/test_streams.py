"""Appending to streams and reading them, against a real Postgres."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import psycopg
import pytest

from runwire.errors import FencedError, InvalidValueError
from runwire_engine.appending import Appending
from runwire_engine.database import Database, Row
from runwire_engine.doorbell import Doorbell
from runwire_engine.environments import Environments
from runwire_engine.errors import (
    DataRefusedError,
    RunFinalError,
    RunNotFoundError,
    StreamFullError,
)
from runwire_engine.known_appends import KnownAppends
from runwire_engine.streams import Append, AppendAnswer, AttemptMark, Streams
from runwire_engine.watched_connection import WatchedConnection
from tests.support.faultproxy import fault_proxy
from tests.support.postgres import opened_database
from tests.support.processes import until, until_async
from tests.support.run_rows import insert_run, set_run

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def running(streams: Streams) -> AsyncGenerator[Streams]:
    """Run the flusher of streams for the length of a block."""
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(streams.run)
            yield streams
            streams.close()


@pytest.fixture
async def streams(
    database: Database, database_url: str, anyio_backend: str
) -> AsyncGenerator[Streams]:
    """Streams that append; their bells are collected, not sent."""
    async with running(Streams(database, Doorbell(database_url))) as opened:
        yield opened


def own(
    run_id: str, *bodies: str, key: str = "log", execution: int = 1, end: bool = False
) -> Append:
    return Append(run_id, key, bodies, execution=execution, attempt=execution, end=end)


async def rows(database: Database, query: str, *parameters: object) -> list[Row]:
    async with database.transaction() as tx:
        cursor = await tx.connection.execute(query.encode(), parameters)
        return await cursor.fetchall()


async def bodies(streams: Streams, env: int, run_id: str, key: str = "log") -> list[str]:
    page = await streams.read(env, run_id, key)
    assert [chunk.seq for chunk in page.chunks] == list(range(len(page.chunks)))
    return [chunk.body for chunk in page.chunks]


async def test_chunks_get_the_next_seqs_and_are_read_back(
    streams: Streams, database: Database, env: int
) -> None:
    run_id = await insert_run(database, env)
    assert await streams.append(env, own(run_id, '"a"', '"b"')) == AppendAnswer(0, 2)
    assert await streams.append(env, own(run_id, '"c"')) == AppendAnswer(2, 3)
    assert await bodies(streams, env, run_id) == ['"a"', '"b"', '"c"']


async def test_a_new_stream_is_a_revision_of_its_run(
    streams: Streams, database: Database, env: int
) -> None:
    run_id = await insert_run(database, env, tags=("t",))
    await streams.append_many(env, [own(run_id, "1", key="b"), own(run_id, "1", key="a")])
    await streams.append(env, own(run_id, "2", key="a"))
    events = await rows(
        database,
        "select revision, type, delta, tags from runwire.run_events where run_id = %s",
        run_id,
    )
    assert [(event["revision"], event["type"]) for event in events] == [(2, "streams")]
    assert events[0]["delta"] == '{"set" : {"realtimeStreams" : ["a","b"]}}'
    assert events[0]["tags"] == ["t"]


async def test_another_execution_is_marked_and_the_older_one_refused(
    streams: Streams, database: Database, env: int
) -> None:
    run_id = await insert_run(database, env)
    await streams.append(env, own(run_id, "1", end=True))
    assert (await streams.streams_of(env, run_id))[0].ended_execution == 1
    await set_run(database, env, run_id, "EXECUTING", 2)
    with pytest.raises(FencedError) as caught:
        await streams.append(env, own(run_id, "zombie"))
    assert caught.value.run_id == run_id
    await streams.append(env, own(run_id, "2", execution=2))
    (head,) = await streams.heads(env, [(run_id, "log"), (run_id, "none")])
    assert head.attempts == (AttemptMark(1, 1, 0), AttemptMark(2, 2, 1))
    assert head.ended_execution is None
    page = await streams.read(env, run_id, "log")
    assert [(c.body, c.execution, c.attempt, c.writer) for c in page.chunks] == [
        ("1", 1, 1, None),
        ("2", 2, 2, None),
    ]


async def test_a_writer_may_write_on_after_its_end(
    streams: Streams, database: Database, env: int
) -> None:
    run_id = await insert_run(database, env)
    await streams.append(env, own(run_id, "1", end=True))
    await streams.append(env, own(run_id, "2"))
    assert (await streams.streams_of(env, run_id))[0].ended_execution is None


@pytest.mark.parametrize("status", ["QUEUED", "DELAYED", "COMPLETED", "CANCELED"])
async def test_a_run_that_does_not_execute_writes_nothing(
    streams: Streams, database: Database, env: int, status: str
) -> None:
    run_id = await insert_run(database, env, status=status)
    with pytest.raises(FencedError):
        await streams.append(env, own(run_id, "1"))
    assert await streams.streams_of(env, run_id) == []


async def test_a_waiting_run_may_write(streams: Streams, database: Database, env: int) -> None:
    run_id = await insert_run(database, env, status="WAITING")
    await streams.append(env, own(run_id, "1"))


async def test_a_foreign_writer_is_named_and_fenced_by_its_own_run(
    streams: Streams, database: Database, env: int
) -> None:
    parent = await insert_run(database, env, status="WAITING")
    child = await insert_run(database, env)
    foreign = Append(parent, "log", ("1",), execution=1, writer=child)
    await streams.append(env, foreign)
    await streams.append(env, Append(parent, "log", ("2",), writer="backend"))
    await set_run(database, env, child, "EXECUTING", 2)
    with pytest.raises(FencedError) as caught:
        await streams.append(env, foreign)
    assert caught.value.run_id == child
    page = await streams.read(env, parent, "log")
    assert [(c.body, c.writer, c.execution) for c in page.chunks] == [
        ("1", child, None),
        ("2", "backend", None),
    ]
    assert page.stream is not None and page.stream.attempts == ()


async def test_foreign_writers_need_an_owner_that_is_not_over(
    streams: Streams, database: Database, env: int
) -> None:
    over = await insert_run(database, env, status="COMPLETED")
    with pytest.raises(RunFinalError):
        await streams.append(env, Append(over, "log", ("1",), writer="backend"))
    with pytest.raises(RunNotFoundError):
        await streams.append(env, Append("run_00000000000", "log", ("1",), writer="backend"))


async def test_runs_of_another_environment_are_not_there(
    streams: Streams, database: Database, env: int
) -> None:
    run_id = await insert_run(database, env)
    with pytest.raises(RunNotFoundError):
        await streams.append(env + 1, own(run_id, "1"))
    await streams.append(env, own(run_id, "1"))
    assert (await streams.read(env + 1, run_id, "log")).stream is None


async def test_one_refused_append_disturbs_no_other(
    streams: Streams, database: Database, env: int
) -> None:
    run_id = await insert_run(database, env)
    answers = await streams.append_many(
        env,
        [
            own(run_id, "1"),
            own(run_id, "x" * (1024 * 1024 + 1)),
            own(run_id, "1", key=""),
            own(run_id, "1", key="k" * 129),
            own(run_id, "1", key="new\nline"),
            own(run_id, "2", execution=7),
            own(run_id, "nul\x00", "2"),
            own(run_id, "3"),
        ],
    )
    assert [type(answer) for answer in answers] == [
        AppendAnswer,
        InvalidValueError,
        InvalidValueError,
        InvalidValueError,
        InvalidValueError,
        FencedError,
        DataRefusedError,
        AppendAnswer,
    ]
    assert await bodies(streams, env, run_id) == ["1", "3"]


async def test_a_bad_value_in_one_environment_doubles_nothing_in_another(
    streams: Streams, database: Database, env: int
) -> None:
    other = await Environments(database).ensure("other")
    ours, theirs = await insert_run(database, env), await insert_run(database, other)
    promises = [
        await streams.put(env, own(ours, "1")),
        await streams.put(other, own(theirs, "nul\x00")),
        await streams.put(env, own(ours, "2")),
        await streams.put(other, own(theirs, "3")),
    ]
    for promise, refused in zip(promises, (False, True, False, False), strict=True):
        if refused:
            with pytest.raises(DataRefusedError):
                await streams.settled(promise)
        else:
            await streams.settled(promise)
    assert await bodies(streams, env, ours) == ["1", "2"]
    assert await bodies(streams, other, theirs) == ["3"]


async def test_a_full_stream_refuses_more(database: Database, database_url: str, env: int) -> None:
    run_id = await insert_run(database, env)
    async with running(Streams(database, Doorbell(database_url), stream_limit=10)) as streams:
        await streams.append(env, own(run_id, "12345678"))
        with pytest.raises(StreamFullError):
            await streams.append(env, own(run_id, "123"))
        await streams.append(env, own(run_id, "12"))


async def test_a_repeated_part_is_answered_as_the_first_time(
    streams: Streams, database: Database, env: int
) -> None:
    run_id = await insert_run(database, env)
    part = Append(run_id, "log", ("1", "2"), writer="backend", part="p1")
    first = await streams.append(env, part)
    answers = await streams.append_many(env, [part, part, own(run_id, "3"), part])
    assert [first, *answers] == [first, first, first, AppendAnswer(2, 3), first]
    assert await bodies(streams, env, run_id) == ["1", "2", "3"]


async def test_pages_end_by_bytes_and_by_count_and_always_hold_a_chunk(
    streams: Streams, database: Database, env: int
) -> None:
    run_id = await insert_run(database, env)
    await streams.append(env, own(run_id, *(str(n) * 10 for n in range(10))))

    async def seqs(*position: int) -> list[int]:
        return [chunk.seq for chunk in (await streams.read(env, run_id, "log", *position)).chunks]

    assert await seqs(0, 25, 100) == [0, 1, 2]
    assert await seqs(3, 1, 100) == [3]
    assert await seqs(3, 1000, 2) == [3, 4]
    assert await seqs(-3) == [7, 8, 9]
    assert await seqs(-30) == list(range(10))
    assert await seqs(10) == []


async def test_concurrent_writers_of_one_stream_leave_no_hole_and_keep_their_order(
    database: Database, database_url: str, env: int
) -> None:
    parent = await insert_run(database, env)

    async def write(writer: str) -> None:
        async with running(Streams(database, Doorbell(database_url))) as streams:
            for n in range(30):
                await streams.append(
                    env, Append(parent, "log", (f"[{writer},{n}]",), writer=writer)
                )

    async with anyio.create_task_group() as tasks:
        for writer in "1234":
            tasks.start_soon(write, writer)
    reader = Streams(database, Doorbell(database_url))
    read = await bodies(reader, env, parent)
    assert len(read) == 120
    for writer in "1234":
        ours = [body for body in read if body.startswith(f"[{writer},")]
        assert ours == [f"[{writer},{n}]" for n in range(30)]


async def test_two_flushers_that_open_many_streams_of_the_same_runs_do_not_deadlock(
    database: Database, database_url: str, env: int
) -> None:
    runs = [await insert_run(database, env) for _ in range(6)]

    async def write(order: list[str]) -> None:
        async with running(Streams(database, Doorbell(database_url))) as streams:
            for n in range(5):
                appends = [Append(run_id, f"s{n}", ("1",), writer="w") for run_id in order]
                answers = await streams.append_many(env, appends)
                assert all(isinstance(answer, AppendAnswer) for answer in answers), answers

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write, runs)
        tasks.start_soon(write, runs[::-1])
    heads = await Streams(database, Doorbell(database_url)).heads(
        env, [(run_id, "s4") for run_id in runs]
    )
    assert [head.next_seq for head in heads] == [2] * 6


async def test_a_stream_that_somebody_locks_holds_up_no_other(
    streams: Streams, database: Database, env: int
) -> None:
    run_id = await insert_run(database, env)
    await streams.append_many(env, [own(run_id, "0", key="stuck"), own(run_id, "0", key="free")])
    async with database.transaction() as tx:
        await tx.connection.execute("select from runwire.streams where key = 'stuck' for update")
        stuck = [await streams.put(env, own(run_id, str(n), key="stuck")) for n in (1, 2)]
        await streams.append(env, own(run_id, "1", key="free"))
        stuck.append(await streams.put(env, own(run_id, "3", key="stuck")))
        await streams.append(env, own(run_id, "2", key="free"))
    answers = [await streams.settled(promise) for promise in stuck]
    assert answers == [AppendAnswer(1, 2), AppendAnswer(2, 3), AppendAnswer(3, 4)]
    await streams.append(env, own(run_id, "4", key="stuck"))
    await streams.append(env, own(run_id, "3", key="free"))
    assert await bodies(streams, env, run_id, "stuck") == ["0", "1", "2", "3", "4"]
    assert await bodies(streams, env, run_id, "free") == ["0", "1", "2", "3"]


async def test_a_run_that_somebody_locks_holds_up_no_other(
    streams: Streams, database: Database, env: int
) -> None:
    held, free = await insert_run(database, env), await insert_run(database, env)
    await streams.append_many(env, [own(held, "0"), own(free, "0")])
    async with database.transaction() as tx:
        await tx.connection.execute("select from runwire.runs where id = %s for update", (held,))
        promise = await streams.put(env, own(held, "1"))
        new = await streams.put(env, own(held, "1", key="new"))
        await streams.append(env, own(free, "1"))
    assert await streams.settled(promise) == AppendAnswer(1, 2)
    assert await streams.settled(new) == AppendAnswer(0, 1)


async def test_an_idle_reader_of_a_page_touches_one_partition(
    streams: Streams, database: Database, env: int
) -> None:
    run_id = await insert_run(database, env)
    await streams.append(env, own(run_id, "1"))
    (head,) = await streams.streams_of(env, run_id)
    plan = await rows(
        database,
        "explain select * from runwire.stream_chunks"
        " where bucket = %s and stream_id = %s and seq >= 0",
        head.bucket,
        head.id,
    )
    text = "\n".join(str(line["QUERY PLAN"]) for line in plan)
    assert f"stream_chunks_{head.bucket:%Y%m%d}" in text
    assert text.count(" on stream_chunks_") == 1


async def test_known_streams_are_appended_to_in_one_round_trip(
    streams: Streams, database: Database, env: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await insert_run(database, env)
    await streams.append_many(env, [own(run_id, "0"), own(run_id, "0", key="b")])
    with monkeypatch.context() as patched:
        patched.delattr(Appending, "store")
        answers = await streams.append_many(
            env,
            [
                own(run_id, '"é\\"\\\\,{}"', "2"),
                Append(run_id, "b", ("1",), writer='backend, {"x"}'),
                own(run_id, "2", key="b", end=True),
                own(run_id, "3"),
            ],
        )
    assert answers == [AppendAnswer(*at) for at in [(1, 3), (1, 2), (2, 3), (3, 4)]]
    assert await bodies(streams, env, run_id) == ["0", '"é\\"\\\\,{}"', "2", "3"]
    page = await streams.read(env, run_id, "b")
    assert [(c.execution, c.attempt, c.writer) for c in page.chunks] == [
        (1, 1, None),
        (None, None, 'backend, {"x"}'),
        (1, 1, None),
    ]
    assert page.stream is not None and page.stream.ended_execution == 1
    assert page.stream.bytes == 3
    # The end is taken back.
    await streams.append(env, own(run_id, "4", key="b"))
    assert await bodies(streams, env, run_id, "b") == ["0", "1", "2", "4"]


async def test_what_others_did_meanwhile_is_found_out_under_the_locks(
    streams: Streams, database: Database, database_url: str, env: int
) -> None:
    run_id = await insert_run(database, env)
    async with running(Streams(database, Doorbell(database_url))) as others:
        for n in range(0, 10, 2):
            assert await streams.append(env, own(run_id, str(n))) == AppendAnswer(n, n + 1)
            assert await others.append(env, own(run_id, str(n + 1))) == AppendAnswer(n + 1, n + 2)
    assert await bodies(streams, env, run_id) == [str(n) for n in range(10)]
    await streams.append(env, own(run_id, "10"))
    await rows(database, "update runwire.runs set execution = 2 where id = %s returning id", run_id)
    with pytest.raises(FencedError):
        await streams.append(env, own(run_id, "11"))
    await streams.append(env, own(run_id, "11", execution=2))
    with pytest.raises(FencedError):
        await streams.append(env, own(run_id, "12"))
    assert await bodies(streams, env, run_id) == [str(n) for n in range(12)]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of flushes that were begun."""
    numbers: list[int] = []
    begin = KnownAppends.begin

    def spied(known: KnownAppends, number: int, env: int, appends: Sequence[Append]) -> object:
        promise = begin(known, number, env, appends)
        if promise is not None:
            numbers.append(number)
        return promise

    monkeypatch.setattr(KnownAppends, "begin", spied)
    return numbers


def _has_grown(begun: list[int], before: int) -> bool:
    return len(begun) > before


async def begin(
    streams: Streams, begun: list[int], env: int, *appends: Append
) -> list[asyncio.Future[Any]]:
    """Begin each append as a flush of its own."""
    promises: list[asyncio.Future[Any]] = []
    for append in appends:
        before = len(begun)
        promises.append(await streams.put(env, append))
        await until(partial(_has_grown, begun, before))
    return promises


async def test_behind_a_flush_that_is_refused_nothing_is_stored_out_of_order(
    streams: Streams, database: Database, database_url: str, env: int, begun: list[int]
) -> None:
    run_id = await insert_run(database, env)
    await streams.append_many(env, [own(run_id, "0"), own(run_id, "0", key="b")])
    async with running(Streams(database, Doorbell(database_url))) as others:
        await others.append(env, own(run_id, "1"))
    promises = await begin(
        streams, begun, env, own(run_id, "2"), own(run_id, "1", key="b", end=True)
    )
    answers = [await streams.settled(promise) for promise in promises]
    assert answers == [AppendAnswer(2, 3), AppendAnswer(1, 2)]
    assert await bodies(streams, env, run_id) == ["0", "1", "2"]
    assert await bodies(streams, env, run_id, "b") == ["0", "1"]
    (moments,) = await rows(
        database,
        "select max(created_at) filter (where body = '2') as refused,"
        " max(created_at) filter (where body = '1' and writer is null) as behind"
        " from runwire.stream_chunks where stream_id in"
        " (select id from runwire.streams where run_id = %s)",
        run_id,
    )
    assert moments["refused"] < moments["behind"]


@pytest.mark.parametrize("stored", [0, 1, 2])
async def test_flushes_without_an_answer_are_stored_once(
    database: Database, database_url: str, env: int, begun: list[int], stored: int
) -> None:
    run_id = await insert_run(database, env)

    async def are_stored() -> bool:
        (found,) = await rows(
            database,
            "select coalesce(sum(next_seq), 0)::int as n from runwire.streams where run_id = %s",
            run_id,
        )
        return bool(found["n"] == 2 + stored)

    async with (
        fault_proxy(database_url) as proxy,
        opened_database(proxy.dsn(database_url)) as behind,
        running(Streams(behind, Doorbell(database_url))) as streams,
    ):
        await streams.append_many(env, [own(run_id, "0"), own(run_id, "0", key="b")])
        appends = [own(run_id, "1"), own(run_id, "1", key="b")]
        proxy.to_client.delay = 60.0
        promises = await begin(streams, begun, env, *appends[:stored])
        await until_async(are_stored)
        proxy.to_server.delay = 60.0
        promises += await begin(streams, begun, env, *appends[stored:])
        proxy.to_client.delay = proxy.to_server.delay = 0.0
        proxy.cut()
        answers = [await streams.settled(promise) for promise in promises]
        assert answers == [AppendAnswer(1, 2)] * 2
        assert await streams.append(env, own(run_id, "2")) == AppendAnswer(2, 3)
        assert await bodies(streams, env, run_id) == ["0", "1", "2"]
        assert await bodies(streams, env, run_id, "b") == ["0", "1"]


async def test_flushes_that_get_through_after_they_were_given_up_double_nothing(
    database: Database, database_url: str, env: int, begun: list[int]
) -> None:
    """Postgres executes what it was sent, also when nobody is there any more."""
    run_id = await insert_run(database, env)
    async with (
        fault_proxy(database_url) as proxy,
        opened_database(proxy.dsn(database_url)) as behind,
        running(Streams(behind, Doorbell(database_url))) as streams,
    ):
        await streams.append_many(env, [own(run_id, "0"), own(run_id, "0", key="b")])
        async with database.transaction() as tx:
            await tx.connection.execute("select from runwire.writers for update")
            appends = [own(run_id, "1"), own(run_id, "1", key="b")]
            promises = await begin(streams, begun, env, *appends)
            proxy.cut()
        answers = [await streams.settled(promise) for promise in promises]
        assert answers == [AppendAnswer(1, 2)] * 2
        assert await streams.append(env, own(run_id, "2")) == AppendAnswer(2, 3)
        assert await bodies(streams, env, run_id) == ["0", "1", "2"]
        assert await bodies(streams, env, run_id, "b") == ["0", "1"]


@pytest.mark.parametrize("sent", [True, False])
async def test_a_flush_that_may_not_have_been_sent_is_stored_once(
    streams: Streams, database: Database, env: int, monkeypatch: pytest.MonkeyPatch, sent: bool
) -> None:
    run_id = await insert_run(database, env)
    await streams.append(env, own(run_id, "0"))
    flush = WatchedConnection.flush

    def fail(watched: WatchedConnection) -> None:
        monkeypatch.undo()
        if sent:
            flush(watched)
        raise psycopg.OperationalError

    monkeypatch.setattr(WatchedConnection, "flush", fail)
    assert await streams.append(env, own(run_id, "1")) == AppendAnswer(1, 2)
    assert await streams.append(env, own(run_id, "2")) == AppendAnswer(2, 3)
    assert await bodies(streams, env, run_id) == ["0", "1", "2"]


async def test_a_bell_that_fails_behind_its_commit_costs_and_doubles_nothing(
    streams: Streams, database: Database, env: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await insert_run(database, env)
    await streams.append(env, own(run_id, "0"))

    def too_long(*_: object) -> str:
        return "x" * 8000

    with monkeypatch.context() as patched:
        patched.setattr(Doorbell, "behind_a_commit", too_long)
        assert await streams.append(env, own(run_id, "1")) == AppendAnswer(1, 2)
    assert await streams.append(env, own(run_id, "2")) == AppendAnswer(2, 3)
    assert await bodies(streams, env, run_id) == ["0", "1", "2"]


@pytest.mark.parametrize("after", [True, False], ids=["reply lost", "commit lost"])
async def test_a_commit_without_an_answer_is_not_written_twice(
    database: Database, database_url: str, env: int, after: bool
) -> None:
    run_id = await insert_run(database, env)
    async with (
        fault_proxy(database_url) as proxy,
        opened_database(proxy.dsn(database_url)) as behind,
        running(Streams(behind, Doorbell(database_url))) as streams,
    ):
        for n in range(5):
            proxy.cut_next_commit(after=after)
            answers = await streams.append_many(
                env, [own(run_id, f"{n}a"), own(run_id, "x", execution=9), own(run_id, f"{n}b")]
            )
            assert answers[0] == AppendAnswer(2 * n, 2 * n + 1)
            assert isinstance(answers[1], FencedError) and answers[1].run_id == run_id
            assert answers[2] == AppendAnswer(2 * n + 1, 2 * n + 2)
        assert proxy.commits_cut == 5
        assert await bodies(streams, env, run_id) == [f"{n}{x}" for n in range(5) for x in "ab"]


async def test_a_killed_connection_costs_no_chunk_and_doubles_none(
    streams: Streams, database: Database, env: int
) -> None:
    run_id = await insert_run(database, env)
    written = 0

    async def write(key: str) -> None:
        nonlocal written
        for n in range(40):
            appended = await streams.append(env, own(run_id, str(n), key=key))
            assert appended == AppendAnswer(n, n + 1)
            written += 1

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for key in "abc":
                tasks.start_soon(write, key)
            while written < 120:
                await rows(
                    database,
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid()",
                )
                await anyio.sleep(0.03)  # some appends in between
    for key in "abc":
        assert await bodies(streams, env, run_id, key) == [str(n) for n in range(40)]
