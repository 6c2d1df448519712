"""The websocket as a client sees it: a real server, a real database, raw messages."""

import time
from dataclasses import replace
from typing import Any

import anyio
import orjson
import pytest
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from runwire.wire import Json, JsonObject
from runwire_engine.changes import Place
from runwire_engine.following import Following
from runwire_engine.outcomes import Failed
from runwire_engine.wanted_runs import NewRun
from runwire_realtime import realtime
from tests.support.engines import query
from tests.support.sockets import Socket, chunks_of, of_type, open_socket, until_true
from tests.support.stage import Stage, open_stage

pytestmark = pytest.mark.anyio


# Following a run


async def test_a_run_is_told_from_snapshot_to_done_in_order(stage: Stage) -> None:
    run_id = await stage.trigger("t")
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, streams={"*": {}})
        begin = await socket.until("live")
        snapshot = of_type(begin, "snapshot")[0]
        assert snapshot["more"] is False and snapshot["cursor"].endswith(".1")
        assert snapshot["runs"][0]["payload"] == {"topic": "sea"}
        execution = await stage.start(run_id)
        await stage.set_metadata(run_id, execution, step="one")
        await stage.append(run_id, execution, "to", "kens")
        await stage.append(run_id, execution, "!")
        await stage.complete(run_id, execution)
        rest = await socket.until("done")
    assert chunks_of(rest, "text") == ["to", "kens", "!"]
    kinds = [message["type"] for message in rest if message["type"] != "cursor"]
    final = rest[kinds.index("eof") :]
    assert kinds[-3:] == ["eof", "patch", "done"], final
    assert of_type(rest, "eof")[0]["next"] == 3
    document = applied(snapshot["runs"][0], rest)
    assert (document["status"], document["output"]) == ("COMPLETED", "done")
    assert document["realtimeStreams"] == ["text"]


def applied(document: JsonObject, messages: list[JsonObject]) -> JsonObject:
    """Return the run after patches, each of which must fit."""
    for message in messages:
        if message["type"] == "run":
            document = message["run"]
        elif message["type"] == "patch":
            assert message["from"] == document["revision"]
            document = {**document, **message["set"], "revision": message["revision"]}
    return document


async def test_a_late_reader_gets_the_text_so_far_in_one_piece(stage: Stage) -> None:
    run_id = await stage.trigger()
    execution = await stage.start(run_id)
    await stage.append(run_id, execution, *(f'"{n}" ' for n in range(300)))
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, streams={"text": {"as": "text"}})
        text = (await socket.until("text"))[-1]
        assert text["value"] == "".join(f'"{n}" ' for n in range(300)) and text["upTo"] == 300
        await stage.append(run_id, execution, "live")
        assert (await socket.until("chunks"))[-1]["data"] == ["live"]


async def test_the_text_of_a_hundred_thousand_chunks_comes_in_one_piece(stage: Stage) -> None:
    run_id = await stage.trigger()
    execution = await stage.start(run_id)
    words = [f"{number % 997} \u00e9" for number in range(100_000)]
    for at in range(0, len(words), 5_000):
        await stage.append(run_id, execution, *words[at : at + 5_000])
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, streams={"text": {"as": "text"}})
        text = (await socket.until("text"))[-1]
        assert (text["value"], text["upTo"]) == ("".join(words), len(words))
        await stage.append(run_id, execution, "live")
        live = (await socket.until("chunks"))[-1]
        assert (live["seq"], live["data"]) == (len(words), ["live"])


async def test_a_text_ends_where_a_message_does_or_where_chunks_are_no_strings(
    stage: Stage,
) -> None:
    run_id = await stage.trigger()
    execution = await stage.start(run_id)
    long: list[Json] = [f"{number:03} " + "x" * 12_000 for number in range(120)]
    for at in range(0, len(long), 40):
        await stage.append(run_id, execution, *long[at : at + 40], key="long")
    mixed: list[Json] = ["y" * 30_000] * 10 + [{"no": "text"}] + ["z"] * 10
    await stage.append(run_id, execution, *mixed, key="mixed")
    await stage.append(run_id, execution, 1, *["y" * 30_000] * 10, key="none")
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, streams={"*": {"as": "text"}})
        for stream, all_of_it in (("long", long), ("mixed", mixed)):
            text = await piece(socket, stream)
            up_to = text["upTo"]
            assert text["value"] == "".join(all_of_it[:up_to]) and up_to < len(all_of_it)
            assert stream == "mixed" or len(text["value"]) > 1_000_000
            await until_chunks(socket, stream, all_of_it[up_to:])
        await until_chunks(socket, "none", [1, *["y" * 30_000] * 10])
        assert max(len(orjson.dumps(message)) for message in socket.messages) <= 1024 * 1024
        assert len(of_type(socket.messages, "text")) == 2


async def piece(socket: Socket, stream: str) -> JsonObject:
    """Return the text of a stream."""
    while True:
        for message in of_type(socket.messages, "text"):
            if message["stream"] == stream:
                return message
        await socket.next()


