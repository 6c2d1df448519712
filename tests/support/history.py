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
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Literal, TypeAlias

import psycopg

from runwire_engine.states import FINAL, RunStatus

_FINAL: Final = frozenset(str(status) for status in FINAL)
Key = tuple[str, str]  # run id and stream key
Seen: TypeAlias = "tuple[int, str] | Break"


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
    BAD_PATCH = "a patch does not apply to what was sent before"
    UNKNOWN_RUN = "a run is spoken of that was never sent"
    EARLY_END = "an end was told before what comes ahead of it"
    UNTOLD_RESTART = "another execution's chunks were not announced"
    FOREIGN_RESTART = "an execution was announced where none begins"
    MISSING_MEMBER = "a feed does not hold a run that is in it"
    FOREIGN_MEMBER = "a feed holds a run that is not in it"
    WRONG_DOCUMENT = "a run looks different from what the ledger has at that revision"
    NEVER_LIVE = "a subscription never went live"
    NEVER_DONE = "a subscription that is over was never told so"
    REFUSED = "the server refused what it should serve"
    # In a client's log or in the database.
    TWO_TERMINALS = "a run ended twice"
    AFTER_TERMINAL = "something other than metadata happened after the end"
    # In the database.
    REVISION_HOLE = "the revisions of a run's events are not 1 to its own"
    SEQ_HOLE = "the seqs of a stream's chunks are not 0 to its next"
    MISSING_EOF = "a run is over and its stream is not"
    ZOMBIE_CHUNK = "a chunk was stored after its execution had lost the run"
    # Of the engine's answers and bells.
    ZOMBIE_ACCEPTED = "a write of an execution that had lost its run was accepted"
    NOT_DURABLE = "something was announced that is not committed"
    WRONG_LEDGER = "the database does not hold what was acknowledged"


# What is no fault while things are still under way.
UNSETTLED: Final = frozenset(
    {
        Fault.LOST_CHUNK,
        Fault.NOT_CONVERGED,
        Fault.UNTOLD_RESTART,
        Fault.MISSING_MEMBER,
        Fault.FOREIGN_MEMBER,
        Fault.NEVER_LIVE,
        Fault.NEVER_DONE,
    }
)


@dataclass(frozen=True)
class Finding:
    fault: Fault
    run_id: str
    # None: in the database.
    client: str | None = None
    stream: str | None = None
    # The seq or revision it is about.
    number: int | None = None
    # What else is known of it, for whoever looks for the cause.
    detail: str = field(default="", compare=False)

    def __str__(self) -> str:
        where = f"{self.run_id}/{self.stream}" if self.stream else self.run_id
        said = f"{self.client or 'database'}: {self.fault} ({where}, {self.number})"
        return f"{said}: {self.detail}" if self.detail else said


@dataclass(frozen=True)
class LedgerEvent:
    revision: int
    type: str
    # None where the event leaves the status as it was.
    status: str | None = None
    at: datetime | None = None


@dataclass(frozen=True)
class LedgerRun:
    id: str
    status: str
    revision: int
    events: tuple[LedgerEvent, ...]
    task: str = ""
    tags: tuple[str, ...] = ()
    batches: tuple[str, ...] = ()
    # JSON values.
    metadata: Any = None
    output: Any = None


@dataclass(frozen=True)
class LedgerWriter:
    """Who stored a chunk; `execution` is None for a writer from outside the run."""

    execution: int | None
    at: datetime


@dataclass(frozen=True)
class LedgerStream:
    run_id: str
    key: str
    next_seq: int
    has_eof: bool
    # JSON texts by seq.
    chunks: dict[int, str]
    writers: dict[int, LedgerWriter] = field(default_factory=dict[int, LedgerWriter])
    # Where the chunks of each execution begin.
    begins: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ledger:
    runs: dict[str, LedgerRun]
    streams: dict[Key, LedgerStream]
    # Which batches have all their items.
    sealed: frozenset[str] = frozenset()


class Break(StrEnum):
    """Why a run's history on a client begins anew."""

    GAP = "gap"
    # It left the feed; what comes while it is away is not for this client.
    LEFT = "left"


