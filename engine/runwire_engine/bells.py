"""What a doorbell says, how it is written, and how several become one. [core]

A bell only wakes: it names what may have moved, and everything it names is read from the tables.
The rows of a small flush may ride along as a hint (`StreamMoved.chunks`); they are used only where
the first of them is exactly the next chunk the reader wants. When more moved than fits, the bell
says `scan`: look everywhere.

A payload is JSON {"v": 1, "e": environment id, ...} of less than 8 000 bytes:
  runwire_work     "q": [queue, ...]; "i": the run that is all there is, where it is ready
  runwire_feed     "r": 1 when runs moved; "s": [[run, key, next, ended, [[seq, execution,
                   attempt, writer, body, ...], ...]], ...]: bodies of one writer, from seq on
  runwire_control  "c": [[kind, target], ...]
each with "scan": 1 instead of what did not fit.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Final, NamedTuple, TypeAlias

import orjson

from runwire.wire import Json

VERSION: Final = 1
WORK: Final = "runwire_work"
FEED: Final = "runwire_feed"
CONTROL: Final = "runwire_control"
CHANNELS: Final = (WORK, FEED, CONTROL)

# Postgres refuses 8 000 bytes.
MAX_PAYLOAD: Final = 7_900
# What waits on either side is bounded; beyond, it becomes `scan` (which always tells enough).
MAX_NAMES: Final = 1_000
MAX_HINT_BYTES: Final = 256 * 1024

Payload: TypeAlias = tuple[str, str]  # channel, JSON


class ChunkRow(NamedTuple):
    """One stored chunk; `execution` and `attempt` for the run's own, `writer` for a foreign one."""

    seq: int
    execution: int | None
    attempt: int | None
    writer: str | None
    body: str


@dataclass(frozen=True, slots=True)
class StreamMoved:
    """A stream has chunks up to `next_seq` (exclusive); `chunks`, if any, are the last of them.

    `ended`: a writer said end, so that the stream's row is worth reading whatever the hint holds.
    """

    run_id: str
    key: str
    next_seq: int
    chunks: tuple[ChunkRow, ...] = ()
    ended: bool = False
    environment_id: int = 0


@dataclass(frozen=True, slots=True)
class Control:
    """Something to do now: kind "cancel" (target: run id), "revoke" (a token's jti), ..."""

    kind: str
    target: str
    environment_id: int = 0


@dataclass(frozen=True, slots=True)
class Bell:
    """Everything that rang since the last one. `scan`: look everywhere, whatever else it says."""

    work: frozenset[str] = frozenset()
    # All the work there is, where one bell rang for one run that was ready.
    lone_run: str | None = None
    runs_moved: bool = False
    streams: tuple[StreamMoved, ...] = ()
    control: tuple[Control, ...] = ()
    scan: bool = False


@dataclass
class Ringing:
    """Collects bells of one environment, or of all on the listening side, until they are taken."""

    work: set[str] = field(default_factory=set[str])
    lone_run: str | None = None
    runs_moved: bool = False
    streams: dict[tuple[str, str], StreamMoved] = field(
        default_factory=dict[tuple[str, str], StreamMoved]
    )
    control: dict[Control, None] = field(default_factory=dict[Control, None])
    scan: bool = False
    # Of the hints held, so that a burst cannot grow them without end.
    hint_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.scan or self.runs_moved or self.work or self.streams or self.control)

    def add_work(self, queues: Iterable[str], lone_run: str | None = None) -> None:
        """Note work; of two that are lone, neither is."""
        self.lone_run = None if self.work else lone_run
        self.work.update(queues)
        if len(self.work) > MAX_NAMES:
            self.work.clear()
            self.scan = True

    def add_stream(self, moved: StreamMoved) -> None:
        """Note a stream; hints that continue each other are joined, older news is dropped."""
        name = (moved.run_id, moved.key)
        held = self.streams.get(name)
        if held is None and len(self.streams) >= MAX_NAMES:
            self.scan = True
            return
        size = sum(len(chunk.body) for chunk in moved.chunks)
        if self.hint_bytes + size > MAX_HINT_BYTES:
            moved = replace(moved, chunks=())
        else:
            self.hint_bytes += size
        self.streams[name] = moved if held is None else _joined(held, moved)

    def add_control(self, control: Control) -> None:
        if len(self.control) >= MAX_NAMES:
            self.scan = True
        else:
            self.control[control] = None

    def take(self) -> Bell:
        """Return what rang, and start over."""
        bell = Bell(
            frozenset(self.work),
            self.lone_run,
            self.runs_moved,
            tuple(self.streams.values()),
            tuple(self.control),
            self.scan,
        )
        self.work, self.streams, self.control = set(), {}, {}
        self.lone_run, self.runs_moved, self.scan = None, False, False
        self.hint_bytes = 0
        return bell


