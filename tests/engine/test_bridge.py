"""What crosses between loops and threads."""

import asyncio
import threading
from concurrent.futures import Future
from functools import partial

import anyio
import anyio.lowlevel
import pytest

from runwire_engine.bridge import Bridge, arrival

pytestmark = pytest.mark.anyio
WAIT = 60.0


async def test_a_thread_gets_the_result_of_a_coroutine_on_the_loop() -> None:
    async def answer() -> int:
        await anyio.lowlevel.checkpoint()
        return threading.get_ident()

    async with anyio.create_task_group() as group:
        bridge = Bridge(group.start_soon)
        ident = await anyio.to_thread.run_sync(lambda: bridge.call(answer).result(WAIT))
        assert ident == threading.get_ident()


async def test_a_thread_gets_the_error_of_a_coroutine_and_the_group_lives_on() -> None:
    async def fail() -> None:
        raise ValueError("no")

    async with anyio.create_task_group() as group:
        bridge = Bridge(group.start_soon)
        with pytest.raises(ValueError, match="no"):
            await arrival(bridge.call(fail))


async def test_whoever_stops_waiting_does_not_stop_the_work() -> None:
    gate, done = anyio.Event(), anyio.Event()

    async def write() -> None:
        await gate.wait()
        done.set()

    async with anyio.create_task_group() as group:
        bridge = Bridge(group.start_soon)
        with anyio.move_on_after(0.01):
            await arrival(bridge.call(write))
        gate.set()
        with anyio.fail_after(WAIT):
            await done.wait()


async def test_posts_from_many_threads_all_run_and_keep_their_order() -> None:
    seen: list[tuple[int, int]] = []
    async with anyio.create_task_group() as group:
        bridge = Bridge(group.start_soon)

        def post(name: int) -> None:
            for number in range(500):
                bridge.post(partial(seen.append, (name, number)))

        async with anyio.create_task_group() as threads:
            for name in range(4):
                threads.start_soon(anyio.to_thread.run_sync, post, name)
        flushed: Future[None] = bridge.call(anyio.lowlevel.checkpoint)
        await arrival(flushed)
    for name in range(4):
        assert [number for who, number in seen if who == name] == list(range(500))


async def test_a_closed_bridge_refuses_calls() -> None:
    async with anyio.create_task_group() as group:
        bridge = Bridge(group.start_soon)
        bridge.close()
        with pytest.raises(RuntimeError, match="stopped"):
            await arrival(bridge.call(anyio.lowlevel.checkpoint))


def test_a_call_after_the_loop_has_gone_is_answered() -> None:
    async def make() -> Bridge:
        # Nothing will be started, so there is no need of a group.
        return Bridge(lambda work: None)

    bridge = asyncio.run(make())
    with pytest.raises(RuntimeError, match="stopped"):
        bridge.call(anyio.lowlevel.checkpoint).result(WAIT)
    bridge.post(lambda: None)
