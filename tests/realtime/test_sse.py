"""Server-sent events: the same messages, another carrier."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import httpx
import orjson
import pytest
from starlette.requests import Request
from starlette.types import Message

from runwire.wire import (
    EVENTS_PATH,
    MAX_EVENTS_BODY_BYTES,
    CloseCode,
    ErrorCode,
    Json,
    JsonObject,
    Subscribe,
)
from runwire_engine.database import Database
from runwire_engine.following import Following
from runwire_realtime.asgi_connection import AsgiConnection
from runwire_realtime.errors import RefusedError
from runwire_realtime.feed_loading import FeedLoading
from runwire_realtime.frames import Frame, Frames
from runwire_realtime.hub import Hub
from runwire_realtime.limits import HubLimits
from runwire_realtime.scope import Grant
from tests.support.sockets import chunks_of, of_type
from tests.support.stage import Stage

pytestmark = pytest.mark.anyio


class Events:
    """One response, event by event."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.messages: list[JsonObject] = []
        self.id = ""

    async def until(self, type: str) -> list[JsonObject]:
        """Return what comes up to the event that holds a message of a type."""
        seen: list[JsonObject] = []
        with anyio.fail_after(60):
            while not any(message["type"] == type for message in seen):
                seen += await self.next()
        return seen

    async def next(self) -> list[JsonObject]:
        async for line in self._lines:
            if line.startswith("id: "):
                self.id = line.removeprefix("id: ")
            elif line.startswith("data: "):
                frame: list[JsonObject] = orjson.loads(line.removeprefix("data: "))
                self.messages += frame
                return frame
        raise EOFError

    async def rest(self) -> list[JsonObject]:
        """Return everything to the clean end."""
        seen: list[JsonObject] = []
        with anyio.fail_after(60):
            try:
                while True:
                    seen += await self.next()
            except EOFError:
                return seen


@asynccontextmanager
async def open_events(
    stage: Stage, body: Json, token: str | None = None, last: str | None = None
) -> AsyncGenerator[Events]:
    headers = {"last-event-id": last} if last else {}
    async with (
        stage.server.client(token) as http,
        http.stream("POST", EVENTS_PATH, json=body, headers=headers) as response,
    ):
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Events(response)


def to_run(run_id: str, **options: Json) -> JsonObject:
    return {"type": "subscribe", "sub": "a", "to": {"run": run_id}, **options}


async def test_a_run_is_followed_to_a_clean_end(stage: Stage) -> None:
    run_id = await stage.trigger()
    async with open_events(stage, [to_run(run_id, streams={"*": {}})]) as events:
        await events.until("live")
        execution = await stage.start(run_id)
        await stage.append(run_id, execution, "a", "b")
        await stage.complete(run_id, execution)
        messages = await events.rest()
    assert chunks_of(messages, "text") == ["a", "b"]
    assert [m["type"] for m in messages if m["type"] != "cursor"][-3:] == ["eof", "patch", "done"]


async def test_it_goes_on_after_the_last_event_id(stage: Stage) -> None:
    run_id = await stage.trigger("t")
    execution = await stage.start(run_id)
    tags = {"type": "subscribe", "sub": "t", "to": {"tags": ["t"]}}
    body = {"subscribe": [to_run(run_id, streams={"*": {}}, mode="every"), tags]}
    async with open_events(stage, body) as events:
        await stage.append(run_id, execution, 0, 1)
        while not (chunks_of(events.messages, "text") and of_type(events.messages, "cursor")):
            await events.next()
        revision = [*of_type(events.messages, "patch")][-1:] or [{"revision": 2}]
    await stage.append(run_id, execution, 2)
    await stage.set_metadata(run_id, execution, step="later")
    async with open_events(stage, body, last=events.id) as again:
        await stage.complete(run_id, execution)
        messages = await again.until("done")
    assert chunks_of(messages, "text")[0] == 2
    assert [m["from"] for m in of_type(messages, "patch")][0] >= revision[0]["revision"]


