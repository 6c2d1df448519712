"""Streams as task authors write them: definitions, pipes, writers; without a server."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from datetime import date
from typing import Any, assert_type

import pytest
from pydantic import BaseModel

from runwire import InvalidValueError, NotInRunError, TaskError, streams, sync
from runwire._following import BlockingChunks
from runwire._http_sink import MAX_CHUNKS, HttpSink
from runwire._pipe import MAX_KEPT
from runwire.streams import Chunks, Pipe, Stream, Writer, define
from tests.support.recording_run import RecordingRun, executing

pytestmark = pytest.mark.anyio


class Step(BaseModel):
    name: str
    on: date


TODAY = date(2026, 11, 24)
steps = define("steps", Step)
tokens = define[str]("tokens")
either = define[int | str]("either")


def writes(run: RecordingRun) -> list[tuple[object, ...]]:
    return [(key, *bodies) for kind, _, key, *bodies in run.told if kind in ("write", "append")]


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def until(fact: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not fact():
            await asyncio.sleep(0)


# Definitions


async def test_values_are_written_as_their_type_says() -> None:
    with executing() as run:
        assert await steps.append(Step(name="a", on=TODAY)) == 7
        await tokens.append("x", target="parent")
        await either.append(1)
        steps.sync.append(Step(name="b", on=TODAY))
    assert run.told == [
        ("append", "self", "steps", '{"name":"a","on":"2026-11-24"}'),
        ("append", "parent", "tokens", '"x"'),
        ("append", "self", "either", "1"),
        ("append", "self", "steps", '{"name":"b","on":"2026-11-24"}'),
    ]


async def test_a_value_of_another_type_is_refused_before_it_is_written() -> None:
    wrong: Any = {"name": "a"}
    with executing() as run:
        with pytest.raises(InvalidValueError, match="stream 'steps'") as refused:
            await steps.append(wrong)
        with pytest.raises(InvalidValueError):
            await streams.append(steps, wrong)
        with pytest.raises(InvalidValueError):
            await steps.pipe([wrong]).wait_until_complete()
    assert refused.value.code == "chunk_invalid" and writes(run) == []


async def test_what_is_read_becomes_the_type_again() -> None:
    assert steps.parse({"name": "a", "on": "2026-11-24"}) == Step(name="a", on=TODAY)
    assert either.parse("x") == "x"
    with pytest.raises(InvalidValueError) as refused:
        steps.parse({"name": 1})
    assert refused.value.code == "chunk_invalid"


async def test_a_chunk_over_the_limit_is_refused_with_the_limit() -> None:
    with executing(), pytest.raises(InvalidValueError, match="1048576") as refused:
        await tokens.append("x" * 1024 * 1024)
    assert refused.value.code == "too_large"


@pytest.mark.parametrize("key", ["", "x" * 129, "a\nb", "$log", "$input:x"])
async def test_a_key_that_no_stream_can_have_is_refused_at_once(key: str) -> None:
    with pytest.raises(InvalidValueError) as refused:
        define(key, str)
    assert refused.value.code == "key"
    with executing() as run:
        for write in (
            lambda: streams.pipe(key, [1]),
            lambda: streams.writer(key),
            lambda: streams.sync.append(key, 1),
        ):
            with pytest.raises(InvalidValueError):
                write()
    assert run.told == []


async def test_a_type_without_a_schema_is_an_error_of_the_definition() -> None:
    class Plain: ...

    with pytest.raises(TaskError, match="'plain'"):
        define("plain", Plain)


async def test_definitions_keep_their_type() -> None:
    assert_type(steps, Stream[Step])
    assert_type(tokens, Stream[str])
    assert_type(either, Stream[int | str])
    assert_type(streams.read("run_x", steps), Chunks[Step])
    assert_type(sync.streams.read("run_x", tokens), BlockingChunks[str])
    with executing():
        assert_type(tokens.pipe(["a"]), Pipe[str])
        assert_type(tokens.writer(), Writer[str])
        assert_type(streams.pipe("k", numbers(1)), Pipe[int])


# Pipes


async def test_a_pipe_that_nobody_reads_goes_on_by_itself() -> None:
    with executing() as run:
        streams.pipe("k", numbers(3))
        await until(lambda: run.told and run.told[-1] == ("end", "self", "k"))
    assert writes(run) == [("k", "0"), ("k", "1"), ("k", "2")]


async def test_a_reader_that_comes_later_has_everything_once() -> None:
    with executing() as run:
        pipe = streams.pipe("k", numbers(5))
        await until(lambda: len(writes(run)) > 1)
        assert [number async for number in pipe] == [0, 1, 2, 3, 4]
    assert writes(run) == [("k", str(number)) for number in range(5)]


async def test_a_pipe_that_is_held_but_not_read_waits_at_its_bound() -> None:
    with executing() as run:
        pipe = streams.pipe("k", numbers(MAX_KEPT + 10))
        await until(lambda: len(run.told) >= MAX_KEPT)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(run.told) == MAX_KEPT
        # Nobody can come to read any more.
        del pipe
        gc.collect()
        await until(lambda: run.told[-1] == ("end", "self", "k"))
    assert len(writes(run)) == MAX_KEPT + 10


async def test_a_reader_that_leaves_leaves_the_rest_unwritten() -> None:
    with executing() as run:
        async for number in streams.pipe("k", numbers(5)):
            if number == 1:
                break
        (pipe,) = run.pipes
        assert not pipe.is_open
    assert writes(run) == [("k", "0"), ("k", "1")]


async def test_an_unread_pipe_whose_source_fails_fails_whoever_waits_for_it() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise RuntimeError("the model went away")

    with executing() as run:
        streams.pipe("k", broken())
        await until(lambda: writes(run))
        pipe = run.pipes[0]
        assert pipe.is_open
        with pytest.raises(RuntimeError, match="went away"):
            await pipe.finish()
    assert writes(run) == [("k", "1")] and ("end", "self", "k") not in run.told


async def test_an_unread_blocking_pipe_is_written_at_the_end() -> None:
    with executing() as run:
        tokens.sync.pipe(["a", "b"])
        read = tokens.sync.pipe(["c"])
        next(iter(read))
        unread, begun = run.blocking_pipes
        assert (unread.is_open, begun.is_open) == (True, False)
        assert unread.finish_blocking(lambda: False) and begun.finish_blocking(lambda: False)
    assert writes(run) == [("tokens", '"c"'), ("tokens", '"a"'), ("tokens", '"b"')]


async def test_what_cannot_be_iterated_cannot_be_piped() -> None:
    source: Any = 5
    with executing(), pytest.raises(InvalidValueError, match="int is not iterable"):
        await streams.pipe("k", source).wait_until_complete()


# Writers


async def test_a_writer_writes_merges_and_ends() -> None:
    with executing() as run:
        async with either.writer(target="root") as writer:
            await writer.write("first")
            writer.merge(numbers(2))
            writer.merge([7])
    assert run.told[0] == ("write", "root", "either", '"first"')
    assert sorted(writes(run)[1:]) == [("either", "0"), ("either", "1"), ("either", "7")]
    assert run.told[-1] == ("end", "root", "either")


async def test_an_error_inside_a_writer_leaves_the_stream_without_an_end() -> None:
    async def endless() -> AsyncIterator[int]:
        while True:
            yield 1
            await asyncio.sleep(0)

    with executing() as run:
        writer = streams.writer("k")
        with pytest.raises(RuntimeError, match="half way"):
            async with writer:
                writer.merge(endless())
                await writer.write(0)
                raise RuntimeError("half way")
    count = len(run.told)
    await asyncio.sleep(0)
    assert len(run.told) == count and ("end", "self", "k") not in run.told
    with pytest.raises(RuntimeError, match="closed"):
        await writer.write(1)


async def test_a_merged_source_that_fails_fails_the_writer() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise RuntimeError("the model went away")

    with executing() as run, pytest.raises(RuntimeError, match="went away"):
        async with streams.writer() as writer:
            writer.merge(broken())
    assert writes(run) == [("default", "1")] and ("end", "self", "default") not in run.told


async def test_what_a_function_writes_is_a_pipe() -> None:
    async def answer(writer: Writer[str]) -> None:
        await writer.write("a")
        writer.merge(["b"])

    with executing() as run:
        assert sorted([word async for word in tokens.writer(answer)]) == ["a", "b"]
        await streams.writer("k", answer).wait_until_complete()
        await streams.writer(answer).wait_until_complete()
    assert [told for told in run.told if told[0] == "end"] == [
        ("end", "self", "tokens"),
        ("end", "self", "k"),
        ("end", "self", "default"),
    ]


async def test_a_function_that_fails_fails_its_pipe() -> None:
    async def answer(writer: Writer[str]) -> None:
        await writer.write("a")
        raise RuntimeError("half way")

    with executing() as run, pytest.raises(RuntimeError, match="half way"):
        await tokens.writer(answer).wait_until_complete()
    assert writes(run) == [("tokens", '"a"')]


async def test_a_blocking_writer_does_the_same() -> None:
    with executing() as run:
        with tokens.sync.writer(target="run_b") as writer:
            writer.write("a")
            writer.merge(["b", "c"])
        with pytest.raises(RuntimeError), sync.streams.writer() as other:
            other.write(1)
            raise RuntimeError
    assert run.told == [
        ("write", "run_b", "tokens", '"a"'),
        ("write", "run_b", "tokens", '"b"'),
        ("write", "run_b", "tokens", '"c"'),
        ("end", "run_b", "tokens"),
        ("write", "self", "default", "1"),
    ]


async def test_outside_of_a_run_a_target_is_an_id() -> None:
    for write in (
        lambda: tokens.pipe(["a"]),
        lambda: tokens.writer(),
        lambda: tokens.sync.append("a"),
        lambda: tokens.sync.writer(target="parent"),
    ):
        with pytest.raises(NotInRunError, match="give the id of a run"):
            write()


# Over HTTP


async def test_what_gathers_during_a_request_is_the_next_one() -> None:
    sent: list[list[str]] = []
    answered = asyncio.Event()

    async def post(bodies: list[str]) -> None:
        sent.append(bodies)
        await answered.wait()

    sink = HttpSink(post)
    async with asyncio.timeout(5):
        for number in range(MAX_CHUNKS + 1):
            await sink.write(str(number))
            if number == 0:
                await until(lambda: sent)
        late = asyncio.ensure_future(sink.write("late"))
        await asyncio.sleep(0)
        assert not late.done() and sent == [["0"]]
        answered.set()
        await late
        await sink.end()
    assert [len(bodies) for bodies in sent] == [1, MAX_CHUNKS, 1]
    assert [one for bodies in sent for one in bodies][-2:] == [str(MAX_CHUNKS), "late"]


async def test_a_request_that_fails_fails_the_next_write_and_the_end() -> None:
    async def post(bodies: list[str]) -> None:
        raise ConnectionError("away")

    sink = HttpSink(post)
    await sink.write("1")
    for call in (sink.end, lambda: sink.write("2"), sink.flush):
        with pytest.raises(ConnectionError):
            await call()
