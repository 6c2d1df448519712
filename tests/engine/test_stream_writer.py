"""Chunks on their way: order, grouping, bounds, ends."""

from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import asynccontextmanager

import anyio
import pytest

from runwire_engine import stream_writer
from runwire_engine.bridge import Bridge, arrival, pending_promise
from runwire_engine.stream_writer import StreamWriter
from tests.support.working import until

pytestmark = pytest.mark.anyio
WAIT = 60.0


class Log:
    """A stream in memory whose appends wait for a gate."""

    def __init__(self) -> None:
        self.appends: list[tuple[tuple[str, ...], bool]] = []
        self.gate = anyio.Event()
        self.failure: Exception | None = None

    async def append(self, bodies: tuple[str, ...], end: bool) -> int:
        self.appends.append((bodies, end))
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return sum(len(bodies) for bodies, _ in self.appends)

    async def begun(self, count: int) -> None:
        """Wait until so many appends have begun."""
        await until(lambda: len(self.appends) >= count)

    @property
    def bodies(self) -> list[str]:
        return [body for bodies, _ in self.appends for body in bodies]


@asynccontextmanager
async def writing(log: Log) -> AsyncGenerator[StreamWriter]:
    async with anyio.create_task_group() as group:
        yield StreamWriter(Bridge(group.start_soon), log.append)


async def test_what_arrives_during_an_append_goes_as_one() -> None:
    log = Log()
    async with writing(log) as writer:
        writer.offer(["0"])
        await log.begun(1)
        for number in range(1, 10):
            assert writer.offer([str(number)]) is None
        log.gate.set()
        done = writer.finish(end=False)
        assert done is not None
        await arrival(done)
    assert [len(bodies) for bodies, _ in log.appends] == [1, 9]
    assert log.bodies == [str(number) for number in range(10)]


async def test_an_append_is_answered_with_the_seq_after_its_own_chunks() -> None:
    log = Log()
    log.gate.set()
    async with writing(log) as writer:
        first: Future[int] = pending_promise()
        second: Future[int] = pending_promise()
        writer.offer(["a", "b"], first)
        writer.offer(["c"], second)
        assert [await arrival(first), await arrival(second)] == [2, 3]


async def test_a_full_buffer_promises_room_and_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_writer, "MAX_CHUNKS", 2)
    log = Log()
    async with writing(log) as writer:
        writer.offer(["0"])
        await log.begun(1)
        assert writer.offer(["1", "2"]) is None
        room = writer.offer(["3"])
        assert room is not None
        log.gate.set()
        with anyio.fail_after(WAIT):
            await arrival(room)
        assert writer.offer(["3"]) is None
    assert log.bodies == ["0", "1", "2", "3"]


async def test_a_chunk_larger_than_the_buffer_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_writer, "MAX_BYTES", 4)
    log = Log()
    log.gate.set()
    async with writing(log) as writer:
        assert writer.offer(["123456789"]) is None
        done = writer.finish(end=False)
        assert done is not None
        await arrival(done)
    assert log.bodies == ["123456789"]


async def test_finish_ends_a_stream_once() -> None:
    log = Log()
    log.gate.set()
    async with writing(log) as writer:
        writer.offer(["a"])
        promise = writer.finish(end=True)
        assert promise is not None
        await arrival(promise)
        assert writer.finish(end=True) is None
    assert [end for _, end in log.appends].count(True) == 1


async def test_a_failed_append_is_told_to_whoever_waits_and_to_every_later_call() -> None:
    log = Log()
    log.failure = ValueError("refused")
    async with writing(log) as writer:
        receipt: Future[int] = pending_promise()
        writer.offer(["a"], receipt)
        log.gate.set()
        with pytest.raises(ValueError, match="refused"):
            await arrival(receipt)
        with pytest.raises(ValueError, match="refused"):
            writer.offer(["b"])


async def test_threads_write_whole_and_in_their_own_order() -> None:
    log = Log()
    log.gate.set()
    count = 300

    def write(writer: StreamWriter, name: str) -> None:
        for number in range(count):
            while (room := writer.offer([f"{name}{number}"])) is not None:
                room.result(WAIT)

    async with writing(log) as writer, anyio.create_task_group() as threads:
        for name in "ab":
            threads.start_soon(anyio.to_thread.run_sync, write, writer, name)
    for name in "ab":
        assert [b for b in log.bodies if b[0] == name] == [f"{name}{n}" for n in range(count)]


async def test_what_failed_is_told_to_whoever_waited_or_at_the_end_and_not_twice() -> None:
    for waits in (True, False):
        log = Log()
        log.failure = ValueError("no room")
        log.gate.set()
        async with writing(log) as writer:
            receipt: Future[int] = pending_promise()
            writer.offer(["0"], receipt if waits else None)
            await log.begun(1)
            if waits:
                with pytest.raises(ValueError, match="no room"):
                    await arrival(receipt)
                assert writer.finish(end=True) is None
            else:
                with pytest.raises(ValueError, match="no room"):
                    done = writer.finish(end=True)
                    assert done is not None
                    await arrival(done)
            with pytest.raises(ValueError, match="no room"):
                writer.offer(["1"])
