"""Tokens that end while an application follows: the callable is asked, and is never trusted."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import pytest

from runwire import AsyncRunwire, ConfigurationError, UnauthorizedError, _connection, _session
from runwire.errors import ApiError, NotFoundError, UnreachableError
from runwire_realtime import tokens
from tests.support.faultproxy import FaultProxy, fault_proxy
from tests.support.server import TestRealtime
from tests.support.stage import Stage, open_stage

pytestmark = pytest.mark.anyio
READ = "read:runs"


@dataclass
class Place:
    stage: Stage
    url: str
    proxy: FaultProxy
    # Tokens that were handed out, in order.
    handed: list[str] = field(default_factory=list[str])

    async def token(self, lifetime: str = "1h", server: TestRealtime | None = None) -> str:
        server = server or self.stage.server
        self.handed.append(await server.token(READ, expirationTime=lifetime))
        return self.handed[-1]

    def client(self, access_token: Any) -> AsyncRunwire:
        return AsyncRunwire(api_url=self.url, access_token=access_token)


@pytest.fixture(params=["socket", "events"])
async def place(
    request: pytest.FixtureRequest, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Place]:
    monkeypatch.setattr(_connection, "FIRST_WAIT", 0.02)
    async with open_stage(database_url) as stage:
        host, _, port = stage.url.removeprefix("http://").partition(":")
        async with fault_proxy((host, int(port))) as proxy:
            proxy.websockets = "pass" if request.param == "socket" else "refused"
            yield Place(stage, f"http://127.0.0.1:{proxy.port}", proxy)


async def chunks_of(client: AsyncRunwire, run: str, into: list[object]) -> None:
    async for chunk in client.streams.read(run, "text"):
        into.append(chunk)


async def until(fact: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not fact():
            await anyio.sleep(0.005)  # polls


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_a_token_that_is_about_to_end_is_replaced_and_nothing_is_missed(
    place: Place, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short tokens are warned of at once, and are spent one after another."""
    monkeypatch.setattr(_session, "REFRESH_PAUSE", 0.0)
    run = await place.stage.trigger()
    execution = await place.stage.start(run)
    spare = [await place.token("20s") for _ in range(3)] + [await place.token()]
    asked: list[str] = []
    number = 0

    def next_token() -> str:
        asked.append(spare[min(len(asked), 3)])
        return asked[-1]

    async def next_token_soon() -> str:
        await anyio.sleep(0.01)  # stands for a request
        return next_token()

    read: list[object] = []
    async with place.client(next_token_soon if is_async else next_token) as client:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(chunks_of, client, run, read)
                while len(asked) < 4:
                    await place.stage.append(run, execution, number)
                    number += 1
                    await anyio.sleep(0.02)  # the tokens are changed meanwhile
                await place.stage.append(run, execution, number)
                await place.stage.complete(run, execution)
    assert read == list(range(number + 1))


async def test_a_token_that_ended_without_a_word_is_fetched_again_and_the_rest_is_read(
    place: Place,
) -> None:
    """The callable hands out its old token until that has ended: 4003, or a broken response."""
    run = await place.stage.trigger()
    execution = await place.stage.start(run)
    # Long enough to be shown in time on a busy machine.
    old, asked = await place.token("3s"), 0
    began = anyio.current_time()

    async def token() -> str:
        nonlocal asked
        asked += 1
        return old if anyio.current_time() < began + 3.3 else await place.token()

    read: list[object] = []
    number = 0
    async with place.client(token) as client:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(chunks_of, client, run, read)
                while len(place.handed) == 1:
                    await place.stage.append(run, execution, number)
                    number += 1
                    await anyio.sleep(0.1)  # past the end of the token
                await place.stage.append(run, execution, number)
                await place.stage.complete(run, execution)
    assert read == list(range(number + 1)) and asked > 1


