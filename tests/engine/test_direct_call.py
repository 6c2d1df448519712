"""A statement on a connection of its own: what comes back, and what is left when it breaks."""

import asyncio
from collections.abc import AsyncGenerator

import anyio
import psycopg
import pytest
from psycopg.pq.abc import PGconn

from runwire_engine.database import Database
from runwire_engine.direct_call import DirectCall, DirectCalls
from runwire_engine.errors import (
    CommitUnknownError,
    DatabaseUnavailableError,
    DataRefusedError,
    LockHeldError,
)
from runwire_engine.statements import by_position
from runwire_engine.watched_connection import Owner, WatchedConnection
from tests.support.faultproxy import FaultProxy, fault_proxy
from tests.support.processes import until_async

pytestmark = pytest.mark.anyio

_WAITING = "select from pg_stat_activity where wait_event = 'PgSleep' and datname = %s"


@pytest.fixture
async def call(database: Database) -> AsyncGenerator[DirectCall]:
    made = DirectCall(database, "testing.echo")
    yield made
    made.close()


async def echoed(call: DirectCall, text: str | None, *, seconds: int = 0) -> list[object]:
    given = {"text": text, "divisor": 1, "seconds": seconds}
    (row,) = await call.all("testing.echo", given)
    return list(row.values())


async def is_asleep(database: Database) -> bool:
    async with database.transaction() as tx:
        name = tx.connection.info.dbname
        cursor = await tx.connection.execute(_WAITING, (name,))
        return bool(await cursor.fetchall())


def test_a_parameter_has_one_place_however_often_it_is_named() -> None:
    text, words = by_position("testing.echo")
    assert words == ("text", "divisor", "seconds")
    assert text.count("$1") == 2
    assert "%" not in text


@pytest.mark.parametrize("text", ["", "a", "ä\n'\"\\{}", None, "x" * 20_000_000])
async def test_it_returns_what_it_was_given(call: DirectCall, text: str | None) -> None:
    for _ in range(2):
        assert await echoed(call, text) == [text, None if text is None else len(text), 1]


async def test_its_rows_are_those_of_a_cursor(database: Database) -> None:
    calls = DirectCalls(database, ["testing.echo"])
    given = {"text": "a", "divisor": 1, "seconds": 0}
    for _ in range(2):
        assert await calls.all("testing.echo", given) == await database.all("testing.echo", given)
    calls.close()


