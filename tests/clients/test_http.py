import json
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from runwire import (
    AsyncRunwire,
    ConfigurationError,
    Runwire,
    _http,
    _sending,
    auth,
    idempotency_keys,
)
from runwire.batch import BatchItem, ItemError
from runwire.errors import (
    BatchTriggerError,
    ConflictError,
    ForbiddenError,
    InvalidValueError,
    MalformedError,
    NotFoundError,
    RateLimitedError,
    ServerError,
    TooLargeError,
    UnauthorizedError,
    UnreachableError,
)
from tests.support.recording_run import executing
from tests.support.scripted_http import ScriptedHttp, scripted_http
from tests.support.scripted_server import run

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "FIRST_WAIT", 0.01)


@pytest.fixture
def server() -> Iterator[ScriptedHttp]:
    with scripted_http() as started:
        yield started


@pytest.fixture
async def client(server: ScriptedHttp, anyio_backend: str) -> AsyncGenerator[AsyncRunwire]:
    async with AsyncRunwire(api_url=server.url, access_token="key") as opened:
        yield opened


async def test_a_trigger_sends_text_and_options_and_returns_a_handle(
    server: ScriptedHttp, client: AsyncRunwire
) -> None:
    server.answer(200, {"id": "run_a", "isCached": True}, x_trigger_jwt="jwt")
    handle = await client.tasks.trigger("my task/1", {"topic": "sea"}, tags=["a"], delay="1m")
    assert (handle.id, handle.is_cached, handle.public_access_token) == ("run_a", True, "jwt")
    assert handle.task_identifier == "my task/1"
    [asked] = server.asked
    assert (asked.method, asked.path) == ("POST", "/api/v1/tasks/my task/1/trigger")
    assert asked.headers["authorization"] == "Bearer key"
    assert asked.json["payload"] == '{"topic":"sea"}'
    assert asked.json["options"]["tags"] == ["a"] and asked.json["options"]["delay"] == 60.0


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
async def test_what_may_pass_is_repeated_under_one_key(
    server: ScriptedHttp, client: AsyncRunwire, status: int
) -> None:
    server.answer(status, {"error": "busy", "code": "unavailable"})
    server.answer(status, b"no JSON")
    server.answer(200, {"id": "run_a"})
    assert (await client.tasks.trigger("t")).id == "run_a"
    keys = {asked.headers["x-trigger-request-idempotency-key"] for asked in server.asked}
    assert len(server.asked) == 3 and len(keys) == 1
    await client.tasks.trigger("t")
    assert server.asked[-1].headers["x-trigger-request-idempotency-key"] not in keys


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, MalformedError),
        (401, UnauthorizedError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (413, TooLargeError),
        (422, ConflictError),
    ],
)
async def test_what_does_not_pass_is_an_error_at_once(
    server: ScriptedHttp, client: AsyncRunwire, status: int, error: type[Exception]
) -> None:
    server.answer(status, {"error": "a sentence", "code": "word"})
    with pytest.raises(error, match="a sentence") as raised:
        await client.runs.retrieve("run_a")
    assert getattr(raised.value, "code", None) == "word"
    assert len(server.asked) == 1


async def test_the_server_has_the_last_word_on_repeating(
    server: ScriptedHttp, client: AsyncRunwire
) -> None:
    server.answer(500, {"error": "no"}, x_should_retry="false")
    with pytest.raises(ServerError):
        await client.runs.retrieve("run_a")
    assert len(server.asked) == 1
    server.answers.clear()
    server.answer(429, {"error": "slow down"}, retry_after="0.01")
    with pytest.raises(RateLimitedError) as raised:
        await client.runs.retrieve("run_a")
    assert raised.value.retry_after == 0.01 and len(server.asked) == 1 + _http.TRIES


async def test_a_server_that_is_not_there_is_an_error() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    async with AsyncRunwire(api_url=url, access_token="key") as client:
        with pytest.raises(UnreachableError, match=url):
            await client.runs.retrieve("run_a")


async def test_without_a_credential_nothing_is_sent(server: ScriptedHttp) -> None:
    async with AsyncRunwire(api_url=server.url) as client:
        with pytest.raises(ConfigurationError):
            await client.runs.retrieve("run_a")
    assert not server.asked


async def test_a_token_callable_is_asked_for_each_request(server: ScriptedHttp) -> None:
    server.answer(200, run(1))
    tokens = iter(["first", "second"])
    async with AsyncRunwire(api_url=server.url, access_token=lambda: next(tokens)) as client:
        await client.runs.retrieve("run_a")
        await client.runs.retrieve("run_a")
    sent = [asked.headers["authorization"] for asked in server.asked]
    assert sent == ["Bearer first", "Bearer second"]


