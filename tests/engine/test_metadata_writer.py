"""Metadata operations on their way: order, pace, failures."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from runwire import _metadata
from runwire.errors import InvalidValueError
from runwire.wire import JsonObject
from runwire_engine import metadata_writer
from runwire_engine.bridge import Bridge, arrival
from runwire_engine.metadata_writer import MetadataWriter
from tests.support.working import until

pytestmark = pytest.mark.anyio
WAIT = 60.0


class Document:
    """A document in memory whose flushes wait for a gate."""

    def __init__(self, size: int = 0) -> None:
        self.held: JsonObject = {}
        self.flushes: list[int] = []
        self.times: list[float] = []
        self.gate = anyio.Event()
        self.size = size

    async def apply(self, operations: Sequence[JsonObject]) -> int:
        self.flushes.append(len(operations))
        self.times.append(anyio.current_time())
        await self.gate.wait()
        self.held = _metadata.apply(self.held, operations)
        return self.size

    async def begun(self, count: int) -> None:
        """Wait until so many flushes have begun."""
        await until(lambda: len(self.times) >= count)


@asynccontextmanager
async def writing(document: Document) -> AsyncGenerator[MetadataWriter]:
    async with anyio.create_task_group() as group:
        yield MetadataWriter(Bridge(group.start_soon), document.apply)


def increment(amount: int = 1) -> JsonObject:
    return {"type": "increment", "key": "n", "value": amount}


def append(value: int) -> JsonObject:
    return {"type": "append", "key": "list", "value": value}


async def test_the_first_operation_leaves_at_once_and_the_rest_together() -> None:
    document = Document()
    async with writing(document) as writer:
        writer.add(append(0))
        await document.begun(1)
        for number in range(1, 6):
            writer.add(append(number))
        document.gate.set()
        done = writer.flush()
        assert done is not None
        await arrival(done)
    assert document.flushes == [1, 5]
    assert document.held == {"list": [0, 1, 2, 3, 4, 5]}


async def test_a_flush_that_nobody_waits_for_keeps_the_pace() -> None:
    document = Document()
    document.gate.set()
    async with writing(document) as writer:
        writer.add(append(0))
        await document.begun(1)
        writer.add(append(1))
        await document.begun(2)
    first, second = document.times
    assert second - first >= metadata_writer.FLUSH_EVERY * 0.9


async def test_a_large_document_is_flushed_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_writer, "FLUSH_EVERY", 0.001)
    document = Document(size=400_000)
    document.gate.set()
    async with writing(document) as writer:
        writer.add(append(0))
        await document.begun(1)
        writer.add(append(1))
        await document.begun(2)
    first, second = document.times
    assert second - first >= 0.18


async def test_nothing_queued_needs_no_flush() -> None:
    document = Document()
    document.gate.set()
    async with writing(document) as writer:
        assert writer.flush() is None
        writer.add(increment())
        done = writer.flush()
        assert done is not None
        await arrival(done)
        assert document.held == {"n": 1}


async def test_a_failed_flush_is_told_to_whoever_waits_and_to_every_later_call() -> None:
    async def refuse(operations: Sequence[JsonObject]) -> int:
        raise InvalidValueError("metadata is too large", code="too_large")

    async with anyio.create_task_group() as group:
        writer = MetadataWriter(Bridge(group.start_soon), refuse)
        writer.add(increment())
        done = writer.flush()
        assert done is not None
        with pytest.raises(InvalidValueError, match="too large"):
            await arrival(done)
        with pytest.raises(InvalidValueError, match="too large"):
            writer.add(increment())


async def test_a_flood_while_the_database_is_away_is_joined_not_kept() -> None:
    document = Document()
    async with writing(document) as writer:
        for number in range(5 * metadata_writer.COLLAPSE_AT):
            writer.add({"type": "set", "key": "n", "value": number})
        await document.begun(1)
        document.gate.set()
    assert document.flushes == [1]
    assert document.held == {"n": 5 * metadata_writer.COLLAPSE_AT - 1}
