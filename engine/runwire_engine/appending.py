"""One transaction that stores appends: locks, places, writes, and records itself."""

from collections.abc import Container, Mapping, Sequence
from typing import TypeAlias

import orjson

from runwire._stream_keys import INPUT_PREFIX, is_reserved
from runwire.wire import Json
from runwire_engine.database import Database, Row, Transaction
from runwire_engine.errors import CommitUnknownError
from runwire_engine.placement import (
    Append,
    AppendAnswer,
    AttemptMark,
    Outcome,
    Placement,
    RunFence,
    StreamName,
    StreamState,
    check,
    fencing,
    refuse,
)
from runwire_engine.writers import StoredError, Writer, error_of, record_of

# The runs and the streams that a flush holds.
_Locked: TypeAlias = tuple[dict[str, RunFence], dict[StreamName, StreamState]]


class Appending:
    """One transaction that stores appends of one environment."""

    def __init__(
        self,
        database: Database,
        environment_id: int,
        writer: Writer,
        number: int,
        limit: int,
        *,
        repeated: bool = False,
    ) -> None:
        """Take who writes, and under which number; `repeated`: it may be stored already."""
        self.environment_id = environment_id
        # Runs that wait for what it sent them.
        self.awaiting: list[str] = []
        # The streams it locked, and the names of those it made, but for Runwire's own.
        self.touched: list[StreamState] = []
        self.fresh: list[StreamName] = []
        # The runs it held.
        self.runs: Mapping[str, RunFence] = {}
        self._database = database
        self._writer = writer
        self._number = number
        self._limit = limit
        self._repeated = repeated

    async def store(
        self, appends: Sequence[Append], known: Container[StreamName], *, hasten: bool
    ) -> Sequence[Outcome]:
        """Commit and return an outcome for each. Raises LockHeldError when a lock is not had.

        Streams that are not known to exist cost a stronger lock of their runs.
        """
        may_make = any((append.run_id, append.key) not in known for append in appends)
        try:
            async with self._database.transaction(lazy=True) as tx:
                lock = self._lock_making if may_make else self._lock_known
                runs, streams = await lock(tx, appends, hasten=hasten)
                return await self._place(tx, appends, runs, streams)
        except StoredError:
            answer = await self._writer.answer_of(self.environment_id, self._number)
            return recorded(answer or "[]")
        except CommitUnknownError:
            self._writer.unsure = self._number
            raise

    async def stuck(self, appends: Sequence[Append]) -> set[StreamName]:
        """Return the streams of which somebody holds a lock right now."""
        names = sorted({(append.run_id, append.key) for append in appends})
        async with self._database.transaction() as tx:
            there = await tx.all("streams.there", self._with(ids=fencing(appends)))
            free = await tx.all("streams.lock_free_runs", self._with(ids=fencing(appends)))
            held = {row["id"] for row in there} - {row["id"] for row in free}
            heads = await tx.all("streams.heads", self._with(**names_of(names)))
            loose = await tx.all("streams.lock_free", self._with(**names_of(names)))
        locked = {(r["run_id"], r["key"]) for r in heads} - {(r["run_id"], r["key"]) for r in loose}
        return locked | {
            (append.run_id, append.key)
            for append in appends
            if append.run_id in held or append.writer in held
        }

    async def _lock_known(
        self, tx: Transaction, appends: Sequence[Append], *, hasten: bool
    ) -> _Locked:
        """Lock the runs, then their streams, in one round trip."""
        names = sorted({(append.run_id, append.key) for append in appends})
        *_, runs, streams = await tx.together(
            *([("streams.hasten", None)] if hasten else []),
            ("streams.lock_runs", self._with(ids=fencing(appends))),
            ("streams.lock", self._with(**names_of(names))),
        )
        return _fences(runs), _states(streams)

    async def _lock_making(
        self, tx: Transaction, appends: Sequence[Append], *, hasten: bool
    ) -> _Locked:
        """Lock the runs for a change, make the streams that are missing, and lock all of them."""
        if hasten:
            await tx.run("streams.hasten")
        runs = _fences(
            await tx.all("streams.lock_runs_to_change", self._with(ids=fencing(appends)))
        )
        accepted = [a for a in appends if check(a) is None and refuse(a, runs) is None]
        names = sorted({(append.run_id, append.key) for append in accepted})
        buckets = [runs[run_id].bucket for run_id, _ in names]
        made = await tx.all("streams.make", self._with(**names_of(names), buckets=buckets))
        new = sorted((row["run_id"], row["key"]) for row in made)
        self.fresh = [name for name in new if not is_reserved(name[1])]
        if self.fresh:
            await tx.run("streams.announce", self._with(**names_of(self.fresh)))
        if len(new) > len(self.fresh):
            reserved = [name for name in new if is_reserved(name[1])]
            await tx.run("streams.keep_reserved", self._with(**names_of(reserved)))
        return runs, _states(await tx.all("streams.lock", self._with(**names_of(names))))

    async def _place(
        self,
        tx: Transaction,
        appends: Sequence[Append],
        runs: Mapping[str, RunFence],
        streams: Mapping[StreamName, StreamState],
    ) -> Sequence[Outcome]:
        self.touched, self.runs = list(streams.values()), runs
        placement = Placement(
            runs, streams, await self._parts(tx, appends), stream_limit=self._limit
        )
        outcomes = [placement.place(append) for append in appends]
        await self._keep_parts(tx, placement)
        await self._wake(tx, appends, outcomes)
        await self._write(tx, outcomes)
        return outcomes

    async def _parts(
        self, tx: Transaction, appends: Sequence[Append]
    ) -> dict[tuple[StreamName, str], AppendAnswer]:
        wanted = {
            (_target(append.run_id, append.key), append.part): (append.run_id, append.key)
            for append in appends
            if append.part is not None
        }
        if not wanted:
            return {}
        targets, parts = zip(*wanted, strict=True)
        rows = await tx.all("streams.parts", self._with(targets=list(targets), parts=list(parts)))
        return {
            (wanted[row["target"], row["writer_id"]], row["writer_id"]): AppendAnswer(
                **orjson.loads(row["last_result"])
            )
            for row in rows
        }

    async def _keep_parts(self, tx: Transaction, placement: Placement) -> None:
        if not placement.new_parts:
            return
        await tx.run(
            "streams.keep_parts",
            self._with(
                targets=[_target(*name) for name, _ in placement.new_parts],
                parts=[part for _, part in placement.new_parts],
                answers=[orjson.dumps(answer).decode() for answer in placement.new_parts.values()],
            ),
        )

    async def _wake(
        self, tx: Transaction, appends: Sequence[Append], outcomes: Sequence[Outcome]
    ) -> None:
        """Leave a wake of each run that waits for input and was sent some."""
        sent = {
            append.run_id
            for append, outcome in zip(appends, outcomes, strict=True)
            if append.key.startswith(INPUT_PREFIX) and isinstance(outcome, AppendAnswer)
        }
        if sent:
            rows = await tx.all("waits.note_input", self._with(ids=sorted(sent)))
            self.awaiting = [row["target_id"] for row in rows]

    async def _write(self, tx: Transaction, outcomes: Sequence[Outcome]) -> None:
        changed = [stream for stream in self.touched if stream.changed]
        chunks = [
            (stream, chunk)
            for stream in changed
            for stretch in stream.written
            for chunk in stretch.rows()
        ]
        # COMMIT travels along, except where a number that is there already must not commit.
        write = tx.all if self._repeated else tx.last
        stored = await write(
            "streams.write",
            self._with(
                writer_id=self._writer.id,
                number=self._number,
                result=_record(outcomes),
                ids=[stream.id for stream in changed],
                next_seqs=[stream.next_seq for stream in changed],
                sizes=[stream.bytes for stream in changed],
                executions=[stream.execution for stream in changed],
                attempts=[_text_of(stream.attempts) for stream in changed],
                ended_executions=[stream.ended_execution for stream in changed],
                chunk_buckets=[stream.bucket for stream, _ in chunks],
                chunk_streams=[stream.id for stream, _ in chunks],
                chunk_seqs=[chunk.seq for _, chunk in chunks],
                chunk_executions=[chunk.execution for _, chunk in chunks],
                chunk_attempts=[chunk.attempt for _, chunk in chunks],
                chunk_writers=[chunk.writer for _, chunk in chunks],
                chunk_bodies=[chunk.body for _, chunk in chunks],
            ),
        )
        if not stored:
            raise StoredError

    def _with(self, **parameters: object) -> dict[str, object]:
        return {"environment_id": self.environment_id, **parameters}


