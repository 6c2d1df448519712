"""Brings what happens in the database to the hub: bells, the tail, and a poll in case of neither.

A bell wakes; a hint in it goes straight to the stream's readers. Run events are read by the tail,
one read in flight, and streams are looked up one by one, only those that are followed. Once a
second everything is looked at whether it rang or not, so that a lost bell costs a second and never
data.
"""

import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias

import anyio

from runwire.wire import CloseCode, ErrorCode
from runwire_engine.bells import Bell
from runwire_engine.changes import Changes, EventRow, Place, Tail, is_cut_off, place, rotate
from runwire_engine.database import Database, Transaction
from runwire_engine.errors import EngineError, StatementTimeoutError
from runwire_engine.followed import Touched
from runwire_engine.following import Following
from runwire_engine.listener import Listener
from runwire_realtime.hub import Hub, RunEvent, event_of
from runwire_realtime.reads import Reads
from runwire_realtime.rotation import Rotation
from runwire_realtime.run_places import RunPlaces
from runwire_realtime.run_view import wire_time

logger = logging.getLogger("runwire.feed")

# Followed streams, and batches that may get items, that are looked up at each poll; the bells name
# those that move, so that only a lost bell waits for its turn.
_STREAMS_PER_LOOK: Final = 5_000
_BATCHES_PER_LOOK: Final = 100
_POLL: Final = 1.0
_PAUSE: Final = 0.2
# Told stale within 3 s of the last word from the database. Of the time between two looks no more
# than this counts, so that a process that was held up does not blame the database.
_WATCH: Final = 0.25
_SILENCE: Final = 2.25
_MOST_OF_A_LOOK: Final = 1.0


# Bells are heard; the poll alone tells what is new; or that is not known yet.
Notifications: TypeAlias = Literal["listening", "poll-only", "starting"]