async def test_a_reader_of_the_latest_loses_nothing_between_two_responses(stage: Stage) -> None:
    run_id = await stage.trigger()
    execution = await stage.start(run_id)
    await stage.append(run_id, execution, 0, 1)
    body = [to_run(run_id, streams={"*": {"from": "latest"}})]
    async with open_events(stage, body) as events:
        # Before its first chunk it is told where it begins.
        assert of_type(await events.until("chunks"), "chunks")[0]["seq"] == 2
    await stage.append(run_id, execution, 2)
    await stage.append(run_id, execution, "appeared", key="later")
    async with open_events(stage, body, last=events.id) as again:
        await stage.complete(run_id, execution)
        messages = await again.until("done")
    read = {m["stream"]: (m["seq"], m["data"]) for m in of_type(messages, "chunks")}
    assert read == {"text": (2, [2]), "later": (0, ["appeared"])}


@pytest.mark.parametrize("start", ["start", "latest"])
async def test_a_feed_goes_on_in_the_streams_of_its_runs(stage: Stage, start: str) -> None:
    run_id = await stage.trigger("t")
    execution = await stage.start(run_id)
    await stage.append(run_id, execution, 0, 1)
    tags: JsonObject = {"type": "subscribe", "sub": "t", "to": {"tags": ["t"]}}
    body: list[Json] = [{**tags, "streams": {"*": {"from": start}}}]
    async with open_events(stage, body) as events:
        await events.until("chunks")
        await stage.append(run_id, execution, 2)
        while not of_type(events.messages, "cursor") or 2 not in chunks_of(events.messages, "text"):
            await events.next()
    await stage.append(run_id, execution, 3)
    new = await stage.trigger("t")
    second = await stage.start(new)
    await stage.append(new, second, "new")
    async with open_events(stage, body, last=events.id) as again:
        while len(of_type(again.messages, "chunks")) < 2:
            await again.next()
    read = {m["run"]: (m["seq"], m["data"]) for m in of_type(again.messages, "chunks")}
    assert read == {run_id: (3, [3]), new: (0, ["new"])}


async def test_a_response_that_ends_at_once_costs_no_place(stage: Stage) -> None:
    run_id = await stage.trigger("t")
    execution = await stage.start(run_id)
    await stage.append(run_id, execution, 0, 1)
    tags: JsonObject = {"type": "subscribe", "sub": "t", "to": {"tags": ["t"]}, "mode": "every"}
    run = to_run(run_id, mode="every", streams={"*": {"from": "latest"}})
    body: list[Json] = [{**tags, "streams": {"*": {"from": "latest"}}}, run]
    async with open_events(stage, body) as events:
        while {m["sub"] for m in of_type(events.messages, "cursor")} != {"a", "t"}:
            await events.next()
    first = events.id
    async with open_events(stage, body, last=first) as short:
        assert [m["type"] for m in await short.next()] == ["ready"]
    await stage.append(run_id, execution, 2)
    await stage.set_metadata(run_id, execution, step=1)
    await stage.set_metadata(run_id, execution, step=2)
    async with open_events(stage, body, last=short.id) as again:
        while not (chunks_of(again.messages, "text") and len(of_type(again.messages, "patch")) > 1):
            await again.next()
    assert chunks_of(again.messages, "text") == [2]
    assert [m["revision"] - m["from"] for m in of_type(again.messages, "patch")] == [1, 1]
    assert not of_type(again.messages, "snapshot") and not of_type(again.messages, "gap")


async def test_a_feed_that_ended_before_its_first_cursor_says_so_in_every(stage: Stage) -> None:
    await stage.trigger("t")
    body: list[Json] = [
        {"type": "subscribe", "sub": "t", "to": {"tags": ["t"]}, "mode": "every"},
    ]
    async with open_events(stage, body) as events:
        await events.until("live")
    async with open_events(stage, body, last=events.id) as again:
        messages = await again.until("live")
    is_placed = bool(of_type(events.messages, "cursor"))
    assert [m["reason"] for m in of_type(messages, "gap")] == ([] if is_placed else ["overflow"])


