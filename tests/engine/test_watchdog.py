"""Naming what blocks the task loop."""

import asyncio
import logging
import threading
import time

import anyio
import pytest

from runwire_engine.watchdog import Watchdog
from tests.support.working import until

pytestmark = pytest.mark.anyio


async def test_a_blocked_loop_is_named_with_its_run_and_stack(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "runwire.watchdog")
    loop, ready = asyncio.new_event_loop(), threading.Event()

    def blocking_function() -> None:
        # The stretch of blocking is what is tested.
        time.sleep(0.5)

    async def block() -> None:
        blocking_function()
        await asyncio.sleep(0)

    def serve() -> None:
        loop.call_soon(ready.set)
        loop.run_forever()
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    ready.wait()
    assert thread.ident is not None
    watchdog = Watchdog(loop, thread.ident, lambda: ["run_a", "run_b"], blocked_after=0.1)
    async with anyio.create_task_group() as group:
        group.start_soon(watchdog.run)
        loop.call_soon_threadsafe(lambda: loop.create_task(block(), name="run_b"))
        await until(lambda: "goes on" in caplog.text)
        group.cancel_scope.cancel()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    first, second = caplog.messages
    assert "by run run_b" in first
    assert "blocking_function" in first
    assert "goes on" in second


async def test_an_idle_loop_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    watchdog = Watchdog(
        asyncio.get_running_loop(), threading.get_ident(), lambda: [], blocked_after=0.02
    )
    with anyio.move_on_after(0.1):
        await watchdog.run()
    assert caplog.messages == []
