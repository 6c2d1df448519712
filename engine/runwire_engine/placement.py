"""Where appended chunks go: fences, seq, attempts, limits. [core]

`Placement` is fed the rows a flush holds locked and the appends of the flush, in order, and says
what to write. Whether an append is allowed is decided here, and only here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from typing import Final, TypeAlias

from runwire._stream_keys import refusal_of
from runwire.errors import FencedError, InvalidValueError
from runwire.wire import MAX_CHUNK_BYTES
from runwire_engine.bells import ChunkRow
from runwire_engine.errors import (
    RunFinalError,
    RunNotFoundError,
    StreamFullError,
)
from runwire_engine.states import FINAL

# As Trigger.dev's streams.
MAX_STREAM_BYTES: Final = 300 * 1024 * 1024
# Between chunks that are one text: JSON text cannot hold control characters.
CHUNK_END: Final = "\x1e"
# The statuses in which an execution may write; a parked one too.
_WRITING: Final = frozenset({"EXECUTING", "WAITING"})

StreamName: TypeAlias = tuple[str, str]  # run id, key
Author: TypeAlias = tuple[int | None, int | None, str | None]  # execution, attempt, writer


# Not frozen, since each append would take longer to make than to place.
@dataclass(slots=True)
class Append:
    """Chunks (JSON text each) for one stream, by one writer; all of them or none.

    The run itself writes with its `execution` and `attempt`. Anybody else gives `writer`: another
    run's id, with *that* run's `execution` as the fence, or the name of a backend, with none.
    `part`: an id under which a repeated append is answered as the first time. Readers are told of
    another `execution` only where a lineage begins.
    """

    run_id: str
    key: str
    bodies: tuple[str, ...] = ()
    execution: int | None = None
    attempt: int | None = None
    writer: str | None = None
    end: bool = False
    part: str | None = None
    # The execution since which the run's own writing is one piece; None: its `execution`.
    lineage: int | None = None
    # Runwire itself writes one of its own streams: a log, or what was sent as input.
    reserved: bool = False
    # Its chunks as one text, and their bytes: worked out once, since all that is asked of chunks on
    # their way is asked of them together.
    text: str = field(init=False, repr=False, compare=False)
    size: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Join the chunks and measure them."""
        self.text = CHUNK_END.join(self.bodies)
        self.size = _bytes_of(self.text) - max(0, len(self.bodies) - 1)


@dataclass(frozen=True, slots=True)
class AppendAnswer:
    """Where the chunks stand: from `from_seq` up to `next_seq`, exclusive."""

    from_seq: int
    next_seq: int


@dataclass(frozen=True, slots=True)
class RunFence:
    """What a flush holds locked of a run."""

    id: str
    status: str
    execution: int
    bucket: date


@dataclass(frozen=True, slots=True)
class AttemptMark:
    """Where the chunks of one execution begin."""

    attempt: int
    execution: int
    from_seq: int


@dataclass(slots=True)
class Stretch:
    """Chunks that one writer brings, from `seq` on, with one append or several in a row."""

    seq: int
    by: Author
    appends: list[Append]
    count: int

    def bodies(self) -> list[str]:
        """Return them one by one."""
        return [body for append in self.appends for body in append.bodies]

    def rows(self) -> Iterator[ChunkRow]:
        """Yield them as they are stored."""
        for seq, body in enumerate(self.bodies(), self.seq):
            yield ChunkRow(seq, *self.by, body)


@dataclass(slots=True)
class StreamState:
    """A stream's row under its lock, and what the flush makes of it."""

    id: int
    run_id: str
    key: str
    bucket: date
    next_seq: int
    bytes: int
    execution: int
    attempts: tuple[AttemptMark, ...]
    ended_execution: int | None
    changed: bool = False
    ended_now: bool = False
    written: list[Stretch] = field(default_factory=list[Stretch])


Outcome: TypeAlias = AppendAnswer | Exception


