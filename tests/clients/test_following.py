import asyncio
import gc
import socket
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import pytest

from runwire import AsyncRunwire, Event, Runwire, _connection, auth, runs, sync
from runwire.errors import (
    ConfigurationError,
    ForbiddenError,
    NotFoundError,
    SubscriptionError,
    UnauthorizedError,
    UnreachableError,
)
from runwire.wire import StreamStart
from tests.support.faultproxy import fault_proxy
from tests.support.scripted_server import TOKEN, ScriptedServer, scripted_server

pytestmark = pytest.mark.anyio
T = TypeVar("T")


@pytest.fixture
async def server(anyio_backend: str) -> AsyncGenerator[ScriptedServer]:
    async with scripted_server() as started:
        yield started


class Kind:
    """One of the two clients, driven from a test with a loop."""

    async def gather(self, open: Callable[[Any], Any], **settings: Any) -> list[Any]:
        """Return everything that a subscription of a fresh client yields."""
        raise NotImplementedError


class Async(Kind):
    async def gather(self, open: Callable[[Any], Any], **settings: Any) -> list[Any]:
        async with AsyncRunwire(**settings) as client:
            return [one async for one in open(client)]


class Sync(Kind):
    async def gather(self, open: Callable[[Any], Any], **settings: Any) -> list[Any]:
        def collect() -> list[Any]:
            with Runwire(**settings) as client:
                return list(open(client))

        return await anyio.to_thread.run_sync(collect, abandon_on_cancel=True)


@pytest.fixture(params=[Async(), Sync()], ids=["async", "sync"])
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


def events(client: Any) -> Any:
    return client.runs.subscribe_to_run("run_a").with_streams()


def values(told: Iterable[Event]) -> list[object]:
    return [event.chunk for event in told if event.type == "log"]


async def test_a_run_and_its_streams_are_told_to_the_end(
    server: ScriptedServer, kind: Kind
) -> None:
    await server.write("a", "b", None)
    await server.finish()
    told = await kind.gather(events, api_url=server.url, access_token=TOKEN)
    assert values(told) == ["a", "b", None]
    assert [(event.seq, event.attempt) for event in told if event.type == "log"] == [
        (0, 1),
        (1, 1),
        (2, 1),
    ]
    assert told[-1].run.is_success and told[-1].run.revision == 2
    with anyio.fail_after(60):
        await server.until(lambda: not server.sockets)


async def test_a_socket_that_is_cut_again_and_again_loses_and_repeats_nothing(
    server: ScriptedServer, kind: Kind
) -> None:
    server.cut_after = 3
    await server.write(*range(10))
    await server.finish()
    told = await kind.gather(events, api_url=server.url, access_token=TOKEN)
    assert values(told) == list(range(10))
    assert [event.run.revision for event in told if event.type == "run"] == [2]
    assert server.opened == 4
    starts = [subscribe["streams"]["*"]["from"] for subscribe in server.subscribed]
    assert starts == ["start"] * 4
    assert [one["streams"].get("log", {}).get("from") for one in server.subscribed] == [
        None,
        3,
        6,
        9,
    ]


async def test_reading_one_stream_yields_its_chunks(server: ScriptedServer, kind: Kind) -> None:
    await server.write("a", "b", "c")
    await server.finish()
    settings = {"api_url": server.url, "access_token": TOKEN}
    read = await kind.gather(lambda client: client.streams.read("run_a", "log"), **settings)
    assert read == ["a", "b", "c"]
    read = await kind.gather(
        lambda client: client.streams.read("run_a", "log", start=2), **settings
    )
    assert read == ["c"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (HTTPStatus.UNAUTHORIZED, UnauthorizedError),
        (HTTPStatus.FORBIDDEN, ForbiddenError),
        (HTTPStatus.NOT_FOUND, NotFoundError),
    ],
)
async def test_a_handshake_that_is_refused_is_an_error_at_once(
    server: ScriptedServer, kind: Kind, status: HTTPStatus, error: type[Exception]
) -> None:
    server.refuse_with = status
    with anyio.fail_after(60), pytest.raises(error):
        await kind.gather(events, api_url=server.url, access_token=TOKEN)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (4401, UnauthorizedError),
        (4403, ForbiddenError),
        (4404, NotFoundError),
        (4426, SubscriptionError),
        (4499, UnauthorizedError),
    ],
)
async def test_a_close_that_forbids_to_come_back_is_an_error_at_once(
    server: ScriptedServer, kind: Kind, code: int, error: type[Exception]
) -> None:
    server.close_auth_with = code
    with anyio.fail_after(60), pytest.raises(error):
        await kind.gather(events, api_url=server.url, access_token=TOKEN)
    assert server.opened == 1


async def test_an_unknown_run_is_an_error(server: ScriptedServer, kind: Kind) -> None:
    with anyio.fail_after(60), pytest.raises(NotFoundError, match="no such run"):
        await kind.gather(
            lambda client: client.runs.subscribe_to_run("run_b"),
            api_url=server.url,
            access_token=TOKEN,
        )


