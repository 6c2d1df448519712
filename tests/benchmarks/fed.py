"""What a writer is fed by the generator: events from a pipe, a line each.

Nothing here but the standard library, since peers have an environment of their own.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import IO

_READ = 1 << 16
# Where the stream stands in an event, from its end: four digits.
_STREAM = slice(-35, -31)


async def events() -> AsyncIterator[list[str]]:
    """Say "ready", and yield the events that arrived together until the standard input ends."""
    reader = await _reader(sys.stdin)
    print("ready", flush=True)
    async for lines in _lines(reader):
        yield lines


async def events_of(pipe: IO[str]) -> AsyncIterator[list[str]]:
    """Yield the events that arrived together until a pipe ends."""
    async for lines in _lines(await _reader(pipe)):
        yield lines


async def _reader(pipe: IO[str]) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=_READ)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    return reader


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[list[str]]:
    rest = ""
    while data := await reader.read(_READ):
        *lines, rest = (rest + data.decode()).split("\n")
        if lines:
            yield lines


def stream_of(event: str) -> str:
    """Return the stream an event belongs to."""
    return event[_STREAM]


def as_json(event: str) -> str:
    """Return an event as JSON: it is letters, digits and marks, nothing that would be escaped."""
    return f'"{event}"'