async def test_a_run_has_the_fields_of_the_wire_in_our_spelling(
    server: ScriptedHttp, client: AsyncRunwire
) -> None:
    body = run(
        4,
        "FAILED",
        startedAt="2026-11-23T20:47:46.123Z",
        tags=["a"],
        metadata={"n": 1},
        output={"$large": {"bytes": 20_000}},
        error={"name": "ValueError", "message": "no", "stackTrace": "…"},
        realtimeStreams=["log"],
        newerField=True,
    )
    server.answer(200, body)
    got = await client.runs.retrieve("run_a")
    assert got.started_at == datetime(2026, 11, 23, 20, 47, 46, 123_000, UTC)
    assert got.tags == ("a",) and got.metadata == {"n": 1} and got.realtime_streams == ("log",)
    assert got.error is not None and (got.error.name, got.error.stack_trace) == ("ValueError", "…")
    assert got.output.bytes == 20_000
    assert got.is_completed and got.is_failed and not got.is_success and got.finished_at is None
    assert got.raw == body


async def test_a_batch_is_sent_in_two_phases_until_it_is_sealed(
    server: ScriptedHttp, client: AsyncRunwire
) -> None:
    server.answer(202, {"id": "batch_a", "runCount": 2, "isCached": False}, x_trigger_jwt="jwt")
    answer = {"id": "batch_a", "itemsAccepted": 1, "itemsDeduplicated": 0}
    server.answer(200, {**answer, "sealed": False})
    server.answer(200, {**answer, "sealed": True})
    handle = await client.batch.trigger(
        [{"task": "t", "payload": 1}, {"task": "u", "options": {"tags": "x"}}]
    )
    assert (handle.batch_id, handle.run_count, handle.public_access_token) == ("batch_a", 2, "jwt")
    first, *items = server.asked
    assert first.json["runCount"] == 2
    assert items[0].body == items[1].body and items[0].path == "/api/v3/batches/batch_a/items"
    lines = items[0].body.splitlines()
    assert len(lines) == 2 and b'"index":0' in lines[0] and b'"payload":"1"' in lines[0]


ACCEPTED = {"id": "batch_a", "itemsAccepted": 1, "itemsDeduplicated": 0}
CREATED = {"id": "batch_a", "runCount": 0, "isCached": False}


async def arriving(count: int) -> AsyncIterator[BatchItem]:
    for number in range(count):
        yield {"task": "t", "payload": number}


async def test_a_batch_of_an_iterable_is_sent_while_it_is_read(
    server: ScriptedHttp, client: AsyncRunwire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sending, "_GROUP_ITEMS", 2)
    monkeypatch.setattr(_sending, "_GROUP_SECONDS", 3600.0)
    server.answer(202, CREATED, x_trigger_jwt="jwt")
    server.answer(200, {**ACCEPTED, "sealed": False})
    sent_before: list[int] = []

    async def watched() -> AsyncIterator[BatchItem]:
        async for item in arriving(5):
            yield item
            sent_before.append(len(server.asked))
        server.answers[:] = [(200, {**ACCEPTED, "sealed": True}, {})]

    handle = await client.batch.trigger(watched())
    assert (handle.batch_id, handle.run_count, handle.public_access_token) == ("batch_a", 5, "jwt")
    created, *sent = server.asked
    assert created.json == {}
    assert [asked.path.partition("/items")[2] for asked in sent] == ["", "", "", "?end=true"]
    lines = [json.loads(line) for asked in sent for line in asked.body.splitlines()]
    assert [(line["index"], line["payload"]) for line in lines] == [(n, str(n)) for n in range(5)]
    # The first item leaves at once, then as many as make a group.
    assert sent_before == [2, 2, 3, 3, 4]


def test_a_blocking_batch_of_a_generator_is_read_in_its_own_thread(server: ScriptedHttp) -> None:
    server.answer(202, CREATED)
    server.answer(200, {**ACCEPTED, "sealed": True})
    threads: set[int] = set()

    def numbers() -> Iterator[BatchItem]:
        for number in range(250):
            threads.add(threading.get_ident())
            yield {"task": "t", "payload": number}

    with Runwire(api_url=server.url, access_token="key") as blocking:
        handle = blocking.batch.trigger(numbers())
    assert handle.run_count == 250 and threads == {threading.get_ident()}
    sent = [line for asked in server.asked[1:] for line in asked.body.splitlines()]
    assert len(sent) == 250


async def test_a_cached_batch_reads_no_more_of_its_iterable(
    server: ScriptedHttp, client: AsyncRunwire
) -> None:
    server.answer(202, {"id": "batch_a", "runCount": 7, "isCached": True})
    handle = await client.batch.trigger(arriving(1_000_000), idempotency_key="k")
    assert (handle.is_cached, handle.run_count, len(server.asked)) == (True, 7, 1)


