"""A run's streams over HTTP: append from outside the run, and read a page.

What is appended to a parent's or root's stream is named by the run that is at hand: the target is
one of self, parent, root.
"""

from typing import Annotated, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.responses import Response

from runwire._stream_keys import is_reserved
from runwire.values import check_text, encode
from runwire.wire import MAX_CHUNK_BYTES, ErrorCode, GapReason, Json, JsonObject
from runwire_engine.run_row import RunRow
from runwire_engine.states import FINAL
from runwire_engine.streams import Append, ChunkRow, StreamPage, StreamRow
from runwire_realtime.api.answer import answer
from runwire_realtime.api.call import Call
from runwire_realtime.api.ok import Ok
from runwire_realtime.api.operation import Operation
from runwire_realtime.api.run_access import readable_run, run_for_streams
from runwire_realtime.errors import ForbiddenError, NotFoundError, RefusedError
from runwire_realtime.run_view import wire_time

# Shown to readers as the writer of chunks that came over HTTP.
_WRITER: Final = "api"
# The same on every retry of one append, which then happens once.
_PART_HEADER: Final = "x-part-id"
_MOST_CHUNKS: Final = 1000
_PAGE_BYTES: Final = 1024 * 1024
_TARGETS: Final = ("self", "parent", "root")


class Appended(Ok):
    """`next` is the seq that the chunk after the last one will get."""

    next: int


class StreamQuery(BaseModel):
    model_config = ConfigDict(extra="ignore")

    start: Annotated[int, Field(alias="from", ge=0, le=2**53)] = 0
    limit: Annotated[int, Field(ge=1, le=_MOST_CHUNKS)] = _MOST_CHUNKS


class ChunkBody(BaseModel):
    """One chunk; `attempt` of the run's own execution, or the foreign `writer`."""

    seq: int
    data: Json
    attempt: int | None = None
    writer: str | None = None


class StreamGap(BaseModel):
    """Chunks that were asked for are not there: read on from `next`."""

    reason: GapReason
    next: int


class StreamBody(BaseModel):
    """A page of a stream. `eof` is set once nothing will ever follow; `next` is how many chunks
    there are then. Ask again from the last seq + 1 while that is below `next`. `gap` says that the
    chunks from where it was asked are past retention, and where it goes on.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    run_id: str
    key: str
    next: int
    eof: str | None = None
    created_at: str | None = None
    gap: StreamGap | None = None
    chunks: list[ChunkBody]


async def append(call: Call) -> Response:
    """Append chunks: a body of NDJSON is one chunk a line, any other body is one chunk of text."""
    row = await run_for_streams(call)
    target = _target(row, call.id("target"))
    bodies = await _bodies(call)
    placed = await call.services.engine.streams.append(
        call.environment_id,
        Append(
            run_id=target,
            key=call.id("key"),
            bodies=bodies,
            writer=_WRITER,
            part=part_of(call),
        ),
    )
    return answer(Appended(next=placed.next_seq))


async def read(call: Call) -> Response:
    """Return a page of a stream's chunks."""
    row = await readable_run(call)
    key = call.id("key")
    if not call.grant.may_read_stream(key):
        raise ForbiddenError("the token does not allow reading this stream")
    query = call.query(StreamQuery)
    page = await call.services.engine.streams.read(
        call.environment_id, row.id, key, query.start, _PAGE_BYTES, query.limit
    )
    if page.stream is not None:
        return answer(_stream(row.id, key, page, page.stream, query.start))
    if not is_reserved(key):
        raise NotFoundError("the run has no such stream")
    # Every run has a log; it is made when there is something to write.
    ended = {"eof": row.status.lower()} if row.status in FINAL else {}
    return answer({"runId": row.id, "key": key, "next": 0, **ended, "chunks": []})


def _target(row: RunRow, target: str) -> str:
    if target not in _TARGETS:
        raise NotFoundError("the target of an append is self, parent or root")
    # A run without a parent is its own root, as in the task's own calls.
    named: str | None = {"self": row.id, "parent": row.parent_id, "root": row.root_id}[target]
    return named if named is not None else row.id


def part_of(call: Call) -> str | None:
    """Return the name that the repeats of an append share, if it has one."""
    part = call.request.headers.get(_PART_HEADER)
    if part is not None and not (1 <= len(part) <= 128 and part.isprintable()):
        raise _refused(f"{_PART_HEADER} must have 1 to 128 characters")
    return part


async def _bodies(call: Call) -> tuple[str, ...]:
    kind = call.request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/x-ndjson":
        lines = [line async for line in call.lines()]
        if not 1 <= len(lines) <= _MOST_CHUNKS:
            raise _refused(f"append between one and {_MOST_CHUNKS} chunks")
        return tuple(_chunk(line) for line in lines)
    return (_text(await call.read()),)


def _chunk(line: bytes) -> str:
    try:
        text = line.decode().strip()
    except UnicodeDecodeError:
        raise _refused("a chunk is not UTF-8") from None
    return check_text(text, what="chunk", limit=MAX_CHUNK_BYTES)


def _text(body: bytes) -> str:
    try:
        return encode(body.decode(), what="chunk", limit=MAX_CHUNK_BYTES)
    except UnicodeDecodeError:
        raise _refused("the body is not UTF-8 text") from None


def _stream(run_id: str, key: str, page: StreamPage, stream: StreamRow, start: int) -> JsonObject:
    place = page.chunks[0].seq if page.chunks else stream.next_seq
    is_lost = place > start
    body = {
        "runId": run_id,
        "key": key,
        "next": stream.next_seq,
        "eof": stream.eof_reason,
        "createdAt": wire_time(stream.created_at),
        "gap": {"reason": GapReason.RETENTION, "next": place} if is_lost else None,
        "chunks": [_chunk_body(chunk) for chunk in page.chunks],
    }
    return {name: value for name, value in body.items() if value is not None}


def _chunk_body(chunk: ChunkRow) -> JsonObject:
    by = {"attempt": chunk.attempt, "writer": chunk.writer}
    named = {name: value for name, value in by.items() if value is not None}
    # Stored as checked JSON: put in as it is.
    return {"seq": chunk.seq, "data": orjson.Fragment(chunk.body), **named}


def _refused(message: str) -> RefusedError:
    return RefusedError(ErrorCode.MALFORMED, message)


OPERATIONS: Final = (
    Operation(
        "POST",
        "/realtime/v1/streams/{runId}/{target}/{key:path}/append",
        "appendToStream",
        "Append to a stream of a run, its parent or its root",
        append,
        Appended,
        scopes="write:streams:<runId>, write:runs:<runId>",
        body_type="text/plain",
        errors=(404, 408, 413, 415, 422),
    ),
    Operation(
        "GET",
        "/api/v1/runs/{runId}/streams/{key:path}",
        "readStream",
        "Read a page of a run's stream",
        read,
        StreamBody,
        scopes="read:runs:<runId> and the like",
        query=StreamQuery,
        errors=(404,),
    ),
)
