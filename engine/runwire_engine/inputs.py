"""What was sent into a run, as its attempt reads it.

Input is a stream of the run like any other, written from outside, under a reserved key. Each
attempt reads it from the beginning, in order; a bell says that more has come, and looking says so
too. Lives on the engine's loop; costs nothing in a run that reads no input.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio

from runwire._stream_keys import input_key
from runwire_engine.bells import Bell
from runwire_engine.errors import DatabaseUnavailableError
from runwire_engine.streams import Streams

logger = logging.getLogger("runwire.worker")

# What an attempt holds of what it has not taken yet.
_PAGE_CHUNKS: Final = 100
_PAGE_BYTES: Final = 1024 * 1024


class InputBells:
    """Who of one worker waits for input, by run and stream."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], set[asyncio.Event]] = {}

    def rang(self, bell: Bell) -> None:
        """Wake whoever waits for what moved."""
        if not self._waiting:
            return
        if bell.scan:
            for events in self._waiting.values():
                _set_all(events)
            return
        for moved in bell.streams:
            _set_all(self._waiting.get((moved.run_id, moved.key), ()))

    @contextmanager
    def heard(self, run_id: str, key: str) -> Generator[asyncio.Event]:
        """Hear of one stream for the length of a block; the event is set when it moved."""
        event = asyncio.Event()
        events = self._waiting.setdefault((run_id, key), set())
        events.add(event)
        try:
            yield event
        finally:
            events.discard(event)
            if not events:
                self._waiting.pop((run_id, key), None)


@dataclass
class _Place:
    """How far an attempt has read one key."""

    next_seq: int = 0
    # Read, and not taken yet: seq and JSON text.
    held: deque[tuple[int, str]] = field(default_factory=deque[tuple[int, str]])
    # Who comes first takes first.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Offer:
    """The next value of a key, until somebody says whether it was taken."""

    def __init__(self, place: _Place) -> None:
        self._place = place
        self.body = place.held[0][1]

    def settle(self, *, taken: bool) -> None:
        if taken:
            self._place.held.popleft()
        self._place.lock.release()


class Inputs:
    """The input of one attempt."""

    def __init__(
        self, run_id: str, environment_id: int, streams: Streams, bells: InputBells, poll: float
    ) -> None:
        self._run_id = run_id
        self._environment_id = environment_id
        self._streams = streams
        self._bells = bells
        self._poll = poll
        self._places: dict[str, _Place] = {}

    async def offer(
        self, key: str, timeout: float | None, stopped: asyncio.Event
    ) -> "Offer | None":
        """Return what was sent next, waiting for it; None when nothing came in time.

        `stopped`: whoever asked does not wait any more. The offer has to be settled: until then
        nobody else is offered anything of this key, so that what is declined comes first again.
        """
        place = self._place(key)
        offer: Offer | None = None
        with anyio.move_on_after(timeout) as scope:
            async with anyio.create_task_group() as tasks:

                async def give_up() -> None:
                    await stopped.wait()
                    scope.cancel()

                tasks.start_soon(give_up)
                await place.lock.acquire()
                try:
                    await self._fill(key, place)
                    offer = Offer(place)
                finally:
                    if offer is None:
                        place.lock.release()
                tasks.cancel_scope.cancel()
        return offer

    async def peek(self, key: str) -> str | None:
        """Return what `take` would return now, or None; it stays where it is."""
        place = self._place(key)
        if not place.held:
            await self._read(key, place)
        return place.held[0][1] if place.held else None

    def next_seq(self, key: str) -> int:
        """Return the seq of what `offer` would return next."""
        place = self._place(key)
        return place.held[0][0] if place.held else place.next_seq

    def skip_to(self, key: str, seq: int) -> None:
        """Go on with this seq: what comes before was taken."""
        place = self._place(key)
        while place.held and place.held[0][0] < seq:
            place.held.popleft()
        place.next_seq = max(place.next_seq, seq)

    def _place(self, key: str) -> _Place:
        return self._places.setdefault(key, _Place())

    async def _fill(self, key: str, place: _Place) -> None:
        while not place.held:
            with self._bells.heard(self._run_id, input_key(key)) as moved:
                # A statement that is cut off takes its connection with it.
                with anyio.CancelScope(shield=True):
                    await self._read(key, place)
                if not place.held:
                    await _set_within(moved, self._poll)

    async def _read(self, key: str, place: _Place) -> None:
        try:
            page = await self._streams.read(
                self._environment_id,
                self._run_id,
                input_key(key),
                place.next_seq,
                _PAGE_BYTES,
                _PAGE_CHUNKS,
            )
        except DatabaseUnavailableError as error:
            logger.debug("input of %s cannot be read now: %s", self._run_id, error)
            return
        for chunk in page.chunks:
            if chunk.seq >= place.next_seq:
                place.held.append((chunk.seq, chunk.body))
                place.next_seq = chunk.seq + 1


def _set_all(events: "set[asyncio.Event] | tuple[()]") -> None:
    for event in events:
        event.set()


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
