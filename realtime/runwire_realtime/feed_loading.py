"""Reads what a feed holds when it begins, or what it missed since its cursor, page by page.

The feed is registered before anything is read here, and notes what happens meanwhile; so the pages
may be read at leisure, as the socket has room for them.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime
from typing import Final, TypeVar

import anyio
from anyio.abc import TaskGroup

from runwire.wire import LARGE_VALUE_BYTES, ErrorCode, GapReason
from runwire_engine.changes import RESUME_LIMIT, Place
from runwire_engine.errors import (
    DatabaseUnavailableError,
    EngineError,
    StatementTimeoutError,
)
from runwire_engine.followed import FollowedRun, Member, Touched
from runwire_engine.following import Following
from runwire_realtime import messages
from runwire_realtime.cursors import FeedCursor, feed_cursor
from runwire_realtime.feed_members import FeedMembers
from runwire_realtime.hub import Hub
from runwire_realtime.run_past import RunPast, logged_steps
from runwire_realtime.shared_read import SharedRead
from runwire_realtime.subscription import BatchTarget, RunsTarget, TagsTarget

logger = logging.getLogger("runwire.feeds")

_PAUSE: Final = 0.2
_EVENTS_PER_PAGE: Final = 200
T = TypeVar("T")
# Begins when the socket can take another page, and is nobody else's while it is read and queued.
Turn = Callable[[], AbstractAsyncContextManager[None]]


class StartedOverError(Exception):
    """The feed began anew, or was closed, while it was read."""


class FeedLoading:
    """Reads for feeds; `limiter` bounds how many statements run at once, for all connections."""

    def __init__(self, hub: Hub, following: Following) -> None:
        self._hub = hub
        self._following = following
        self._limiter = anyio.CapacityLimiter(hub.limits.catch_up_reads)
        self._place = SharedRead(following.place)
        self._tasks: TaskGroup | None = None

    async def run(self) -> None:
        """Read until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            await anyio.sleep_forever()

    def begin(self, feed: FeedMembers, turn: Turn) -> None:
        """Bring a feed to life, page by page, each in a turn of its connection.

        Not in the connection's own task group: a read that is cancelled costs its connection to
        Postgres, so one that nobody waits for any more is let run out.
        """
        assert self._tasks is not None
        self._tasks.start_soon(self._load, feed, turn)

    async def _load(self, feed: FeedMembers, turn: Turn) -> None:
        version = feed.version
        while True:
            try:
                load = _Load(
                    self._hub, self._following, self._limiter, self._place, feed, version, turn
                )
                await load.run()
            except StartedOverError:
                return
            except DatabaseUnavailableError:
                await anyio.sleep(_PAUSE)
                continue
            except EngineError:
                logger.exception("a feed could not be read")
                _refuse(feed, ErrorCode.INTERNAL, "the subscription could not be read")
            return