@pytest.mark.parametrize("count", [0, 1001])
async def test_an_iterable_yields_one_to_a_thousand(
    server: ScriptedHttp, client: AsyncRunwire, count: int
) -> None:
    server.answer(202, CREATED)
    server.answer(200, {**ACCEPTED, "sealed": True})
    if count == 0:
        with pytest.raises(InvalidValueError, match="1 to 1000 runs, not 0"):
            await client.batch.trigger(arriving(count))
        assert server.asked == []
        return
    with pytest.raises(BatchTriggerError, match="not 1001") as raised:
        await client.batch.trigger(arriving(count))
    assert (raised.value.batch_id, raised.value.phase) == ("batch_a", "stream")
    assert server.asked[-1].path.endswith("/items?abort=true")


async def test_a_source_that_fails_leaves_what_was_started_and_says_where(
    server: ScriptedHttp, client: AsyncRunwire
) -> None:
    async def broken(first: bool) -> AsyncIterator[BatchItem]:
        if first:
            yield {"task": "t"}
        raise RuntimeError("the file ends here")

    with pytest.raises(RuntimeError, match="the file ends"):
        await client.batch.trigger(broken(False))
    assert server.asked == []
    server.answer(202, CREATED)
    server.answer(200, {**ACCEPTED, "sealed": False})
    with pytest.raises(BatchTriggerError, match="the file ends here") as raised:
        await client.batch.trigger(broken(True))
    error = raised.value
    assert (error.phase, error.batch_id, error.item_count) == ("stream", "batch_a", 1)
    assert isinstance(error.cause, RuntimeError) and error.__cause__ is error.cause
    assert not error.is_rate_limited and error.retry_after is None
    assert server.asked[-1].path.endswith("/items?abort=true")


async def test_a_batch_that_is_refused_says_in_which_phase(
    server: ScriptedHttp, client: AsyncRunwire
) -> None:
    server.answer(429, {"error": "slowly", "code": "rate_limited"}, retry_after="0")
    with pytest.raises(BatchTriggerError) as raised:
        await client.batch.trigger([{"task": "t"}, {"task": "t"}])
    error = raised.value
    assert (error.phase, error.batch_id, error.item_count) == ("create", None, 2)
    assert error.is_rate_limited and error.retry_after == 0.0
    server.answers[:] = []
    server.answer(202, CREATED)
    server.answer(404, {"error": "no such task", "code": "not_found"})
    with pytest.raises(BatchTriggerError, match="no such task") as raised:
        await client.batch.trigger([{"task": "t"}])
    assert (raised.value.phase, raised.value.batch_id) == ("stream", "batch_a")
    assert isinstance(raised.value.cause, NotFoundError)
    assert server.asked[-1].path.endswith("/items?abort=true")


async def test_a_batch_tells_what_was_refused_of_it(
    server: ScriptedHttp, client: AsyncRunwire
) -> None:
    at = "2026-11-23T20:47:46.123Z"
    problem = {"index": 1, "taskIdentifier": "t", "error": "no", "errorCode": "not_found"}
    server.answer(
        200,
        {
            "id": "batch_a",
            "status": "ABORTED",
            "createdAt": at,
            "updatedAt": at,
            "runCount": 1,
            "runs": ["run_a"],
            "processing": {"errors": [problem]},
        },
    )
    held = await client.batch.retrieve("batch_a")
    assert held.processing_errors == (ItemError(1, "t", "no", "not_found"),)
    assert held.is_completed and held.run_ids == ("run_a",)


async def test_a_key_is_reset_as_it_was_made(server: ScriptedHttp, client: AsyncRunwire) -> None:
    server.answer(200, {"id": "k"})
    made = idempotency_keys.create(["a", "b"], scope="global")
    assert await client.idempotency_keys.reset("my task", ["a", "b"], scope="global")
    assert await client.idempotency_keys.reset("my task", made)
    for asked in server.asked:
        assert asked.path == f"/api/v1/idempotencyKeys/{made}/reset"
        assert asked.json == {"taskIdentifier": "my task"}
    await client.idempotency_keys.reset("t", "k", parent_run_id="run_a")
    with executing():
        assert server.asked[-1].path.split("/")[4] == idempotency_keys.create("k")
    with pytest.raises(InvalidValueError, match="attempt_number"):
        await client.idempotency_keys.reset("t", "k", scope="attempt", parent_run_id="run_a")
    server.answers[:] = [(404, {"error": "none", "code": "not_found"}, {})]
    assert not await client.idempotency_keys.reset("my task", made)