async def test_a_final_run_is_told_after_its_streams_and_ends(stage: Stage) -> None:
    run_id = await stage.trigger()
    execution = await stage.start(run_id)
    await stage.append(run_id, execution, 1, 2, 3)
    await stage.complete(run_id, execution)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, streams={"*": {}, "never": {}})
        messages = await socket.until("done")
        kinds = [message["type"] for message in messages]
        assert kinds[-3:] == ["snapshot", "live", "done"]
        assert {m["stream"]: m["next"] for m in of_type(messages, "eof")} == {"text": 3, "never": 0}
        assert chunks_of(messages, "text") == [1, 2, 3]


async def test_streams_begin_where_they_are_asked_to(stage: Stage) -> None:
    run_id = await stage.trigger()
    execution = await stage.start(run_id)
    await stage.append(run_id, execution, *range(10))
    for start, expected in ((-3, [7, 8, 9]), (4, [4, 5, 6, 7, 8, 9])):
        async with open_socket(stage.url, stage.key) as socket:
            await socket.subscribe("a", {"run": run_id}, streams={"text": {"from": start}})
            messages = await socket.until("chunks", data=expected)
            assert chunks_of(messages, "text") == expected
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, streams={"text": {"from": "latest"}})
        # Where that is, so that a client can come back to it before anything was written.
        assert (await socket.until("chunks"))[-1]["seq"] == 10
        await stage.append(run_id, execution, "new")
        assert (await socket.until("chunks"))[-1]["data"] == ["new"]


async def test_each_attempt_is_announced_where_it_begins(stage: Stage) -> None:
    run_id = await stage.trigger()
    first = await stage.start(run_id)
    await stage.append(run_id, first, "a", "b")
    error = '{"name":"E","message":"m","stackTrace":"secret path"}'
    await stage.engine.outcomes.finish(stage.env, Failed(run_id, first, error, retry_in=0.0))
    await stage.engine.claims.promote_due(stage.env)
    second = await stage.start(run_id)
    await stage.append(run_id, second, "c")
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, streams={"text": {"from": 1}})
        messages = await socket.until("chunks", seq=2)
        assert [(m["attempt"], m["fromSeq"]) for m in of_type(messages, "attempt")] == [(2, 2)]
        assert [(m["seq"], m["attempt"]) for m in of_type(messages, "chunks")] == [(1, 1), (2, 2)]


async def test_every_revision_is_told_where_it_is_asked_for(stage: Stage) -> None:
    run_id = await stage.trigger()
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, mode="every")
        await socket.until("live")
        execution = await stage.start(run_id)
        for number in range(20):
            await stage.set_metadata(run_id, execution, n=number)
        await stage.complete(run_id, execution)
        messages = await socket.until("done")
    revisions = [m["revision"] for m in of_type(messages, "patch")]
    assert revisions == list(range(2, 24))


async def test_large_values_reach_the_run_and_stand_by_reference_in_feeds(stage: Stage) -> None:
    run_id = await stage.trigger("big")
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("tag", {"tags": ["big"]})
        await socket.until("live")
        execution = await stage.start(run_id)
        await stage.complete(run_id, execution, orjson.dumps("o" * 50_000).decode())
        (snapshot,) = of_type(socket.messages, "snapshot")
        (document,) = snapshot["runs"]
        while document["status"] != "COMPLETED":
            document = applied(document, [await socket.next()])
        assert document["output"] == {"$large": {"bytes": 50_002}}
        await socket.subscribe("run", {"run": run_id})
        snapshot = (await socket.until("snapshot"))[-1]
        assert snapshot["runs"][0]["output"] == "o" * 50_000


async def test_fields_narrow_what_is_sent(stage: Stage) -> None:
    run_id = await stage.trigger("t")
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, fields=["tags"])
        snapshot = (await socket.until("snapshot"))[-1]
        always = {"id", "taskIdentifier", "status", "revision", "createdAt", "updatedAt"}
        assert set(snapshot["runs"][0]) == always | {"tags"}


# Waiting, resuming


async def test_an_unknown_run_is_refused_at_once_or_waited_for(stage: Stage) -> None:
    unknown = "run_" + "0" * 25
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": unknown})
        assert (await socket.next())["code"] == "not_found"
        await socket.subscribe("b", {"run": unknown}, **{"await": 0.3})
        error = await socket.next()
        assert (error["sub"], error["code"]) == ("b", "not_found")
        await socket.subscribe("c", {"run": unknown}, **{"await": 20})
        await until_true(lambda: stage.server.services.realtime.statistics().runs == 1)
        await query(
            stage.engine.database,
            """
            with made as (
                insert into runwire.runs (environment_id, id, bucket, task, status, queue, sort_at,
                                          created_at, updated_at)
                values (%s, %s, (now() at time zone 'UTC')::date, 'task', 'QUEUED', 'q', now(),
                        now(), now())
                returning *)
            insert into runwire.run_events (bucket, environment_id, run_id, revision, type, delta,
                                            task)
            select bucket, environment_id, id, 1, 'created', '{}', task from made
            """,
            stage.env,
            unknown,
        )
        assert (await socket.until("snapshot"))[-1]["runs"][0]["id"] == unknown


