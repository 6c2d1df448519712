"""The checker: what each client saw, against the ledger that is in the database.

    log = ClientLog("browser", mode="every")
    log.saw_run(run_id, revision, status); log.saw_chunk(run_id, "openai", seq, value); ...
    assert check(await read_ledger(dsn, env), [log]) == []

The ledger is read with SQL of its own, never through the engine that is under test. `check` is pure
and returns findings, so that a planted fault is a test of the checker itself.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal

import psycopg

from runwire_engine.states import FINAL, RunStatus

_FINAL: Final = frozenset(str(status) for status in FINAL)
Key = tuple[str, str]  # run id and stream key


class Fault(StrEnum):
    """What can be wrong with a history."""

    # In a client's log.
    LOST_CHUNK = "a chunk never arrived"
    DOUBLED_CHUNK = "a chunk arrived twice"
    REORDERED_CHUNK = "a chunk arrived after a later one"
    FOREIGN_CHUNK = "a chunk arrived that the ledger does not have"
    REVISION_BACK = "a revision arrived that is not above the one before"
    MISSING_REVISION = "a revision never arrived, though each was asked for"
    FOREIGN_REVISION = "a revision arrived that the ledger does not have"
    WRONG_STATE = "a revision arrived with another status than the ledger's"
    NOT_CONVERGED = "the newest revision never arrived"
    UNEXPECTED_GAP = "the server gave up continuity"
    # In a client's log or in the database.
    TWO_TERMINALS = "a run ended twice"
    AFTER_TERMINAL = "something other than metadata happened after the end"
    # In the database.
    REVISION_HOLE = "the revisions of a run's events are not 1 to its own"
    SEQ_HOLE = "the seqs of a stream's chunks are not 0 to its next"
    MISSING_EOF = "a run is over and its stream is not"


@dataclass(frozen=True)
class Finding:
    fault: Fault
    run_id: str
    # None: in the database.
    client: str | None = None
    stream: str | None = None
    # The seq or revision it is about.
    number: int | None = None

    def __str__(self) -> str:
        where = f"{self.run_id}/{self.stream}" if self.stream else self.run_id
        return f"{self.client or 'database'}: {self.fault} ({where}, {self.number})"


@dataclass(frozen=True)
class LedgerEvent:
    revision: int
    type: str
    # None where the event leaves the status as it was.
    status: str | None = None


@dataclass(frozen=True)
class LedgerRun:
    id: str
    status: str
    revision: int
    events: tuple[LedgerEvent, ...]


@dataclass(frozen=True)
class LedgerStream:
    run_id: str
    key: str
    next_seq: int
    has_eof: bool
    # JSON texts by seq.
    chunks: dict[int, str]


@dataclass(frozen=True)
class Ledger:
    runs: dict[str, LedgerRun]
    streams: dict[Key, LedgerStream]


@dataclass
class ClientLog:
    """What one client saw, in the order it saw it."""

    name: str
    mode: Literal["latest", "every"] = "latest"
    allows_gaps: bool = False
    # Where each stream was asked from; 0 for those not named.
    starts: dict[Key, int] = field(default_factory=dict[Key, int])
    # Revisions and statuses by run; None marks a gap, after which a snapshot begins anew.
    runs: dict[str, list[tuple[int, str] | None]] = field(
        default_factory=dict[str, list[tuple[int, str] | None]]
    )
    chunks: dict[Key, list[tuple[int, Any]]] = field(
        default_factory=dict[Key, list[tuple[int, Any]]]
    )

    def follows(self, run_id: str, *streams: str) -> None:
        """Note what it asked for, so that seeing nothing of it is a fault too."""
        self.runs.setdefault(run_id, [])
        for key in streams:
            self.chunks.setdefault((run_id, key), [])

    def saw_run(self, run_id: str, revision: int, status: str) -> None:
        self.runs.setdefault(run_id, []).append((revision, status))

    def saw_chunk(self, run_id: str, stream: str, seq: int, value: Any) -> None:
        self.chunks.setdefault((run_id, stream), []).append((seq, value))

    def saw_gap(self, run_id: str) -> None:
        self.runs.setdefault(run_id, []).append(None)


def check(ledger: Ledger, clients: Iterable[ClientLog] = ()) -> list[Finding]:
    """Return everything that is wrong; an empty list is a clean history."""
    findings = [*_check_runs(ledger), *_check_streams(ledger)]
    for client in clients:
        for run_id, seen in client.runs.items():
            findings.extend(_check_seen_run(ledger.runs.get(run_id), run_id, client, seen))
        for key, chunks in client.chunks.items():
            findings.extend(_check_seen_stream(ledger.streams.get(key), key, client, chunks))
    return findings


# -- the database by itself -------------------------------------------------------------------


def _check_runs(ledger: Ledger) -> Iterator[Finding]:
    for run in ledger.runs.values():
        revisions = [event.revision for event in run.events]
        for hole in sorted(set(range(1, run.revision + 1)) ^ set(revisions)):
            yield Finding(Fault.REVISION_HOLE, run.id, number=hole)
        ends = [event.revision for event in run.events if event.status in _FINAL]
        for second in ends[1:]:
            yield Finding(Fault.TWO_TERMINALS, run.id, number=second)
        for event in run.events:
            if ends and event.revision > ends[0] and event.type != "metadata":
                yield Finding(Fault.AFTER_TERMINAL, run.id, number=event.revision)


def _check_streams(ledger: Ledger) -> Iterator[Finding]:
    for stream in ledger.streams.values():
        for hole in sorted(set(range(stream.next_seq)) ^ set(stream.chunks)):
            yield Finding(Fault.SEQ_HOLE, stream.run_id, stream=stream.key, number=hole)
        run = ledger.runs.get(stream.run_id)
        if run is not None and run.status in _FINAL and not stream.has_eof:
            yield Finding(Fault.MISSING_EOF, stream.run_id, stream=stream.key)


# -- one client against the database ----------------------------------------------------------


def _check_seen_run(
    run: LedgerRun | None,
    run_id: str,
    client: ClientLog,
    seen: Sequence[tuple[int, str] | None],
) -> Iterator[Finding]:
    def found(fault: Fault, number: int | None) -> Finding:
        return Finding(fault, run_id, client=client.name, number=number)

    last: tuple[int, str] | None = None
    statuses = _statuses_by_revision(run)
    arrived = {item[0] for item in seen if item is not None}
    for item in seen:
        if item is None:
            if not client.allows_gaps:
                yield found(Fault.UNEXPECTED_GAP, None)
            last = None
            continue
        revision, status = item
        if last is not None:
            yield from (found(fault, revision) for fault in _faults_between(last, item))
            if client.mode == "every":
                for missing in sorted(set(range(last[0] + 1, revision)) - arrived):
                    yield found(Fault.MISSING_REVISION, missing)
        if run is None or revision > run.revision:
            yield found(Fault.FOREIGN_REVISION, revision)
        elif statuses.get(revision, status) != status:
            yield found(Fault.WRONG_STATE, revision)
        last = item
    if run is not None and not _has_converged(run, last):
        yield found(Fault.NOT_CONVERGED, run.revision)


def _faults_between(last: tuple[int, str], item: tuple[int, str]) -> Iterator[Fault]:
    if item[0] <= last[0]:
        yield Fault.REVISION_BACK
    if last[1] in _FINAL and item[1] != last[1]:
        yield Fault.TWO_TERMINALS if item[1] in _FINAL else Fault.AFTER_TERMINAL


def _statuses_by_revision(run: LedgerRun | None) -> dict[int, str]:
    """Return the status at each revision from the first event that names one."""
    statuses: dict[int, str] = {}
    current: str | None = None
    for event in run.events if run else ():
        current = event.status or current
        if current is not None:
            statuses[event.revision] = current
    if run is not None:
        statuses[run.revision] = run.status
    return statuses


def _has_converged(run: LedgerRun, last: tuple[int, str] | None) -> bool:
    if last is None:
        return False
    if last[0] >= run.revision:
        return True
    # Metadata may still change for an hour; who was told `done` need not stay for that.
    later = [event for event in run.events if event.revision > last[0]]
    return last[1] in _FINAL and all(event.type == "metadata" for event in later)


def _check_seen_stream(
    stream: LedgerStream | None,
    key: Key,
    client: ClientLog,
    seen: Sequence[tuple[int, Any]],
) -> Iterator[Finding]:
    def found(fault: Fault, seq: int) -> Finding:
        return Finding(fault, key[0], client=client.name, stream=key[1], number=seq)

    chunks = stream.chunks if stream else {}
    start = client.starts.get(key, 0)
    highest = -1
    for seq, value in seen:
        if seq < start or seq not in chunks or json.loads(chunks[seq]) != value:
            yield found(Fault.FOREIGN_CHUNK, seq)
        if seq < highest and Counter(s for s, _ in seen)[seq] == 1:
            yield found(Fault.REORDERED_CHUNK, seq)
        highest = max(highest, seq)
    counts = Counter(seq for seq, _ in seen)
    for seq in sorted(seq for seq, times in counts.items() if times > 1):
        yield found(Fault.DOUBLED_CHUNK, seq)
    for seq in sorted(seq for seq in chunks if seq >= start and seq not in counts):
        yield found(Fault.LOST_CHUNK, seq)


# -- reading the ledger -----------------------------------------------------------------------


async def read_ledger(dsn: str, environment_id: int) -> Ledger:
    """Read the whole ledger of an environment, in one snapshot."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        runs = await _read_runs(connection, environment_id)
        return Ledger(runs, await _read_streams(connection, environment_id))


