"""Input sent over HTTP, with the official client's call and with ours."""

from collections.abc import AsyncGenerator
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from pydantic import BaseModel

from runwire import AsyncRunwire, FencedError, ForbiddenError, Runwire, streams, task
from runwire.errors import NotFoundError
from tests.support.server import TestRealtime
from tests.support.working import Bench, opened_bench

pytestmark = pytest.mark.anyio


class Approval(BaseModel):
    approved: bool


approval = streams.input("approval", Approval)
anything = streams.input[Any]("a/b append")


@task(id="inputs-asking", retry={"max_attempts": 1})
async def asking() -> bool:
    return (await approval.once()).approved


@task(id="inputs-taking", retry={"max_attempts": 1})
async def taking(payload: int) -> list[Any]:
    return [await anything.once() for _ in range(payload)]


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened, opened.worker(asking, taking):
        yield opened


@pytest.fixture
async def http(server: TestRealtime, anyio_backend: str) -> AsyncGenerator[httpx.AsyncClient]:
    async with server.client() as opened:
        yield opened


async def test_the_token_of_a_trigger_answers_its_run(
    client: AsyncRunwire, server: TestRealtime
) -> None:
    handle = await client.tasks.trigger(asking)
    assert handle.public_access_token is not None
    async with AsyncRunwire(api_url=server.url, access_token=handle.public_access_token) as person:
        await person.streams.send(handle.id, approval, Approval(approved=True))
    run = await client.runs.poll(handle, interval=0.02)
    assert run.output is True and run.raw["realtimeStreams"] == []


async def test_blocking_code_sends_too(client: AsyncRunwire, server: TestRealtime) -> None:
    handle = await client.tasks.trigger(asking)

    def send() -> None:
        with Runwire(api_url=server.url, access_token=server.key) as blocking:
            blocking.streams.send(handle.id, approval, Approval(approved=False))

    await anyio.to_thread.run_sync(send)
    assert (await client.runs.poll(handle, interval=0.02)).output is False


async def test_any_json_value_is_sent_as_the_official_client_posts_it(
    client: AsyncRunwire, http: httpx.AsyncClient
) -> None:
    values: list[Any] = [{"a": [1, None]}, "text", None, 5, []]
    handle = await client.tasks.trigger(taking, len(values))
    path = f"/realtime/v1/streams/{handle.id}/input/a%2Fb%20append"
    for value in values:
        answer = await http.post(path, json={"data": value})
        assert (answer.status_code, answer.json()) == (200, {"ok": True})
    assert (await client.runs.poll(handle, interval=0.02)).output == values


async def test_a_repeated_part_is_sent_once(client: AsyncRunwire, http: httpx.AsyncClient) -> None:
    handle = await client.tasks.trigger(taking, 2)
    path = f"/realtime/v1/streams/{handle.id}/input/a%2Fb%20append"
    for part, value in (("p1", 1), ("p1", 1), ("p2", 2)):
        answer = await http.post(path, json={"data": value}, headers={"x-part-id": part})
        assert answer.status_code == 200
    assert (await client.runs.poll(handle, interval=0.02)).output == [1, 2]


async def test_who_may_send(
    client: AsyncRunwire, server: TestRealtime, http: httpx.AsyncClient
) -> None:
    handle = await client.tasks.trigger(taking, 9, delay="1h")
    path = f"/realtime/v1/streams/{handle.id}/input/key"
    for scope, status in (
        (f"write:inputStreams:{handle.id}", 200),
        ("write:inputStreams", 200),
        (f"write:runs:{handle.id}", 200),
        (f"read:runs:{handle.id}", 403),
        (f"write:inputStreams:{handle.id}x", 403),
        (f"write:streams:{handle.id}", 403),
    ):
        async with server.client(await server.token(scope)) as sender:
            answer = await sender.post(path, json={"data": 1})
            assert answer.status_code == status, scope
    # Sending is not reading.
    token = await server.token(f"write:inputStreams:{handle.id}", f"read:runs:{handle.id}")
    with pytest.raises(ForbiddenError):
        await client.streams.read(handle.id, "$input:key", access_token=token).collect()
    assert await client.streams.read(handle.id, "$input:key", start=0).__aiter__().__anext__() == 1


async def test_a_run_that_is_over_takes_no_input(
    client: AsyncRunwire, http: httpx.AsyncClient
) -> None:
    handle = await client.tasks.trigger(asking, delay="1h")
    await client.runs.cancel(handle)
    answer = await http.post(
        f"/realtime/v1/streams/{handle.id}/input/approval", json={"data": None}
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "conflict")
    with pytest.raises(FencedError) as over:
        await client.streams.send(handle.id, approval, Approval(approved=True))
    assert over.value.run_id == handle.id
    with pytest.raises(NotFoundError):
        await client.streams.send("run_00000000000000", approval, Approval(approved=True))


@pytest.mark.parametrize(
    ("key", "content", "status"),
    [
        ("key", b"", 400),
        ("key", b'{"data": NaN}', 400),
        ("key", b"[]", 400),
        ("%24log", b'{"data": 1}', 400),
        ("key", b'{"data": "' + b"x" * 1024 * 1024 + b'"}', 413),
    ],
)
async def test_what_cannot_be_input_is_refused(
    client: AsyncRunwire, http: httpx.AsyncClient, key: str, content: bytes, status: int
) -> None:
    handle = await client.tasks.trigger(asking, delay="1h")
    answer = await http.post(f"/realtime/v1/streams/{handle.id}/input/{key}", content=content)
    assert answer.status_code == status, answer.text