async def test_a_server_that_is_not_there_is_an_error_after_the_deadline(kind: Kind) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with anyio.fail_after(60), pytest.raises(UnreachableError) as raised:
        await kind.gather(
            lambda client: client.runs.subscribe_to_run("run_a", deadline=0.3),
            api_url=url,
            access_token=TOKEN,
        )
    assert raised.value.after == 0.3


async def test_a_server_that_accepts_and_says_nothing_is_an_error_after_the_deadline(
    kind: Kind,
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with anyio.fail_after(60), pytest.raises(UnreachableError):
            await kind.gather(
                lambda client: client.runs.subscribe_to_run("run_a", deadline=0.3),
                api_url=f"http://127.0.0.1:{silent.getsockname()[1]}",
                access_token=TOKEN,
            )


async def test_a_server_that_comes_back_in_time_is_resumed(kind: Kind) -> None:
    state = ScriptedServer()
    told: list[Event] = []

    async def follow() -> None:
        told.extend(await kind.gather(events, api_url=state.url, access_token=TOKEN))

    async with anyio.create_task_group() as tasks:
        async with scripted_server(state):
            await state.write("a")
            tasks.start_soon(follow)
            await state.until(lambda: state.subscribed)
        state.changed = anyio.Condition()
        async with scripted_server(state):
            await state.write("b")
            await state.finish()
            await state.until(lambda: len(state.subscribed) > 1 and not state.sockets)
    assert values(told) == ["a", "b"]


async def test_without_a_credential_nothing_is_tried(server: ScriptedServer, kind: Kind) -> None:
    with pytest.raises(ConfigurationError, match="RUNWIRE_API_KEY"):
        await kind.gather(events, api_url=server.url)
    assert server.opened == 0


async def test_a_wrong_address_is_an_error_at_once(kind: Kind) -> None:
    with pytest.raises(ConfigurationError, match="address"):
        await kind.gather(events, api_url="nonsense", access_token=TOKEN)


async def test_leaving_the_loop_ends_the_subscription_and_leaves_nothing_behind(
    server: ScriptedServer,
) -> None:
    await server.write("a", "b")
    before = asyncio.all_tasks()
    async with AsyncRunwire(api_url=server.url, access_token=TOKEN) as client:
        async for event in client.runs.subscribe_to_run("run_a").with_streams():
            if event.type == "log":
                break
        with anyio.fail_after(60):
            await server.until(lambda: not server.sockets)
    assert not [task for task in asyncio.all_tasks() - before if "server" not in repr(task)]


async def test_leaving_a_blocking_loop_ends_the_subscription(server: ScriptedServer) -> None:
    await server.write("a", "b")

    def first() -> object:
        with Runwire(api_url=server.url, access_token=TOKEN) as client:
            for event in client.runs.subscribe_to_run("run_a").with_streams():
                if event.type == "log":
                    return event.chunk
        return None

    threads = threading.active_count()
    assert await anyio.to_thread.run_sync(first) == "a"
    with anyio.fail_after(60):
        await server.until(lambda: not server.sockets)
    assert threading.active_count() <= threads + 1  # the worker thread of to_thread stays


async def test_a_loop_that_was_left_goes_on_where_it_was(server: ScriptedServer) -> None:
    await server.write("a", "b", "c")
    await server.finish()
    async with AsyncRunwire(api_url=server.url, access_token=TOKEN) as client:
        following = client.runs.subscribe_to_run("run_a").with_streams("log")
        async for event in following:
            if event.chunk == "b":
                break
        assert following.state in ("live", "syncing", "closed")
        rest = [event.chunk async for event in following]
        assert rest == ["c"]
        kept = following.cursor
        again = client.runs.subscribe_to_run("run_a", cursor=kept).with_streams("log")
        assert [event async for event in again] == []


async def test_many_subscriptions_share_one_socket_and_outlive_each_other(
    server: ScriptedServer,
) -> None:
    read: dict[int, list[object]] = {}

    async def follow(client: AsyncRunwire, reader: int) -> None:
        read[reader] = []
        async for chunk in client.streams.read("run_a", "log"):
            read[reader].append(chunk)
            if reader % 2 and len(read[reader]) == 1:
                return

    async with AsyncRunwire(api_url=server.url, access_token=TOKEN) as client:
        async with anyio.create_task_group() as tasks:
            for reader in range(10):
                tasks.start_soon(follow, client, reader)
            await server.until(lambda: len(server.subscribed) == 10)
            await server.write("a")
            await server.until(lambda: server.unsubscribed == 5)
            await server.write("b")
            await server.finish()
    assert server.opened == 1
    assert read == {reader: ["a"] if reader % 2 else ["a", "b"] for reader in range(10)}


async def test_a_reader_that_is_canceled_hands_the_socket_to_the_next(
    server: ScriptedServer,
) -> None:
    read: list[object] = []

    async def follow(client: AsyncRunwire, into: list[object]) -> None:
        async for chunk in client.streams.read("run_a", "log"):
            into.append(chunk)

    async with AsyncRunwire(api_url=server.url, access_token=TOKEN) as client:
        async with anyio.create_task_group() as outer:
            async with anyio.create_task_group() as inner:
                inner.start_soon(follow, client, list[object]())
                await server.until(lambda: len(server.subscribed) == 1)
                outer.start_soon(follow, client, read)
                await server.until(lambda: len(server.subscribed) == 2)
                inner.cancel_scope.cancel()
            await server.write("a")
            await server.finish()
    assert read == ["a"]


async def test_a_token_that_was_refused_is_fetched_again(server: ScriptedServer) -> None:
    await server.finish()
    handed: list[str] = []

    async def token() -> str:
        handed.append("old" if not handed else TOKEN)
        return handed[-1]

    async with AsyncRunwire(api_url=server.url, access_token=token) as client:
        [run] = [run async for run in client.runs.subscribe_to_run("run_a")]
    assert run.is_completed and handed == ["old", TOKEN]


async def test_closing_the_client_ends_its_subscriptions(server: ScriptedServer) -> None:
    client = AsyncRunwire(api_url=server.url, access_token=TOKEN)

    async def follow() -> None:
        with pytest.raises(ConfigurationError, match="closed"):
            async for _ in client.runs.subscribe_to_run("run_a"):
                pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await server.until(lambda: server.subscribed)
        await client.aclose()


async def test_a_start_at_the_end_is_not_handed_what_another_reader_asked_for(
    server: ScriptedServer,
) -> None:
    await server.write("a", "b", "c")
    read: dict[StreamStart, list[object]] = {"start": [], "latest": [], -1: []}

    async def follow(client: AsyncRunwire, start: StreamStart) -> None:
        async for chunk in client.streams.read("run_a", "log", start=start):
            read[start].append(chunk)

    async with AsyncRunwire(api_url=server.url, access_token=TOKEN) as client:
        async with anyio.create_task_group() as tasks:
            for start in read:
                tasks.start_soon(follow, client, start)
            await server.until(lambda: len(server.subscribed) == 3)
            await server.write("d")
            await server.finish()
    assert server.opened == 3
    assert read == {"start": ["a", "b", "c", "d"], "latest": ["d"], -1: ["c", "d"]}


@pytest.mark.parametrize("option", ["colour", "tags"])
def test_an_option_that_does_not_exist_is_refused(option: str) -> None:
    with pytest.raises(TypeError, match=option):
        runs.subscribe_to_run("run_a", **{option: 1})  # type: ignore[arg-type]


def test_a_field_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="colour"):
        runs.subscribe_to_run("run_a", fields=["status", "colour"])