async def test_a_run_is_resumed_exactly(stage: Stage) -> None:
    run_id = await stage.trigger()
    async with open_socket(stage.url) as socket:
        epoch = (await socket.authenticate(stage.key))["epoch"]
    execution = await stage.start(run_id)
    await stage.append(run_id, execution, 0, 1, 2)
    revision = 3
    to: JsonObject = {"run": run_id}
    async with open_socket(stage.url, stage.key) as socket:
        streams = {"text": {"from": 2}}
        cursor = f"r1.{epoch}.{revision}"
        await socket.subscribe("same", to, cursor=cursor, streams=streams)
        messages = await socket.until("chunks")
        assert not of_type(messages, "snapshot") and not of_type(messages, "run")
        assert chunks_of(messages, "text") == [2]
        await socket.subscribe("older", to, cursor=f"r1.{epoch}.1")
        await socket.until("live", sub="older")
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("older", to, cursor=f"r1.{epoch}.1", mode="every")
        messages = await socket.until("live")
        assert [m["revision"] for m in of_type(messages, "patch")] == [2, 3]
    for cursor, reason in ((f"r1.{epoch}.9", "ahead"), ("r1.abc.1", "epoch_changed")):
        async with open_socket(stage.url, stage.key) as socket:
            await socket.subscribe("x", to, cursor=cursor)
            messages = await socket.until("live")
            assert [m["reason"] for m in of_type(messages, "gap")] == [reason]
            assert of_type(messages, "snapshot")[0]["runs"][0]["revision"] == 3


async def test_a_stream_position_from_beyond_is_a_gap(stage: Stage) -> None:
    run_id = await stage.trigger()
    execution = await stage.start(run_id)
    await stage.append(run_id, execution, 0, 1)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id}, streams={"text": {"from": 50}})
        messages = await socket.until("chunks")
        gap = of_type(messages, "gap")[0]
        assert (gap["reason"], gap["stream"], gap["next"]) == ("ahead", "text", 0)
        assert chunks_of(messages, "text") == [0, 1]


async def until_chunks(socket: Socket, stream: str, expected: list[Json]) -> None:
    """Take messages until a stream has come so far; what it must not have fails at once."""
    while (so_far := chunks_of(socket.messages, stream)) != expected:
        assert so_far == expected[: len(so_far)]
        await socket.next()


async def test_a_stream_that_appeared_during_the_break_comes_whole(stage: Stage) -> None:
    run_id = await stage.trigger("t")
    execution = await stage.start(run_id)
    await stage.append(run_id, execution, "old", key="first")
    latest: JsonObject = {"*": {"from": "latest"}}
    for to in ({"run": run_id}, {"tags": ["t"]}):
        key = f"second-{next(iter(to))}"
        async with open_socket(stage.url, stage.key) as socket:
            await socket.subscribe("a", to, streams=latest)
            # Where it begins, in the stream that was there.
            place = (await socket.until("chunks", stream="first"))[-1]
            assert place["data"] == []
            if not of_type(socket.messages, "cursor"):
                await socket.until("cursor")
            cursor = of_type(socket.messages, "cursor")[-1]["cursor"]
        held = {m["stream"]: m["seq"] for m in of_type(socket.messages, "chunks")}
        await stage.append(run_id, execution, "new", key="first")
        await stage.append(run_id, execution, 0, 1, 2, key=key)
        async with open_socket(stage.url, stage.key) as socket:
            options: JsonObject = {"cursor": cursor, "positions": {run_id: held}}
            await socket.subscribe("a", to, streams=latest, **options)
            await until_chunks(socket, key, [0, 1, 2])
            await until_chunks(socket, "first", ["new"])
        told = [m["seq"] for m in of_type(socket.messages, "chunks") if m["stream"] == "first"]
        assert told[0] == place["seq"]


async def test_the_streams_of_a_run_created_meanwhile_come_whole(stage: Stage) -> None:
    latest: JsonObject = {"*": {"from": "latest"}, "log": {"from": 50}}
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"tags": ["t"]}, streams=latest)
        cursor = of_type(await socket.until("live", "cursor"), "snapshot")[0].get("cursor")
        cursor = cursor or (await socket.until("cursor"))[-1]["cursor"]
        run_id = await stage.trigger("t")
        execution = await stage.start(run_id)
        # More than a client can have been told when it joined.
        await stage.append(run_id, execution, 0, 1, 2)
        await until_chunks(socket, "text", [0, 1, 2])
    await stage.append(run_id, execution, "a", "b", key="log")
    async with open_socket(stage.url, stage.key) as socket:
        options: JsonObject = {"cursor": cursor, "positions": {}}
        await socket.subscribe("a", {"tags": ["t"]}, streams=latest, **options)
        await until_chunks(socket, "log", ["a", "b"])


