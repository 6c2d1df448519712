"""Where appended chunks go: fences, seq, attempts, limits. [core]

`Placement` is fed the rows a flush holds locked and the appends of the flush, in order, and says
what to write. Whether an append is allowed is decided here, and only here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
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
# The statuses in which an execution may write; a parked one too.
_WRITING: Final = frozenset({"EXECUTING", "WAITING"})

StreamName: TypeAlias = tuple[str, str]  # run id, key


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Stretch:
    """Chunks that one append brings, from `seq` on."""

    seq: int
    execution: int | None
    attempt: int | None
    writer: str | None
    bodies: tuple[str, ...]

    @property
    def by(self) -> tuple[int | None, int | None, str | None]:
        return self.execution, self.attempt, self.writer

    def rows(self) -> Iterator[ChunkRow]:
        """Yield them one by one."""
        for seq, body in enumerate(self.bodies, self.seq):
            yield ChunkRow(seq, self.execution, self.attempt, self.writer, body)


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
        part = (append.run_id, append.key), append.part or ""
        if append.part is not None and part in self._parts:
            return self._parts[part]
        outcome = self._write(self._streams[append.run_id, append.key], append)
        if append.part is not None and isinstance(outcome, AppendAnswer):
            self._parts[part] = self.new_parts[part] = outcome
        return outcome

    def _write(self, stream: StreamState, append: Append) -> Outcome:
        size = _bytes_of("".join(append.bodies))
        refusal = self._refuse(stream, append, size)
        if refusal is not None:
            return refusal
        own = append.writer is None and append.execution is not None
        if own and append.execution is not None:
            _begin(stream, _lineage(append), append.attempt or 0)
            # Whoever writes on after its end takes the end back: a second pipe into the same key.
            stream.ended_execution = None
        first = stream.next_seq
        if append.bodies:
            stream.written.append(_stretch(first, append))
            stream.next_seq += len(append.bodies)
            stream.bytes += size
        if own and append.end:
            stream.ended_execution = _lineage(append)
            stream.ended_now = True
        stream.changed = True
        return AppendAnswer(first, stream.next_seq)

    def _refuse(self, stream: StreamState, append: Append, size: int) -> Exception | None:
        own = append.writer is None
        if own and append.execution is not None and _lineage(append) < stream.execution:
            return _fenced(append.run_id)
        if stream.bytes + size > self._limit:
            return StreamFullError(append.run_id, append.key, self._limit)
        return None


def check(append: Append) -> Exception | None:
    """Return why no run could accept this append, if so."""
    refusal = refusal_of(append.key, reserved=append.reserved)
    if refusal is not None:
        return refusal
    if _are_large(append.bodies) and any(map(_is_too_large, append.bodies)):
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


def _are_large(bodies: Sequence[str]) -> bool:
    # A character is at most four bytes: few bodies are worth encoding, and together they are
    # measured at once.
    return len("".join(bodies)) * 4 > MAX_CHUNK_BYTES


def _is_too_large(body: str) -> bool:
    return _bytes_of(body) > MAX_CHUNK_BYTES


def _bytes_of(body: str) -> int:
    return len(body) if body.isascii() else len(body.encode())


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


def _stretch(seq: int, append: Append) -> Stretch:
    if append.writer is None and append.execution is not None:
        return Stretch(seq, _lineage(append), append.attempt or 0, None, append.bodies)
    return Stretch(seq, None, None, append.writer or "api", append.bodies)
