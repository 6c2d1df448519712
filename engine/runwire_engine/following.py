"""What following runs takes to read: runs, the members of feeds, the logs of runs and streams.

Reads only, each one statement; what changed as it changes is `changes`' affair.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Final

import orjson

from runwire_engine.changes import Place, is_cut_off, place, read_by_txid
from runwire_engine.database import Database, Row
from runwire_engine.followed import (
    Before,
    Chunk,
    FollowedRun,
    LoggedEvent,
    Member,
    StreamHead,
    Touched,
)
from runwire_engine.placement import AttemptMark
from runwire_engine.run_row import run_row
from runwire_engine.states import FINAL, RunStatus

# Where a feed without a beginning begins.
_ALWAYS: Final = "-infinity"
# Chunks of a text read with one statement.
_CHUNKS_OF_TEXT: Final = 10_000
_BODIES: Final = ("payload", "output", "metadata")


class Following:
    """Reads for those who follow."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def rows(
        self, environment_id: int, ids: Sequence[str], limit: int
    ) -> dict[str, FollowedRun]:
        """Return those of the runs that there are; bodies over `limit` bytes are left out."""
        rows = await self._database.all(
            "following.rows",
            {"environment_id": environment_id, "ids": list(ids), "limit": limit},
        )
        return {row["id"]: _run(row) for row in rows}

    async def revisions(self, environment_id: int, ids: Sequence[str]) -> dict[str, int]:
        """Return how far those of the runs are that there are."""
        rows = await self._database.all(
            "following.revisions", {"environment_id": environment_id, "ids": list(ids)}
        )
        return {row["id"]: row["revision"] for row in rows}

    async def tagged(
        self,
        environment_id: int,
        tags: Sequence[str],
        since: datetime | None,
        limit: int,
        *,
        is_open: bool = False,
    ) -> list[Member]:
        """Return the newest runs that carry all the tags; `is_open`: only those not over."""
        rows = await self._database.all(
            "following.open_tagged" if is_open else "following.tagged",
            {
                "environment_id": environment_id,
                "first": tags[0],
                "tags": list(tags),
                "since": since or _ALWAYS,
                "limit": limit,
            },
        )
        return _members(rows)

    async def recent(
        self,
        environment_id: int,
        tasks: Sequence[str] | None,
        statuses: Sequence[str] | None,
        since: datetime | None,
        limit: int,
        *,
        is_open: bool = False,
    ) -> list[Member]:
        """Return the newest runs of an environment, by task and status."""
        parameters = {
            "environment_id": environment_id,
            "tasks": tasks,
            "statuses": statuses,
            "since": since or _ALWAYS,
            "limit": limit,
        }
        return _members(await self._database.all(_walk(statuses, is_open), parameters))

    async def batch(
        self, environment_id: int, batch_id: str, limit: int
    ) -> tuple[bool, list[Member]] | None:
        """Return whether a batch is complete, and its runs; None: there is no such batch."""
        names = {"environment_id": environment_id, "batch_id": batch_id}
        # In this order: once it is complete, its items are all there.
        row = await self._database.one("following.batch", names)
        if row is None:
            return None
        rows = await self._database.all("following.batch_runs", {**names, "limit": limit})
        return bool(row["sealed"]), _members(rows)

    async def touched(
        self,
        environment_id: int,
        snapshot: str,
        limit: int,
        *,
        tags: Sequence[str] = (),
        tasks: Sequence[str] | None = None,
        batch_id: str | None = None,
    ) -> dict[str, Touched]:
        """Return the runs that changed since a snapshot, and from where on.

        Raises StatementTimeoutError where that is too much to read.
        """
        rows = await read_by_txid(
            self._database,
            "following.touched",
            {
                "environment_id": environment_id,
                "snapshot": snapshot,
                "tags": list(tags),
                "tasks": tasks,
                "batch_id": batch_id,
                "limit": limit,
            },
        )
        return {row["run_id"]: Touched(row["first"], row["created"], row["tagged"]) for row in rows}

    async def before(self, environment_id: int, revisions: Mapping[str, int]) -> dict[str, Before]:
        """Return what runs were before a revision, which is not their first."""
        names = {
            "environment_id": environment_id,
            "ids": list(revisions),
            "revisions": list(revisions.values()),
        }
        rows = await self._database.all("following.before", names)
        return {
            row["run_id"]: Before(tuple(row["tags"]), row["status"], row["batch_id"])
            for row in rows
        }

    async def creations(
        self, environment_id: int, ids: Sequence[str], batch_id: str | None = None
    ) -> dict[str, Touched]:
        """Return runs as if all of their history were news; of a batch, those created in it."""
        names = {"environment_id": environment_id, "ids": list(ids), "batch_id": batch_id}
        rows = await self._database.all("following.creations", names)
        return {row["run_id"]: Touched(1, row["delta"]) for row in rows}

    async def place(self) -> Place:
        """Return where the database is."""
        return await place(self._database)

    async def is_ahead(self, snapshot: str) -> bool:
        """Say whether a snapshot is from this database's future."""
        row = await self._database.one("following.place", {"snapshot": snapshot})
        return row is not None and bool(row["is_ahead"])

    async def is_cut_off(self, snapshot: str) -> bool:
        """Say whether events after a snapshot may have been dropped; asked once they were read."""
        return await is_cut_off(self._database, snapshot)

    async def since(self, seconds: float) -> datetime:
        """Return the database's time so many seconds ago."""
        row = await self._database.one("following.since", {"seconds": seconds})
        assert row is not None
        at: datetime = row["since"]
        return at

    async def events(
        self, environment_id: int, run_id: str, after: int, limit: int
    ) -> list[LoggedEvent]:
        """Return the changes of a run after a revision."""
        rows = await self._database.all(
            "following.events",
            {"environment_id": environment_id, "run_id": run_id, "after": after, "limit": limit},
        )
        return [LoggedEvent(row["revision"], row["delta"], row["created_at"]) for row in rows]

    async def heads(
        self, environment_id: int, names: Sequence[tuple[str, str | None]]
    ) -> list[StreamHead]:
        """Return where streams stand; a key of None stands for all streams of the run."""
        rows = await self._database.all(
            "following.heads",
            {
                "environment_id": environment_id,
                "run_ids": [run_id for run_id, _ in names],
                "keys": [key for _, key in names],
            },
        )
        return [_stream(environment_id, row) for row in rows]

    async def chunks(
        self, wanted: Sequence[tuple[int, date, int]], limit_bytes: int, limit_chunks: int
    ) -> dict[int, list[Chunk]]:
        """Return a page of each stream (id, bucket, first seq), by stream id."""
        rows = await self._database.tuples(
            "following.chunks",
            {
                "stream_ids": [id for id, _, _ in wanted],
                "buckets": [bucket for _, bucket, _ in wanted],
                "from_seqs": [seq for _, _, seq in wanted],
                "limit_bytes": limit_bytes,
                "limit_chunks": limit_chunks,
            },
        )
        pages: dict[int, list[Chunk]] = defaultdict(list)
        for row in rows:
            pages[row[0]].append(Chunk._make(row[1:]))
        for page in pages.values():
            # They come in order as it is; nothing but the plan says so.
            page.sort()
        return pages

    async def text(
        self, stream_id: int, bucket: date, before: int, limit_bytes: int
    ) -> tuple[int, str]:
        """Return how many chunks from the start are strings and fit, and what they say together.

        As JSON text, without its quotes. Read in stretches, so that neither side holds many rows.
        """
        pieces: list[str] = []
        count = 0
        while count < before:
            stretch = min(_CHUNKS_OF_TEXT, before - count)
            row = await self._database.one(
                "following.text",
                {
                    "stream_id": stream_id,
                    "bucket": bucket,
                    "from_seq": count,
                    "before_seq": count + stretch,
                    "limit_bytes": limit_bytes,
                },
            )
            if row is None or row["first"] != count:
                break
            text: str = row["text"]
            pieces.append(text)
            count += row["count"]
            limit_bytes -= len(text.encode())
            if row["count"] < stretch:
                break
        return count, "".join(pieces)