async def test_a_position_beyond_the_end_is_a_gap_in_a_feed_too(stage: Stage) -> None:
    run_id = await stage.trigger("t")
    execution = await stage.start(run_id)
    await stage.append(run_id, execution, 0, 1)
    async with open_socket(stage.url, stage.key) as socket:
        options: JsonObject = {"positions": {run_id: {"text": 9}}}
        await socket.subscribe("a", {"tags": ["t"]}, streams={"*": {}}, **options)
        gap = of_type(await socket.until("chunks"), "gap")[0]
        assert (gap["reason"], gap["run"], gap["next"]) == ("ahead", run_id, 0)
        assert chunks_of(socket.messages, "text") == [0, 1]


async def test_a_tag_feed_is_resumed_by_its_cursor(stage: Stage) -> None:
    before = await stage.trigger("t")
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"tags": ["t"]})
        cursor = of_type(await socket.until("live"), "snapshot")[-1]["cursor"]
    after = await stage.trigger("t")
    await stage.trigger("other")
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"tags": ["t"]}, cursor=cursor)
        messages = await socket.until("live")
        told = [m["run"]["id"] for m in of_type(messages, "run")]
        # The one before too, where the tail had not come to its event yet: repeats are allowed.
        assert told.count(after) == 1 and set(told) <= {before, after}
        assert not of_type(messages, "snapshot")
        # A run that has not changed meanwhile is still followed.
        await stage.engine.runs.cancel(stage.env, before)
        assert (await socket.until("patch"))[-1]["run"] == before


async def test_a_resumed_feed_tells_every_revision_of_a_run_created_since(stage: Stage) -> None:
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"tags": ["sea"]}, mode="every")
        cursor = of_type(await socket.until("live"), "snapshot")[0]["cursor"]
    run_id = await stage.trigger("sea")
    execution = await stage.start(run_id)
    await stage.set_metadata(run_id, execution, step="one")
    await stage.complete(run_id, execution)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"tags": ["sea"]}, mode="every", cursor=cursor)
        told = await socket.until("patch", revision=4)
    first = of_type(told, "run")[0]["run"]
    assert (first["id"], first["revision"], first["status"]) == (run_id, 1, "QUEUED")
    assert "output" not in first and "startedAt" not in first and "metadata" not in first
    assert [patch["revision"] for patch in of_type(told, "patch")] == [2, 3, 4]
    assert applied(first, told[told.index(of_type(told, "run")[0]) + 1 :])["status"] == "COMPLETED"


async def test_a_run_that_entered_a_resumed_feed_by_its_tag_comes_whole(stage: Stage) -> None:
    run_id = await stage.trigger("other")
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"tags": ["sea"]}, mode="every")
        cursor = of_type(await socket.until("live"), "snapshot")[0]["cursor"]
    await _tag(stage, run_id, "sea")
    await _tag(stage, run_id, "more")
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"tags": ["sea"]}, mode="every", cursor=cursor)
        told = await socket.until("patch", revision=3)
    assert [m["type"] for m in told[:2]] == ["run", "joined"]
    assert told[0]["run"]["tags"] == ["other"]
    assert [patch["revision"] for patch in of_type(told, "patch")] == [2, 3]


async def test_a_resumed_feed_says_nothing_of_runs_that_it_never_held(stage: Stage) -> None:
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"runs": {"task": ["another"]}})
        cursor = of_type(await socket.until("live"), "snapshot")[0]["cursor"]
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"runs": {"task": ["another"]}}, cursor=cursor)
        await socket.until("live")
        run_id = await stage.trigger("sea")
        await stage.complete(run_id, await stage.start(run_id))
        await socket.subscribe("b", {"run": run_id})
        assert not of_type(await socket.until("done", sub="b"), "removed")


async def test_every_beats_latest_on_a_resume_too(stage: Stage) -> None:
    run_id = await stage.trigger("sea")
    asked: list[tuple[str, dict[str, Any], str]] = [
        ("a", {"tags": ["sea"]}, "every"),
        ("b", {"runs": {}}, "latest"),
    ]
    async with open_socket(stage.url, stage.key) as socket:
        cursors: dict[str, Json] = {}
        for sub, to, mode in asked:
            await socket.subscribe(sub, to, mode=mode)
            cursors[sub] = of_type(await socket.until("live"), "snapshot")[0]["cursor"]
    execution = await stage.start(run_id)
    for number in range(3):
        await stage.set_metadata(run_id, execution, step=number)
    async with open_socket(stage.url, stage.key) as socket:
        for sub, to, mode in asked:
            await socket.subscribe(sub, to, mode=mode, cursor=cursors[sub])
        told = await socket.until("patch", revision=5)
    # A cursor from before the creation was read begins with it once more.
    assert all(each["run"]["revision"] == 1 for each in of_type(told, "run"))
    assert [patch["revision"] for patch in of_type(told, "patch")] == [2, 3, 4, 5]


class Recovered(Following):
    """Reads of a Postgres that has come back from a crash, which the hub has not noticed yet."""

    async def place(self) -> Place:
        return replace(await super().place(), recovery="another")


