"""Waiting inside a run, durably: its slot is free meanwhile, however long it takes.

    await wait.for_("3d")
    await wait.until(datetime(2027, 1, 1, tzinfo=UTC))

The code goes on where it was. If its worker has gone away in the meantime, another one runs the
function again up to that point, without doing again what the run did through runwire: see the
how-to on waits for what that means for your own code. Blocking twins for `def` tasks: `wait.sync`.
"""

from datetime import datetime

from runwire._context import require as _require
from runwire.durations import Duration, seconds
from runwire.errors import InvalidValueError

__all__ = ["for_", "sync", "until"]

LONGEST = 366 * 86_400.0


class Sync:
    """The blocking twins, for `def` tasks."""

    def for_(self, duration: Duration) -> None:
        """Wait for a duration, as `wait.for_` does."""
        _require("wait.for_").wait_until_blocking(_span(duration))

    def until(self, time: datetime) -> None:
        """Wait until a time, as `wait.until` does."""
        _require("wait.until").wait_until_blocking(_time(time))


async def for_(duration: Duration) -> None:
    """Wait for a duration: seconds, timedelta or text like "1h30m", at most 366 days.

    Raises NotInRunError outside of a run.
    """
    await _require("wait.for_").wait_until(_span(duration))


async def until(time: datetime) -> None:
    """Wait until a time; one that has passed is no wait. A time without a zone is this machine's.

    Raises NotInRunError outside of a run.
    """
    await _require("wait.until").wait_until(_time(time))


def _span(duration: Duration) -> float:
    span = seconds(duration)
    if not 0 <= span <= LONGEST:
        raise InvalidValueError("a wait lasts 0 seconds to 366 days", code="duration")
    return span


def _time(time: datetime) -> datetime:
    return time if time.tzinfo is not None else time.astimezone()


sync = Sync()
