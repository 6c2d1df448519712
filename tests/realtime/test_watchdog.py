"""A loop that is held up is told of, with the place; one that turns is not."""

import logging
import threading
import time

import anyio
import pytest

from runwire_realtime.watchdog import Watchdog

pytestmark = pytest.mark.anyio


def hold_up(seconds: float) -> None:
    time.sleep(seconds)  # as a call that does not come back would


async def test_a_loop_that_is_held_up_is_logged_with_the_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING), Watchdog(0.2) as watchdog:
        hold_up(0.6)
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 1 and "in hold_up" in told[0]
        watchdog.beat()
        with anyio.fail_after(60):
            while len(caplog.records) < 2:
                watchdog.beat()
                await anyio.sleep(0.02)
        assert "turns again" in caplog.records[1].getMessage()
    assert "runwire-watchdog" not in [thread.name for thread in threading.enumerate()]


async def test_a_loop_that_turns_is_left_in_peace(caplog: pytest.LogCaptureFixture) -> None:
    with Watchdog(1.0) as watchdog:
        for _ in range(30):
            watchdog.beat()
            await anyio.sleep(0.02)
    assert not caplog.records