async def test_a_cursor_from_before_a_crash_that_is_not_noticed_yet_is_not_ahead(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "Following", Recovered)
    to: JsonObject = {"tags": ["sea"]}
    streams: JsonObject = {"*": {}}
    async with open_stage(database_url) as stage:
        run_id = await stage.trigger("sea")
        await stage.append(run_id, await stage.start(run_id), 0, 1)
        async with open_socket(stage.url, stage.key) as socket:
            await socket.subscribe("a", to, mode="every", streams=streams)
            cursor: str = (await socket.until("cursor"))[-1]["cursor"]
        # Of transactions whose numbers were lost with the crash.
        lost = ".".join([*cursor.split(".")[:2], "900000000-900000000-"])
        positions = {run_id: {"text": 2}}
        async with open_socket(stage.url, stage.key) as socket:
            await socket.subscribe(
                "a", to, mode="every", cursor=lost, streams=streams, positions=positions
            )
            told = await socket.until("live")
            if len(of_type(told, "patch")) < 2:
                told += await socket.until("patch", revision=3)
    assert not of_type(told, "gap") and not chunks_of(told, "text")
    assert of_type(told, "run")[0]["run"]["revision"] == 1
    assert [patch["revision"] for patch in of_type(told, "patch")] == [2, 3]


async def test_every_tells_a_run_from_its_creation_on(stage: Stage) -> None:
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"tags": ["sea"]}, mode="every")
        await socket.until("live")
        run_id = await stage.trigger("sea")
        execution = await stage.start(run_id)
        await stage.complete(run_id, execution)
        told = await socket.until("patch", revision=3)
    first = of_type(told, "run")[0]["run"]
    assert (first["id"], first["revision"], first["status"]) == (run_id, 1, "QUEUED")
    assert [patch["revision"] for patch in of_type(told, "patch")] == [2, 3]


async def test_a_subscription_that_wants_more_fields_gets_them(stage: Stage) -> None:
    run_id = await stage.trigger("sea")
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"runs": {}}, fields=["queue"])
        await socket.until("live")
        await socket.subscribe("b", {"tags": ["late"]})
        await socket.until("live", sub="b")
        await _tag(stage, run_id, "late")
        told = await socket.until("joined", sub="b", run=run_id)
    whole = of_type(told, "run")[-1]["run"]
    assert whole["tags"] == ["sea", "late"] and whole["payload"] == {"topic": "sea"}


async def _tag(stage: Stage, run_id: str, tag: str) -> None:
    async with stage.server.client() as http:
        answer = await http.post(f"/api/v1/runs/{run_id}/tags", json={"tags": tag})
        assert answer.status_code == 200, answer.text


async def test_cursors_are_handed_out_once_everything_is_written(stage: Stage) -> None:
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"tags": ["t"]})
        await socket.until("live")
        run_id = await stage.trigger("t")
        await socket.until("joined", run=run_id)
        cursor = (await socket.until("cursor"))[-1]["cursor"]
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"tags": ["t"]}, cursor=cursor)
        messages = await socket.until("live")
        assert [m["type"] for m in messages] == ["live"]


# Feeds


async def test_runs_join_a_tag_feed_with_all_its_tags_and_those_of_others_do_not(
    stage: Stage,
) -> None:
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"tags": ["x", "y"]}, streams={"*": {}})
        assert (await socket.until("live"))[0]["runs"] == []
        await stage.trigger("x")
        both = await stage.trigger("y", "x")
        messages = await socket.until("joined")
        assert [m["run"]["id"] for m in of_type(messages, "run")] == [both]
        late = await stage.trigger("y")
        await stage.engine.runs.add_tags(stage.env, late, ["x"])
        assert (await socket.until("joined"))[-1]["run"] == late


async def test_a_batch_is_done_when_all_its_runs_are(stage: Stage) -> None:
    batch = await stage.engine.batches.create(stage.env, 2)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"batch": batch.id})
        await socket.until("live")
        items = [(index, NewRun("task", batch=(batch.id, index))) for index in range(2)]
        await stage.engine.batches.add_items(stage.env, batch.id, items)
        joined = of_type([*await socket.until("joined"), *await socket.until("joined")], "joined")
        for message in joined:
            await stage.engine.runs.cancel(stage.env, message["run"])
        messages = await socket.until("done")
        assert not of_type(messages, "error")
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("again", {"batch": batch.id})
        messages = await socket.until("done")
        assert {run["status"] for run in of_type(messages, "snapshot")[0]["runs"]} == {"CANCELED"}
        await socket.subscribe("none", {"batch": "batch_" + "0" * 25})
        assert (await socket.until("error"))[-1]["code"] == "not_found"


async def test_a_runs_feed_follows_a_filter(stage: Stage) -> None:
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"runs": {"status": ["QUEUED"], "task": ["task"]}})
        await socket.until("live")
        run_id = await stage.trigger()
        await socket.until("joined", run=run_id)
        await stage.engine.runs.cancel(stage.env, run_id)
        assert (await socket.until("removed"))[-1]["run"] == run_id


async def test_a_snapshot_of_many_runs_comes_in_pages(stage: Stage) -> None:
    results = await stage.engine.runs.trigger_many(
        stage.env, [NewRun("task", tags=("many",)) for _ in range(120)]
    )
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"tags": ["many"]})
        pages = of_type(await socket.until("live"), "snapshot")
    assert [page["more"] for page in pages] == [True] * (len(pages) - 1) + [False]
    told = [run["id"] for page in pages for run in page["runs"]]
    expected = {result.id for result in results if not isinstance(result, Exception)}
    assert len(told) == len(set(told)) == 120 and set(told) == expected