class Placement:
    """Places the appends of one flush."""

    def __init__(
        self,
        runs: Mapping[str, RunFence],
        streams: Mapping[StreamName, StreamState],
        parts: Mapping[tuple[StreamName, str], AppendAnswer],
        *,
        stream_limit: int = MAX_STREAM_BYTES,
    ) -> None:
        """Take the locked rows, and the answers of the parts that were stored before."""
        self._runs = runs
        self._streams = streams
        self._parts = dict(parts)
        self._limit = stream_limit
        # Parts stored by this flush.
        self.new_parts: dict[tuple[StreamName, str], AppendAnswer] = {}

    def place(self, append: Append) -> Outcome:
        """Return where the append goes, or why it is refused; a refused one leaves no trace."""
        refusal = check(append) or refuse(append, self._runs)
        if refusal is not None:
            return refusal
        stream = self._streams[append.run_id, append.key]
        if append.part is None:
            return self._write(stream, append)
        part = (append.run_id, append.key), append.part
        if part in self._parts:
            return self._parts[part]
        outcome = self._write(stream, append)
        if isinstance(outcome, AppendAnswer):
            self._parts[part] = self.new_parts[part] = outcome
        return outcome

    def _write(self, stream: StreamState, append: Append) -> Outcome:
        own = append.writer is None and append.execution is not None
        if own and _lineage(append) < stream.execution:
            return _fenced(append.run_id)
        if stream.bytes + append.size > self._limit:
            return StreamFullError(append.run_id, append.key, self._limit)
        if own:
            _begin(stream, _lineage(append), append.attempt or 0)
            # Whoever writes on after its end takes the end back: a second pipe into the same key.
            stream.ended_execution = _lineage(append) if append.end else None
            stream.ended_now = stream.ended_now or append.end
        first = stream.next_seq
        if append.bodies:
            _extend(stream, append)
        stream.changed = True
        return AppendAnswer(first, stream.next_seq)


def check(append: Append) -> Exception | None:
    """Return why no run could accept this append, if so."""
    if not _is_key(append.key, append.reserved):
        return refusal_of(append.key, reserved=append.reserved)
    if append.size > MAX_CHUNK_BYTES and any(map(_is_too_large, append.bodies)):
        return InvalidValueError(
            f"a chunk is at most {MAX_CHUNK_BYTES} bytes of JSON", code="too_large"
        )
    return None


def refuse(append: Append, runs: Mapping[str, RunFence]) -> Exception | None:
    """Return why the runs, as they stand, do not accept this append, if so."""
    owner = runs.get(append.run_id)
    if owner is None:
        return RunNotFoundError(append.run_id)
    if append.writer is None and append.execution is not None:
        return None if _holds(owner, append.execution) else _fenced(owner.id)
    if owner.status in FINAL:
        return RunFinalError(owner.id, owner.status)
    if append.writer is not None and append.execution is not None:
        writer = runs.get(append.writer)
        if writer is None or not _holds(writer, append.execution):
            return _fenced(append.writer)
    return None


def fencing(appends: Sequence[Append]) -> list[str]:
    """Return the runs that have to stand still while these are placed, in the order of locks."""
    ids = {append.run_id for append in appends}
    ids |= {a.writer for a in appends if a.writer is not None and a.execution is not None}
    return sorted(ids)


# Asked for each append; as many as one process writes to at a time.
@lru_cache(maxsize=1024)
def _is_key(key: str, is_reserved: bool) -> bool:
    return refusal_of(key, reserved=is_reserved) is None


def _is_too_large(body: str) -> bool:
    return _bytes_of(body) > MAX_CHUNK_BYTES


def _bytes_of(body: str) -> int:
    # What cannot be encoded is refused where it is to be stored.
    return len(body) if body.isascii() else len(body.encode(errors="surrogatepass"))


def _holds(run: RunFence, execution: int) -> bool:
    return run.execution == execution and run.status in _WRITING


def _fenced(run_id: str) -> FencedError:
    return FencedError(f"this execution of {run_id} no longer holds the run", run_id=run_id)


def _lineage(append: Append) -> int:
    return append.lineage or append.execution or 0


def _begin(stream: StreamState, execution: int, attempt: int) -> None:
    """Note where a new execution's chunks begin."""
    if execution == stream.execution:
        return
    stream.execution = execution
    stream.attempts += (AttemptMark(attempt, execution, stream.next_seq),)


def _extend(stream: StreamState, append: Append) -> None:
    """Put an append behind what is written to a stream."""
    by, written, count = _author(append), stream.written, len(append.bodies)
    if written and written[-1].by == by:
        written[-1].appends.append(append)
        written[-1].count += count
    else:
        written.append(Stretch(stream.next_seq, by, [append], count))
    stream.next_seq += count
    stream.bytes += append.size


def _author(append: Append) -> Author:
    if append.writer is None and append.execution is not None:
        return _lineage(append), append.attempt or 0, None
    return None, None, append.writer or "api"
