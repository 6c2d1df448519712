"""What Postgres must not come to, looked at now and then: each alarm is told as it begins and ends.

The notification queue: Postgres refuses every NOTIFY once it is full, which one listener that does
not read brings about. Asking how full it is also empties it of what a dead listener left behind.

The horizon: one transaction that stays open, prepared or not, or one replication slot that stands
still, keeps the dead rows of all tables from being cleaned up, and everything gets slower. Delivery
does not wait for it.
"""

import logging
from typing import Final

import anyio

from runwire_engine.database import Database, Row

logger = logging.getLogger("runwire.alarms")

# A queue this full stops being emptied by somebody; Postgres refuses notifications at 1.0.
_QUEUE_ALARM: Final = 0.1
_NOTIFICATIONS: Final = "notifications"
_HORIZON: Final = "horizon"


class Alarms:
    """Looks at Postgres, and knows what is wrong with it now."""

    def __init__(self, database: Database, *, horizon_seconds: float) -> None:
        self._database = database
        self._horizon_seconds = horizon_seconds
        self._sounding: dict[str, str] = {}
        # Who holds the horizon (kind, name, transaction), and since when we have seen it do so.
        self._holder: tuple[str, str, str] | None = None
        self._held_since = 0.0

    @property
    def sounding(self) -> list[str]:
        """What is wrong now, a sentence each."""
        return list(self._sounding.values())

    async def look_at_notifications(self) -> None:
        row = await self._database.one("alarms.notification_queue")
        usage = 0.0 if row is None else float(row["usage"])
        problem = f"the notification queue of Postgres is {usage:.0%} full"
        self._note(_NOTIFICATIONS, problem if usage > _QUEUE_ALARM else None)

    async def look_at_horizon(self) -> None:
        row = await self._database.one("alarms.horizon")
        seconds = 0.0 if row is None else self._held_for(row)
        if row is None or seconds < self._horizon_seconds:
            self._note(_HORIZON, None)
            return
        what = (
            f"{row['kind']} {row['name']!r}"
            if row["kind"] != "session"
            else (f"a transaction of the session with process id {row['name']}")
        )
        problem = f"{what} has kept Postgres from cleaning up for {seconds:.0f} s"
        self._note(_HORIZON, problem)

    def _held_for(self, row: Row) -> float:
        """Return for how long it has been this one; not everybody may see when it began."""
        holder = (row["kind"], row["name"], row["held"])
        if holder != self._holder:
            self._holder, self._held_since = holder, anyio.current_time()
        return max(row["seconds"] or 0.0, anyio.current_time() - self._held_since)

    def _note(self, alarm: str, problem: str | None) -> None:
        before = self._sounding.pop(alarm, None)
        if problem is not None:
            self._sounding[alarm] = problem
            if before is None:
                logger.error("%s", problem)
        elif before is not None:
            logger.warning("it is over that %s", before)
