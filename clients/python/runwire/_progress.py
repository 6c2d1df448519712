"""How far an application has come in a subscription, as text that it may keep. [core]

The server's cursor says what is on the socket; this also says what the application has taken since,
so that a new process goes on with neither a repeat nor a hole. It carries no authority.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from runwire.errors import InvalidValueError

_PREFIX = "rw1."
# Keeps the text short; what changed longer ago is behind the server's cursor.
MAX_REVISIONS = 256


@dataclass(frozen=True)
class Progress:
    cursor: str | None = None
    # The revisions taken last, by run: a feed may resume with some that were sent before.
    revisions: Mapping[str, int] = field(default_factory=dict[str, int])
    # The next seq of each stream, by run and key.
    streams: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])

    def positions(self) -> Iterator[tuple[tuple[str, str], int]]:
        for run, streams in self.streams.items():
            for key, next in streams.items():
                yield (run, key), next

    def text(self) -> str:
        """Return it as text."""
        body = orjson.dumps({"c": self.cursor, "r": self.revisions, "s": self.streams})
        return _PREFIX + base64.urlsafe_b64encode(body).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str | None) -> "Progress":
        """Read it back; a cursor of the server alone is one too. Raises InvalidValueError."""
        if text is None:
            return cls()
        if not text.startswith(_PREFIX):
            return cls(cursor=text)
        try:
            encoded = text.removeprefix(_PREFIX)
            body: Any = orjson.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
            return cls(body["c"], body["r"], body["s"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidValueError(
                "this is not a cursor of a subscription", code="cursor"
            ) from error


class Taken:
    """Builds the progress out of what the application takes, item by item."""

    def __init__(self, progress: Progress) -> None:
        self._cursor = progress.cursor
        self._revisions = dict(progress.revisions)
        self._streams = {run: dict(streams) for run, streams in progress.streams.items()}

    def cursor(self, cursor: str) -> None:
        self._cursor = cursor

    def run(self, run: str, revision: int) -> None:
        # The newest last: the server's cursor covers the others.
        self._revisions.pop(run, None)
        self._revisions[run] = revision
        if len(self._revisions) > MAX_REVISIONS:
            del self._revisions[next(iter(self._revisions))]

    def chunk(self, run: str, stream: str, seq: int) -> None:
        self._streams.setdefault(run, {})[stream] = seq + 1

    def progress(self) -> Progress:
        return Progress(self._cursor, dict(self._revisions), cast(Any, self._streams))