async def test_a_token_that_cannot_be_asked_for_again_ends_with_an_error(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For that long events are begun with it, and broken off again and again.
    monkeypatch.setattr(tokens, "LEEWAY", 0.0)
    run = await place.stage.trigger()
    async with place.client(await place.token("2s")) as client:
        with anyio.fail_after(60), pytest.raises(UnauthorizedError):
            _ = [state async for state in client.runs.subscribe_to_run(run)]


def raising(error: Exception) -> Callable[[], str]:
    def token() -> str:
        raise error

    return token


def awaiting(answer: Any) -> Callable[[], Awaitable[str]]:
    async def token() -> str:
        await asyncio.sleep(0)
        if isinstance(answer, Exception):
            raise answer
        given: str = answer
        return given

    return token


NO_TOKENS: list[tuple[Any, type[Exception]]] = [
    (raising(KeyError("session")), ConfigurationError),
    (awaiting(ValueError("bad")), ConfigurationError),
    (awaiting(UnauthorizedError("signed out", status=401, code="unauthorized")), ApiError),
    (awaiting(None), ConfigurationError),
    (lambda: None, ConfigurationError),
    (awaiting(""), ConfigurationError),
    (awaiting(5), ConfigurationError),
    (awaiting("not a token"), UnauthorizedError),
    (awaiting("line\nbreak"), UnauthorizedError),
    (awaiting("é"), UnauthorizedError),
]


async def test_a_callable_that_returns_no_token_ends_every_subscription_with_an_error(
    place: Place,
) -> None:
    run = await place.stage.trigger()

    async def follow(client: AsyncRunwire, ended: list[Exception]) -> None:
        try:
            _ = [state async for state in client.runs.subscribe_to_run(run)]
        except Exception as raised:
            ended.append(raised)

    for token, error in NO_TOKENS:
        ended: list[Exception] = []
        async with place.client(token) as client:
            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    for _ in range(3):
                        tasks.start_soon(follow, client, ended)
        assert [type(each) for each in ended] == [type(ended[0])] * 3
        assert isinstance(ended[0], error), ended[0]


async def test_a_network_that_fails_the_callable_is_tried_again_until_the_deadline(
    place: Place,
) -> None:
    run = await place.stage.trigger()
    asked = 0

    def token() -> str:
        nonlocal asked
        asked += 1
        raise ConnectionRefusedError("the issuer is away")

    async with place.client(token) as client:
        with anyio.fail_after(60), pytest.raises(UnreachableError) as raised:
            _ = [state async for state in client.runs.subscribe_to_run(run, deadline=0.5)]
    assert asked > 1 and isinstance(raised.value.__cause__, ConfigurationError)
    assert isinstance(raised.value.__cause__.__cause__, ConnectionRefusedError)


async def test_a_callable_that_never_answers_is_given_up_at_the_deadline(place: Place) -> None:
    run = await place.stage.trigger()
    is_left = False

    async def token() -> str:
        nonlocal is_left
        try:
            await anyio.sleep(3600)
        finally:
            is_left = True
        return ""

    async with place.client(token) as client:
        with anyio.fail_after(60), pytest.raises(UnreachableError):
            _ = [state async for state in client.runs.subscribe_to_run(run, deadline=0.3)]
    assert is_left


async def test_a_refresh_that_hangs_does_not_hold_up_what_comes_meanwhile(place: Place) -> None:
    run = await place.stage.trigger()
    execution = await place.stage.start(run)
    short = await place.token("15s")  # about to end as soon as it is shown
    read: list[object] = []
    hangs = False

    async def token() -> str:
        nonlocal hangs
        # On what is open: the task of a try is the reader's.
        hangs = asyncio.current_task() not in readers
        await anyio.sleep(3600 if hangs else 0)
        return short

    readers: list[asyncio.Task[object] | None] = []

    async def follow() -> None:
        readers.append(asyncio.current_task())
        await chunks_of(client, run, read)

    async with place.client(token) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await until(lambda: hangs)
        await place.stage.append(run, execution, "meanwhile")
        await until(lambda: read == ["meanwhile"])
        tasks.cancel_scope.cancel()


async def test_a_token_of_another_tenant_is_an_error_and_never_another_tenants_run(
    place: Place,
) -> None:
    run = await place.stage.trigger()
    other = await place.stage.server.tenant("task")
    first, second = await place.token("20s"), await place.token(server=replace(other))
    handed: list[str] = []

    def token() -> str:
        handed.append(second if handed else first)
        return handed[-1]

    async with place.client(token) as client:
        with anyio.fail_after(60), pytest.raises((UnauthorizedError, NotFoundError)):
            _ = [state async for state in client.runs.subscribe_to_run(run)]
    assert len(handed) > 1