async def _read_runs(
    connection: psycopg.AsyncConnection[tuple[Any, ...]], environment_id: int
) -> dict[str, LedgerRun]:
    events: dict[str, list[LedgerEvent]] = {}
    cursor = await connection.execute(
        "select run_id, revision, type, delta::json #>> '{set,status}' from runwire.run_events"
        " where environment_id = %s order by run_id, revision",
        (environment_id,),
    )
    async for run_id, revision, kind, status in cursor:
        events.setdefault(run_id, []).append(LedgerEvent(revision, kind, status))
    cursor = await connection.execute(
        "select id, status, revision from runwire.runs where environment_id = %s",
        (environment_id,),
    )
    return {
        run_id: LedgerRun(run_id, RunStatus(status), revision, tuple(events.get(run_id, ())))
        async for run_id, status, revision in cursor
    }


async def _read_streams(
    connection: psycopg.AsyncConnection[tuple[Any, ...]], environment_id: int
) -> dict[Key, LedgerStream]:
    chunks: dict[int, dict[int, str]] = {}
    cursor = await connection.execute(
        "select c.stream_id, c.seq, c.body from runwire.stream_chunks c"
        " join runwire.streams s on s.id = c.stream_id where s.environment_id = %s",
        (environment_id,),
    )
    async for stream_id, seq, body in cursor:
        chunks.setdefault(stream_id, {})[seq] = body
    cursor = await connection.execute(
        "select id, run_id, key, next_seq, eof_reason is not null from runwire.streams"
        " where environment_id = %s",
        (environment_id,),
    )
    return {
        (run_id, key): LedgerStream(run_id, key, next_seq, has_eof, chunks.get(stream_id, {}))
        async for stream_id, run_id, key, next_seq, has_eof in cursor
    }
