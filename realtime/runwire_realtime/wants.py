"""What the hub needs to have read, gathered until the shell takes it. [core]

Connections never read by themselves: they say here what they lack, once, and the answers come back
through the hub. So a thousand readers of one run cost one read.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from runwire_realtime.run_reader import RunReader
    from runwire_realtime.run_topic import RunTopic
    from runwire_realtime.stream_reader import StreamReader
    from runwire_realtime.stream_topic import StreamTopic

# Environment, run and stream key; None: every stream of the run.
StreamName: TypeAlias = tuple[int, str, str | None]


class Wants:
    """Rows, stream heads and pages of the logs that somebody waits for."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, str], RunTopic] = {}
        self.heads: dict[StreamName, None] = {}
        # Streams whose ring is behind.
        self.fills: dict[tuple[int, str, str], StreamTopic] = {}
        self.pages: dict[StreamReader, None] = {}
        # Readers that begin with all the text so far.
        self.texts: dict[StreamReader, None] = {}
        self.steps: dict[RunReader, None] = {}
        # Set by the shell: called whenever something was added.
        self.wake: Callable[[], None] = _nobody

    def row(self, topic: "RunTopic") -> None:
        self.rows[topic.key] = topic
        self.wake()

    def head(self, environment_id: int, run_id: str, key: str | None) -> None:
        self.heads[environment_id, run_id, key] = None
        self.wake()

    def fill(self, topic: "StreamTopic") -> None:
        self.fills[topic.name] = topic
        self.wake()

    def page(self, reader: "StreamReader") -> None:
        self.pages[reader] = None
        self.wake()

    def text(self, reader: "StreamReader") -> None:
        self.texts[reader] = None
        self.wake()

    def history(self, reader: "RunReader") -> None:
        self.steps[reader] = None
        self.wake()


def _nobody() -> None:
    """Stand in until a shell listens."""
