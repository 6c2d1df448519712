"""`runwire.wait`: what a task calls to wait."""

from datetime import UTC, datetime, timedelta

import pytest

from runwire import wait
from runwire.durations import Duration
from runwire.errors import InvalidValueError, NotInRunError
from runwire.sync import wait as blocking_wait
from tests.support.recording_run import executing

pytestmark = pytest.mark.anyio

THEN = datetime(2027, 1, 1, tzinfo=UTC)


async def test_a_duration_is_given_in_any_form(anyio_backend: str) -> None:
    with executing() as run:
        for duration in (90, "1m30s", timedelta(seconds=90)):
            await wait.for_(duration)
            blocking_wait.for_(duration)
    assert run.told == [("wait", 90.0)] * 6


async def test_a_time_without_a_zone_is_this_machines(anyio_backend: str) -> None:
    local = datetime(2027, 1, 1, 12)
    with executing() as run:
        await wait.until(THEN)
        wait.sync.until(local)
    assert run.told == [("wait", THEN), ("wait", local.astimezone())]


@pytest.mark.parametrize("duration", [-1, "367d", "soon"])
async def test_what_is_no_duration_is_refused(anyio_backend: str, duration: Duration) -> None:
    with executing(), pytest.raises(InvalidValueError):
        await wait.for_(duration)


async def test_outside_of_a_run_there_is_no_waiting(anyio_backend: str) -> None:
    with pytest.raises(NotInRunError, match=r"wait\.for_ works only inside"):
        await wait.for_(1)
    with pytest.raises(NotInRunError, match=r"wait\.until works only inside"):
        blocking_wait.until(THEN)