async def test_a_list_follows_its_pages(server: ScriptedHttp, client: AsyncRunwire) -> None:
    server.answer(200, {"data": [run(1), run(2)], "pagination": {"next": "c1"}})
    server.answer(200, {"data": [run(3)], "pagination": {"previous": "c0"}})
    listed = client.runs.list(status=["COMPLETED", "FAILED"], tag="a", created_in_last="1h")
    assert [one.revision async for one in listed] == [1, 2, 3]
    assert "filter[status]=COMPLETED,FAILED" in server.asked[0].path
    assert "filter[createdAt][period]=3600s" in server.asked[0].path
    assert "page[after]=c1" in server.asked[1].path


async def test_a_list_is_of_a_runs_children_or_of_a_schedule(
    server: ScriptedHttp, client: AsyncRunwire
) -> None:
    for _ in range(2):
        server.answer(200, {"data": [], "pagination": {}})
    assert [run async for run in client.runs.list(parent="run_a")] == []
    assert [run async for run in client.runs.list(parent="run_b", schedule="sched_1")] == []
    assert "filter[parent]=run_a" in server.asked[0].path
    assert "filter[parent]=run_b&filter[schedule]=sched_1" in server.asked[1].path


async def test_a_public_token_is_asked_for_with_scopes_as_text(
    server: ScriptedHttp, client: AsyncRunwire
) -> None:
    server.answer(200, {"token": "jwt"})
    token = await client.auth.create_public_token(
        scopes={"read": {"runs": ["run_a"], "tags": "user:1"}, "write": {"runs": True}},
        expiration_time="1h",
        fields=["status", "task_identifier"],
        streams=["log"],
    )
    assert token == "jwt"
    assert server.asked[0].json == {
        "scopes": ["read:runs:run_a", "read:tags:user:1", "write:runs"],
        "expirationTime": "3600.000s",
        "oneTimeUse": False,
        "fields": ["status", "taskIdentifier"],
        "streams": ["log"],
    }
    await client.auth.create_trigger_public_token(["a", "b"])
    assert server.asked[1].json["scopes"] == ["trigger:tasks:a", "trigger:tasks:b"]
    assert server.asked[1].json["oneTimeUse"] is True
    with pytest.raises(InvalidValueError):
        await client.auth.create_public_token(scopes={"read": {"runs": []}})


async def test_appending_from_outside_names_its_part(
    server: ScriptedHttp, client: AsyncRunwire
) -> None:
    server.answer(503, {"error": "later"})
    server.answer(200, {"ok": True, "next": 3})
    assert await client.streams.append("a/b", {"x": 1}, target="run_a") == 3
    first, second = server.asked
    assert first.path == "/realtime/v1/streams/run_a/self/a/b/append"
    assert first.body == b'{"x":1}' and first.headers["content-type"] == "application/x-ndjson"
    assert first.headers["x-part-id"] == second.headers["x-part-id"]


async def test_the_environment_says_where_the_server_is_and_who_asks(
    server: ScriptedHttp, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer(200, run(1))
    monkeypatch.setenv("RUNWIRE_API_URL", server.url + "/")
    monkeypatch.setenv("RUNWIRE_ACCESS_TOKEN", "public")
    async with AsyncRunwire() as client:
        await client.runs.retrieve("run_a")
    monkeypatch.setenv("RUNWIRE_API_KEY", "secret")
    async with AsyncRunwire() as client:
        await client.runs.retrieve("run_a")
    auth.configure(access_token="configured")
    try:
        async with AsyncRunwire() as client:
            await client.runs.retrieve("run_a")
        with auth.with_auth(access_token="chosen"):
            async with AsyncRunwire() as client:
                await client.runs.retrieve("run_a")
    finally:
        auth.configure()
    sent = [asked.headers["authorization"] for asked in server.asked]
    assert sent == ["Bearer public", "Bearer secret", "Bearer configured", "Bearer chosen"]


def test_the_blocking_client_makes_the_same_requests(server: ScriptedHttp) -> None:
    with Runwire(api_url=server.url, access_token="key") as client:
        server.answer(200, {"id": "run_a", "isCached": False})
        assert client.tasks.trigger("t", 1).id == "run_a"
        server.answers[:] = []
        server.answer(200, {"data": [run(1)], "pagination": {}})
        assert [one.revision for one in client.runs.list(task="t")] == [1]
        server.answers[:] = []
        server.answer(200, run(2, "COMPLETED"))
        assert client.runs.poll("run_a").revision == 2
        server.answers[:] = []
        server.answer(404, {"error": "nothing there", "code": "not_found"})
        with pytest.raises(NotFoundError):
            client.runs.cancel("run_a")
    with pytest.raises(ConfigurationError, match="closed"):
        client.runs.retrieve("run_a")


def test_a_filter_value_with_a_comma_is_refused() -> None:
    client = Runwire(api_url="http://127.0.0.1:1", access_token="key")
    values: Any = ["a,b"]
    with pytest.raises(InvalidValueError, match="comma"):
        client.runs.list(tag=values)
