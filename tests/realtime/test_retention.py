"""What subscribers and callers are told of history that has ended."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier, Literal

from runwire.wire import JsonObject
from runwire_engine.id_format import day_of
from runwire_engine.ids import new_run_id
from runwire_engine.retention import Retention
from runwire_realtime.limits import HubLimits
from tests.support.engines import query
from tests.support.hub_world import World
from tests.support.postgres import opened_database
from tests.support.sockets import Socket, chunks_of, of_type, open_socket
from tests.support.stage import Stage

pytestmark = pytest.mark.anyio

HISTORY, RUNS = timedelta(days=7), timedelta(days=30)
BIG = "x" * 500_000


async def pass_days(stage: Stage, days: int) -> None:
    """End what ends within so many days; for the server, which is connected, it is still today."""
    dsn = stage.engine.database.dsn
    then = datetime.now(UTC) + timedelta(days=days)
    await _set_date(dsn, then.isoformat())
    try:
        async with opened_database(dsn) as later:
            retention = Retention(later, history=HISTORY, runs=RUNS)
            await retention.once()
            with anyio.fail_after(60):
                while await query(
                    later,
                    "select bucket from runwire.closed_days where {}".format("dropped_at is null"),
                ):
                    await retention.once()
            await retention.once()
    finally:
        await _set_date(dsn, "")


async def _set_date(dsn: str, now: str) -> None:
    name = Identifier(str(conninfo_to_dict(dsn)["dbname"]))
    async with await AsyncConnection.connect(dsn, autocommit=True) as admin:
        await admin.execute(
            SQL("alter database {} set runwire.now = {}").format(name, Literal(now))
        )


async def finished(stage: Stage, *tags: str, chunks: Sequence[object] = ("a", "b", "c")) -> str:
    run_id = await stage.trigger(*tags)
    execution = await stage.start(run_id)
    await stage.append(run_id, execution, *chunks)
    await stage.complete(run_id, execution)
    return run_id


async def cursor_of(socket: Socket, sub: str) -> str:
    return str((await socket.until("cursor", sub=sub))[-1]["cursor"])


def said(messages: Sequence[JsonObject]) -> list[str]:
    kinds = [m for m in messages if m["type"] not in {"ready", "state", "hb", "cursor"}]
    return [f"{m['type']} {m['reason']}" if m["type"] == "gap" else m["type"] for m in kinds]


@pytest.mark.parametrize("mode", ["latest", "every"])
@pytest.mark.parametrize("to", [{"tags": ["t"]}, {"runs": {}}])
async def test_a_feed_whose_cursor_is_older_than_history_starts_over(
    stage: Stage, mode: str, to: JsonObject
) -> None:
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", to, mode=mode)
        before = await cursor_of(socket, "a")
    run_id = await finished(stage, "t")
    await pass_days(stage, 9)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("b", to, mode=mode, cursor=before)
        messages = await socket.until("live")
        assert said(messages) == ["gap retention", "snapshot", "live"]
        assert [run["id"] for run in messages[1]["runs"]] == [run_id]


async def test_a_feed_whose_cursor_is_younger_than_what_was_dropped_goes_on(stage: Stage) -> None:
    await finished(stage, "t")
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"tags": ["t"]}, mode="every")
        after = await cursor_of(socket, "a")
    await pass_days(stage, 9)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("b", {"tags": ["t"]}, mode="every", cursor=after)
        assert said(await socket.until("live")) == ["live"]


async def test_a_batch_whose_history_ended_starts_over_and_is_done(stage: Stage) -> None:
    batch = await stage.engine.batches.create(stage.env, 1)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"batch": batch.id})
        before = await cursor_of(socket, "a")
    run_id = await stage.trigger()
    execution = await stage.start(run_id)
    await stage.complete(run_id, execution)
    await query(
        stage.engine.database,
        "with i as (insert into runwire.batch_items values (%s, %s, 0, %s))"
        " update runwire.batches set sealed = true",
        stage.env,
        batch.id,
        run_id,
    )
    await pass_days(stage, 9)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("b", {"batch": batch.id}, cursor=before)
        assert said(await socket.until("done")) == ["gap retention", "snapshot", "live", "done"]


async def test_a_run_resumed_in_every_without_its_history_starts_over(stage: Stage) -> None:
    run_id = await stage.trigger()
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, mode="every")
        before = (await socket.until("live"))[0]["cursor"]
    execution = await stage.start(run_id)
    await stage.complete(run_id, execution)
    await pass_days(stage, 9)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("b", {"run": run_id}, mode="every", cursor=before)
        messages = await socket.until("done")
        assert said(messages) == ["gap retention", "snapshot", "live", "done"]
        assert messages[1]["runs"][0]["status"] == "COMPLETED"
        await socket.subscribe("c", {"run": run_id}, cursor=before)
        assert said(await socket.until("done")) == ["run", "live", "done"]


@pytest.mark.parametrize("start", ["start", 1, -2])
@pytest.mark.parametrize("form", ["chunks", "text"])
async def test_a_stream_whose_chunks_are_gone_says_where_it_goes_on(
    stage: Stage, start: Any, form: str
) -> None:
    run_id = await finished(stage)
    await pass_days(stage, 9)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, streams={"*": {"from": start, "as": form}})
        messages = await socket.until("done")
    [gap] = of_type(messages, "gap")
    assert (
        gap | {"sub": "a", "reason": "retention", "run": run_id, "stream": "text", "next": 3} == gap
    )
    assert chunks_of(messages, "text") == []
    [eof] = of_type(messages, "eof")
    assert (eof["next"], eof["reason"]) == (3, "completed")
    assert said(messages)[-1] == "done"


async def test_a_stream_read_from_its_end_has_no_gap(stage: Stage) -> None:
    run_id = await finished(stage)
    await pass_days(stage, 9)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, streams={"text": {"from": 3}})
        messages = await socket.until("done")
    assert of_type(messages, "gap") == [] and of_type(messages, "eof")[0]["next"] == 3


async def test_one_who_reads_while_the_day_is_dropped_is_told_and_gets_to_the_end(
    stage: Stage,
) -> None:
    """A socket that does not drain stands in the middle of a stream when its chunks go."""
    run_id = await stage.trigger("t")
    execution = await stage.start(run_id)
    chunks = [f"{number}{BIG}" for number in range(30)]
    for chunk in chunks:
        await stage.append(run_id, execution, chunk)
    async with open_socket(stage.url, stage.key, max_queue=1) as socket:
        await socket.subscribe("a", {"run": run_id}, streams={"*": {}})
        await socket.subscribe("b", {"tags": ["t"]}, mode="every")
        await socket.until("chunks")
        await stage.complete(run_id, execution)
        await pass_days(stage, 9)
        messages = [*socket.messages, *await socket.until("done", sub="a")]
    [gap] = of_type(messages, "gap")
    assert (gap["reason"], gap["stream"]) == ("retention", "text")
    seqs = [
        s
        for m in of_type(socket.messages, "chunks")
        for s in range(m["seq"], m["seq"] + len(m["data"]))
    ]
    before = [seq for seq in seqs if seq < gap["next"]]
    after = [seq for seq in seqs if seq >= gap["next"]]
    assert before == list(range(len(before))) and len(before) < gap["next"]
    assert after == list(range(gap["next"], 30))
    assert of_type(messages, "eof")[0]["next"] == 30


# Runs that are deleted


async def test_a_run_that_was_deleted_is_gone_and_one_that_never_was_is_not_found(
    stage: Stage,
) -> None:
    run_id = await finished(stage, "t")
    await pass_days(stage, 40)
    never = "run_" + "0" * 25  # of 1970
    assert day_of(never) is not None
    async with open_socket(stage.url, stage.key) as socket, stage.server.client() as http:
        await until_emptied(stage)
        for id, code in (
            (run_id, "gone"),
            (never, "not_found"),
            ("run_of_somebody", "not_found"),
        ):
            await socket.subscribe(id, {"run": id})
            assert (await socket.until("error", sub=id))[-1]["code"] == code, id
            assert (await http.get(f"/api/v3/runs/{id}")).status_code == 404
        # Whoever waits for a run hears the same, when the time is over.
        await socket.subscribe("w", {"run": run_id}, **{"await": 0.2})
        assert (await socket.until("error", sub="w"))[-1]["code"] == "gone"


async def until_emptied(stage: Stage) -> None:
    """Wait until the server knows which days are empty: it looks once a second."""
    hub = stage.server.services.realtime.hub
    with anyio.fail_after(60):
        while not hub.is_past(new_run_id()):
            await anyio.sleep(0.02)


async def test_feeds_hear_that_runs_were_deleted(stage: Stage) -> None:
    run_id = await finished(stage, "t")
    kept = await stage.trigger("t")
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("tag", {"tags": ["t"]})
        await socket.until("live")
        await socket.subscribe("runs", {"runs": {}})
        await socket.until("live")
        await stage.engine.runs.cancel(stage.env, kept)
        await pass_days(stage, 40)
        removed: set[tuple[str, str]] = set()
        while len(removed) < 4:
            message = (await socket.until("removed"))[-1]
            removed.add((message["sub"], message["run"]))
        assert removed == {(sub, id) for sub in ("tag", "runs") for id in (run_id, kept)}


async def test_one_who_follows_a_batch_that_is_deleted_is_told(stage: Stage) -> None:
    batch = await stage.engine.batches.create(stage.env, 2)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"batch": batch.id})
        await socket.until("live")
        await query(stage.engine.database, "delete from runwire.batches")
        assert (await socket.until("error", sub="a"))[-1]["code"] == "gone"


def test_one_who_waits_for_the_row_of_a_run_that_is_deleted_hears_that_it_is_gone() -> None:
    world = World(HubLimits())
    world.create("run_a0000000", ("x",))
    client = world.connect()
    client.subscribe("run", {"run": "run_a0000000"})
    client.subscribe("tag", {"tags": ["x"]})
    world.settle()
    del world.rows["run_a0000000"]
    client.send({"type": "refetch", "run": "run_a0000000"})
    world.settle()
    assert [(m["sub"], m["code"]) for m in client.errors] == [("run", "gone")]
    assert [m["sub"] for m in client.messages if m["type"] == "removed"] == ["tag"]
    assert not world.hub.runs


def test_a_feed_in_every_that_lags_behind_history_starts_over() -> None:
    """Also a live one: its socket took nothing while the run ended and its day was dropped."""
    world = World(HubLimits(steps_kept=2, inbound_burst=1000))
    world.create("run_a0000000", ("x",))
    client = world.connect()
    client.subscribe("tag", {"tags": ["x"]}, mode="every")
    world.settle()
    world.status("run_a0000000", "EXECUTING")
    for number in range(6):
        world.change("run_a0000000", {}, [{"type": "set", "key": "n", "value": number}])
    world.status("run_a0000000", "COMPLETED")
    world.tail()
    world.history["run_a0000000"].clear()
    world.settle()
    kinds = [m["type"] for m in client.messages]
    assert [m["reason"] for m in client.messages if m["type"] == "gap"] == ["retention"]
    assert kinds.index("gap") < len(kinds) - 1 - kinds[::-1].index("snapshot")
    assert client.views["run_a0000000"]["status"] == "COMPLETED"
    assert "patch" not in kinds, "nothing of it is told in part"


# HTTP


async def test_http_says_that_history_has_ended(stage: Stage) -> None:
    run_id = await finished(stage)
    async with stage.server.client() as http:
        path = f"/api/v1/runs/{run_id}"
        page = (await http.get(f"{path}/streams/text")).json()
        assert "gap" not in page and len(page["chunks"]) == 3
        assert "gap" not in (await http.get(f"{path}/streams/text?from=3")).json()
        assert "gap" not in (await http.get(f"{path}/events")).json()
        await pass_days(stage, 9)
        page = (await http.get(f"{path}/streams/text?from=1")).json()
        assert page["chunks"] == [] and page["eof"] == "completed"
        assert page["gap"] == {"reason": "retention", "next": 3}
        assert "gap" not in (await http.get(f"{path}/streams/text?from=3")).json()
        timeline = (await http.get(f"{path}/events")).json()
        assert timeline == {"gap": {"reason": "retention"}, "data": []}
        assert (await http.get(f"/api/v3/runs/{run_id}")).json()["status"] == "COMPLETED"
