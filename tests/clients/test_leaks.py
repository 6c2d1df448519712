"""Following leaves nothing behind, however it ends: no task, no descriptor, no thread.

RUNWIRE_LEAK_CYCLES makes it longer (4).
"""

import asyncio
import gc
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from runwire import AsyncRunwire, Runwire, _connection
from runwire.errors import ConfigurationError, UnreachableError
from tests.support.faultproxy import FaultProxy, fault_proxy
from tests.support.stage import Stage, open_stage

pytestmark = [pytest.mark.anyio, pytest.mark.faults]
CYCLES = int(os.environ.get("RUNWIRE_LEAK_CYCLES", "4"))


@dataclass
class Place:
    stage: Stage
    proxy: FaultProxy
    run: str

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "api_url": f"http://127.0.0.1:{self.proxy.port}",
            "access_token": self.stage.key,
        }


@pytest.fixture(params=["socket", "events"])
async def place(
    request: pytest.FixtureRequest, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Place]:
    monkeypatch.setattr(_connection, "FIRST_WAIT", 0.01)
    async with open_stage(database_url) as stage:
        host, _, port = stage.url.removeprefix("http://").partition(":")
        async with fault_proxy((host, int(port))) as proxy:
            proxy.websockets = "pass" if request.param == "socket" else "refused"
            run = await stage.trigger("leaks")
            execution = await stage.start(run)
            await stage.append(run, execution, *range(10))
            yield Place(stage, proxy, run)


def following(client: Any, place: Place) -> Any:
    return client.runs.subscribe_to_run(place.run).with_streams()


async def leaves_the_loop(place: Place) -> None:
    async with AsyncRunwire(**place.settings) as client:
        async for _ in following(client, place):
            break


async def closes_the_iterator(place: Place) -> None:
    async with AsyncRunwire(**place.settings) as client:
        async with aclosing(following(client, place).generator()) as events:
            await anext(events)


async def forgets_the_iterator(place: Place) -> None:
    async with AsyncRunwire(**place.settings) as client:
        events = following(client, place).generator()
        await anext(events)
        del events
        gc.collect()
        await asyncio.sleep(0)


async def forgets_the_client(place: Place) -> None:
    """Nobody closes anything: its last subscription closes the link."""
    client = AsyncRunwire(**place.settings)
    async for _ in following(client, place):
        break
    await client.aclose()


async def is_canceled_anywhere(place: Place) -> None:
    async with AsyncRunwire(**place.settings) as client:
        for seconds in (0.0, 0.002, 0.01, 0.05, 0.1):
            with anyio.move_on_after(seconds):
                async for _ in following(client, place):
                    pass


async def is_closed_while_following(place: Place) -> None:
    client = AsyncRunwire(**place.settings)
    seen = anyio.Event()

    async def follow() -> None:
        with pytest.raises(ConfigurationError, match="closed"):
            async for _ in following(client, place):
                seen.set()

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(follow)
        await seen.wait()
        await client.aclose()
    with pytest.raises(ConfigurationError, match="closed"):
        await anext(following(client, place).generator())


async def is_closed_while_it_waits_for_the_next_try(place: Place) -> None:
    client = AsyncRunwire(**place.settings)
    place.proxy.refuses = True
    events = following(client, place)
    try:
        async with anyio.create_task_group() as tasks:

            async def follow() -> None:
                with pytest.raises(ConfigurationError, match="closed"):
                    async for _ in events:
                        pass

            tasks.start_soon(follow)
            await anyio.sleep(0.05)  # some tries
            with anyio.fail_after(60):
                await client.aclose()
    finally:
        place.proxy.refuses = False


async def loses_the_server(place: Place) -> None:
    async with AsyncRunwire(**place.settings) as client:
        seen = 0
        try:
            with pytest.raises(UnreachableError):
                async for _ in client.runs.subscribe_to_run(place.run, deadline=0.2).with_streams():
                    seen += 1
                    if seen == 3:
                        place.proxy.refuses = True
                        place.proxy.cut()
        finally:
            place.proxy.refuses = False


async def has_many_that_come_and_go(place: Place) -> None:
    async with AsyncRunwire(**place.settings) as client:

        async def follow(count: int) -> None:
            async for _ in following(client, place):
                count -= 1
                if count == 0:
                    return

        async with anyio.create_task_group() as tasks:
            for count in range(1, 7):
                tasks.start_soon(follow, count)


def _blocking(place: Place) -> None:
    with Runwire(**place.settings) as client:
        for _ in following(client, place):
            break
        iterator = iter(following(client, place))
        next(iterator)
        del iterator


async def blocks(place: Place) -> None:
    await anyio.to_thread.run_sync(_blocking, place)


def _in_a_loop_that_ends(place: Place) -> None:
    async def main() -> None:
        client = AsyncRunwire(**place.settings)
        events = following(client, place).generator()
        await anext(events)

    asyncio.run(main())


async def ends_with_its_loop(place: Place) -> None:
    await anyio.to_thread.run_sync(_in_a_loop_that_ends, place)


WAYS: list[Callable[[Place], Awaitable[None]]] = [
    leaves_the_loop,
    closes_the_iterator,
    forgets_the_iterator,
    forgets_the_client,
    is_canceled_anywhere,
    is_closed_while_following,
    is_closed_while_it_waits_for_the_next_try,
    loses_the_server,
    has_many_that_come_and_go,
    blocks,
    ends_with_its_loop,
]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.timeout(120 + 10 * CYCLES)
async def test_however_following_ends_nothing_is_left(place: Place) -> None:
    """pytest makes an error of what was never awaited, retrieved or closed.

    The server of the test lives in this process, and its pool may grow by a connection: what is
    left behind in each cycle is more than that.
    """
    for way in WAYS:
        await way(place)  # what is made once, is made
    await _settled(place)
    tasks, threads, files = len(asyncio.all_tasks()), threading.active_count(), descriptors()
    for _ in range(CYCLES):
        for way in WAYS:
            with anyio.fail_after(60):
                await way(place)
    await _settled(place)
    with anyio.move_on_after(10):
        while len(asyncio.all_tasks()) > tasks or descriptors() >= files + CYCLES:
            await anyio.sleep(0.02)  # the server's side of it ends on its own
    assert len(asyncio.all_tasks()) <= tasks, asyncio.all_tasks()
    assert threading.active_count() <= threads
    assert descriptors() < files + CYCLES


async def _settled(place: Place) -> None:
    gc.collect()
    with anyio.move_on_after(10):
        while place.proxy.connections:
            await anyio.sleep(0.02)  # polls
    assert place.proxy.connections == 0
