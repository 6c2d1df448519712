"""The metadata operations of one attempt on one run: in order, flushed at a measured pace.

The first operation leaves at once; then a flush every 100 ms, or as long as it takes for two
megabytes a second of documents, since each flush writes the whole document anew.
"""

import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future

import anyio

from runwire import _metadata
from runwire.errors import InvalidValueError
from runwire.wire import JsonObject
from runwire_engine.bridge import Bridge, pending_promise

FLUSH_EVERY = 0.1
BYTES_PER_SECOND = 2_000_000
# Joined with their neighbours beyond the first bound. The second is only met when the database
# stays away while the task goes on: `metadata_apply` cannot make anyone wait.
COLLAPSE_AT = 1000
MAX_OPERATIONS = 20_000


class MetadataWriter:
    """One document's operations on their way to the database."""

    def __init__(
        self, bridge: Bridge, send: Callable[[Sequence[JsonObject]], Awaitable[int]]
    ) -> None:
        """Take the engine's loop and what applies there, answering with the document's bytes."""
        self._bridge = bridge
        self._send = send
        self._lock = threading.Lock()
        self._operations: list[JsonObject] = []
        self._flushed: list[Future[None]] = []
        # True while the engine's loop is sending or keeping the pace, or has been told to.
        self._busy = False
        # Set when somebody waits for the flush: the pace is not kept then.
        self._hurry: anyio.Event | None = None
        self._failure: Exception | None = None

    def add(self, operation: JsonObject) -> None:
        """Queue an operation. Raises what an earlier flush failed with."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._operations.append(operation)
            if len(self._operations) % COLLAPSE_AT == 0:
                self._collapse()
            wake = self._claim_busy()
        if wake:
            self._bridge.post(self._start)

    def flush(self) -> "Future[None] | None":
        """Return the promise that all queued so far is committed; None when it already is.

        Raises what an earlier flush failed with.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if not self._busy:
                return None
            flushed: Future[None] = pending_promise()
            self._flushed.append(flushed)
        self._bridge.post(self._hasten)
        return flushed

    def fail(self, error: Exception) -> None:
        """Drop what waits and raise this from now on."""
        with self._lock:
            if self._failure is None:
                self._failure = error
            flushed, self._flushed = self._flushed, []
            self._operations = []
        for promise in flushed:
            promise.set_exception(error)
        self._bridge.post(self._hasten)

    def _collapse(self) -> None:
        self._operations = _metadata.collapse(self._operations)
        if len(self._operations) >= MAX_OPERATIONS:
            raise InvalidValueError(
                "metadata is written faster than the database takes it", code="too_many"
            )

    def _claim_busy(self) -> bool:
        wake, self._busy = not self._busy, True
        return wake

    def _start(self) -> None:
        self._bridge.start(self._run)

    def _hasten(self) -> None:
        if self._hurry is not None:
            self._hurry.set()

    async def _run(self) -> None:
        """Flush and keep the pace until nothing waits."""
        while True:
            self._hurry = anyio.Event()
            operations, flushed = self._take()
            if not operations:
                _keep(flushed)
                if self._rest():
                    return
                continue
            try:
                size = await self._send(_metadata.collapse(operations))
            except Exception as error:
                for promise in flushed:
                    promise.set_exception(error)
                self.fail(error)
                return
            _keep(flushed)
            with anyio.move_on_after(max(FLUSH_EVERY, size / BYTES_PER_SECOND)):
                await self._hurry.wait()

    def _take(self) -> tuple[list[JsonObject], list["Future[None]"]]:
        with self._lock:
            taken = self._operations, self._flushed
            self._operations, self._flushed = [], []
        return taken

    def _rest(self) -> bool:
        """Go idle, unless something has come in the meantime."""
        with self._lock:
            if self._operations or self._flushed:
                return False
            self._busy = False
            return True


def _keep(flushed: Sequence["Future[None]"]) -> None:
    for promise in flushed:
        promise.set_result(None)
