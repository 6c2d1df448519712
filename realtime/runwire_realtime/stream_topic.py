"""What the hub knows of one followed stream: where it stands, and its recent chunks. [core]

The ring holds the chunks [first, end) without a hole; `head` is how far the stream is known to
reach. Chunks enter only where they continue the ring, whether a bell carried them or they were
read. Readers hold nothing but a position; who is behind the ring reads the log.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import date
from typing import TYPE_CHECKING, Final

from runwire_engine.bells import ChunkRow
from runwire_engine.followed import Chunk, StreamHead
from runwire_engine.placement import AttemptMark
from runwire_realtime import messages
from runwire_realtime.cohort import Cohort
from runwire_realtime.limits import HubLimits
from runwire_realtime.line import Line

if TYPE_CHECKING:
    from runwire_realtime.stream_reader import StreamReader

# Encoded stretches kept: readers that keep up all ask for the same one.
_ENCODED: Final = 8
# What a chunk costs beside its text.
_OVERHEAD: Final = 100


def chunk_of(row: ChunkRow) -> Chunk:
    """Return a chunk that a bell carried."""
    return Chunk(row.seq, row.execution, row.attempt, row.writer, row.body.encode())


class StreamTopic:
    """One stream that somebody follows."""

    def __init__(self, environment_id: int, run_id: str, key: str, limits: HubLimits) -> None:
        self.environment_id = environment_id
        self.run_id = run_id
        self.key = key
        # None until its row was read, or while nobody has written to it.
        self.id: int | None = None
        self.bucket: date | None = None
        self.first = 0
        self.end = 0
        self.head = 0
        self.marks: tuple[AttemptMark, ...] = ()
        self.ended_execution: int | None = None
        # Set once nothing will ever follow: then `head` is how many chunks there are.
        self.eof_reason: str | None = None
        self.readers: set[StreamReader] = set()
        # Those of them that stand for themselves, and the others, by their place.
        self.apart: set[StreamReader] = set()
        self.cohorts: list[Cohort] = []
        self.bytes = 0
        self._limits = limits
        self._ring: deque[Chunk] = deque()
        self._encoded: dict[tuple[int, int], bytes] = {}

    @property
    def name(self) -> tuple[int, str, str]:
        return self.environment_id, self.run_id, self.key

    @property
    def is_known(self) -> bool:
        return self.id is not None

    @property
    def is_behind(self) -> bool:
        """Whether there are chunks that the ring does not hold yet."""
        return self.is_known and self.end < self.head

    def learn(self, head: StreamHead) -> bool:
        """Take what the stream's row says. Return whether it was news beside chunks to come."""
        before = self._beside_chunks
        if not self.is_known:
            self.id, self.bucket = head.id, head.bucket
            # The ring begins at now: who wants what came before reads the log.
            self.first = self.end = head.next_seq
        self.head = max(self.head, head.next_seq)
        if head.next_seq == self.head or len(head.attempts) >= len(self.marks):
            self.marks = head.attempts
            self.ended_execution = head.ended_execution
        self.eof_reason = self.eof_reason or head.eof_reason
        return before != self._beside_chunks

    @property
    def _beside_chunks(self) -> tuple[int | None, int, int | None, str | None]:
        return self.id, len(self.marks), self.ended_execution, self.eof_reason

    def close_unwritten(self, reason: str) -> None:
        """Note that the run is final and nobody ever wrote to this stream."""
        self.eof_reason = self.eof_reason or reason

    def heard(self, next_seq: int) -> None:
        """Note how far the stream reaches, by hearsay."""
        self.head = max(self.head, next_seq)

    def extend(self, chunks: Iterable[Chunk]) -> bool:
        """Append the chunks that continue the ring. Return whether any did."""
        if not self.is_known:
            return False
        # What every chunk goes through: in plain loops over locals.
        ring, end, size = self._ring, self.end, self.bytes
        newest = self.marks[-1].execution if self.marks else -1
        for chunk in chunks:
            seq, execution, attempt, _, body = chunk
            if seq != end:
                continue
            if execution is not None and execution > newest:
                newest = execution
                self.marks = (*self.marks, AttemptMark(attempt or 0, execution, seq))
                self.ended_execution = None
            ring.append(chunk)
            size += len(body) + _OVERHEAD
            end += 1
        if end == self.end:
            return False
        self.end, self.head = end, max(self.head, end)
        self._encoded.clear()
        while size > self._limits.ring_bytes and len(ring) > 1:
            size -= len(ring.popleft().body) + _OVERHEAD
        self.bytes, self.first = size, end - len(ring)
        return True

    def empty(self) -> None:
        """Give the ring's memory back; its readers go to the log."""
        self._ring.clear()
        self._encoded.clear()
        self.bytes = 0
        self.first = self.end

    def skip_to(self, seq: int) -> None:
        """Go on from a later place: the log does not hold what lies between."""
        self.empty()
        self.first = self.end = seq

    def has(self, seq: int) -> bool:
        return self.first <= seq < self.end

    def chunks_from(self, seq: int, budget: int) -> list[Chunk]:
        """Return chunks of the ring from a position: at least one, then as many as fit."""
        taken: list[Chunk] = []
        for at in range(seq - self.first, len(self._ring)):
            chunk = self._ring[at]
            budget -= len(chunk.body)
            if taken and budget < 0:
                break
            taken.append(chunk)
        return taken

    def stretch(self, seq: int, room: int, budget: int) -> tuple[list[bytes], int]:
        """Return messages of the ring from a position, as many as fit, and the seq after them."""
        taken: list[bytes] = []
        while seq < self.end:
            by_one = of_one_writer(self.chunks_from(seq, budget))
            message = self.message(by_one)
            room -= len(message) + 1
            if taken and room < 0:
                break
            taken.append(message)
            seq = by_one[-1].seq + 1
        return taken, seq

    def message(self, chunks: Sequence[Chunk]) -> bytes:
        """Return chunks of one writer as a message; encoded once for all who ask for the same."""
        key = (chunks[0].seq, chunks[-1].seq)
        encoded = self._encoded.get(key)
        if encoded is None:
            encoded = self._encode(chunks)
            if len(self._encoded) >= _ENCODED:
                self._encoded.clear()
            self._encoded[key] = encoded
        return encoded

    def _encode(self, chunks: Sequence[Chunk]) -> bytes:
        _, _, attempt, writer, _ = chunks[0]
        head, tail = messages.chunks_around(self.run_id, self.key, attempt, writer)
        return messages.chunks(head, chunks[0].seq, tail, (chunk.body for chunk in chunks))

    def fall_in(self, reader: "StreamReader", line: Line) -> Cohort:
        """Return the cohort of a reader that has got everything there is."""
        cohort = next((each for each in self.cohorts if each.has_room), None)
        if cohort is None:
            cohort = Cohort(self)
            self.cohorts.append(cohort)
        cohort.members[reader] = line
        self.apart.discard(reader)
        return cohort

    def fall_out(self, reader: "StreamReader", cohort: Cohort) -> None:
        """Let a reader stand for itself."""
        del cohort.members[reader]
        if not cohort.members:
            self.cohorts.remove(cohort)
        self.apart.add(reader)


def of_one_writer(chunks: Sequence[Chunk]) -> Sequence[Chunk]:
    """Return the first chunks, up to where somebody else wrote."""
    _, _, attempt, writer, _ = chunks[0]
    for at, chunk in enumerate(chunks):
        if chunk.attempt != attempt or chunk.writer != writer:
            return chunks[:at]
    return chunks
