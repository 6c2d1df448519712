"""When the ticks of a cron come: five fields in a time zone, through changes of the clocks. [core]

cronsim reads the fields and walks wall times; which instant a wall time is, is decided here, by the
rule of Debian's cron. Where minute or hour begins with `*`, the cron follows the hands of the clock
through a change: an hour that comes twice has its ticks twice, one that is left out has none. Any
other cron names times of the day: one that comes twice has its tick the first time, one that is
left out has it at the end of the gap.
"""

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import sha256
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from runwire.errors import InvalidValueError

if TYPE_CHECKING:
    from cronsim import CronSim

UPCOMING: Final = 5
_LONGEST_CRON: Final = 256
_LONGEST_WINDOW: Final = timedelta(days=1)
_DAY: Final = timedelta(days=1)
_MINUTE: Final = timedelta(minutes=1)
_SPAN = re.compile(r"(0|[1-9]\d{0,4})([mh])")
_SHARE = re.compile(r"(0|[1-9]\d?|100)%")
# Any wall time: only the fields are looked at.
_SOME_TIME: Final = datetime(2000, 1, 1)


@dataclass(frozen=True)
class Cron:
    """A cron expression of five fields in an IANA time zone; checked by `parse_cron`."""

    expression: str
    timezone: str = "UTC"

    @cached_property
    def _zone(self) -> ZoneInfo:
        return _zone(self.timezone)

    @cached_property
    def _follows_the_hands(self) -> bool:
        minute, hour = self.expression.split()[:2]
        return minute.startswith("*") or hour.startswith("*")

    @property
    def description(self) -> str:
        """The expression in words."""
        return _simulation(self.expression, _SOME_TIME).explain()

    def ticks(self, after: datetime) -> Iterator[datetime]:
        """Yield the ticks later than a time, in order, in UTC; none for 50 years is the end."""
        instants = self._all_instants if self._follows_the_hands else self._first_instants
        last = after
        for tick in instants(_earliest_wall_time(after, self._zone)):
            if tick > last:
                yield tick
                last = tick

    def _all_instants(self, wall: datetime) -> Iterator[datetime]:
        """Yield every instant at which the clock shows a time of the cron."""
        # Second comings of times in an hour that is repeated; they are later than the first ones.
        again: list[datetime] = []
        for time in _simulation(self.expression, wall - _MINUTE):
            first, second = self._instants(time)
            while again and again[0] < first:
                yield heapq.heappop(again)
            if self._shows(first) == time:
                yield first
                if second > first:
                    heapq.heappush(again, second)

    def _first_instants(self, wall: datetime) -> Iterator[datetime]:
        """Yield one instant for each time of the cron: its first, or the end of its gap."""
        for time in _simulation(self.expression, wall - _MINUTE):
            while self._shows(first := self._instants(time)[0]) != time:
                time += _MINUTE
            yield first

    def _instants(self, time: datetime) -> tuple[datetime, datetime]:
        local = time.replace(tzinfo=self._zone)
        return local.astimezone(UTC), local.replace(fold=1).astimezone(UTC)

    def _shows(self, instant: datetime) -> datetime:
        return instant.astimezone(self._zone).replace(tzinfo=None, fold=0)


