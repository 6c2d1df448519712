"""Server messages as bytes. [core]

A message is encoded once and shared by every connection that gets it; frames are joined from such
bytes. Messages that carry a run or chunks are put together around text that is JSON already.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import orjson

from runwire.wire import PROTOCOL, ErrorCode, GapReason, Json

PONG: Final = b'{"type":"pong"}'


def ready(epoch: str, heartbeat: float) -> bytes:
    return _message("ready", protocol=PROTOCOL, epoch=epoch, heartbeat=heartbeat)


def snapshot(sub: str, runs: Sequence[bytes], *, cursor: str | None, more: bool) -> bytes:
    tail = _rest(more=more) if cursor is None else _rest(cursor=cursor, more=more)
    head = b'{"type":"snapshot","sub":' + orjson.dumps(sub) + b',"runs":['
    return b"".join((head, b",".join(runs), b"],", tail))


def base(sub: str, document: bytes) -> bytes:
    return b'{"type":"base","sub":' + orjson.dumps(sub) + b',"run":' + document + b"}"


def live(sub: str) -> bytes:
    return _message("live", sub=sub)


def joined(sub: str, run: str) -> bytes:
    return _message("joined", sub=sub, run=run)


def removed(sub: str, run: str) -> bytes:
    return _message("removed", sub=sub, run=run)


def run(document: bytes) -> bytes:
    return b'{"type":"run","run":' + document + b"}"


def chunks(head: bytes, seq: int, tail: bytes, bodies: Iterable[bytes]) -> bytes:
    """`head` and `tail` come from `chunks_around`."""
    return b"".join((head, b"%d" % seq, tail, b",".join(bodies), b"]}"))


def chunks_around(
    run_id: str, key: str, attempt: int | None, writer: str | None
) -> tuple[bytes, bytes]:
    """Return what stands before and after the seq of a message of chunks by one writer."""
    head = b'{"type":"chunks",' + _rest(run=run_id, stream=key)[:-1] + b',"seq":'
    by: dict[str, Json] = {} if writer is None else {"writer": writer}
    if attempt is not None:
        by = {"attempt": attempt}
    named = b"," + orjson.dumps(by)[1:-1] if by else b""
    return head, named + b',"data":['


def text(run_id: str, key: str, up_to: int, value: bytes) -> bytes:
    """`value` is JSON text, without its quotes."""
    head = b'{"type":"text",' + _rest(run=run_id, stream=key, upTo=up_to)[:-1]
    return b"".join((head, b',"value":"', value, b'"}'))


def attempt(run_id: str, key: str, number: int, from_seq: int) -> bytes:
    return _message("attempt", run=run_id, stream=key, attempt=number, fromSeq=from_seq)


def end(run_id: str, key: str, number: int, next_seq: int) -> bytes:
    return orjson.dumps(
        {"type": "end", "run": run_id, "stream": key, "attempt": number, "next": next_seq}
    )


def eof(run_id: str, key: str, next_seq: int, reason: str) -> bytes:
    return orjson.dumps(
        {"type": "eof", "run": run_id, "stream": key, "next": next_seq, "reason": reason}
    )


def done(sub: str) -> bytes:
    return _message("done", sub=sub)


def cursor(sub: str, at: str) -> bytes:
    return _message("cursor", sub=sub, cursor=at)


def gap(sub: str, reason: GapReason) -> bytes:
    return _message("gap", sub=sub, reason=reason)


def stream_gap(sub: str, reason: GapReason, run_id: str, key: str, next_seq: int) -> bytes:
    return orjson.dumps(
        {
            "type": "gap",
            "sub": sub,
            "reason": reason,
            "run": run_id,
            "stream": key,
            "next": next_seq,
        }
    )


def state(word: str, since: str) -> bytes:
    return _message("state", state=word, since=since)


def token_expiring(seconds: float) -> bytes:
    return orjson.dumps({"type": "token_expiring", "in": round(seconds, 3)})


def error(code: ErrorCode, message: str, sub: str | None = None) -> bytes:
    if sub is None:
        return _message("error", code=code, message=message)
    return _message("error", sub=sub, code=code, message=message)


def heartbeat(at: str) -> bytes:
    return _message("hb", t=at)


def _message(type: str, **fields: Json) -> bytes:
    return orjson.dumps({"type": type, **fields})


def _rest(**fields: Json) -> bytes:
    """Return the fields of an object without its opening brace."""
    return orjson.dumps(fields)[1:]
