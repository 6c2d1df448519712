"""Chunks written from outside of a run: what gathers during a request is the next one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

# What waits for the next request at most, and so what one request has; whoever writes more waits.
MAX_CHUNKS: Final = 1000
MAX_BYTES: Final = 1024 * 1024


class HttpSink:
    """Sends chunks in order, one request in flight."""

    def __init__(self, post: Callable[[list[str]], Awaitable[object]]) -> None:
        self._post = post
        self._waiting: list[str] = []
        self._bytes = 0
        self._sending: asyncio.Task[None] | None = None
        self._taken = asyncio.Event()
        self._failure: Exception | None = None

    async def write(self, body: str) -> None:
        """Queue one chunk; raises what an earlier request failed with."""
        while self._failure is None and self._waiting and not self._fits(body):
            self._taken.clear()
            await self._taken.wait()
        if self._failure is not None:
            raise self._failure
        self._waiting.append(body)
        self._bytes += len(body)
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send())

    async def flush(self) -> None:
        """Wait until all is stored."""
        while self._sending is not None:
            await asyncio.wait([self._sending])
        if self._failure is not None:
            raise self._failure

    async def end(self) -> None:
        """Wait until all is stored: a stream written from outside ends with its run."""
        await self.flush()

    def _fits(self, body: str) -> bool:
        return len(self._waiting) < MAX_CHUNKS and self._bytes + len(body) <= MAX_BYTES

    async def _send(self) -> None:
        try:
            while self._waiting:
                bodies, self._waiting, self._bytes = self._waiting, [], 0
                self._taken.set()
                await self._post(bodies)
        except Exception as error:
            self._failure = error
        finally:
            self._sending = None
            self._taken.set()