@dataclass
class FeedLog:
    """A tag, batch or runs subscription: what it asked for, and which runs it holds now."""

    to: dict[str, Any]
    members: set[str] = field(default_factory=set[str])


@dataclass
class ClientLog:
    """What one client saw, in the order it saw it."""

    name: str
    mode: Literal["latest", "every"] = "latest"
    allows_gaps: bool = False
    # Where each stream was asked from; 0 for those not named.
    starts: dict[Key, int] = field(default_factory=dict[Key, int])
    # Revisions and statuses by run; after a break a snapshot begins anew.
    runs: dict[str, list[Seen]] = field(default_factory=dict[str, "list[Seen]"])
    chunks: dict[Key, list[tuple[int, Any]]] = field(
        default_factory=dict[Key, list[tuple[int, Any]]]
    )
    # The reasons of the gaps in `runs`, in order.
    reasons: dict[str, list[str]] = field(default_factory=dict[str, "list[str]"])
    # Where the text so far came in one piece: up to which seq, and the text.
    texts: dict[Key, tuple[int, str]] = field(default_factory=dict[Key, tuple[int, str]])
    # Where another execution's chunks were announced; None: this client does not look.
    restarts: dict[Key, list[int]] | None = None
    feeds: dict[str, FeedLog] = field(default_factory=dict[str, FeedLog])
    # Runs as the client holds them at the end, in the words of the wire.
    documents: dict[str, dict[str, Any]] = field(default_factory=dict[str, "dict[str, Any]"])
    # What the client itself found wrong on the way.
    findings: list["Finding"] = field(default_factory=list["Finding"])

    def follows(self, run_id: str, *streams: str) -> None:
        """Note what it asked for, so that seeing nothing of it is a fault too."""
        self.runs.setdefault(run_id, [])
        for key in streams:
            self.chunks.setdefault((run_id, key), [])

    def saw_run(self, run_id: str, revision: int, status: str) -> None:
        self.runs.setdefault(run_id, []).append((revision, status))

    def saw_chunk(self, run_id: str, stream: str, seq: int, value: Any) -> None:
        self.chunks.setdefault((run_id, stream), []).append((seq, value))

    def saw_gap(self, run_id: str, reason: str = "no reason") -> None:
        self.runs.setdefault(run_id, []).append(Break.GAP)
        self.reasons.setdefault(run_id, []).append(reason)

    def left(self, run_id: str) -> None:
        self.runs.setdefault(run_id, []).append(Break.LEFT)

    def found(
        self,
        fault: Fault,
        run_id: str,
        *,
        stream: str | None = None,
        number: int | None = None,
        detail: str = "",
    ) -> None:
        """Note what the client itself sees to be wrong."""
        self.findings.append(Finding(fault, run_id, self.name, stream, number, detail))


def check(
    ledger: Ledger, clients: Iterable[ClientLog] = (), *, is_settled: bool = True
) -> list[Finding]:
    """Return everything that is wrong; an empty list is a clean history.

    `is_settled`: everything that happened had its time to arrive.
    """
    findings = [*_check_runs(ledger), *_check_streams(ledger)]
    for client in clients:
        findings.extend(client.findings)
        for run_id, seen in client.runs.items():
            findings.extend(_check_seen_run(ledger.runs.get(run_id), run_id, client, seen))
        for key, chunks in client.chunks.items():
            findings.extend(_check_seen_stream(ledger.streams.get(key), key, client, chunks))
            findings.extend(_check_restarts(ledger.streams.get(key), key, client, chunks))
        for feed in client.feeds.values():
            findings.extend(_check_members(ledger, client, feed))
        findings.extend(_check_documents(ledger, client))
    if not is_settled:
        return [finding for finding in findings if finding.fault not in UNSETTLED]
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
        if run is None:
            continue
        if run.status in _FINAL and not stream.has_eof:
            yield Finding(Fault.MISSING_EOF, stream.run_id, stream=stream.key)
        began = _lineages(run)
        highest = 0
        for seq, writer in sorted(stream.writers.items()):
            if writer.execution is None:
                continue
            later = [at for number, at in began if number > writer.execution]
            is_late = later[:1] != [] and writer.at > later[0]
            if is_late or writer.execution < highest:
                yield Finding(Fault.ZOMBIE_CHUNK, stream.run_id, stream=stream.key, number=seq)
            highest = max(highest, writer.execution)


