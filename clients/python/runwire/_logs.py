"""The log of a run as its readers get it: line by line, what there is or also what comes."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast
from urllib.parse import quote

import orjson

from runwire._client import Client
from runwire._following import DEADLINE, Chunks
from runwire._http import Http
from runwire._items import Request
from runwire._log_line import LEVELS, LogLevel, is_at_least
from runwire._settings import AccessToken, Settings
from runwire._stream_keys import LOG_KEY
from runwire.errors import InvalidValueError
from runwire.wire import Json, JsonObject


@dataclass(frozen=True)
class LogEntry:
    """One line of a run's log."""

    time: datetime
    # debug, info, log, warn or error.
    level: LogLevel
    message: str
    # Place in the log, from 0 without holes.
    seq: int
    # Which attempt wrote it.
    attempt: int | None
    attributes: dict[str, Json] = field(default_factory=dict[str, Json])
    # The name of the logger, for what the standard `logging` was told.
    logger: str | None = None


class Logs:
    """The log of a run: iterate over it."""

    def __init__(
        self,
        connect: Callable[[], Client],
        run_id: str,
        least: LogLevel,
        following: Chunks[Json] | None,
        access_token: AccessToken | None,
    ) -> None:
        """Take what follows the log to its end; None: what there is now is all that is wanted."""
        if least not in LEVELS:
            raise InvalidValueError(f"a level is one of {', '.join(LEVELS)}", code="level")
        self._connect = connect
        self._run_id = run_id
        self._least: LogLevel = least
        self._following = following
        self._access_token = access_token

    def __aiter__(self) -> AsyncIterator[LogEntry]:
        return self.generator()

    async def generator(self) -> AsyncGenerator[LogEntry]:
        """Yield the lines that are wanted, oldest first."""
        source = self._pages() if self._following is None else self._followed(self._following)
        async for entry in source:
            if is_at_least(entry.level, self._least):
                yield entry

    async def _followed(self, following: Chunks[Json]) -> AsyncGenerator[LogEntry]:
        async for chunk in following.chunks():
            yield entry_of(chunk.value, chunk.seq, chunk.attempt)

    async def _pages(self) -> AsyncGenerator[LogEntry]:
        async with self._http() as http:
            async for entry in self._read(http):
                yield entry

    @asynccontextmanager
    async def _http(self) -> AsyncGenerator[Http]:
        client = self._connect()
        if self._access_token is None:
            yield client.http
            return
        http = Http(Settings(client.settings.api_url, self._access_token))
        try:
            yield http
        finally:
            await http.aclose()

    async def _read(self, http: Http) -> AsyncGenerator[LogEntry]:
        path = f"/api/v1/runs/{quote(self._run_id, safe='')}/streams/{quote(LOG_KEY, safe='')}"
        at, head = 0, 1
        while at < head:
            page: JsonObject = orjson.loads((await http.get(path, {"from": str(at)})).content)
            # What is written meanwhile is for those who follow.
            head = page["next"] if at == 0 else head
            for chunk in page["chunks"]:
                if chunk["seq"] < head:
                    yield entry_of(chunk["data"], chunk["seq"], chunk.get("attempt"))
            if not page["chunks"]:
                return
            at = page["chunks"][-1]["seq"] + 1


def logs_followed(
    connect: Callable[[], Client], run_id: str, access_token: AccessToken | None
) -> Chunks[Json]:
    """Return what follows the log of a run to its end."""
    request = Request(
        to={"run": run_id},
        fields=frozenset({"id"}),
        streams={LOG_KEY: "start"},
        deadline=DEADLINE,
        runs_wanted=False,
    )
    return Chunks(connect, request, access_token, LOG_KEY)


def entry_of(line: Json, seq: int, attempt: int | None) -> LogEntry:
    """Read a line as it is stored; one that a newer version wrote is shown as well as it can be."""
    said = cast(JsonObject, line) if isinstance(line, dict) else {"message": line}
    level: Json = said.get("level")
    attributes: Json = said.get("attributes")
    return LogEntry(
        time=_time(said.get("time")),
        level=level if level in LEVELS else "info",
        message=str(said.get("message", "")),
        seq=seq,
        attempt=attempt,
        attributes=cast(JsonObject, attributes) if isinstance(attributes, dict) else {},
        logger=said.get("logger"),
    )


def _time(text: Json) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return datetime.fromtimestamp(0, UTC)