def _joined(held: StreamMoved, moved: StreamMoved) -> StreamMoved:
    ended = held.ended or moved.ended
    if moved.next_seq <= held.next_seq:
        return replace(held, ended=ended)
    continues = moved.chunks and held.chunks and moved.chunks[0].seq == held.next_seq
    chunks = held.chunks + moved.chunks if continues else moved.chunks
    return replace(moved, chunks=chunks, ended=ended)


def encode(environment_id: int, bell: Bell) -> Iterator[Payload]:
    """Yield the notifications that say it: at most one for each channel."""
    head = {"v": VERSION, "e": environment_id}
    if bell.work:
        lone: dict[str, Json] = {} if bell.lone_run is None else {"i": bell.lone_run}
        yield WORK, _fitting({**head, "q": sorted(bell.work), **lone}, head)
    if bell.control:
        pairs = [[control.kind, control.target] for control in bell.control]
        yield CONTROL, _fitting({**head, "c": pairs}, head)
    if bell.runs_moved or bell.streams or bell.scan:
        yield FEED, _feed(head, bell)
    if bell.scan:
        yield WORK, _text({**head, "scan": 1})
        yield CONTROL, _text({**head, "scan": 1})


def _feed(head: dict[str, Json], bell: Bell) -> str:
    body = {**head, "r": 1} if bell.runs_moved else head
    if bell.scan:
        return _text({**body, "scan": 1})
    if not bell.streams:
        return _text(body)
    # Most hints fit all together, and where there are none that costs nothing.
    if sum([len(chunk.body) for moved in bell.streams for chunk in moved.chunks]) < MAX_PAYLOAD:
        text = _text({**body, "s": [[*_entry(moved), *_hint(moved)] for moved in bell.streams]})
        if _size(text) <= MAX_PAYLOAD:
            return text
    return _fitted(body, bell.streams)


def _fitted(body: dict[str, Json], streams: Sequence[StreamMoved]) -> str:
    """Return a bell with the hints that there is room for."""
    room = MAX_PAYLOAD - _size(_text({**body, "s": [_entry(moved) for moved in streams]}))
    if room < 0:
        return _text({**body, "scan": 1})
    entries: list[list[Json]] = []
    for moved in streams:
        # The sum first: most hints that do not fit are far too large to be worth writing.
        hint = _hint(moved) if sum([len(chunk.body) for chunk in moved.chunks]) < room else []
        # With a comma instead of the brackets.
        size = _size(_text(hint)) - 1 if hint else 0
        if size > room:
            hint, size = [], 0
        room -= size
        entries.append([*_entry(moved), *hint])
    return _text({**body, "s": entries})


def _entry(moved: StreamMoved) -> list[Json]:
    return [moved.run_id, moved.key, moved.next_seq, int(moved.ended)]


def _hint(moved: StreamMoved) -> list[Json]:
    """Return what an entry has beyond the stream: its chunks, by who wrote them, if any."""
    hint: list[list[Json]] = []
    for writer, group in groupby(moved.chunks, lambda chunk: chunk[1:4]):
        rows = list(group)
        hint.append([rows[0].seq, *writer, *[row.body for row in rows]])
    return [hint] if hint else []


def _rows(hint: list[list[Json]]) -> Iterator[ChunkRow]:
    for seq, execution, attempt, writer, *bodies in hint:
        for at, body in enumerate(bodies):
            yield ChunkRow(seq + at, execution, attempt, writer, body)


def _fitting(body: dict[str, Json], head: dict[str, Json]) -> str:
    text = _text(body)
    return text if _size(text) <= MAX_PAYLOAD else _text({**head, "scan": 1})


def _text(value: Json) -> str:
    return orjson.dumps(value).decode()


def _size(text: str) -> int:
    return len(text.encode())


def decode(channel: str, payload: str, into: Ringing, *, only: int | None = None) -> None:
    """Add a notification to what rang; `only` names the one environment that matters.

    What cannot be read (a newer version's, a stranger's) counts as `scan`.
    """
    try:
        body: Json = orjson.loads(payload)
        if body["v"] != VERSION:
            raise ValueError(body["v"])
        environment: int = body["e"]
        if only is None or environment == only:
            _add(channel, body, environment, into)
    except (orjson.JSONDecodeError, ValueError, KeyError, TypeError, IndexError):
        into.scan = True


def _add(channel: str, body: Json, environment: int, into: Ringing) -> None:
    if body.get("scan"):
        into.scan = True
    match channel:
        case "runwire_work":
            into.add_work(body.get("q", ()), body.get("i"))
        case "runwire_control":
            for kind, target in body.get("c", ()):
                into.add_control(Control(kind, target, environment))
        case _:
            into.runs_moved = into.runs_moved or bool(body.get("r"))
            for entry in body.get("s", ()):
                run_id, key, next_seq, ended, *rest = entry
                hint = tuple(_rows(rest[0])) if rest else ()
                into.add_stream(StreamMoved(run_id, key, next_seq, hint, bool(ended), environment))