def _run(row: Row) -> FollowedRun:
    sizes = {
        name: row[f"{name}_bytes"]
        for name in _BODIES
        if row[name] is None and row[f"{name}_bytes"] is not None
    }
    return FollowedRun(run_row(row), sizes, tuple(row["batches"]))


def _walk(statuses: Sequence[str] | None, is_open: bool) -> str:
    """Name the statement that finds runs among the many that are over, where there is one."""
    wanted = set(statuses or FINAL)
    if is_open or not wanted & FINAL:
        return "following.open_recent"
    if wanted <= FINAL - {RunStatus.COMPLETED}:
        return "following.failed_recent"
    return "following.recent"


def _members(rows: Sequence[Row]) -> list[Member]:
    # A run may stand in a batch twice.
    members = [Member(row["id"], row["is_final"], row["revision"]) for row in rows]
    return list({member.run_id: member for member in members}.values())


def _stream(environment_id: int, row: Row) -> StreamHead:
    marks = tuple(
        AttemptMark(mark["attempt"], mark["execution"], mark["fromSeq"])
        for mark in orjson.loads(row["attempts"])
    )
    return StreamHead(
        environment_id,
        row["id"],
        row["run_id"],
        row["key"],
        row["bucket"],
        row["next_seq"],
        marks,
        row["ended_execution"],
        row["eof_reason"],
    )