async def test_one_socket_follows_one_run_in_many_ways_and_gets_it_once(stage: Stage) -> None:
    run_id = await stage.trigger("t")
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("run", {"run": run_id})
        await socket.subscribe("tag", {"tags": ["t"]})
        await socket.subscribe("all", {"runs": {}})
        for sub in ("run", "tag", "all"):
            if not any(m["type"] == "live" and m["sub"] == sub for m in socket.messages):
                await socket.until("live", sub=sub)
        await stage.start(run_id)
        messages = await socket.until("patch")
        assert len(of_type(messages, "patch")) == 1
        await socket.send({"type": "unsubscribe", "sub": "run"})
        await socket.send({"type": "refetch", "run": run_id})
        assert (await socket.until("run"))[-1]["run"]["revision"] == 2


# Credentials


async def test_a_token_sees_what_it_was_minted_for(stage: Stage) -> None:
    mine, other = await stage.trigger("mine"), await stage.trigger("other")
    token = await stage.server.token(f"read:runs:{mine}", "read:tags:mine")
    async with open_socket(stage.url, token) as socket:
        await socket.subscribe("other", {"run": other})
        assert (await socket.next())["code"] == "not_found"
        forbidden: list[JsonObject] = [{"tags": ["other"]}, {"batch": "batch_x"}, {"runs": {}}]
        for to in forbidden:
            await socket.subscribe("no", to)
            assert (await socket.next())["code"] == "forbidden"
        await socket.subscribe("mine", {"run": mine})
        assert (await socket.until("live"))[0]["runs"][0]["id"] == mine
        await socket.subscribe("tag", {"tags": ["mine"]})
        await socket.until("live", sub="tag")


async def test_a_token_shows_no_traceback_and_no_worker(stage: Stage) -> None:
    run_id = await stage.trigger()
    execution = await stage.start(run_id)
    error = '{"name":"E","message":"m","stackTrace":"canary"}'
    token = await stage.server.token(f"read:runs:{run_id}")
    async with (
        open_socket(stage.url, token) as public,
        open_socket(stage.url, stage.key) as internal,
    ):
        for socket in (public, internal):
            await socket.subscribe("a", {"run": run_id})
            await socket.until("live")
        await stage.engine.outcomes.finish(stage.env, Failed(run_id, execution, error))
        seen = orjson.dumps(await public.until("done"))
        assert b"canary" not in orjson.dumps(public.messages) and b'"message":"m"' in seen
        assert b"workerId" not in orjson.dumps(public.messages)
        assert b"canary" in orjson.dumps(await internal.until("done"))


async def test_a_wrong_credential_ends_the_socket(stage: Stage) -> None:
    for token in ("x", "a.b.c", "tr_dev_sk_" + "0" * 24):
        async with open_socket(stage.url) as socket:
            answer = await socket.authenticate(token)
            assert (answer["type"], answer["code"]) == ("error", "unauthorized")
            assert await socket.closed() == 4401


async def test_a_credential_may_come_as_a_header_or_as_a_subprotocol(stage: Stage) -> None:
    headers = {"authorization": f"Bearer {stage.key}"}
    async with open_socket(stage.url, additional_headers=headers) as socket:
        assert (await socket.next())["type"] == "ready"
    token = await stage.server.token("read:runs")
    offered = [Subprotocol("runwire.v1"), Subprotocol(f"runwire.bearer.{token}")]
    async with open_socket(stage.url, subprotocols=offered) as socket:
        assert socket.connection.subprotocol == "runwire.v1"
        assert (await socket.next())["type"] == "ready"


async def test_a_browser_may_use_tokens_of_its_own_origin_only(stage: Stage) -> None:
    token = await stage.server.token("read:runs")
    async with open_socket(stage.url, token, origin=Origin(stage.url)):
        pass
    async with open_socket(stage.url, origin=Origin(stage.url)) as socket:
        await socket.authenticate(stage.key)
        assert await socket.closed() == 4403
    for origin in ("https://evil.example", "null", stage.url + "0", "https://127.0.0.1"):
        with pytest.raises(InvalidStatus) as refused:
            async with open_socket(stage.url, token, origin=Origin(origin)):
                pass
        assert refused.value.response.status_code == 403


async def test_an_expiring_token_is_announced_refreshed_or_ends_the_socket(stage: Stage) -> None:
    run_id = await stage.trigger()
    short = await stage.server.token("read:runs", expirationTime="4s")
    async with open_socket(stage.url, short) as kept, open_socket(stage.url, short) as lost:
        assert 0 < (await kept.until("token_expiring"))[-1]["in"] <= 4.5
        await kept.subscribe("a", {"run": run_id})
        await kept.subscribe("all", {"runs": {}})
        await kept.until("live", sub="all")
        fresh = await stage.server.token(f"read:runs:{run_id}")
        await kept.send({"type": "auth", "token": fresh})
        errors = of_type(await kept.until("error"), "error")
        assert (errors[0]["sub"], errors[0]["code"]) == ("all", "forbidden")
        assert await lost.closed() == 4003
        await stage.start(run_id)
        assert (await kept.until("patch"))[-1]["run"] == run_id


