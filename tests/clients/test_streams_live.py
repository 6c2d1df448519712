"""Streams against the real thing: a server, a worker and Postgres, over real sockets."""

import os
from collections.abc import AsyncGenerator, AsyncIterator

import anyio
import anyio.to_thread
import pytest
from pydantic import BaseModel

from runwire import AsyncRunwire, Context, FencedError, InvalidValueError, Runwire, streams, task
from runwire.streams import Writer
from tests.support.server import TestRealtime
from tests.support.working import Bench, opened_bench

pytestmark = pytest.mark.anyio


class Word(BaseModel):
    text: str


words = streams.define("words", Word)
counts = streams.define[int]("counts")


@task(id="live-writer", retry={"max_attempts": 2, "min_timeout": 0.01, "randomize": False})
async def writing(payload: int, ctx: Context) -> None:
    async with words.writer() as writer:
        for number in range(payload):
            await writer.write(Word(text=f"{ctx.attempt.number}-{number}"))
        if ctx.attempt.number == 1:
            raise RuntimeError("the first attempt fails")


@task(id="live-counter", retry={"max_attempts": 1})
async def counting(payload: int) -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(payload):
            yield number

    await counts.pipe(numbers()).wait_until_complete()


@task(id="live-sleeper", retry={"max_attempts": 1})
async def sleeper() -> None:
    await counts.append(1)
    await anyio.sleep_forever()


@task(id="live-child", retry={"max_attempts": 1})
async def child(payload: int) -> None:
    async def answer(writer: Writer[int]) -> None:
        for number in range(20):
            await writer.write(payload * 100 + number)

    await counts.writer(answer, target="parent").wait_until_complete()


@task(id="live-parent", retry={"max_attempts": 1})
async def parent() -> None:
    await child.batch_trigger([{"payload": number} for number in range(5)])
    await anyio.sleep_forever()


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with (
        opened_bench(database_url) as opened,
        opened.worker(writing, counting, sleeper, child, parent),
    ):
        yield opened


async def test_a_reader_chooses_what_it_does_with_earlier_attempts(client: AsyncRunwire) -> None:
    handle = await client.tasks.trigger(writing, 2)
    read = client.streams.read(handle.id, words)
    seen = [(one.value.text, one.attempt, one.is_restart) async for one in read.chunks()]
    assert seen == [("1-0", 1, False), ("1-1", 1, False), ("2-0", 2, True), ("2-1", 2, False)]
    last = await client.streams.read(handle.id, words).collect()
    assert last == [Word(text="2-0"), Word(text="2-1")]
    everything = await client.streams.read(handle.id, words).collect(attempts="all")
    assert [word.text for word in everything] == ["1-0", "1-1", "2-0", "2-1"]


async def test_blocking_readers_do_the_same(server: TestRealtime, client: AsyncRunwire) -> None:
    handle = await client.tasks.trigger(writing, 1)

    def read() -> tuple[list[Word], list[int], list[Word]]:
        with Runwire(api_url=server.url, access_token=server.key) as blocking:
            return (
                list(blocking.streams.read(handle.id, words)),
                [one.seq for one in blocking.streams.read(handle.id, words).chunks()],
                blocking.streams.read(handle.id, words).collect(),
            )

    whole, seqs, last = await anyio.to_thread.run_sync(read)
    assert [word.text for word in whole] == ["1-0", "2-0"] and seqs == [0, 1]
    assert last == [Word(text="2-0")]


async def test_silence_is_an_error_only_where_a_timeout_says_so(client: AsyncRunwire) -> None:
    handle = await client.tasks.trigger(sleeper)
    read = client.streams.read(handle.id, counts, timeout=2.0)
    seen: list[int] = []
    with pytest.raises(TimeoutError, match="'counts' for 2"):
        async for count in read:
            seen.append(count)
    # It goes on where it was left.
    await client.streams.append(counts, 2, target=handle.id)
    async for count in read:
        seen.append(count)
        if count == 2:
            break
    assert seen == [1, 2]


async def test_a_chunk_of_another_type_is_an_error_and_the_next_loop_goes_on(
    client: AsyncRunwire,
) -> None:
    handle = await client.tasks.trigger(sleeper)
    await client.streams.append("counts", "not a number", target=handle.id)
    await client.streams.append(counts, 3, target=handle.id)
    await client.runs.cancel(handle)
    read = client.streams.read(handle.id, counts)
    seen: list[int] = []
    with pytest.raises(InvalidValueError, match="'counts'"):
        async for count in read:
            seen.append(count)
    seen += [count async for count in read]
    assert 3 in seen and len(seen) <= 2


async def test_a_pipe_and_a_writer_from_outside_write_whole_and_in_order(
    server: TestRealtime, client: AsyncRunwire
) -> None:
    handle = await client.tasks.trigger(sleeper, delay="1h")
    async for _ in client.streams.pipe(counts, range(1500), target=handle.id):
        pass
    async with client.streams.writer(counts, target=handle.id) as writer:
        await writer.write(1500)
        writer.merge(range(1501, 1600))

    def write() -> None:
        with Runwire(api_url=server.url, access_token=server.key) as blocking:
            blocking.streams.pipe(counts, [1600], target=handle.id).wait_until_complete()
            with blocking.streams.writer(counts, target=handle.id) as writer:
                writer.write(1601)
            assert blocking.streams.append(counts, 1602, target=handle.id) == 1603

    await anyio.to_thread.run_sync(write)
    await client.runs.cancel(handle)
    assert await client.streams.read(handle.id, counts).collect() == list(range(1603))
    with pytest.raises(FencedError) as over:
        await client.streams.pipe(counts, [1], target=handle.id).wait_until_complete()
    assert over.value.run_id == handle.id


async def test_many_writers_of_a_parents_stream_each_keep_their_order(
    client: AsyncRunwire,
) -> None:
    handle = await client.tasks.trigger(parent)
    by_writer: dict[str | None, list[int]] = {}
    count = 0
    async for chunk in client.streams.read(handle.id, counts).chunks():
        assert chunk.seq == count and chunk.attempt is None
        count += 1
        by_writer.setdefault(chunk.writer, []).append(chunk.value)
        if count == 100:
            await client.runs.cancel(handle)
    assert sorted(by_writer.values()) == [
        [number * 100 + at for at in range(20)] for number in range(5)
    ]


async def test_a_long_stream_is_read_whole(client: AsyncRunwire) -> None:
    count = int(os.environ.get("RUNWIRE_LONG_STREAM", "3000"))
    handle = await client.tasks.trigger(counting, count)
    expected = 0
    async for number in client.streams.read(handle.id, counts):
        assert number == expected
        expected += 1
    assert expected == count
