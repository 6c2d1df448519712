"""The client of the harness finds what the protocol forbids, and nothing in a good session."""

from typing import Any

import pytest

from tests.support.history import (
    ClientLog,
    Fault,
    Ledger,
    LedgerEvent,
    LedgerRun,
    LedgerStream,
    check,
)
from tests.support.protocol_client import ProtocolClient

RUN = "run_00000001"
READY: dict[str, Any] = {"type": "ready", "protocol": "runwire.v1", "epoch": "e", "heartbeat": 15}
LIVE: dict[str, Any] = {"type": "live", "sub": "s"}
DONE: dict[str, Any] = {"type": "done", "sub": "s"}


def document(revision: int, status: str, **more: Any) -> dict[str, Any]:
    return {"id": RUN, "status": status, "revision": revision, "tags": ["x"], **more}


def snapshot(*documents: dict[str, Any]) -> dict[str, Any]:
    return {"type": "snapshot", "sub": "s", "runs": list(documents), "more": False}


def chunks(seq: int, *data: str) -> dict[str, Any]:
    return {"type": "chunks", "run": RUN, "stream": "log", "seq": seq, "data": list(data)}


def patch(before: int, after: int, **changes: Any) -> dict[str, Any]:
    return {"type": "patch", "run": RUN, "from": before, "revision": after, "set": changes}


def eof(next_seq: int) -> dict[str, Any]:
    return {"type": "eof", "run": RUN, "stream": "log", "next": next_seq, "reason": "completed"}


OPENED = snapshot(document(2, "EXECUTING", realtimeStreams=["log"]))
ENDED = patch(2, 3, status="COMPLETED", output=1)
GOOD = [READY, OPENED, LIVE, chunks(0, "a", "b"), eof(2), ENDED, DONE]


def ledger() -> Ledger:
    events = (
        LedgerEvent(1, "created", "QUEUED"),
        LedgerEvent(2, "executing", "EXECUTING"),
        LedgerEvent(3, "final", "COMPLETED"),
    )
    run = LedgerRun(RUN, "COMPLETED", 3, events, tags=("x",), output=1)
    stream = LedgerStream(RUN, "log", 2, True, {0: '"a"', 1: '"b"'}, begins=(0,))
    return Ledger({RUN: run}, {(RUN, "log"): stream})


def faults(messages: list[dict[str, Any]], **subscription: Any) -> set[Fault]:
    """Return what is found in a session of one subscription, to the run unless told."""
    asked = {"to": {"run": RUN}, "streams": {"*": {"from": "start"}}, **subscription}
    client = ProtocolClient("client", {"s": asked}, mode="every")
    client.requests()
    client.receive(messages)
    client.note_streams(ledger().streams)
    return {finding.fault for finding in check(ledger(), [client.finish()])}


def test_a_good_session_has_no_findings() -> None:
    assert faults(GOOD) == set()


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (GOOD[:-1], Fault.NEVER_DONE),
        ([READY, OPENED], Fault.NEVER_LIVE),
        ([READY, OPENED, LIVE, chunks(1, "b"), eof(2), ENDED, DONE], Fault.LOST_CHUNK),
        ([READY, OPENED, LIVE, chunks(0, "a", "z"), eof(2), ENDED, DONE], Fault.FOREIGN_CHUNK),
        ([READY, OPENED, LIVE, eof(2), chunks(0, "a", "b"), ENDED, DONE], Fault.EARLY_END),
        ([READY, OPENED, LIVE, chunks(0, "a", "b"), ENDED, eof(2), DONE], Fault.EARLY_END),
        ([READY, OPENED, LIVE, DONE], Fault.EARLY_END),
        ([READY, OPENED, LIVE, patch(1, 3, status="COMPLETED")], Fault.BAD_PATCH),
        ([READY, LIVE, ENDED], Fault.UNKNOWN_RUN),
        (
            [READY, OPENED, LIVE, {"type": "gap", "sub": "s", "reason": "ahead"}],
            Fault.UNEXPECTED_GAP,
        ),
        ([READY, {"type": "error", "sub": "s", "code": "internal", "message": ""}], Fault.REFUSED),
        ([*GOOD[:5], patch(2, 3, status="COMPLETED"), DONE], Fault.WRONG_DOCUMENT),
        (
            [
                *GOOD[:4],
                {"type": "attempt", "run": RUN, "stream": "log", "attempt": 2, "fromSeq": 2},
            ],
            Fault.FOREIGN_RESTART,
        ),
    ],
)
def test_what_the_protocol_forbids_is_found(
    messages: list[dict[str, Any]], expected: Fault
) -> None:
    assert expected in faults(messages)


def test_members_are_compared_with_what_the_feed_asked_for() -> None:
    assert faults([READY, snapshot(), LIVE], to={"tags": ["x"]}) == {Fault.MISSING_MEMBER}
    held = [READY, snapshot(document(3, "COMPLETED", output=1)), LIVE]
    assert faults(held, to={"tags": ["x"]}, streams={}) == set()
    assert faults(held, to={"tags": ["y"]}, streams={}) == {Fault.FOREIGN_MEMBER}


def test_an_execution_that_is_not_announced_is_found() -> None:
    log = ClientLog("client", restarts={})
    log.saw_chunk(RUN, "log", 0, "a")
    log.saw_chunk(RUN, "log", 1, "b")
    known = ledger()
    stream = LedgerStream(RUN, "log", 2, True, {0: '"a"', 1: '"b"'}, begins=(0, 1))
    found = check(Ledger(known.runs, {(RUN, "log"): stream}), [log])
    assert [finding.fault for finding in found] == [Fault.UNTOLD_RESTART]
    log.restarts = {(RUN, "log"): [1]}
    assert check(Ledger(known.runs, {(RUN, "log"): stream}), [log]) == []


def test_a_resumed_client_says_where_it_is() -> None:
    client = ProtocolClient("c", {"s": {"to": {"run": RUN}, "streams": {"*": {"from": "start"}}}})
    client.requests()
    client.receive(GOOD[:4])
    (request,) = client.requests()
    assert request["cursor"] == "r1.e.2"
    assert request["streams"] == {"*": {"from": "start"}, "log": {"from": 2}}


@pytest.mark.parametrize("is_another_process", [False, True])
@pytest.mark.parametrize("has_cursor", [False, True])
def test_a_feed_lost_before_its_first_cursor_begins_anew_beside_a_run_that_goes_on(
    is_another_process: bool, has_cursor: bool
) -> None:
    asked: dict[str, Any] = {
        "s": {"to": {"tags": ["x"]}},
        "r": {"to": {"run": RUN}, "mode": "latest"},
    }
    client = ProtocolClient("c", asked, mode="every")
    client.requests()
    client.receive([READY, snapshot(document(1, "QUEUED")), LIVE])
    if has_cursor:
        client.receive([{"type": "cursor", "sub": "s", "cursor": "f1.e.1"}])
    if is_another_process:
        client.change_process()
    feed, _ = client.requests()
    assert ("cursor" in feed) is has_cursor
    client.receive([READY, snapshot(document(3, "COMPLETED", output=1)), LIVE])
    found = {finding.fault for finding in check(ledger(), [client.log])}
    assert (Fault.MISSING_REVISION in found) is has_cursor