async def test_another_environment_sees_nothing(stage: Stage) -> None:
    run_id = await stage.trigger("t")
    tenant = await stage.server.tenant("task")
    async with open_socket(stage.url, tenant.key) as socket:
        await socket.subscribe("run", {"run": run_id})
        assert (await socket.next())["code"] == "not_found"
        await socket.subscribe("tag", {"tags": ["t"]})
        assert (await socket.until("live"))[0]["runs"] == []
        await stage.start(run_id)
        await socket.send({"type": "auth", "token": stage.key})
        messages = await socket.until("error")
        assert messages[-1]["code"] == "unauthorized" and not of_type(messages, "run")
        assert await socket.closed() == 4401


async def test_a_revoked_token_ends_its_sockets(stage: Stage) -> None:
    token = await stage.server.token("read:runs")
    jti = stage.server.services.tokens.verify(token, now=time.time()).jti
    async with open_socket(stage.url, token) as socket, open_socket(stage.url, stage.key) as other:
        assert jti is not None
        stage.engine.bell.ring_control(stage.env, "revoke", jti)
        assert await socket.closed() == 4499
        await other.send({"type": "ping"})
        assert (await other.until("pong"))[-1] == {"type": "pong"}


# Bad input


@pytest.mark.parametrize("kind", ["auth", "subscribe"])
async def test_what_is_no_message_ends_the_socket_and_no_other(stage: Stage, kind: str) -> None:
    token = stage.key if kind == "subscribe" else None
    async with open_socket(stage.url, stage.key) as good:
        for frame, code in NO_MESSAGES:
            async with open_socket(stage.url, token) as bad:
                await bad.send(frame)
                assert await bad.closed() == code
            await good.send({"type": "ping"})
            assert (await good.next())["type"] == "pong"


NO_MESSAGES: list[tuple[str | bytes, int]] = [
    ("{", 4400),
    ("[]", 4400),
    ("", 4400),
    (b"\x00\x01", 4400),
    ('{"a":"\\ud800"}', 4400),
    ("[" * 10_000, 4400),
    ("x" * (64 * 1024 + 1), 1009),
]
REFUSED: list[JsonObject] = [
    {"type": "subscribe"},
    {"type": "subscribe", "sub": "a", "to": {}},
    {"type": "subscribe", "sub": "a", "to": {"run": "r", "batch": "b"}},
    {"type": "subscribe", "sub": "a", "to": {"tags": []}},
    {"type": "subscribe", "sub": "a", "to": {"tags": ["\x00"]}},
    {"type": "subscribe", "sub": "a", "to": {"tags": ["a"], "createdAt": "yesterday"}},
    {"type": "subscribe", "sub": "a", "to": {"run": "r"}, "cursor": "nonsense"},
    {"type": "subscribe", "sub": "a", "to": {"run": "r"}, "cursor": "f1.ab.1-1-"},
    {"type": "subscribe", "sub": "a", "to": {"tags": ["a"]}, "cursor": "f1.ab.5-1-"},
    {"type": "subscribe", "sub": "a", "to": {"run": "'; drop table x; --\x00"}},
    {"type": "subscribe", "sub": "a", "to": {"run": "r"}, "streams": {"s": {"from": "x"}}},
    {"type": "fly"},
    {"no": "type"},
]


async def test_what_cannot_be_done_is_answered_and_the_socket_lives(stage: Stage) -> None:
    async with open_socket(stage.url, stage.key) as socket:
        for message in REFUSED:
            await socket.send(message)
            answer = await socket.next()
            assert answer["type"] == "error" and answer["code"] in {"malformed", "not_found"}
        await socket.send({"type": "ping"})
        assert (await socket.next())["type"] == "pong"


async def test_unknown_fields_are_ignored_and_names_are_unique(stage: Stage) -> None:
    run_id = await stage.trigger()
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"run": run_id, "new": 1}, future=True)
        await socket.until("live")
        await socket.subscribe("a", {"run": run_id})
        error = (await socket.until("error"))[-1]
        assert (error["code"], error["sub"]) == ("conflict", "a")
        for number in range(101):
            await socket.subscribe(f"s{number}", {"run": run_id})
        assert (await socket.until("error"))[-1]["code"] == "too_many"


async def test_injected_text_is_data(stage: Stage) -> None:
    nasty = ["'; drop table runwire.runs; --", "%s%", "\\", "$$", "\u2028", 'a"b']
    async with open_socket(stage.url, stage.key) as socket:
        for number, text in enumerate(nasty):
            run_id = await stage.trigger(text)
            await socket.subscribe(f"s{number}", {"tags": [text]})
            page = of_type(await socket.until("live"), "snapshot")[-1]
            assert [run["id"] for run in page["runs"]] == [run_id]


