"""What a process remembers of the runs and streams it writes to. [core]

A flush may be placed by what the last one left behind, if the database proves under its locks that
all of it still holds: then it needs one round trip instead of two, and may be begun before the last
one is answered. `StreamMemory.expect` places appends so, or says that it cannot: something is
unknown, or out of the ordinary. Nothing is refused by what is remembered: the locked rows decide
that. What a flush leaves behind is kept once it is begun, and doubted where it was not stored.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from typing import Final

from runwire._stream_keys import INPUT_PREFIX
from runwire_engine.placement import (
    Append,
    AppendAnswer,
    Placement,
    RunFence,
    StreamName,
    StreamState,
    fencing,
)

# Between the chunks of a piece, and between pieces: JSON text cannot hold control characters.
CHUNK_END: Final = "\x1e"
PIECE_END: Final = "\x1d"
# Streams remembered; beyond, all is forgotten, and costs a round trip more once.
_MOST: Final = 50_000


@dataclass(frozen=True, slots=True)
class Piece:
    """Chunks that one writer wrote to one stream in a row."""

    stream_id: int
    bucket: date
    seq: int
    count: int
    execution: int | None
    attempt: int | None
    writer: str | None
    bodies: str


@dataclass(frozen=True, slots=True)
class Expected:
    """A flush that is right if the runs and streams are as remembered."""

    runs: tuple[RunFence, ...]
    # As they were, and as the flush leaves them, in the order of locks.
    before: tuple[StreamState, ...]
    after: tuple[StreamState, ...]
    answers: tuple[AppendAnswer, ...]
    pieces: tuple[Piece, ...]

    @property
    def is_lone(self) -> bool:
        """Whether it is of one stream, of one run, by one writer."""
        return len(self.runs) == len(self.before) == len(self.pieces) == 1


class StreamMemory:
    """What is remembered of one environment's runs and streams."""

    def __init__(self) -> None:
        self._runs: dict[str, RunFence] = {}
        # None: it exists, but where it stands is not known.
        self._streams: dict[StreamName, StreamState | None] = {}

    def __contains__(self, name: object) -> bool:
        """Say whether a stream is known to exist."""
        return name in self._streams

    def keep(self, runs: Mapping[str, RunFence], streams: Iterable[StreamState]) -> None:
        """Remember what a flush leaves behind."""
        if max(len(self._streams), len(self._runs)) > _MOST:
            self._streams.clear()
            self._runs.clear()
        self._runs.update(runs)
        for stream in streams:
            self._streams[stream.run_id, stream.key] = _still(stream)

    def doubt(self, expected: Expected) -> None:
        """Remember nothing of how the runs and streams of a flush stand: it was not stored."""
        for run in expected.runs:
            self._runs.pop(run.id, None)
        for stream in expected.before:
            self._streams[stream.run_id, stream.key] = None

    def expect(self, appends: Sequence[Append], *, stream_limit: int) -> Expected | None:
        """Place appends by what is remembered; None: the database has to be asked."""
        names = sorted({(append.run_id, append.key) for append in appends})
        before = [self._streams.get(name) for name in names]
        runs = [self._runs.get(run_id) for run_id in fencing(appends)]
        known = [stream for stream in before if stream is not None]
        fences = [run for run in runs if run is not None]
        if len(known) < len(before) or len(fences) < len(runs):
            return None
        if not all(map(_is_plain, appends)) or any(s.ended_execution is not None for s in known):
            return None
        return _placed(appends, fences, known, stream_limit)


def _placed(
    appends: Sequence[Append],
    runs: Sequence[RunFence],
    before: Sequence[StreamState],
    stream_limit: int,
) -> Expected | None:
    after = {(stream.run_id, stream.key): _still(stream) for stream in before}
    placement = Placement({run.id: run for run in runs}, after, {}, stream_limit=stream_limit)
    answers: list[AppendAnswer] = []
    for append in appends:
        outcome = placement.place(append)
        if not isinstance(outcome, AppendAnswer):
            return None
        answers.append(outcome)
    streams = tuple(after.values())
    # A new execution leaves a mark behind, which is written with the whole row.
    if any(a.execution != b.execution for a, b in zip(streams, before, strict=True)):
        return None
    pieces = tuple(piece for stream in streams for piece in _pieces(stream))
    return Expected(tuple(runs), tuple(before), streams, tuple(answers), pieces)


def _is_plain(append: Append) -> bool:
    """Say whether an append needs nothing but chunks to be stored."""
    return (
        append.part is None
        and not append.key.startswith(INPUT_PREFIX)
        and PIECE_END not in (append.writer or "")
        and append.writer != ""
        and _are_separable(append.bodies)
    )


def _are_separable(bodies: Sequence[str]) -> bool:
    joined = CHUNK_END.join(bodies)
    separators = max(0, len(bodies) - 1)
    return "" not in bodies and PIECE_END not in joined and joined.count(CHUNK_END) == separators


def _pieces(stream: StreamState) -> Iterator[Piece]:
    for (execution, attempt, writer), group in groupby(stream.written, lambda each: each.by):
        stretches = list(group)
        bodies = [body for stretch in stretches for body in stretch.bodies]
        seq, joined = stretches[0].seq, CHUNK_END.join(bodies)
        yield Piece(stream.id, stream.bucket, seq, len(bodies), execution, attempt, writer, joined)


def _still(stream: StreamState) -> StreamState:
    """Return a stream as it stands, without what a flush did to it."""
    return StreamState(
        stream.id,
        stream.run_id,
        stream.key,
        stream.bucket,
        stream.next_seq,
        stream.bytes,
        stream.execution,
        stream.attempts,
        stream.ended_execution,
    )