@dataclass(frozen=True, slots=True)
class Window:
    """Over how long the runs of one tick are spread: a span, or a share of the time to the next."""

    span: timedelta | None = None
    share: float = 0.0

    def within(self, gap: timedelta) -> timedelta:
        """Return its length at a tick whose next one comes after `gap`: never longer than that."""
        return min(self.span, gap) if self.span is not None else gap * self.share


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick: when it is by the cron, and when its run is due."""

    at: datetime
    due: datetime


@dataclass(frozen=True)
class Timetable:
    """The ticks of one schedule; its id decides where in the window its runs are due."""

    schedule_id: str
    cron: Cron
    window: Window | None = None

    def next(self, after: datetime) -> Tick | None:
        """Return the first tick later than a time; None: none for the next 50 years."""
        return next(self._ticks(after), None)

    def newest(self, first: Tick, now: datetime) -> Tick:
        """Return the latest tick that is due by now; `first` is due, and none before it counts."""
        span = timedelta(hours=1)
        while first.at < (since := now - span):
            due = self._due_by(since, now)
            if due:
                return due[-1]
            span *= 2
        return [first, *self._due_by(first.at, now)][-1]

    def upcoming(self, after: datetime, count: int = UPCOMING) -> list[datetime]:
        """Return the times of the next ticks, by the cron."""
        return list(islice(self.cron.ticks(after), count))

    def _due_by(self, since: datetime, now: datetime) -> list[Tick]:
        due: list[Tick] = []
        for tick in self._ticks(since):
            if tick.due > now:
                break
            due.append(tick)
        return due

    def _ticks(self, after: datetime) -> Iterator[Tick]:
        ticks = self.cron.ticks(after)
        if self.window is None:
            yield from (Tick(at, at) for at in ticks)
            return
        for at, following in pairwise(ticks):
            yield Tick(at, at + self._offset(self.window.within(following - at)))

    def _offset(self, length: timedelta) -> timedelta:
        """Return this schedule's place in a window: the same each time, in whole seconds."""
        fraction = int.from_bytes(sha256(self.schedule_id.encode()).digest()[:6]) / 2**48
        return timedelta(seconds=int(length.total_seconds() * fraction))


def parse_cron(expression: str, timezone: str) -> Cron:
    """Return a cron that has ticks. Raises InvalidValueError (code "cron" or "timezone")."""
    words = " ".join(expression.split())
    if not 1 <= len(words) <= _LONGEST_CRON or len(words.split()) != 5:
        raise InvalidValueError(
            f"cron: {expression[:80]!r} does not have five fields: minute, hour, day of the month,"
            " month, day of the week",
            code="cron",
        )
    _zone(timezone)
    from cronsim import CronSimError

    try:
        next(_simulation(words, _SOME_TIME))
    except (CronSimError, StopIteration, AssertionError, ValueError) as error:
        why = "it never comes" if isinstance(error, StopIteration) else str(error) or "bad field"
        raise InvalidValueError(
            f"cron: {words!r} cannot be used: {why[:1].lower()}{why[1:]}", code="cron"
        ) from None
    return Cron(words, timezone)


def parse_window(text: str | None) -> Window | None:
    """Return a window from text like "30m", "2h" or "50%". Raises InvalidValueError."""
    if text is None:
        return None
    if share := _SHARE.fullmatch(text):
        return Window(share=int(share[1]) / 100)
    if span := _SPAN.fullmatch(text):
        length = timedelta(minutes=int(span[1]) * (60 if span[2] == "h" else 1))
        if length <= _LONGEST_WINDOW:
            return Window(span=length)
    raise InvalidValueError(
        f'window: {text[:40]!r} is not whole minutes or hours up to 24h ("30m", "2h"), or a'
        ' percentage up to "100%"',
        code="window",
    )


def timetable(schedule_id: str, cron: str, timezone: str, window: str | None) -> Timetable:
    """Return the timetable of a schedule as it is stored. Raises InvalidValueError."""
    return Timetable(schedule_id, parse_cron(cron, timezone), parse_window(window))


def _simulation(expression: str, after: datetime) -> "CronSim":
    """Return what walks the wall times of a cron."""
    # Not before a cron is read: most workers never read one.
    from cronsim import CronSim

    return CronSim(expression, after)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidValueError(
            f"timezone: {name[:80]!r} is not an IANA time zone, as in Europe/Berlin",
            code="timezone",
        ) from None


def _earliest_wall_time(after: datetime, zone: ZoneInfo) -> datetime:
    """Return the earliest time a clock may show later than `after`.

    It is what the clock shows then, or less where it is soon set back. No clock is ever set back
    by more than a day.
    """
    now, then = after.astimezone(zone), (after + _DAY).astimezone(zone)
    set_back = (now.utcoffset() or timedelta()) - (then.utcoffset() or timedelta())
    return now.replace(tzinfo=None, fold=0) - max(set_back, timedelta())