class _Load:
    """One try."""

    def __init__(
        self,
        hub: Hub,
        following: Following,
        limiter: anyio.CapacityLimiter,
        place: SharedRead[Place],
        feed: FeedMembers,
        version: int,
        turn: Turn,
    ) -> None:
        self._hub = hub
        self._following = following
        self._limiter = limiter
        self._place = place
        self._feed = feed
        self._version = version
        self._turn = turn
        self._environment_id = feed.follower.environment_id
        # The feed's cursor is not from before a crash of Postgres.
        self._is_of_this_life = False

    async def run(self) -> None:
        feed = self._feed
        # Everything up to here has been applied, so nothing after it is missed.
        position = feed_cursor(self._hub.history, self._hub.position)
        # A feed that is read again does not begin later than before.
        feed.filter.since = feed.filter.since or await self._since()
        cursor = feed.subscription.cursor
        if isinstance(cursor, FeedCursor):
            reason = await self._gap(cursor)
            feed.subscription.broken = reason
            is_silent = False
            if reason is None:
                reason = await self._missing(cursor)
                if reason is None:
                    return
                is_silent = not self._is_of_this_life and not feed.wants_every
            if feed.members and not is_silent:
                # Its client forgets at the gap what it held: all of it comes whole.
                feed.start_over(reason)
                raise StartedOverError
            if not is_silent:
                feed.follower.outbox.say(messages.gap(feed.sub, reason))
            feed.subscription.cursor = None
        members = await self._members(is_open=False)
        if members is None:
            _refuse(feed, ErrorCode.NOT_FOUND, "there is no such batch")
            return
        await self._snapshot(members, position)
        feed.complete()

    async def _since(self) -> datetime | None:
        target = self._feed.target
        if isinstance(target, BatchTarget):
            return None
        if isinstance(target.since, float | int):
            return await self._read(self._following.since(target.since))
        return target.since

    async def _gap(self, cursor: FeedCursor) -> GapReason | None:
        if not cursor.epoch.startswith(self._hub.epoch):
            return GapReason.EPOCH_CHANGED
        if cursor.epoch != self._hub.history:
            return None
        if _is_reached(cursor.snapshot, self._hub.position):
            return None
        is_ahead = await self._read(self._following.is_ahead(cursor.snapshot))
        # After a crash that the hub has not noticed yet it says nothing either.
        return GapReason.AHEAD if is_ahead and await self._is_current(cursor) else None

    async def _is_current(self, cursor: FeedCursor) -> bool:
        """Say whether Postgres still lives the life that a cursor is of."""
        return cursor.epoch.endswith((await self._placed_now()).recovery)

    async def _placed_now(self) -> Place:
        place = await self._place.get()
        self._check()
        return place

    async def _snapshot(self, members: Sequence[Member], position: str) -> None:
        ids = [member.run_id for member in members]
        self._feed.keep(ids)
        size = self._hub.limits.rows_per_read
        for at in range(0, max(1, len(ids)), size):
            is_last = at + size >= len(ids)
            async with self._turn():
                runs = await self._rows(ids[at : at + size])
                self._feed.page(runs, cursor=position if is_last else None, more=not is_last)
                self._check()

    async def _missing(self, cursor: FeedCursor) -> GapReason | None:
        """Write what a client with this cursor lacks; say why when a snapshot has to do instead.

        The cursor may be from before a crash of Postgres, and says nothing then: who wants each
        revision is told all of them again, and for others the snapshot makes up for everything.
        """
        self._is_of_this_life = cursor.epoch == self._hub.history
        if self._is_of_this_life:
            return await self._resumed(cursor)
        return await self._retold() if self._feed.wants_every else GapReason.OVERFLOW

    async def _retold(self) -> GapReason | None:
        feed, size = self._feed, self._hub.limits.rows_per_read
        if feed.has_statuses:
            return GapReason.OVERFLOW  # what has left it meanwhile, nobody knows
        members = await self._members(is_open=False)
        if members is None or len(members) >= self._hub.limits.feed_runs:
            return GapReason.OVERFLOW
        feed.is_resumed = True
        ids = [member.run_id for member in members]
        for at in range(0, len(ids), size):
            part = ids[at : at + size]
            created = await self._read(self._following.creations(self._environment_id, part))
            async with self._turn():
                runs = await self._rows(part)
                if any(run.row.id not in created for run in runs):
                    feed.start_over(GapReason.RETENTION)
                self._check()
                feed.resumed(runs, created, {})
                self._check()
        feed.complete()
        return None

    async def _resumed(self, cursor: FeedCursor) -> GapReason | None:
        """Write what happened since the cursor, if all of that is there and not too much."""
        feed = self._feed
        # Members first: what happens between the two reads is in the second, and a member that is
        # not in it stands where the client holds it.
        held = await self._members(is_open=True)
        if held is None:
            _refuse(feed, ErrorCode.NOT_FOUND, "there is no such batch")
            raise StartedOverError
        try:
            touched = await self._read(self._touched(cursor.snapshot))
        except StatementTimeoutError:
            return GapReason.OVERFLOW
        # In this order: a day that is dropped from here on was there to be read.
        place = await self._placed_now()
        if place.closed_days and await self._read(self._following.is_cut_off(cursor.snapshot)):
            return GapReason.RETENTION
        if len(touched) > RESUME_LIMIT:
            return GapReason.OVERFLOW
        if not cursor.epoch.endswith(place.recovery):
            # Postgres crashed, and the hub has not noticed yet: the cursor may have hidden events.
            self._is_of_this_life = False
            return await self._retold() if feed.wants_every else GapReason.OVERFLOW
        feed.is_resumed = True
        size = self._hub.limits.rows_per_read
        ids = list(touched)
        for at in range(0, len(ids), size):
            part = await self._placed({id: touched[id] for id in ids[at : at + size]})
            async with self._turn():
                runs = await self._rows(list(part))
                pasts = await self._pasts(
                    runs, {run_id: each.first - 1 for run_id, each in part.items()}
                )
                feed.resumed(runs, part, pasts)
                self._check()
        rest = {each.run_id: each.revision for each in held if each.run_id not in touched}
        ids = list(rest)
        for at in range(0, len(ids), size):
            async with self._turn():
                runs = await self._rows(ids[at : at + size])
                feed.held(runs, rest, await self._pasts(runs, rest))
                self._check()
        feed.complete()
        return None

    async def _pasts(
        self, runs: Sequence[FollowedRun], revisions: Mapping[str, int]
    ) -> dict[str, RunPast]:
        """Return what runs were at these revisions, of those for which that has to be told."""
        pasts: dict[str, RunPast] = {}
        for run in runs:
            revision = revisions[run.row.id]
            if self._feed.needs_past(run, revision):
                pasts[run.row.id] = await self._past(run.row.id, revision)
        return pasts

    async def _past(self, run_id: str, revision: int) -> RunPast:
        past = RunPast(revision, self._hub.limits.past_bytes)
        while not past.is_whole:
            events = await self._read(
                self._following.events(self._environment_id, run_id, past.after, _EVENTS_PER_PAGE)
            )
            reason = past.add(logged_steps(events))
            if reason is not None:
                self._feed.start_over(reason)
                raise StartedOverError
        return past

    async def _placed(self, touched: dict[str, Touched]) -> dict[str, Touched]:
        """Make all news of runs that were not in the feed before what is news of them.

        Their client may have been told of them since its cursor, or not at all.
        """
        filter = self._feed.filter
        asked = {
            run_id: each.first
            for run_id, each in touched.items()
            if each.first > 1 and filter.may_have_entered(each)
        }
        if not asked:
            return touched
        before = await self._read(self._following.before(self._environment_id, asked))
        entered = [run_id for run_id, then in before.items() if not filter.held_then(then)]
        created = await self._read(self._following.creations(self._environment_id, entered))
        news = {run_id: created.get(run_id, Touched(1)) for run_id in entered}
        return {**touched, **{id: replace(each, has_entered=True) for id, each in news.items()}}

    def _touched(self, snapshot: str) -> Awaitable[dict[str, Touched]]:
        tags: Sequence[str] = ()
        tasks: Sequence[str] | None = None
        batch_id: str | None = None
        match self._feed.target:
            case TagsTarget(tags):
                pass
            case BatchTarget(batch_id):
                pass
            case RunsTarget(names):
                tasks = None if names is None else sorted(names)
        return self._following.touched(
            self._environment_id,
            snapshot,
            RESUME_LIMIT + 1,
            tags=tags,
            tasks=tasks,
            batch_id=batch_id,
        )

    async def _members(self, *, is_open: bool) -> list[Member] | None:
        """Return the newest runs of the feed; `is_open`: those that are not over."""
        feed, following, limits = self._feed, self._following, self._hub.limits
        since = feed.filter.since
        match feed.target:
            case TagsTarget(tags):
                return await self._read(
                    following.tagged(
                        self._environment_id,
                        tags,
                        since,
                        limits.feed_runs,
                        is_open=is_open,
                    )
                )
            case RunsTarget(tasks, statuses):
                return await self._read(
                    following.recent(
                        self._environment_id,
                        None if tasks is None else sorted(tasks),
                        None if statuses is None else sorted(statuses),
                        since,
                        limits.feed_runs,
                        is_open=is_open,
                    )
                )
            case BatchTarget(batch_id):
                batch = await self._read(
                    following.batch(self._environment_id, batch_id, limits.followed_runs)
                )
                if batch is None:
                    return None
                feed.is_sealed, members = batch
                feed.first_items = frozenset(each.run_id for each in members)
                return [each for each in members if not (is_open and each.is_final)]

    async def _rows(self, ids: Sequence[str]) -> list[FollowedRun]:
        self._check()
        found = await self._read(self._following.rows(self._environment_id, ids, LARGE_VALUE_BYTES))
        return [found[id] for id in ids if id in found]

    async def _read(self, reading: Awaitable[T]) -> T:
        async with self._limiter:
            answer = await reading
        self._check()
        return answer

    def _check(self) -> None:
        if self._feed.is_closed or self._feed.version != self._version:
            raise StartedOverError


def _is_reached(snapshot: str, position: str) -> bool:
    """Say whether a snapshot is surely from no later than a position that was read up to."""
    return int(snapshot.split(":")[1]) <= int(position.split(":")[1])


def _refuse(feed: FeedMembers, code: ErrorCode, message: str) -> None:
    feed.follower.refuse(feed.subscription, code, message)
