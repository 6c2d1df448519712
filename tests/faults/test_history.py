"""The checker finds every planted fault and nothing in a clean history."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

import psycopg
import pytest

from runwire_engine.states import RunStatus
from tests.support.factories import change_status, make_event, make_run, make_stream
from tests.support.history import (
    Break,
    ClientLog,
    Fault,
    Ledger,
    LedgerEvent,
    LedgerRun,
    LedgerStream,
    check,
    read_ledger,
)

RUN = "run_1"
TOKENS = (RUN, "tokens")


def ledger() -> Ledger:
    """A run that went QUEUED, EXECUTING, metadata, COMPLETED, metadata, with three chunks."""
    events = (
        LedgerEvent(1, "created"),
        LedgerEvent(2, "executing", "EXECUTING"),
        LedgerEvent(3, "metadata"),
        LedgerEvent(4, "final", "COMPLETED"),
        LedgerEvent(5, "metadata"),
    )
    stream = LedgerStream(RUN, "tokens", 3, True, {0: '"a"', 1: '{"b": 1}', 2: '"c"'})
    return Ledger({RUN: LedgerRun(RUN, "COMPLETED", 5, events)}, {TOKENS: stream})


def clean_log(**options: Any) -> ClientLog:
    log = ClientLog("client", **options)
    log.follows(RUN, "tokens")
    for revision, status in [
        (1, "QUEUED"),
        (2, "EXECUTING"),
        (3, "EXECUTING"),
        (4, "COMPLETED"),
        (5, "COMPLETED"),
    ]:
        log.saw_run(RUN, revision, status)
    for seq, value in enumerate(["a", {"b": 1}, "c"]):
        log.saw_chunk(RUN, "tokens", seq, value)
    return log


def faults(log: ClientLog) -> list[tuple[Fault, int | None]]:
    return [(finding.fault, finding.number) for finding in check(ledger(), [log])]


@pytest.mark.parametrize("mode", ["latest", "every"])
def test_a_clean_history_has_no_findings(mode: str) -> None:
    assert faults(clean_log(mode=mode)) == []


def test_a_client_that_was_done_need_not_see_later_metadata() -> None:
    log = clean_log()
    log.runs[RUN].pop()
    assert faults(log) == []


def test_a_conflating_client_may_skip_revisions() -> None:
    log = clean_log()
    del log.runs[RUN][1:4]
    assert faults(log) == []


def test_a_client_may_begin_later() -> None:
    log = clean_log(mode="every")
    del log.runs[RUN][:2]
    log.starts[TOKENS] = 2
    del log.chunks[TOKENS][:2]
    assert faults(log) == []


def swap(items: list[Any], first: int, second: int) -> None:
    items[first], items[second] = items[second], items[first]


PLANTED: list[tuple[str, Callable[[ClientLog], object], list[tuple[Fault, int | None]]]] = [
    ("lost", lambda log: log.chunks[TOKENS].pop(1), [(Fault.LOST_CHUNK, 1)]),
    ("lost at the end", lambda log: log.chunks[TOKENS].pop(), [(Fault.LOST_CHUNK, 2)]),
    (
        "nothing at all",
        lambda log: log.chunks[TOKENS].clear(),
        [(Fault.LOST_CHUNK, 0), (Fault.LOST_CHUNK, 1), (Fault.LOST_CHUNK, 2)],
    ),
    (
        "doubled",
        lambda log: log.saw_chunk(RUN, "tokens", 1, {"b": 1}),
        [(Fault.DOUBLED_CHUNK, 1)],
    ),
    ("reordered", lambda log: swap(log.chunks[TOKENS], 0, 1), [(Fault.REORDERED_CHUNK, 0)]),
    (
        "another body",
        lambda log: log.chunks[TOKENS].__setitem__(1, (1, {"b": 2})),
        [(Fault.FOREIGN_CHUNK, 1)],
    ),
    (
        "a chunk beyond the end",
        lambda log: log.saw_chunk(RUN, "tokens", 3, "d"),
        [(Fault.FOREIGN_CHUNK, 3)],
    ),
    (
        "a stream nobody wrote",
        lambda log: log.saw_chunk(RUN, "other", 0, "x"),
        [(Fault.FOREIGN_CHUNK, 0)],
    ),
    (
        "a revision twice",
        lambda log: log.saw_run(RUN, 5, "COMPLETED"),
        [(Fault.REVISION_BACK, 5)],
    ),
    ("revisions swapped", lambda log: swap(log.runs[RUN], 1, 2), [(Fault.REVISION_BACK, 2)]),
    ("a revision left out", lambda log: log.runs[RUN].pop(2), [(Fault.MISSING_REVISION, 3)]),
    (
        "a revision of nobody",
        lambda log: log.saw_run(RUN, 6, "COMPLETED"),
        [(Fault.FOREIGN_REVISION, 6)],
    ),
    (
        "a run of nobody",
        lambda log: log.saw_run("run_x", 1, "QUEUED"),
        [(Fault.FOREIGN_REVISION, 1)],
    ),
    (
        "another status",
        lambda log: log.runs[RUN].__setitem__(2, (3, "QUEUED")),
        [(Fault.WRONG_STATE, 3)],
    ),
    (
        "stopped early",
        lambda log: log.runs[RUN].__delitem__(slice(3, 5)),
        [(Fault.NOT_CONVERGED, 5)],
    ),
    ("saw nothing", lambda log: log.runs[RUN].clear(), [(Fault.NOT_CONVERGED, 5)]),
    (
        "two ends",
        lambda log: log.runs[RUN].__setitem__(4, (5, "FAILED")),
        [(Fault.TWO_TERMINALS, 5), (Fault.WRONG_STATE, 5)],
    ),
    (
        "life after the end",
        lambda log: log.runs[RUN].__setitem__(4, (5, "EXECUTING")),
        [(Fault.AFTER_TERMINAL, 5), (Fault.WRONG_STATE, 5)],
    ),
    (
        "a gap",
        lambda log: log.runs[RUN].insert(2, Break.GAP),
        [(Fault.UNEXPECTED_GAP, None)],
    ),
]


@pytest.mark.parametrize(
    ("plant", "expected"), [pytest.param(*p[1:], id=p[0].replace(" ", "-")) for p in PLANTED]
)
def test_a_fault_planted_in_a_log_is_found(
    plant: Callable[[ClientLog], object], expected: list[tuple[Fault, int | None]]
) -> None:
    log = clean_log(mode="every")
    plant(log)
    assert faults(log) == expected


def test_after_an_allowed_gap_a_history_begins_anew() -> None:
    log = clean_log(allows_gaps=True)
    log.saw_gap(RUN)
    log.saw_run(RUN, 4, "COMPLETED")
    assert faults(log) == []


# -- the database's own ledger ------------------------------------------------------------------

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


@pytest.fixture
async def connection(database_url: str, anyio_backend: str) -> AsyncGenerator[Connection]:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as opened:
        yield opened


@pytest.fixture
async def run_id(connection: Connection, env: int) -> str:
    """A run that executed, wrote two chunks and completed."""
    made = await make_run(connection, env)
    await make_event(connection, env, made, 1)
    await change_status(connection, env, made, RunStatus.EXECUTING)
    await make_stream(connection, env, made, "log", ['"a"', '"b"'], eof_reason="completed")
    await change_status(connection, env, made, RunStatus.COMPLETED)
    return made


@pytest.mark.anyio
async def test_a_clean_database_has_no_findings(database_url: str, env: int, run_id: str) -> None:
    log = ClientLog("client", mode="every")
    for revision, status in enumerate(["QUEUED", "EXECUTING", "COMPLETED"], 1):
        log.saw_run(run_id, revision, status)
    log.saw_chunk(run_id, "log", 0, "a")
    log.saw_chunk(run_id, "log", 1, "b")

    assert check(await read_ledger(database_url, env), [log]) == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("delete from runwire.run_events where revision = 2", (Fault.REVISION_HOLE, 2)),
        ("delete from runwire.stream_chunks where seq = 0", (Fault.SEQ_HOLE, 0)),
        ("update runwire.streams set next_seq = 3", (Fault.SEQ_HOLE, 2)),
        ("update runwire.streams set eof_reason = null", (Fault.MISSING_EOF, None)),
    ],
)
async def test_a_fault_planted_in_the_database_is_found(
    connection: Connection,
    database_url: str,
    env: int,
    run_id: str,
    change: str,
    expected: tuple[Fault, int | None],
) -> None:
    await connection.execute(change.encode())
    findings = check(await read_ledger(database_url, env))
    assert [(finding.fault, finding.number) for finding in findings] == [expected]


@pytest.mark.anyio
async def test_a_second_end_and_life_after_the_end_are_found_in_the_database(
    connection: Connection, database_url: str, env: int, run_id: str
) -> None:
    await connection.execute("update runwire.runs set revision = 5")
    await make_event(connection, env, run_id, 4, "final", {"status": "FAILED"})
    await make_event(connection, env, run_id, 5, "metadata")

    findings = check(await read_ledger(database_url, env))
    assert [(finding.fault, finding.number) for finding in findings] == [
        (Fault.TWO_TERMINALS, 4),
        (Fault.AFTER_TERMINAL, 4),
    ]