def _lineages(run: LedgerRun) -> list[tuple[int, datetime]]:
    """Return which executions begin a piece of streams, and when: one that goes on does not."""
    lineages: list[tuple[int, datetime]] = []
    number, goes_on = 0, False
    for event in run.events:
        if event.type == "waiting":
            goes_on = True
        elif event.type == "executing":
            number += 1
            if not goes_on and event.at is not None:
                lineages.append((number, event.at))
            goes_on = False
    return lineages


# -- one client against the database ----------------------------------------------------------


def _check_seen_run(
    run: LedgerRun | None,
    run_id: str,
    client: ClientLog,
    seen: Sequence[Seen],
) -> Iterator[Finding]:
    def found(fault: Fault, number: int | None, detail: str = "") -> Finding:
        return Finding(fault, run_id, client=client.name, number=number, detail=detail)

    last: tuple[int, str] | None = None
    reasons = iter(client.reasons.get(run_id, ()))
    statuses = _statuses_by_revision(run)
    arrived = {item[0] for item in seen if not isinstance(item, Break)}
    for item in seen:
        if isinstance(item, Break):
            if item is Break.GAP and not client.allows_gaps:
                reason = next(reasons, "no reason")
                detail = f"{reason}, after {last or 'nothing'}; it saw {_shown(seen)}"
                yield found(Fault.UNEXPECTED_GAP, None, detail)
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
    has_left = seen[-1:] == [Break.LEFT]
    if run is not None and not has_left and not _has_converged(run, last):
        yield found(Fault.NOT_CONVERGED, run.revision)


def _shown(seen: Sequence[Seen]) -> str:
    """Return a run's history on a client in a few words: its revisions and breaks."""
    return " ".join(str(item.value if isinstance(item, Break) else item[0]) for item in seen[:200])


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
    up_to, text = client.texts.get(key, (0, ""))
    if text != "".join(json.loads(chunks.get(seq, '"?"')) for seq in range(up_to)):
        yield found(Fault.FOREIGN_CHUNK, up_to)
    start = max(start, up_to)
    for seq, value in seen:
        if seq < start or seq not in chunks or json.loads(chunks[seq]) != value:
            yield found(Fault.FOREIGN_CHUNK, seq)
        if seq < highest and Counter(s for s, _ in seen)[seq] == 1:
            yield found(Fault.REORDERED_CHUNK, seq)
        highest = max(highest, seq)
    counts = Counter(seq for seq, _ in seen)
    for seq in sorted(seq for seq, times in counts.items() if times > 1):
        yield found(Fault.DOUBLED_CHUNK, seq)
    has_left = client.runs.get(key[0], [])[-1:] == [Break.LEFT]
    for seq in sorted(seq for seq in chunks if seq >= start and seq not in counts):
        if not has_left:
            yield found(Fault.LOST_CHUNK, seq)


def _check_restarts(
    stream: LedgerStream | None, key: Key, client: ClientLog, seen: Sequence[tuple[int, Any]]
) -> Iterator[Finding]:
    if client.restarts is None or stream is None:
        return
    told = set(client.restarts.get(key, ()))
    arrived = {seq for seq, _ in seen}
    for begin in stream.begins[1:]:
        # Whoever begins there is told as well, but need not have asked from there on.
        if begin in arrived and begin - 1 in arrived and begin not in told:
            yield Finding(Fault.UNTOLD_RESTART, key[0], client.name, key[1], begin)
    for begin in sorted(told - set(stream.begins)):
        yield Finding(Fault.FOREIGN_RESTART, key[0], client.name, key[1], begin)


def _check_members(ledger: Ledger, client: ClientLog, feed: FeedLog) -> Iterator[Finding]:
    expected = {run.id for run in ledger.runs.values() if _is_in(run, feed.to)}
    for run_id in sorted(expected - feed.members):
        yield Finding(Fault.MISSING_MEMBER, run_id, client.name)
    for run_id in sorted(feed.members - expected):
        yield Finding(Fault.FOREIGN_MEMBER, run_id, client.name)


