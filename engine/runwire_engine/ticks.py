"""Makes the runs of schedules that are due: in any number of servers, one run for each tick.

One transaction takes due schedules (SKIP LOCKED), makes their runs and moves each schedule to its
next tick. So a server that dies in between has done nothing, and one whose COMMIT got no answer
finds the schedule at its next tick when it looks again. That a tick has one run is a constraint
besides (`runs_by_tick`). The loop sleeps until the next tick, by the database's clock.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
import orjson

from runwire.errors import InvalidValueError
from runwire_engine.cron import Tick, timetable
from runwire_engine.database import Database, Row, Transaction
from runwire_engine.doorbell import Doorbell
from runwire_engine.errors import DatabaseUnavailableError, DataRefusedError, EngineError
from runwire_engine.ids import new_run_id
from runwire_engine.repeating import Repeating
from runwire_engine.schedules import ScheduleRow, schedule_row
from runwire_engine.triggers import Triggering
from runwire_engine.wanted_runs import NewRun, Wanted

logger = logging.getLogger("runwire.ticks")

# Of one transaction: it holds its schedules for some tens of milliseconds.
_AT_ONCE: Final = 100
_TIDY_SECONDS: Final = 60.0
# A schedule that no worker has declared for so long is deleted.
_KEPT_SUSPENDED: Final = timedelta(days=7)
# Until a tick that failed in a way nobody foresaw is tried again.
_PUT_OFF_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Move:
    """What becomes of one due schedule: maybe a run, and where it stands afterwards."""

    row: ScheduleRow
    next: Tick | None
    at: datetime | None = None
    wanted: Wanted | None = None
    error: str | None = None
    suspends: bool = False


class Ticks(Repeating):
    """Makes runs as schedules become due; a look that fails is logged and tried again."""

    def __init__(self, database: Database, bell: Doorbell, *, poll: float) -> None:
        super().__init__()
        self._database = database
        self._bell = bell
        self._poll = poll
        self._tidied = -_TIDY_SECONDS

    async def once(self) -> float:
        """Make the runs of what is due; return in how many seconds to look again."""
        await self._tidy()
        row = await self._database.one("ticks.look")
        assert row is not None
        if row["are_suspended"] and await self._database.run("ticks.resume"):
            return 0.0
        due_in: float | None = row["due_in"]
        if due_in is None or due_in > 0:
            return self._poll if due_in is None else min(self._poll, due_in)
        # What others are at is skipped, and soon no longer due.
        return 0.0 if await self._tick() else 0.01

    async def _step(self) -> float:
        try:
            return await self.once()
        except EngineError as error:
            logger.warning("schedules wait: %s", error)
        except Exception:
            logger.exception("a look at schedules failed and is tried again")
        return self._poll

    async def _tidy(self) -> None:
        if anyio.current_time() - self._tidied >= _TIDY_SECONDS:
            self._tidied = anyio.current_time()
            await self._database.run("ticks.forget", {"kept": _KEPT_SUSPENDED})

    async def _tick(self) -> int:
        """Deal with some due schedules; one by one where one of them spoils it for all."""
        try:
            return await self._deal_with(_AT_ONCE)
        except DatabaseUnavailableError:
            raise
        except Exception as error:
            logger.warning("a tick failed, each is tried by itself: %s", error)
        count = 0
        while not self._closing.is_set() and await self._deal_with_one():
            count += 1
        return count

    async def _deal_with_one(self) -> bool:
        taken: list[ScheduleRow] = []
        try:
            return bool(await self._deal_with(1, taken))
        except DatabaseUnavailableError:
            raise
        except Exception as error:
            if not taken:
                raise
            logger.exception("the tick of schedule %s failed; it is put off", taken[0].id)
            await self._database.run(
                "ticks.put_off",
                {
                    "environment_id": taken[0].environment_id,
                    "id": taken[0].id,
                    "seconds": _PUT_OFF_SECONDS,
                    "error": f"{type(error).__name__}: {error}"[:1000],
                },
            )
            return True

    async def _deal_with(self, limit: int, taken: list[ScheduleRow] | None = None) -> int:
        """Make the runs of up to `limit` due schedules in one transaction; return how many."""
        # Also of tries whose COMMIT got no answer: then there is nothing left to make.
        made: list[Row] = []

        async def work(tx: Transaction) -> int:
            rows = await tx.all("ticks.due", {"limit": limit})
            if taken is not None:
                taken[:] = [schedule_row(row) for row in rows]
            if rows:
                # Crons are walked in Python: not on the loop that serves subscribers.
                moves = await anyio.to_thread.run_sync(partial(_moves, rows))
                moves = await _without_ticked(tx, moves)
                made.extend(await _carry_out(tx, moves, rows[0]["now"]))
            return len(rows)

        try:
            count = await self._database.surely(work)
        except DataRefusedError:
            # The first run of a day whose partition nobody has made.
            await self._database.run("runs.make_partitions")
            count = await self._database.surely(work)
        for environment_id in sorted({row["environment_id"] for row in made}):
            own = [row for row in made if row["environment_id"] == environment_id]
            self._bell.ring_work(environment_id, {row["queue"] for row in own})
            self._bell.ring_feed(environment_id, [row["id"] for row in own])
        return count


async def _without_ticked(tx: Transaction, moves: Sequence[_Move]) -> list[_Move]:
    """Leave out the runs of ticks that have theirs; their schedules move on all the same."""
    ticking = [move for move in moves if move.wanted is not None]
    rows = await tx.all(
        "ticks.ticked",
        {
            "environment_ids": [move.row.environment_id for move in ticking],
            "schedule_ids": [move.row.id for move in ticking],
            "ats": [move.at for move in ticking],
        },
    )
    ticked = {row["schedule_id"] for row in rows}
    return [replace(move, wanted=None) if move.row.id in ticked else move for move in moves]


async def _carry_out(tx: Transaction, moves: Sequence[_Move], now: datetime) -> list[Row]:
    """Make the runs and move the schedules; return the runs that were made."""
    made: list[Row] = []
    refused: dict[str, str] = {}
    for environment_id in sorted({move.row.environment_id for move in moves}):
        ticking = [
            (move, move.wanted)
            for move in moves
            if move.row.environment_id == environment_id and move.wanted is not None
        ]
        if not ticking:
            continue
        triggering = Triggering(tx, environment_id, [wanted for _, wanted in ticking])
        answers = await triggering.run()
        for (move, _), answer in zip(ticking, answers, strict=True):
            if isinstance(answer, Exception):
                refused[move.row.id] = str(answer)
        fresh = [(move, wanted) for move, wanted in ticking if move.row.id not in refused]
        if fresh:
            await tx.run("ticks.link", _links(environment_id, fresh))
        made += [{**row, "environment_id": environment_id} for row in triggering.made]
    await tx.run("ticks.advance", {"now": now, **_advances(moves, refused)})
    return made


def _links(environment_id: int, ticking: Sequence[tuple[_Move, Wanted]]) -> dict[str, object]:
    return {
        "environment_id": environment_id,
        "run_ids": [wanted.id for _, wanted in ticking],
        "schedule_ids": [move.row.id for move, _ in ticking],
        "ats": [move.at for move, _ in ticking],
    }


def _advances(moves: Sequence[_Move], refused: dict[str, str]) -> dict[str, object]:
    return {
        "environment_ids": [move.row.environment_id for move in moves],
        "ids": [move.row.id for move in moves],
        "next_ats": [move.next.at if move.next else None for move in moves],
        "due_ats": [move.next.due if move.next else None for move in moves],
        "last_ats": [None if move.row.id in refused else move.at for move in moves],
        "errors": [refused.get(move.row.id, move.error) for move in moves],
        "suspend": [move.suspends for move in moves],
    }


def _moves(rows: Sequence[Row]) -> list[_Move]:
    return [_move(schedule_row(row), row["declared"], row["now"]) for row in rows]


def _move(row: ScheduleRow, declared: bool, now: datetime) -> _Move:
    """Decide what becomes of a schedule that is due."""
    assert row.next_at is not None and row.due_at is not None
    first = Tick(row.next_at, row.due_at)
    if not declared:
        return _Move(row, first, suspends=True)
    try:
        times = timetable(row.id, row.cron, row.timezone, row.due_window)
    except InvalidValueError as error:
        # It was checked when it was stored: another version, or another list of time zones.
        return _Move(row, None, error=str(error))
    tick = first if row.missed == "all" else times.newest(first, now)
    upcoming = times.upcoming(tick.at)
    payload = orjson.dumps(
        {
            "type": row.type,
            "timestamp": _time(tick.at),
            **({} if row.last_at is None else {"lastTimestamp": _time(row.last_at)}),
            "timezone": row.timezone,
            "scheduleId": row.id,
            **({} if row.external_id is None else {"externalId": row.external_id}),
            "upcoming": [_time(at) for at in upcoming],
        }
    ).decode()
    wanted = Wanted(new_run_id(), NewRun(row.task, payload))
    return _Move(row, times.next(tick.at), tick.at, wanted)


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
