"""Reading what changed: run events by snapshot, so that nothing is missed and nothing seen twice.

Rows appear in the order of commits, not of any sequence, so a position is a snapshot: the set of
transactions already seen. The next read returns exactly the events of those that became visible
since, whatever order they committed in, and no open transaction of somebody holds it up.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final

from runwire_engine.database import Database, Row, Transaction
from runwire_engine.direct_call import DirectCall
from runwire_engine.errors import StandbyError
from runwire_engine.statements import statement

# More than this at once, and reading the followed runs again is cheaper than their events.
TAIL_LIMIT: Final = 5_000
RESUME_LIMIT: Final = 20_000
_ADOPTED_AT_ONCE: Final = 5_000
# As `changes.settle` has it.
_SETTINGS: Final = " -c enable_seqscan=off -c statement_timeout=2s"


@dataclass(frozen=True, slots=True)
class EventRow:
    """One revision of a run: what turned `revision - 1` into it (`delta`, JSON text)."""

    environment_id: int
    run_id: str
    revision: int
    type: str
    delta: str
    created_at: datetime
    task: str
    tags: tuple[str, ...]
    batch_id: str | None


@dataclass(frozen=True, slots=True)
class Changes:
    """Events by (run, revision), and the position after them.

    `jumped`: there were too many, so there are none here; read the runs themselves, no older than
    this position.
    """

    events: list[EventRow]
    jumped: bool
    snapshot: str


class Tail:
    """Follows the events of every environment; one `read` at a time."""

    def __init__(self, database: Database, *, limit: int = TAIL_LIMIT) -> None:
        self._database = database
        self._limit = limit
        self._position: str | None = None
        self._own: DirectCall | None = None

    @contextmanager
    def own_connection(self) -> Generator[None]:
        """Read over a connection of its own for the length of a block, which takes less time."""
        self._own = DirectCall(self._database, "changes.tail", one_plan=True, settings=_SETTINGS)
        try:
            yield
        finally:
            self._own.close()
            self._own = None

    @property
    def position(self) -> str:
        """The snapshot read up to, as text; opaque but for `Following.touched`."""
        if self._position is None:
            raise RuntimeError("the tail was not started")
        return self._position

    async def start(self) -> str:
        """Begin at now: what is visible already will not be returned. Raises StandbyError."""
        row = await self._database.one("changes.now")
        self._position = _snapshot(row)
        return self._position

    async def read(self) -> Changes:
        """Return what became visible since the last read.

        Raises StandbyError, and StatementTimeoutError after two seconds. After any error the
        position is what it was: read again, or `start` anew.
        """
        parameters = {"snapshot": self.position, "limit": self._limit + 1}
        if self._own is None or self._database.is_pooled:
            rows = await read_by_txid(self._database, "changes.tail", parameters)
        else:
            rows = await self._own.all("changes.tail", parameters)
        changes = _changes(rows, self._limit)
        self._position = changes.snapshot
        return changes


async def epoch(database: Database) -> str:
    """Return the name of this database's history; positions of another one mean nothing."""
    row = await database.one("changes.epoch")
    assert row is not None
    return str(row["epoch"])


@dataclass(frozen=True, slots=True)
class Place:
    """Where a database is: in which history, and in which life of Postgres.

    A crash forgets transactions whose commit nobody was told of, and gives their ids again. So a
    position of one life may hide events of the next, and must not be read on from.
    """

    epoch: str
    # 8 hexadecimal digits.
    recovery: str
    generation: str
    # How far the log of Postgres is on disk, in bytes; it only grows, unless an older copy of the
    # database was put in its place.
    flushed: int
    # How many days have had their history ended.
    closed_days: int
    # Days whose runs are deleted.
    emptied: frozenset[date]


async def place(reader: Database | Transaction) -> Place:
    """Return where the database is. Raises StandbyError."""
    row = await reader.one("changes.place")
    assert row is not None
    if row["flushed"] is None:
        raise StandbyError("changes can only be followed on the primary Postgres")
    return Place(
        row["epoch"],
        row["recovery"],
        str(row["generation"]),
        int(row["flushed"]),
        row["closed_days"],
        frozenset(row["emptied"] or ()),
    )


async def is_cut_off(database: Database, snapshot: str) -> bool:
    """Say whether events after a position of this epoch may have been dropped.

    Asked after the events were read, it covers what was dropped meanwhile.
    """
    row = await database.one("changes.is_cut_off", {"snapshot": snapshot})
    return row is not None and bool(row["is_cut_off"])


async def rotate(reader: Database | Transaction, generation: str) -> None:
    """Begin another history after a generation, unless somebody else has."""
    await reader.run("changes.rotate", {"generation": generation})


async def begin_history(database: Database) -> str:
    """Begin another history, as after a restore, and return its epoch.

    Events that came from another database with their transaction ids are made old, so that no tail
    takes them for news.
    """
    while await database.run("changes.adopt_events", {"limit": _ADOPTED_AT_ONCE}):
        pass
    await database.run("changes.begin_history")
    return await epoch(database)


async def read_by_txid(
    database: Database, name: str, parameters: Mapping[str, object]
) -> list[Row]:
    """Read what became visible by the index on txid, whatever the statistics say.

    Today's partition grows faster than it is analysed, and a plan that reads it whole looks cheap
    until it is not. One round trip: the settings travel with the statement. Raises
    StatementTimeoutError after two seconds.
    """
    async with database.session() as session:
        connection = session.connection
        async with connection.pipeline():
            await connection.execute(statement("changes.begin"))
            await connection.execute(statement("changes.settle"))
            cursor = await connection.execute(statement(name), parameters)
            await connection.execute(statement("changes.commit"))
        return await cursor.fetchall()


def _changes(rows: list[Row], limit: int) -> Changes:
    snapshot = _snapshot(rows[0])
    if len(rows) > limit:
        return Changes([], True, snapshot)
    return Changes([_event(row) for row in rows if row["run_id"] is not None], False, snapshot)


def _snapshot(row: Row | None) -> str:
    assert row is not None
    if row["is_standby"]:
        raise StandbyError("changes can only be followed on the primary Postgres")
    return str(row["snapshot"])


def _event(row: Row) -> EventRow:
    return EventRow(
        row["environment_id"],
        row["run_id"],
        row["revision"],
        row["type"],
        row["delta"],
        row["created_at"],
        row["task"],
        tuple(row["tags"]),
        row["batch_id"],
    )
