"""Input of a run, as its attempt reads it."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import orjson
import pytest

from runwire import InvalidValueError, NotInRunError, logger, streams
from runwire._context import require
from runwire._stream_keys import INPUT_PREFIX, input_key
from runwire_engine.errors import RunFinalError
from runwire_engine.inputs import InputBells
from runwire_engine.streams import Append
from tests.support.working import Bench, defined, error_of, opened_bench

pytestmark = pytest.mark.anyio

approvals = streams.input("approval", int)
texts = streams.input[str]("texts")


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        yield opened


async def send(bench: Bench, run_id: str, *values: object, key: str = "approval") -> None:
    bodies = tuple(orjson.dumps(value).decode() for value in values)
    append = Append(run_id, input_key(key), bodies, writer="api", reserved=True)
    await bench.engine.streams.append(bench.env, append)


async def test_what_was_sent_before_the_run_began_waits_for_it(bench: Bench) -> None:
    async def reading() -> list[int]:
        return [await approvals.once(), await approvals.once(timeout="5s")]

    made = defined(reading)
    async with bench.worker():
        pass
    async with bench.worker(made):
        run_id = await bench.start(made, delay=None)
        await send(bench, run_id, 1, 2)
        row = await bench.until(run_id)
    assert row.output == "[1,2]"


async def test_what_is_sent_while_the_run_waits_reaches_it_by_the_bell(bench: Bench) -> None:
    reading_now = anyio.Event()

    async def reading() -> list[int]:
        reading_now.set()
        return [await approvals.once(), await approvals.once()]

    made = defined(reading)
    # Only the bell can bring it in time.
    async with bench.worker(made, poll=60.0):
        run_id = await bench.start(made)
        with anyio.fail_after(60):
            await reading_now.wait()
            await send(bench, run_id, 1)
            await send(bench, run_id, 2)
            row = await bench.until(run_id)
    assert row.output == "[1,2]"


async def test_without_a_bell_the_worker_looks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InputBells, "rang", lambda self, bell: None)  # pyright: ignore
    reading_now = anyio.Event()

    async def reading() -> int:
        reading_now.set()
        return await approvals.once()

    made = defined(reading)
    async with bench.worker(made, poll=0.05):
        run_id = await bench.start(made)
        await reading_now.wait()
        await send(bench, run_id, 7)
        row = await bench.until(run_id)
    assert row.output == "7"


async def test_blocking_code_reads_the_same(bench: Bench) -> None:
    def reading() -> list[Any]:
        seen = approvals.sync.peek()
        taken = [approvals.sync.once(), approvals.sync.once(timeout=60)]
        with pytest.raises(TimeoutError, match="'approval' within 0.01"):
            approvals.sync.once(timeout=0.01)
        return [seen, *taken]

    made = defined(reading)
    async with bench.worker(made):
        run_id = await bench.start(made)
        await send(bench, run_id, 1, 2)
        row = await bench.until(run_id)
    assert row.error is None
    seen, *taken = orjson.loads(row.output or "")
    assert taken == [1, 2] and seen in (None, 1)


async def test_peeking_takes_nothing_and_waits_for_nothing(bench: Bench) -> None:
    sent = anyio.Event()

    async def peeking() -> list[Any]:
        before = await approvals.peek()
        await sent.wait()
        return [before, await approvals.peek(), await approvals.peek(), await approvals.once()]

    made = defined(peeking)
    async with bench.worker(made):
        run_id = await bench.start(made)
        await bench.until(run_id, "EXECUTING")
        await anyio.sleep(0.05)  # lets it look while there is nothing
        await send(bench, run_id, 5)
        sent.set()
        row = await bench.until(run_id)
    assert row.output in ("[null,5,5,5]", "[5,5,5,5]")


async def test_who_gives_up_waiting_takes_nothing(bench: Bench) -> None:
    async def impatient() -> list[Any]:
        with pytest.raises(TimeoutError):
            await approvals.once(timeout=0.02)
        for _ in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.002):
                    await approvals.once()
        require("this test")  # still the same run
        logger.info("ready")
        return [await approvals.once(timeout=60) for _ in range(3)]

    made = defined(impatient)
    async with bench.worker(made):
        run_id = await bench.start(made)
        with anyio.fail_after(60):
            while not (await bench.engine.streams.read(bench.env, run_id, "$log")).chunks:
                await anyio.sleep(0.01)  # polls the database
        await send(bench, run_id, 1, 2, 3)
        row = await bench.until(run_id)
    assert row.output == "[1,2,3]"


async def test_values_are_given_back_by_who_was_cancelled_while_they_came(bench: Bench) -> None:
    async def jumpy(payload: int) -> list[int]:
        taken: list[int] = []
        while len(taken) < payload:
            try:
                async with asyncio.timeout(0.001):
                    taken.append(await approvals.once())
            except TimeoutError:
                continue
        return taken

    made = defined(jumpy)
    async with bench.worker(made):
        run_id = await bench.start(made, 40)
        for number in range(40):
            await send(bench, run_id, number)
        row = await bench.until(run_id)
    assert orjson.loads(row.output or "") == list(range(40))


async def test_handlers_get_each_value_in_order_until_they_are_taken_off(bench: Bench) -> None:
    heard: list[tuple[str, int]] = []
    done = asyncio.Event()

    async def listening() -> None:
        async def slow(value: int) -> None:
            await asyncio.sleep(0)
            heard.append(("slow", value))
            if value == 2:
                raise RuntimeError("not this one")
            if value == 4:
                done.set()

        def first(value: int) -> None:
            heard.append(("first", value))
            if value == 2:
                off()

        off = approvals.on(first)
        approvals.on(slow)
        await done.wait()

    made = defined(listening)
    async with bench.worker(made):
        run_id = await bench.start(made)
        await send(bench, run_id, 1, 2, 3)
        await send(bench, run_id, 4)
        row = await bench.until(run_id)
    assert row.status == "COMPLETED"
    assert [value for who, value in heard if who == "slow"] == [1, 2, 3, 4]
    assert [value for who, value in heard if who == "first"] == [1, 2]
    (line,) = await bench.chunks(run_id, "$log")
    assert line["level"] == "error" and "not this one" in line["message"]


async def test_a_handler_does_not_keep_its_run_from_ending(bench: Bench) -> None:
    async def returning() -> str:
        approvals.on(lambda value: None)
        await asyncio.sleep(0)
        return "done"

    made = defined(returning)
    async with bench.worker(made):
        began = time.monotonic()
        row = await bench.finished(made)
    assert row.output == '"done"' and time.monotonic() - began < 10


async def test_a_value_of_another_type_is_an_error_where_it_is_read(bench: Bench) -> None:
    async def reading() -> int:
        with pytest.raises(InvalidValueError, match="'approval'"):
            await approvals.once()
        return await approvals.once()

    made = defined(reading)
    async with bench.worker(made):
        run_id = await bench.start(made)
        await send(bench, run_id, "a word", 3)
        row = await bench.until(run_id)
    assert row.output == "3"


async def test_an_attempt_reads_its_input_from_the_beginning(bench: Bench) -> None:
    async def retried() -> list[Any]:
        taken = [await approvals.once(), await approvals.once()]
        if require("this test").ctx.attempt.number == 1:
            raise RuntimeError("once more")
        return taken

    made = defined(retried, retry={"max_attempts": 2, "min_timeout": 0.01, "randomize": False})
    async with bench.worker(made):
        run_id = await bench.start(made)
        await send(bench, run_id, 1, 2)
        row = await bench.until(run_id)
    assert row.output == "[1,2]"


async def test_runs_send_to_each_other_and_a_run_that_is_over_refuses(bench: Bench) -> None:
    async def talking(payload: str) -> str:
        await texts.send(payload, "hello")
        texts.sync.send(payload, "again")
        return "sent"

    async def listening() -> list[str]:
        return [await texts.once(), await texts.once()]

    first, second = defined(talking), defined(listening)
    async with bench.worker(first, second):
        listener = await bench.start(second)
        assert (await bench.finished(first, listener)).output == '"sent"'
        assert (await bench.until(listener)).output == '["hello","again"]'
        row = await bench.finished(first, listener)
        assert error_of(row)["name"] == "FencedError"
        with pytest.raises(RunFinalError):
            await send(bench, listener, 1)


async def test_a_canceled_run_stops_waiting_for_input(bench: Bench) -> None:
    async def waiting() -> None:
        await approvals.once()

    def blocking_wait(signal: Any) -> None:
        approvals.sync.once()

    first, second = defined(waiting), defined(blocking_wait)
    async with bench.worker(first, second):
        for made in (first, second):
            run_id = await bench.start(made)
            await bench.until(run_id, "EXECUTING")
            await bench.engine.runs.cancel(bench.env, run_id)
            began = time.monotonic()
            await bench.until(run_id, "CANCELED")
            assert time.monotonic() - began < 10


async def test_input_is_no_news_of_the_run_and_ends_with_it(bench: Bench) -> None:
    async def ignoring() -> None: ...

    made = defined(ignoring)
    run_id = await announced(bench, made)
    before = await bench.row(run_id)
    await send(bench, run_id, 1)
    after = await bench.row(run_id)
    assert (after.revision, after.stream_keys) == (before.revision, ())
    await bench.engine.runs.cancel(bench.env, run_id)
    (head,) = await bench.engine.streams.streams_of(bench.env, run_id)
    assert (head.key, head.eof_reason) == (f"{INPUT_PREFIX}approval", "canceled")


async def announced(bench: Bench, made: Any) -> str:
    """Start a run whose worker has gone away again."""
    async with bench.worker(made):
        pass
    return await bench.start(made)


async def test_input_keys_are_checked() -> None:
    for key in ("", "$x", "a\nb", "x" * 122):
        with pytest.raises(InvalidValueError) as refused:
            streams.input(key, int)
        assert refused.value.code == "key"
    assert streams.input("x" * 121, int).id


async def test_reading_needs_a_run() -> None:
    with pytest.raises(NotInRunError, match="once of an input stream"):
        await approvals.once()
    with pytest.raises(NotInRunError, match="peek of an input stream"):
        await approvals.peek()
    with pytest.raises(NotInRunError):
        approvals.on(lambda value: None)
    with pytest.raises(NotInRunError):
        approvals.sync.once()