async def test_statements_that_share_a_connection_are_called_behind_each_other(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = DirectCalls(database, ["testing.echo", "claims.lost"])
    lost = {"environment_id": 1, "worker_id": "none", "since": None}
    assert await calls.all("claims.lost", lost) == []

    async def elsewhere(*_: object) -> None:
        raise AssertionError("it took another connection")

    monkeypatch.setattr(database, "all", elsewhere)
    told: list[str] = []

    async def tell(text: str) -> None:
        (row,) = await calls.all("testing.echo", {"text": text, "divisor": 1, "seconds": 0})
        told.append(row["text"])

    async with anyio.create_task_group() as tasks:
        for text in ("first", "second", "third"):
            tasks.start_soon(tell, text)
            tasks.start_soon(calls.all, "claims.lost", lost)
    assert told == ["first", "second", "third"]
    calls.close()


async def test_what_is_called_already_goes_another_way_meanwhile(database: Database) -> None:
    calls = DirectCalls(database, ["testing.echo"])
    told: list[str] = []

    async def tell(text: str, seconds: int) -> None:
        (row,) = await calls.all("testing.echo", {"text": text, "divisor": 1, "seconds": seconds})
        told.append(row["text"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tell, "slow", 1)
        await until_async(lambda: is_asleep(database))
        # So that it is seen to take its time: behind a quick one, one waits.
        await anyio.sleep(0.05)
        await tell("quick", 0)
    assert told == ["quick", "slow"]
    calls.close()


async def test_behind_a_pooler_nothing_is_prepared(
    call: DirectCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Database, "is_pooled", True)
    for text in ("a", "b"):
        assert (await echoed(call, text))[0] == text


async def test_a_value_that_postgres_cannot_hold_is_refused_and_leaves_it_sound(
    call: DirectCall,
) -> None:
    for text in ("a\0b", "\ud800"):
        with pytest.raises(DataRefusedError):
            await echoed(call, text)
    assert (await echoed(call, "a"))[0] == "a"


async def test_a_statement_that_fails_says_why_and_leaves_the_connection(call: DirectCall) -> None:
    assert (await echoed(call, "a"))[0] == "a"
    with pytest.raises(DataRefusedError, match="22012"):
        await call.all("testing.echo", {"text": "a", "divisor": 0, "seconds": 0})
    assert (await echoed(call, "b"))[0] == "b"


async def test_what_could_not_be_prepared_is_prepared_by_the_next_call(
    database_url: str, database: Database
) -> None:
    hasty = Database(database_url, lock_timeout="50ms")
    calls = DirectCalls(hasty, ["testing.finished"])
    given = {"environment_id": 1, "task": "none"}
    async with database.transaction() as tx:
        await tx.connection.execute("lock table runwire.runs in access exclusive mode")
        with pytest.raises(LockHeldError):
            await calls.all("testing.finished", given)
    assert await calls.all("testing.finished", given) == []
    calls.close()


async def test_a_column_that_is_added_meanwhile_fails_no_call(database: Database) -> None:
    calls = DirectCalls(database, ["claims.lost"])
    given = {"environment_id": 1, "worker_id": "none", "since": None}
    assert await calls.all("claims.lost", given) == []
    async with database.transaction() as tx:
        await tx.connection.execute("alter table runwire.runs add column later integer")
    for _ in range(3):
        assert await calls.all("claims.lost", given) == []
    calls.close()


async def test_a_connection_that_breaks_meanwhile_leaves_it_open_whether_it_happened(
    database_url: str, database: Database
) -> None:
    async with fault_proxy(database_url) as proxy:
        behind = Database(proxy.dsn(database_url), statement_timeout="60s")
        call = DirectCall(behind, "testing.echo")
        # Nothing is under way while it connects, nor while it is idle.
        await echoed(call, "a")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cut_when_asleep, database, proxy)
            with pytest.raises(CommitUnknownError):
                await echoed(call, "b", seconds=30)
        assert (await echoed(call, "c"))[0] == "c"
        # One that breaks while nothing is under way is replaced, and no call hears of it.
        proxy.cut()
        await until_async(lambda: _is_closed(call))
        assert (await echoed(call, "d"))[0] == "d"
    await until_async(lambda: _is_closed(call))
    with pytest.raises(DatabaseUnavailableError) as refused:
        await echoed(call, "e")
    assert not isinstance(refused.value, CommitUnknownError)


async def test_an_answer_that_the_loop_does_not_tell_of_is_read_all_the_same(
    call: DirectCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As uvloop does not of a socket with an error: the other end died with something unread."""
    watched: list[WatchedConnection] = []

    def watch(pgconn: PGconn, owner: Owner) -> WatchedConnection:
        watched.append(WatchedConnection(pgconn, owner))
        return watched[0]

    monkeypatch.setattr("runwire_engine.direct_call.WatchedConnection", watch)
    await echoed(call, "a")
    asyncio.get_running_loop().remove_reader(watched[0].socket)
    with anyio.fail_after(30):
        assert (await echoed(call, "b"))[0] == "b"


async def test_calls_that_are_begun_behind_each_other_fail_for_themselves(
    call: DirectCall,
) -> None:
    await call.connect()
    promises = [
        call.begin("testing.echo", {"text": str(n), "divisor": n - 3, "seconds": 0})
        for n in range(6)
    ]
    outcomes = await asyncio.gather(*promises, return_exceptions=True)
    assert isinstance(outcomes.pop(3), psycopg.errors.DivisionByZero)
    texts = [out.get_value(0, 0) for out in outcomes if not isinstance(out, BaseException)]
    assert texts == [b"0", b"1", b"2", b"4", b"5"]
    promises = [
        call.begin("testing.echo", {"text": "x" * 1_000_000, "divisor": 1, "seconds": 0})
        for _ in range(3)
    ]
    call.close()
    assert all(isinstance(promise.exception(), CommitUnknownError) for promise in promises)


async def test_a_call_that_is_given_up_is_in_nobodys_way(
    database: Database, call: DirectCall
) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(echoed, call, "a")
        await until_async(lambda: _is_open(call))
        tasks.cancel_scope.cancel()
    assert (await echoed(call, "b"))[0] == "b"


async def _cut_when_asleep(database: Database, proxy: FaultProxy) -> None:
    await until_async(lambda: is_asleep(database))
    proxy.cut()


async def _is_closed(call: DirectCall) -> bool:
    return not call.is_connected


async def _is_open(call: DirectCall) -> bool:
    return call.is_connected