def _is_in(run: LedgerRun, to: dict[str, Any]) -> bool:
    if "tags" in to:
        return set(to["tags"]) <= set(run.tags)
    if "batch" in to:
        return to["batch"] in run.batches
    wanted: dict[str, Any] = to["runs"]
    return run.task in wanted.get("task", [run.task]) and run.status in wanted.get(
        "status", [run.status]
    )


def _check_documents(ledger: Ledger, client: ClientLog) -> Iterator[Finding]:
    for run_id, document in client.documents.items():
        run = ledger.runs.get(run_id)
        if run is None or document["revision"] != run.revision:
            continue  # found already
        held = {name: document.get(name) for name in ("status", "metadata", "output")}
        stored = {"status": run.status, "metadata": run.metadata, "output": run.output}
        stored["metadata"] = stored["metadata"] or None
        held["metadata"] = held["metadata"] or None
        if held != stored or sorted(document.get("tags") or []) != sorted(run.tags):
            yield Finding(Fault.WRONG_DOCUMENT, run_id, client.name, number=run.revision)


# -- reading the ledger -----------------------------------------------------------------------


async def read_ledger(dsn: str, environment_id: int) -> Ledger:
    """Read the whole ledger of an environment, in one snapshot."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        runs = await _read_runs(connection, environment_id)
        streams = await _read_streams(connection, environment_id)
        cursor = await connection.execute(
            "select id from runwire.batches where environment_id = %s and sealed",
            (environment_id,),
        )
        return Ledger(runs, streams, frozenset([id async for (id,) in cursor]))


async def _read_runs(
    connection: psycopg.AsyncConnection[tuple[Any, ...]], environment_id: int
) -> dict[str, LedgerRun]:
    events: dict[str, list[LedgerEvent]] = {}
    cursor = await connection.execute(
        "select run_id, revision, type, delta::json #>> '{set,status}', created_at"
        " from runwire.run_events where environment_id = %s order by run_id, revision",
        (environment_id,),
    )
    async for run_id, revision, kind, status, at in cursor:
        events.setdefault(run_id, []).append(LedgerEvent(revision, kind, status, at))
    cursor = await connection.execute(
        "select r.id, r.status, r.revision, r.task, r.tags, m.body, r.output,"
        " array(select i.batch_id from runwire.batch_items i"
        " where i.environment_id = r.environment_id and i.run_id = r.id)"
        " from runwire.runs r left join runwire.run_metadata m"
        " on m.environment_id = r.environment_id and m.run_id = r.id"
        " where r.environment_id = %s",
        (environment_id,),
    )
    return {
        run_id: LedgerRun(
            run_id,
            RunStatus(status),
            revision,
            tuple(events.get(run_id, ())),
            task,
            tuple(tags),
            tuple(batches),
            None if metadata is None else json.loads(metadata),
            None if output is None else json.loads(output),
        )
        async for run_id, status, revision, task, tags, metadata, output, batches in cursor
    }


async def _read_streams(
    connection: psycopg.AsyncConnection[tuple[Any, ...]], environment_id: int
) -> dict[Key, LedgerStream]:
    chunks: dict[int, dict[int, str]] = {}
    writers: dict[int, dict[int, LedgerWriter]] = {}
    cursor = await connection.execute(
        "select c.stream_id, c.seq, c.body, c.execution, c.created_at"
        " from runwire.stream_chunks c"
        " join runwire.streams s on s.id = c.stream_id where s.environment_id = %s",
        (environment_id,),
    )
    async for stream_id, seq, body, execution, at in cursor:
        chunks.setdefault(stream_id, {})[seq] = body
        writers.setdefault(stream_id, {})[seq] = LedgerWriter(execution, at)
    cursor = await connection.execute(
        "select id, run_id, key, next_seq, eof_reason is not null, attempts from runwire.streams"
        " where environment_id = %s",
        (environment_id,),
    )
    return {
        (run_id, key): LedgerStream(
            run_id,
            key,
            next_seq,
            has_eof,
            chunks.get(stream_id, {}),
            writers.get(stream_id, {}),
            tuple(mark["fromSeq"] for mark in json.loads(attempts)),
        )
        async for stream_id, run_id, key, next_seq, has_eof, attempts in cursor
    }
