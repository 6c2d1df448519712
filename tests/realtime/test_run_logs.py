"""The log of a run, as those read it who may: over HTTP, over the socket, at a terminal."""

import subprocess
import sys
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import anyio.to_thread
import pytest

from runwire import AsyncRunwire, ForbiddenError, InvalidValueError, Runwire, logger, streams, task
from runwire.errors import NotFoundError
from runwire.runs import LogEntry
from tests.support.server import TestRealtime
from tests.support.working import Bench, opened_bench

pytestmark = pytest.mark.anyio


@task(id="logs-chatty", retry={"max_attempts": 1})
async def chatty(payload: int) -> None:
    for number in range(payload):
        logger.info(f"line {number}", {"number": number})
    logger.warn("nearly \x1b[31mdone")
    await streams.append("text", "hello")


@task(id="logs-patient", retry={"max_attempts": 1})
async def patient() -> None:
    logger.info("waiting")
    await anyio.sleep_forever()


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened, opened.worker(chatty, patient):
        yield opened


async def test_a_log_is_read_as_it_is_and_as_it_grows(client: AsyncRunwire) -> None:
    handle = await client.tasks.trigger(chatty, 3)
    followed = [entry async for entry in client.runs.logs(handle, follow=True)]
    assert [(entry.seq, entry.level, entry.message) for entry in followed] == [
        (0, "info", "line 0"),
        (1, "info", "line 1"),
        (2, "info", "line 2"),
        (3, "warn", "nearly \x1b[31mdone"),
    ]
    assert followed[1].attributes == {"number": 1} and followed[1].attempt == 1
    assert [entry async for entry in client.runs.logs(handle)] == followed
    assert [e.level async for e in client.runs.logs(handle, level="warn")] == ["warn"]
    with pytest.raises(InvalidValueError, match="debug, info"):
        wrong: Any = "loud"
        client.runs.logs(handle, level=wrong)


async def test_a_long_log_is_read_by_pages_up_to_where_it_stood(client: AsyncRunwire) -> None:
    handle = await client.tasks.trigger(chatty, 1500)
    await client.runs.poll(handle, interval=0.05)
    numbers = [e.attributes["number"] async for e in client.runs.logs(handle) if e.attributes]
    assert numbers == list(range(1500))


async def test_a_run_that_logged_nothing_has_an_empty_log(
    client: AsyncRunwire, server: TestRealtime
) -> None:
    handle = await client.tasks.trigger(chatty, 0, delay="1h")
    assert [entry async for entry in client.runs.logs(handle)] == []
    await client.runs.cancel(handle)
    assert [entry async for entry in client.runs.logs(handle, follow=True)] == []
    async with server.client() as http:
        page = (await http.get(f"/api/v1/runs/{handle.id}/streams/$log")).json()
    assert page == {"runId": handle.id, "key": "$log", "next": 0, "eof": "canceled", "chunks": []}
    with pytest.raises(NotFoundError):
        [entry async for entry in client.runs.logs("run_00000000000000")]


async def test_blocking_code_reads_the_same(client: AsyncRunwire, server: TestRealtime) -> None:
    handle = await client.tasks.trigger(chatty, 1)

    def read() -> tuple[list[LogEntry], list[LogEntry]]:
        with Runwire(api_url=server.url, access_token=server.key) as blocking:
            followed = list(blocking.runs.logs(handle, follow=True))
            return followed, list(blocking.runs.logs(handle))

    followed, read_again = await anyio.to_thread.run_sync(read)
    assert [entry.message for entry in followed][:1] == ["line 0"] and followed == read_again


async def test_all_streams_of_a_run_are_not_its_log(client: AsyncRunwire) -> None:
    handle = await client.tasks.trigger(chatty, 2)
    events = [event async for event in client.runs.subscribe_to_run(handle).with_streams()]
    assert {event.type for event in events} == {"run", "text"}
    # Two subscriptions of one socket, one of which reads the log by its name.
    told: list[str] = []

    async def follow(*keys: str) -> None:
        async for event in client.runs.subscribe_to_run(handle).with_streams(*keys):
            told.append(f"{keys}: {event.type}")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        tasks.start_soon(follow, "$log")
    assert set(told) == {"(): run", "(): text", "('$log',): run", "('$log',): $log"}


async def test_a_public_token_reads_no_log_unless_it_names_it(
    client: AsyncRunwire, server: TestRealtime
) -> None:
    handle = await client.tasks.trigger(chatty, 1)
    await client.runs.poll(handle, interval=0.05)
    plain = await server.token(f"read:runs:{handle.id}")
    named = await server.token(f"read:runs:{handle.id}", streams=["$log"])
    for follow in (True, False):
        with pytest.raises(ForbiddenError):
            [e async for e in client.runs.logs(handle, follow=follow, access_token=plain)]
        read = [e async for e in client.runs.logs(handle, follow=follow, access_token=named)]
        assert len(read) == 2


async def test_nobody_appends_to_a_log_over_http(
    client: AsyncRunwire, server: TestRealtime
) -> None:
    handle = await client.tasks.trigger(chatty, 1, delay="1h")
    async with server.client() as http:
        path = f"/realtime/v1/streams/{handle.id}/self/%24log/append"
        answer = await http.post(path, content="forged")
    assert answer.status_code == 400 and "reserved" in answer.json()["error"]


async def test_the_log_is_printed_at_a_terminal(client: AsyncRunwire, server: TestRealtime) -> None:
    handle = await client.tasks.trigger(chatty, 1)
    await client.runs.poll(handle, interval=0.05)
    ended = await anyio.to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-m", "runwire_realtime.cli", "runs", "logs", handle.id, "--follow"],
            env={"RUNWIRE_API_URL": server.url, "RUNWIRE_API_KEY": server.key},
            capture_output=True,
            text=True,
            timeout=30,
        )
    )
    first, second = ended.stdout.splitlines()
    assert first.endswith('info  line 0 {"number":0}') and ended.returncode == 0
    assert "warn  nearly done" in second and "\x1b" not in second