async def test_a_flood_is_cut_off(stage: Stage) -> None:
    async with open_socket(stage.url, stage.key) as socket:
        with anyio.fail_after(60):
            for _ in range(1000):
                try:
                    await socket.send({"type": "ping"})
                except Exception:  # closed in the middle
                    break
        assert await socket.closed() == 4029


async def test_a_stranger_must_speak_our_protocol_and_authenticate_first(stage: Stage) -> None:
    async with open_socket(stage.url, subprotocols=[Subprotocol("runwire.v0")]) as socket:
        assert await socket.closed() == 4426
    async with open_socket(stage.url) as socket:
        await socket.subscribe("a", {"runs": {}})
        assert await socket.closed() == 4401


async def test_a_reader_that_stops_holds_up_nobody_and_misses_nothing(stage: Stage) -> None:
    run_id = await stage.trigger()
    execution = await stage.start(run_id)
    async with (
        open_socket(stage.url, stage.key, max_queue=1) as slow,
        open_socket(stage.url, stage.key) as quick,
    ):
        for socket in (slow, quick):
            await socket.subscribe("a", {"run": run_id}, streams={"*": {}})
            await socket.until("live")
        for number in range(80):
            await stage.append(run_id, execution, number, "x" * 100_000)
        await stage.complete(run_id, execution)
        for socket in (quick, slow):
            chunks = chunks_of(await socket.until("done"), "text")
            assert [c for c in chunks if isinstance(c, int)] == list(range(80))


async def test_the_hub_remembers_nothing_of_those_who_left(stage: Stage) -> None:
    realtime = stage.server.services.realtime
    run_id = await stage.trigger("t")
    execution = await stage.start(run_id)
    await stage.append(run_id, execution, 1)
    for _ in range(20):
        async with open_socket(stage.url, stage.key) as socket:
            await socket.subscribe("a", {"run": run_id}, streams={"*": {}})
            await socket.subscribe("b", {"tags": ["t"]}, streams={"*": {}})
            await socket.until("live", sub="a")
    await until_true(lambda: realtime.statistics().connections == 0)
    left = realtime.statistics()
    assert (left.subscriptions, left.runs, left.streams) == (0, 0, 0)


async def test_a_stopping_server_says_that_it_goes(stage: Stage) -> None:
    async with open_socket(stage.url, stage.key) as socket:
        await stage.server.services.realtime.drain(seconds=2)
        assert await socket.closed() == 4001


@pytest.mark.parametrize("mode", ["every", "latest"])
async def test_a_feed_that_lost_its_socket_before_its_first_cursor_says_so_in_every(
    stage: Stage, mode: str
) -> None:
    run_id = await stage.trigger("sea")
    execution = await stage.start(run_id)
    asked: dict[str, Any] = {"mode": mode, "streams": {"*": {"from": "start"}}}
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"tags": ["sea"]}, **asked)
        assert not of_type(await socket.until("live"), "gap")
    await stage.complete(run_id, execution)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"tags": ["sea"]}, positions={}, **asked)
        told = await socket.until("live")
    assert [each["reason"] for each in of_type(told, "gap")] == ["overflow"] * (mode == "every")
    assert of_type(told, "snapshot")[0]["runs"][0]["status"] == "COMPLETED"


async def test_a_feed_of_open_runs_can_be_resumed_from_its_snapshot_with_all_its_streams(
    stage: Stage,
) -> None:
    run_id = await stage.trigger("sea")
    execution = await stage.start(run_id)
    await stage.append(run_id, execution, 1, 2)
    asked: dict[str, Any] = {"mode": "every", "streams": {"*": {"from": "start", "as": "chunks"}}}
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"tags": ["sea"]}, **asked)
        snapshot = (await socket.until("snapshot"))[-1]
    began = snapshot["runs"][0]["revision"]
    await stage.append(run_id, execution, 3)
    await stage.complete(run_id, execution)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe(
            "a", {"tags": ["sea"]}, positions={}, cursor=snapshot["cursor"], whole=True, **asked
        )
        await socket.until("eof")
        if not of_type(socket.messages, "patch"):
            await socket.until("patch")
        told = socket.messages
    assert not of_type(told, "gap") and not of_type(told, "snapshot")
    chunks = [chunk for each in of_type(told, "chunks") for chunk in each["data"]]
    assert chunks == [1, 2, 3]
    # The hub may have read the row before it heard of the run's last change.
    base = of_type(told, "base")[0]["run"]["revision"]
    assert of_type(told, "patch")[0]["from"] == base <= began


@pytest.mark.parametrize(("start", "is_over"), [("start", True), ("latest", False), (-5, False)])
async def test_a_feed_whose_streams_a_resume_would_not_read_has_no_cursor_until_they_are_read(
    stage: Stage, start: object, is_over: bool
) -> None:
    run_id = await stage.trigger("sea")
    execution = await stage.start(run_id)
    await stage.append(run_id, execution, 1)
    if is_over:
        await stage.complete(run_id, execution)
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", {"tags": ["sea"]}, streams={"*": {"from": start}})
        assert (await socket.until("snapshot"))[-1].get("cursor") is None
        assert (await socket.until("cursor", sub="a"))[-1]["cursor"]