async def test_the_module_functions_use_the_credential_of_the_block_around_them(
    server: ScriptedServer,
) -> None:
    await server.finish()
    with auth.with_auth(api_url=server.url, access_token=TOKEN):
        assert [run.status async for run in runs.subscribe_to_run("run_a")] == ["COMPLETED"]


def in_a_loop_of_its_own(work: Callable[[], Awaitable[T]]) -> T:
    async def main() -> T:
        return await work()

    return asyncio.run(main())


async def test_the_module_functions_work_in_one_loop_after_another(
    server: ScriptedServer,
) -> None:
    await server.finish()

    async def statuses() -> list[str]:
        with auth.with_auth(api_url=server.url, access_token=TOKEN):
            return [run.status async for run in runs.subscribe_to_run("run_a")]

    for _ in range(2):
        told = await anyio.to_thread.run_sync(in_a_loop_of_its_own, statuses)
        assert told == ["COMPLETED"]
    gc.collect()


async def test_the_blocking_module_functions_work_from_any_thread(
    server: ScriptedServer,
) -> None:
    await server.finish()

    def statuses() -> list[str]:
        with auth.with_auth(api_url=server.url, access_token=TOKEN):
            return [run.status for run in sync.runs.subscribe_to_run("run_a")]

    for _ in range(2):
        assert await anyio.to_thread.run_sync(statuses) == ["COMPLETED"]


async def test_a_connection_may_break_at_any_byte(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connection, "FIRST_WAIT", 0.01)
    await server.write(*range(8))
    await server.finish()
    async with fault_proxy(("127.0.0.1", server.port)) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        whole = await Async().gather(events, api_url=url, access_token=TOKEN)
        size = proxy.to_client.passed
        for offset in range(1, size, 89):
            before = server.opened
            proxy.to_client.cut_after = offset
            told: list[Event] = []

            async def follow(into: list[Event] = told) -> None:
                into.extend(await Async().gather(events, api_url=url, access_token=TOKEN))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                await server.until(lambda before=before: server.opened > before)
                await server.until(lambda: not server.sockets)
                proxy.to_client.cut_after = None
            assert values(told) == values(whole), offset
            revisions = [event.run.revision for event in told if event.type == "run"]
            assert revisions == [2], offset
