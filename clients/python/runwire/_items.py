"""What an application asks to follow, and what it is handed. [core]"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from runwire._progress import Progress
from runwire.wire import Json, JsonObject, Mode, StreamStart


@dataclass(frozen=True)
class Request:
    """What an application asked to follow, in the words of the wire."""

    to: JsonObject
    mode: Mode = "latest"
    fields: frozenset[str] | None = None
    streams: Mapping[str, StreamStart] | None = None
    as_text: bool = False
    wait: float | None = None
    deadline: float | None = None
    progress: Progress = field(default_factory=Progress)
    # For `streams.read`: the runs themselves are not handed out.
    runs_wanted: bool = True

    @property
    def needs_own_socket(self) -> bool:
        """Whether sharing a connection would hand it what others on it asked for.

        The server holds one place per stream and connection, so that a start only the server knows
        cannot be kept apart. And a feed that another process began does not know its runs by name.
        """
        return self.adopts_runs or any(
            start == "latest" or (isinstance(start, int) and start < 0)
            for start in (self.streams or {}).values()
        )

    @property
    def adopts_runs(self) -> bool:
        """Whether it is a feed whose runs were named to another process."""
        return "run" not in self.to and self.progress.cursor is not None


@dataclass(frozen=True)
class RunItem:
    document: JsonObject
    gap: str | None

    @property
    def run(self) -> str:
        run: str = self.document["id"]
        return run

    @property
    def revision(self) -> int:
        revision: int = self.document["revision"]
        return revision


@dataclass(frozen=True)
class ChunkItem:
    run: str
    stream: str
    seq: int
    value: Json
    attempt: int | None
    writer: str | None
    # The first chunk of another execution of the run than the one before it.
    is_restart: bool
    gap: str | None
    # The run as it was last sent before the chunk, where it was.
    document: JsonObject | None


@dataclass(frozen=True)
class EofItem:
    run: str
    stream: str
    next: int
    reason: str


@dataclass(frozen=True)
class CursorItem:
    cursor: str


Item: TypeAlias = RunItem | ChunkItem | EofItem | CursorItem
