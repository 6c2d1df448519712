"""What a process remembers of the runs and streams it writes to. [core]

A flush may be placed by what the last one left behind, if the database proves under its locks that
all of it still holds: then it needs one round trip instead of two, and may be begun before the last
one is answered. `StreamMemory.expect` places appends so, or says that it cannot: something is
unknown, or out of the ordinary. Nothing is refused by what is remembered: the locked rows decide
that. What a flush leaves behind is kept once it is begun, and doubted where it was not stored.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from runwire._stream_keys import INPUT_PREFIX
from runwire_engine.placement import (
    CHUNK_END,
    Append,
    AppendAnswer,
    Placement,
    RunFence,
    StreamName,
    StreamState,
    Stretch,
    fencing,
)

# Between the texts of pieces, as between chunks.
PIECE_END: Final = "\x1d"
# Streams remembered; beyond, all is forgotten, and costs a round trip more once.
_MOST: Final = 50_000


@dataclass(slots=True)
class Expected:
    """A flush that is right if the runs and streams are as remembered."""

    runs: Sequence[RunFence]
    # As they were, and as the flush leaves them.
    before: Sequence[StreamState]
    after: Sequence[StreamState]
    answers: Sequence[AppendAnswer]
    # What is written, and all of it as one text.
    pieces: Sequence[tuple[StreamState, Stretch]]
    text: str

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
        """Remember what a flush leaves behind, and forget what it wrote there."""
        if max(len(self._streams), len(self._runs)) > _MOST:
            self._streams.clear()
            self._runs.clear()
        self._runs.update(runs)
        for stream in streams:
            stream.written = []
            self._streams[stream.run_id, stream.key] = stream

    def doubt(self, expected: Expected) -> None:
        """Remember nothing of how the runs and streams of a flush stand: it was not stored."""
        for run in expected.runs:
            self._runs.pop(run.id, None)
        for stream in expected.before:
            self._streams[stream.run_id, stream.key] = None

    def expect(self, appends: Sequence[Append], *, stream_limit: int) -> Expected | None:
        """Place appends by what is remembered; None: the database has to be asked."""
        runs = {run_id: self._runs.get(run_id) for run_id in fencing(appends)}
        fences = {run_id: run for run_id, run in runs.items() if run is not None}
        if len(fences) < len(runs):
            return None
        before: list[StreamState] = []
        after: dict[StreamName, StreamState] = {}
        placement = Placement(fences, after, {}, stream_limit=stream_limit)
        answers: list[AppendAnswer] = []
        for append in appends:
            name = append.run_id, append.key
            if name not in after:
                stream = self._streams.get(name)
                if stream is None or stream.ended_execution is not None:
                    return None
                before.append(stream)
                after[name] = _still(stream)
            outcome = placement.place(append) if _is_plain(append) else None
            if not isinstance(outcome, AppendAnswer):
                return None
            answers.append(outcome)
        return _expected(list(fences.values()), before, list(after.values()), answers)


def _expected(
    runs: Sequence[RunFence],
    before: Sequence[StreamState],
    after: Sequence[StreamState],
    answers: Sequence[AppendAnswer],
) -> Expected | None:
    # A new execution leaves a mark behind, which is written with the whole row.
    if any([a.execution != b.execution for a, b in zip(after, before, strict=True)]):
        return None
    pieces = [(stream, stretch) for stream in after for stretch in stream.written]
    text = PIECE_END.join([_text(stretch) for _, stretch in pieces])
    count = sum([stretch.count for _, stretch in pieces])
    if text.count(PIECE_END) + text.count(CHUNK_END) != max(0, count - 1):
        return None  # a chunk holds what is to stand between chunks
    return Expected(runs, before, after, answers, pieces, text)


def _is_plain(append: Append) -> bool:
    """Say whether an append needs nothing but chunks to be stored."""
    return (
        append.part is None
        and not append.key.startswith(INPUT_PREFIX)
        and PIECE_END not in (append.writer or "")
        and append.writer != ""
        and "" not in append.bodies
    )


def _text(stretch: Stretch) -> str:
    return CHUNK_END.join([append.text for append in stretch.appends])


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