class Feed:
    """One process's ear at the database."""

    def __init__(
        self, hub: Hub, reads: Reads, database: Database, *, listen_dsn: str | None = None
    ) -> None:
        """Listen at the database's own address, unless another is given."""
        self._hub = hub
        self._reads = reads
        self._database = database
        self._listen_dsn = listen_dsn or database.dsn
        self._bells = Listener(self._listen_dsn, rung=self.rang)
        self._following = Following(database)
        self._tail = Tail(database)
        self._tail_wanted = anyio.Event()
        # Seconds since the last word from the database.
        self._silent_for = 0.0
        self._lost_touch = anyio.Event()
        # How often the tail was read, and the place of the followed runs, look by look.
        self._tails_read = 0
        self._tail_read = anyio.Event()
        self._places = RunPlaces(hub, self._following)
        self._streams = Rotation(hub.streams.names, _STREAMS_PER_LOOK)
        self._batches = Rotation(hub.batches, _BATCHES_PER_LOOK)
        # The connection was interrupted: it may be another database that answers now.
        self._is_suspicious = False
        # How often the ear was opened anew, and of which time it is known where it listens.
        self._openings = self._proven = 0
        # Where the database was when it was last looked at; None: not yet.
        self._place: Place | None = None
        # A connection found another history, in which the tail has not begun yet.
        self._is_elsewhere = False

    async def start(self) -> None:
        """Begin at now. Raises EngineError when the database cannot be read."""
        self._take_place(await place(self._database))
        self._hub.position = await self._tail.start()

    async def connected(self, session: Transaction) -> None:
        """Look at a new connection before anything is read over it.

        Nothing of another history may be taken for the continuation of this one.
        """
        if self._place is None:
            return
        now = await _in_one_history(session, self._place)
        if now.epoch != self._place.epoch and now.epoch != self._hub.epoch:
            logger.warning("a connection leads to another history of the database")
            self._hub.epoch = now.epoch
            self._hub.start_over()
            self._is_elsewhere = self._is_suspicious = True
            self._tail_wanted.set()

    async def run(self) -> None:
        """Feed the hub until cancelled."""
        self._bells = Listener(self._listen_dsn, rung=self.rang)
        with self._tail.own_connection():
            async with self._bells, anyio.create_task_group() as tasks:
                tasks.start_soon(self._follow_tail)
                tasks.start_soon(self._poll)
                tasks.start_soon(self._watch)
                tasks.start_soon(self._come_back)

    @property
    def notifications(self) -> Notifications:
        """How news is heard of."""
        if self._bells.listening:
            return "listening"
        return "poll-only" if self._bells.is_known else "starting"

    @property
    def flushed(self) -> int:
        """How far the log of Postgres was on disk when it was last looked at, in bytes."""
        return 0 if self._place is None else self._place.flushed

    def rang(self, bell: Bell) -> None:
        """Take a bell."""
        if bell.scan:
            self._openings += 1
            self._is_suspicious = True
            self._scan()
        if bell.runs_moved or bell.scan:
            self._tail_wanted.set()
        # Chunks of another history would look as if they went on with these.
        is_proven = self._proven == self._openings
        for moved in bell.streams:
            self._hub.rang(moved if is_proven else replace(moved, chunks=()))
        for control in bell.control:
            if control.kind == "revoke":
                self._revoke(control.environment_id, control.target)

    def _revoke(self, environment_id: int, jti: str) -> None:
        for follower in list(self._hub.followers):
            grant = follower.grant
            if grant.jti == jti and grant.environment_id == environment_id:
                follower.outbox.close(CloseCode.REVOKED, "the token was revoked")

    def _scan(self) -> None:
        """Look up every followed stream."""
        for name in self._hub.streams.names():
            self._hub.wants.head(*name)

    # The tail

    async def _follow_tail(self) -> None:
        while True:
            await self._tail_wanted.wait()
            self._tail_wanted = anyio.Event()
            try:
                await self.read_tail()
            except EngineError as error:
                logger.warning("reading what changed failed: %s", error)
                self._is_suspicious = True
                self._tail_wanted.set()
                await anyio.sleep(_PAUSE)

    async def read_tail(self) -> None:
        """Bring to the hub what has changed, once it is known that it goes on from there."""
        if self._is_suspicious:
            await self._look_at_place()
        try:
            changes = await self._tail.read()
        except StatementTimeoutError as error:
            # Read again from there it would take no less time, ever.
            logger.warning("%s; everything followed is read again", error)
            changes = Changes([], True, await self._tail.start())
        if changes.jumped:
            logger.warning("too much changed at once; everything followed is read again")
            self._hub.jumped(changes.snapshot)
        else:
            events = [_event(row) for row in changes.events if self._concerns(row)]
            self._hub.apply(events, changes.snapshot)
        self._silent_for = 0.0
        self._tails_read += 1
        self._tail_read.set()
        self._tail_read = anyio.Event()

    def _concerns(self, row: EventRow) -> bool:
        return self._hub.follows(row.environment_id, row.run_id, row.task, row.tags, row.batch_id)

    async def _look_at_place(self) -> None:
        """Find out whether the tail may read on from where it is, and begin anew where not."""
        self._is_suspicious = False  # what rings from here on makes it look again
        before, openings = self._place, self._openings
        assert before is not None
        now = await _in_one_history(self._database, before)
        if now.epoch != before.epoch or self._is_elsewhere:
            await self._start_over(now)
        elif now.recovery != before.recovery:
            await self._jump("Postgres was restarted", now)
        elif now.closed_days != before.closed_days and await is_cut_off(
            self._database, self._tail.position
        ):
            await self._jump("what was missed has been dropped meanwhile", now)
        else:
            self._take_place(now)
        self._proven = openings

    async def _jump(self, why: str, now: Place) -> None:
        position = await self._tail.start()
        logger.warning("%s; everything followed is read again", why)
        # Feeds go on from cursors of the life they are of.
        self._hub.jumped(position)
        self._take_place(now)

    async def _start_over(self, now: Place) -> None:
        position = await self._tail.start()
        logger.warning("the history of the database is another one; subscribers start over")
        self._is_elsewhere = False
        self._hub.start_over()
        self._take_place(now)
        self._hub.position = position

    def _take_place(self, now: Place) -> None:
        self._place = now
        self._hub.epoch, self._hub.recovery = now.epoch, now.recovery
        self._hub.take_emptied(now.emptied)

    # The poll

    async def _poll(self) -> None:
        while True:
            self._is_suspicious = True
            self._tail_wanted.set()
            self._look_at_streams()
            await self._look_at_batches()
            await self._places.look(self._tails_read)
            await anyio.sleep(_POLL)

    def _look_at_streams(self) -> None:
        """Look up followed streams: all of them where no bell names those that move."""
        if self.notifications != "listening":
            self._scan()
            return
        for name in self._streams.take():
            self._hub.wants.head(*name)

    async def _look_at_batches(self) -> None:
        """Look for items of batches that were not complete."""
        limit = self._hub.limits.followed_runs
        for environment_id, batch_id in self._batches.take():
            feeds = self._hub.open_feeds(environment_id, batch_id)
            if not feeds:
                continue
            try:
                found = await self._following.batch(environment_id, batch_id, limit)
            except EngineError:
                return  # the tail tells; the next turn looks again
            if found is None:
                for feed in feeds:
                    text = "the batch is not kept any more"
                    feed.follower.refuse(feed.subscription, ErrorCode.GONE, text)
                continue
            is_sealed, members = found
            ids = [each.run_id for each in members]
            new = {run_id for feed in feeds for run_id in feed.new_items(ids)}
            created: dict[str, Touched] = {}
            if new:
                try:
                    created = await self._following.creations(environment_id, list(new), batch_id)
                except EngineError:
                    return
            for feed in feeds:
                if not feed.is_closed and not feed.is_loading:
                    feed.found(ids, created, is_sealed=is_sealed)

    # Freshness

    async def _watch(self) -> None:
        looked_at = anyio.current_time()
        while True:
            await anyio.sleep(_WATCH)
            before, looked_at = looked_at, anyio.current_time()
            self._silent_for += min(looked_at - before, _MOST_OF_A_LOOK)
            if self._is_silent and self._hub.stale_since is None:
                logger.warning("the database does not answer; subscribers are told")
                self._hub.say_state("stale", wire_time(datetime.now(UTC)))
                self._lost_touch.set()

    @property
    def _is_silent(self) -> bool:
        return self._silent_for >= _SILENCE

    async def _come_back(self) -> None:
        """Say live, whenever it was lost, once what was missed has been read."""
        while True:
            if self._hub.stale_since is None:
                self._lost_touch = anyio.Event()
                await self._lost_touch.wait()
            # The first may have been under way since before.
            await self._tail_read.wait()
            self._tail_wanted.set()
            await self._tail_read.wait()
            self._scan()
            await self._reads.caught_up()
            if not self._is_silent:
                self._hub.say_state("live", wire_time(datetime.now(UTC)))


def _event(row: EventRow) -> RunEvent:
    return event_of(
        row.environment_id,
        row.run_id,
        row.revision,
        row.delta,
        wire_time(row.created_at),
        task=row.task,
        tags=row.tags,
        batch_id=row.batch_id,
    )


async def _in_one_history(reader: Database | Transaction, before: Place) -> Place:
    """Return where the database is now; an older copy of it gets a history of its own.

    A copy that was put in the place of the database knows nothing of that, but its log is shorter
    than what was on disk before, which a crash cannot do.
    """
    now = await place(reader)
    if now.epoch == before.epoch and now.flushed < before.flushed:
        logger.warning("the database is an older copy of itself; another history begins")
        await rotate(reader, now.generation)
        now = await place(reader)
    return now