def recorded(text: str) -> list[Outcome]:
    """Return the outcomes that a flush recorded."""
    answers: list[Json] = orjson.loads(text)
    return [_outcome(answer) for answer in answers]


def _outcome(answer: Json) -> Outcome:
    return error_of(answer) if "error" in answer else AppendAnswer(**answer)


def _record(outcomes: Sequence[Outcome]) -> str:
    return orjson.dumps(
        [
            outcome if isinstance(outcome, AppendAnswer) else record_of(outcome)
            for outcome in outcomes
        ]
    ).decode()


def _fences(rows: Sequence[Row]) -> dict[str, RunFence]:
    return {row["id"]: RunFence(**row) for row in rows}


def _states(rows: Sequence[Row]) -> dict[StreamName, StreamState]:
    states: dict[StreamName, StreamState] = {}
    for row in rows:
        fields: Row = {**row, "attempts": marks_of(row["attempts"])}
        states[row["run_id"], row["key"]] = StreamState(**fields)
    return states


def names_of(names: Sequence[StreamName]) -> dict[str, object]:
    """Return stream names as the parameters of a statement."""
    return {"run_ids": [run_id for run_id, _ in names], "keys": [key for _, key in names]}


def marks_of(text: str) -> tuple[AttemptMark, ...]:
    """Return a stream's attempts from their JSON."""
    marks: list[Json] = orjson.loads(text)
    return tuple(AttemptMark(m["attempt"], m["execution"], m["fromSeq"]) for m in marks)


def _text_of(marks: Sequence[AttemptMark]) -> str:
    return orjson.dumps(
        [
            {"attempt": mark.attempt, "execution": mark.execution, "fromSeq": mark.from_seq}
            for mark in marks
        ]
    ).decode()


def _target(run_id: str, key: str) -> str:
    return f"part:{run_id}/{key}"