async def test_an_id_fits_into_a_header_and_what_it_leaves_out_begins_again(stage: Stage) -> None:
    run_id = await stage.trigger("t")
    execution = await stage.start(run_id)
    keys = [str(number).rjust(120, "k") for number in range(60)]
    for key in keys:
        await stage.append(run_id, execution, "old", key=key)
    tags: JsonObject = {"type": "subscribe", "sub": "t", "to": {"tags": ["t"]}}
    body: list[Json] = [{**tags, "streams": {"*": {"from": "latest"}}}]
    async with open_events(stage, body) as events:
        while len(of_type(events.messages, "chunks")) < len(keys):
            await events.next()
        while not of_type(events.messages, "cursor"):
            await events.next()
    assert len(events.id) < 8 * 1024
    for key in keys:
        await stage.append(run_id, execution, "new", key=key)
    async with open_events(stage, body, last=events.id) as again:
        while len({m["stream"] for m in of_type(again.messages, "chunks")}) < len(keys):
            await again.next()
    read = [(m["seq"], m["data"]) for m in of_type(again.messages, "chunks")]
    assert {tuple(data) for _, data in read} == {("new",), ("old", "new")}
    assert all(seq == 2 - len(data) for seq, data in read)


async def test_what_is_wrong_is_an_http_answer(stage: Stage) -> None:
    unknown = "run_" + "0" * 25
    async with stage.server.client() as http:
        bodies: list[Json] = [[], {}, "x", [{"sub": "a"}], [to_run("r"), to_run("r")]]
        for body in bodies:
            assert (await http.post(EVENTS_PATH, json=body)).status_code in {400, 422}
    async with stage.server.client("a.b.c") as http:
        answer = await http.post(EVENTS_PATH, json=[to_run(unknown)])
        assert answer.status_code == 401
    async with open_events(stage, [to_run(unknown)]) as events:
        messages = await events.rest()
        assert of_type(messages, "error")[0]["code"] == "not_found"


async def test_a_stopping_server_breaks_the_response_off(stage: Stage) -> None:
    run_id = await stage.trigger()
    with pytest.raises(httpx.RemoteProtocolError):
        async with open_events(stage, [to_run(run_id)]) as events:
            await events.until("live")
            await stage.server.services.realtime.drain(seconds=2)
            await events.rest()


async def test_one_request_asks_for_as_much_as_many_frames_would(stage: Stage) -> None:
    run_id = await stage.trigger()
    streams: JsonObject = {f"{number}{'k' * 120}": {"from": "start"} for number in range(60)}
    asked = [{**to_run(run_id, streams=streams), "sub": f"s{number}"} for number in range(90)]
    assert 512 * 1024 < len(orjson.dumps(asked)) < MAX_EVENTS_BODY_BYTES
    async with open_events(stage, asked) as events:
        await events.until("live")
    async with stage.server.client() as http:
        response = await http.post(EVENTS_PATH, json=[*asked, to_run("k" * MAX_EVENTS_BODY_BYTES)])
    assert response.status_code == 413


async def test_a_credential_that_ended_on_its_way_ends_the_response() -> None:
    async def authenticate(token: str) -> Grant:
        raise RefusedError(ErrorCode.UNAUTHORIZED, "the token has expired")

    async def receive() -> str:
        await anyio.sleep_forever()
        raise AssertionError

    sent: list[JsonObject] = []

    async def send(frame: Frame) -> None:
        sent.extend(orjson.loads(frame.text))

    hub = Hub(HubLimits())
    loading = FeedLoading(hub, Following(Database("postgresql://nowhere")))
    connection = AsgiConnection(hub, Frames(), loading, authenticate)
    asked = Subscribe.model_validate({"sub": "a", "to": {"runs": {}}})
    closing = await connection.serve(receive, send, token="t", subscribe=[asked])
    assert closing is not None and closing[0] == CloseCode.INVALID_TOKEN
    assert [each["code"] for each in sent] == [ErrorCode.UNAUTHORIZED]


async def test_a_response_that_never_began_leaves_nothing_behind(stage: Stage) -> None:
    realtime = stage.server.services.realtime
    asked: list[JsonObject] = [{"type": "subscribe", "sub": "a", "to": {"runs": {}}}]

    async def receive() -> Message:
        return {"type": "http.request", "body": orjson.dumps(asked)}

    async def send(message: Message) -> None:
        raise ConnectionResetError

    scope = {
        "type": "http",
        "method": "POST",
        "headers": [(b"authorization", b"Bearer " + stage.key.encode())],
    }
    response = await realtime.events_endpoint(Request(scope, receive))
    with pytest.raises(ConnectionResetError):
        await response(scope, receive, send)
    assert not realtime.hub.strangers
