"""Odd tasks, one after the other: each has a clear outcome, and nobody beside it notices.

Beside each of them, on the same worker, a `def` task starts others and looks how soon they run:
none is held up, and the worker keeps its lease. What kills the whole process is in tests/faults.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import orjson
import pytest

from runwire import _context, logger, metadata, streams, tags
from runwire.requests import TriggerOptions
from runwire.tasks import AnyTask
from runwire_engine import executor
from runwire_engine.failures import MAX_MESSAGE, MAX_STACK
from runwire_engine.log_writer import MAX_LINES
from runwire_engine.run_row import RunRow
from runwire_engine.verdicts import Interruption
from runwire_engine.worker import Worker
from tests.support.history import check, read_ledger
from tests.support.working import Bench, defined, error_of, opened_bench, settings_of, until

pytestmark = pytest.mark.anyio

# How long a task blocks its loop; the watchdog speaks up after one second.
BLOCKED_FOR = float(os.environ.get("RUNWIRE_BLOCKED_SECONDS", "3"))
# A machine with everything else on it takes that long; a `def` task that is held up takes longer.
AT_ONCE = 5.0


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        yield opened


class Bystander:
    """A `def` task that starts others, one at a time, and keeps how long each took to run."""

    def __init__(self) -> None:
        self.took: list[float] = []
        self._over = threading.Event()
        self._ran = threading.Event()
        self.started = defined(self._ran_now, queue="bystanders")
        self.starting = defined(self._start_again_and_again, queue="bystander")

    def _ran_now(self) -> None:
        self._ran.set()

    def _start_again_and_again(self) -> None:
        runtime = _context.require("this")
        number = 0
        while not self._over.is_set():
            number += 1
            self._ran.clear()
            began = time.monotonic()
            runtime.trigger_blocking(self.started.id, None, TriggerOptions(), str(number))
            assert self._ran.wait(4 * AT_ONCE), "a def task was never started"
            self.took.append(time.monotonic() - began)

    def stop(self) -> None:
        self._over.set()


@asynccontextmanager
async def watched(bench: Bench, *made: AnyTask) -> AsyncGenerator[Worker]:
    """Run a worker on a loop of its own, with a bystander; say that it has noticed nothing."""
    bystander = Bystander()
    tasks = {each.id: each for each in (*made, bystander.started, bystander.starting)}
    worker = Worker(settings_of(bench.database_url, concurrency=50), tasks)
    thread = threading.Thread(target=lambda: asyncio.run(worker.run()))
    thread.start()
    try:
        await until(lambda: worker.worker_id is not None)
        before = worker.worker_id
        run_id = await bench.start(bystander.starting)
        await until(lambda: len(bystander.took) > 0)
        yield worker
        done = len(bystander.took)
        await until(lambda: len(bystander.took) > done)
        bystander.stop()
        assert (await bench.until(run_id)).status == "COMPLETED"
        assert worker.worker_id == before, "the worker has lost its lease"
        assert max(bystander.took) < AT_ONCE, "a def task was held up"
    finally:
        bystander.stop()
        worker.stop(grace=0)
        await anyio.to_thread.run_sync(thread.join)
    assert check(await read_ledger(bench.database_url, bench.env)) == []


async def rows_of(bench: Bench, made: AnyTask, names: Any) -> dict[str, RunRow]:
    """Run a task once for each name, all at once, and return the rows in which they ended."""
    ids = {name: await bench.start(made, name) for name in names}
    return {name: await bench.until(run_id) for name, run_id in ids.items()}


def on_both(poison: Callable[[str], Any], max_attempts: int = 3) -> list[AnyTask]:
    """Make an `async def` and a `def` task that do the same."""

    async def on_the_loop(payload: str) -> Any:
        return poison(payload)

    def in_a_thread(payload: str) -> Any:
        return poison(payload)

    return [
        defined(each, retry={"max_attempts": max_attempts}) for each in (on_the_loop, in_a_thread)
    ]


# What a task writes ----------------------------------------------------------------------------


def deep() -> Any:
    value: Any = 1
    for _ in range(10_000):
        value = [value]
    return value


VALUES: dict[str, Callable[[], Any]] = {
    "nan": lambda: float("nan"),
    "nul": lambda: "a\x00b",
    "a nul in a key": lambda: {"a\x00": 1},
    "a lone surrogate": lambda: "\ud800",
    "10 MB": lambda: "x" * 10_000_000,
    "depth 10 000": deep,
    "no JSON": object,
}


async def _in_a_chunk(value: Any) -> None:
    await streams.append("log", value)


async def _in_metadata(value: Any) -> None:
    metadata.set("key", value)
    await metadata.flush()


async def _in_the_parents_metadata(value: Any) -> None:
    metadata.root.append("key", value)
    await metadata.flush()


async def _in_metadata_that_nobody_flushes(value: Any) -> None:
    metadata.set("key", value)


WRITES = {
    write.__name__: write
    for write in (
        _in_a_chunk,
        _in_metadata,
        _in_the_parents_metadata,
        _in_metadata_that_nobody_flushes,
    )
}


async def test_a_value_that_cannot_be_stored_fails_its_run_wherever_it_is_written(
    bench: Bench,
) -> None:
    async def writes(payload: dict[str, str]) -> None:
        await WRITES[payload["write"]](VALUES[payload["value"]]())

    made = defined(writes, retry={"max_attempts": 2, "min_timeout": 0.01})
    cases = [(write, value) for write in WRITES for value in VALUES]
    async with watched(bench, made):
        ids = [await bench.start(made, {"write": w, "value": v}) for w, v in cases]
        rows = [await bench.until(run_id) for run_id in ids]
    for case, row in zip(cases, rows, strict=True):
        error = error_of(row)
        assert (row.status, row.attempt <= 2) == ("FAILED", True), case
        assert (error["name"], error["code"]) == ("InvalidValueError", "TASK_ERROR"), case
        assert len(error["message"]) <= MAX_MESSAGE, case
        assert await bench.metadata(row.id) is None and await bench.chunks(row.id, "log") == []


@pytest.mark.parametrize("tag", ["", "a\x00b", "\ud800", "x" * 10_000_000])
async def test_a_tag_that_cannot_be_fails_its_run(bench: Bench, tag: str) -> None:
    async def tagging() -> None:
        await tags.add([tag])

    made = defined(tagging, retry={"max_attempts": 2, "min_timeout": 0.01})
    async with bench.worker(made):
        row = await bench.finished(made)
    assert (row.status, row.tags, error_of(row)["code"]) == ("FAILED", (), "TASK_ERROR")
    assert len(error_of(row)["message"]) <= MAX_MESSAGE


# What a task raises ----------------------------------------------------------------------------


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class LeavingError(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class EndlessError(Exception):
    def __str__(self) -> str:
        return str(self)


class NoTextError(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # what is tested


def chained() -> Exception:
    error = ValueError("the first")
    for number in range(2_000):
        after = ValueError(f"cause {number}" * 10)
        after.__cause__ = error
        error = after
    return error


def recursing() -> BaseException:
    try:
        return recursing()
    except RecursionError as error:
        return error


def far_below(depth: int = 400) -> BaseException:
    """Return an error that was raised under many frames with long lines of source."""
    if depth:
        return far_below(depth - 1)  # so that each frame of the traceback has a line of its own
    try:
        raise ValueError("at the bottom of a traceback that is longer than what is kept of it")
    except ValueError as error:
        return error


ERRORS: dict[str, Callable[[], BaseException]] = {
    "a nul": lambda: ValueError("a\x00b"),
    "a lone surrogate": lambda: ValueError("\ud800"),
    "10 MB": lambda: ValueError("x" * 10_000_000),
    "a text that raises": MuteError,
    "a text that leaves the process": LeavingError,
    "a text without an end": EndlessError,
    "a text that is none": NoTextError,
    "a name with a nul": lambda: type("Odd\x00Error\ud800", (Exception,), {})("odd"),
    "a name of 10 MB": lambda: type("E" * 10_000_000, (Exception,), {})("long"),
    "a chain of 2 000": chained,
    "a group of 2 000": lambda: ExceptionGroup("many", [ValueError(str(n)) for n in range(2_000)]),
    "arguments nested 10 000 deep": lambda: ValueError(deep()),
    "no Exception": lambda: BaseException("base"),
    "a KeyboardInterrupt": KeyboardInterrupt,
    "a SystemExit": lambda: SystemExit(3),
    "a GeneratorExit": GeneratorExit,
    "a CancelledError": asyncio.CancelledError,
    "a StopIteration": StopIteration,
    "a MemoryError": MemoryError,
    "a RecursionError": recursing,
    "a huge traceback": far_below,
    "a group in a group": lambda: BaseExceptionGroup(
        "outer", [ExceptionGroup("inner", [ValueError("a")]), KeyboardInterrupt()]
    ),
}


async def test_whatever_a_task_raises_its_run_fails_with_an_error_that_can_be_stored(
    bench: Bench,
) -> None:
    def raising(payload: str) -> None:
        raise ERRORS[payload]()

    made = on_both(raising, max_attempts=1)
    async with watched(bench, *made) as worker:
        rows = [await rows_of(bench, one, ERRORS) for one in made]
        await until(lambda: len(worker.held) <= 2)  # nothing of them is left but the bystander
    for each in rows:
        for name, row in each.items():
            error = error_of(row)
            assert (row.status, error["code"]) == ("FAILED", "TASK_ERROR"), name
            assert len(orjson.dumps(error)) < 2 * (MAX_MESSAGE + MAX_STACK), name


# What a task returns ---------------------------------------------------------------------------


def circle() -> Any:
    round: list[Any] = []
    round.append(round)
    return round


async def inner() -> int:
    return 1


async def async_numbers() -> AsyncIterator[int]:
    yield 1


def numbers() -> Iterator[int]:
    yield 1


class NoJson:
    pass


OUTPUTS: dict[str, Callable[[], Any]] = {
    "nan": lambda: float("nan"),
    "inf": lambda: [1.0, float("inf")],
    "a nul": lambda: "a\x00b",
    "a lone surrogate": lambda: {"k": "\ud800"},
    "a lone surrogate as a key": lambda: {"\udfff": 1},
    "an integer that JavaScript rounds": lambda: 2**60,
    "an object without JSON": NoJson,
    "bytes": lambda: b"bytes",
    "a circle": circle,
    "depth 10 000": deep,
    "a generator": numbers,
    "an async generator": async_numbers,
    "a coroutine": inner,
    "a lock": threading.Lock,
    "50 MB": lambda: "x" * 50_000_000,
    "10 MiB and its quotes": lambda: "x" * (10 * 1024 * 1024),
}


async def test_an_output_that_cannot_be_stored_fails_its_run_without_a_retry(
    bench: Bench,
) -> None:
    made = on_both(lambda payload: OUTPUTS[payload]())
    async with watched(bench, *made):
        rows = [await rows_of(bench, one, OUTPUTS) for one in made]
    for each in rows:
        for name, row in each.items():
            code = "OUTPUT_TOO_LARGE" if " M" in name else "OUTPUT_INVALID"
            told = (row.status, row.attempt, error_of(row)["code"])
            assert told == ("FAILED", 1, code), name
            assert len(error_of(row)["message"]) <= MAX_MESSAGE, name


# How a task behaves ----------------------------------------------------------------------------


async def test_a_task_that_blocks_its_loop_delays_no_def_task_and_is_named(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "runwire.watchdog")

    async def blocking() -> str:
        time.sleep(BLOCKED_FOR)  # noqa: ASYNC251  # what is tested
        return "after all"

    made = defined(blocking)
    async with watched(bench, made):
        run_id = await bench.start(made)
        with anyio.fail_after(BLOCKED_FOR + 30):
            while not (row := await bench.row(run_id)).finished_at:
                await anyio.sleep(0.05)  # polls the database
    assert (row.status, row.output, row.execution) == ("COMPLETED", '"after all"', 1)
    assert f"by run {run_id}" in caplog.text and "in blocking" in caplog.text


async def test_a_task_that_computes_without_end_is_timed_out_and_delays_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(executor.BUDGETS, Interruption.TIME_OUT, 0.3)
    leave = threading.Event()

    def computing() -> None:
        while not leave.is_set():
            sum(range(1_000))

    made = defined(computing, max_duration=0.2)
    try:
        async with watched(bench, made):
            row = await bench.finished(made)
            leave.set()
    finally:
        leave.set()
    assert (row.status, error_of(row)["code"]) == ("TIMED_OUT", "MAX_DURATION")


async def test_a_flood_of_log_lines_is_cut_and_the_rest_is_counted(bench: Bench) -> None:
    lines = 2 * MAX_LINES

    def flooding(payload: str) -> int:
        for number in range(lines):
            logger.info("a line of very many", {"number": number})
        return lines

    made = on_both(flooding)
    async with watched(bench, *made):
        rows = [await bench.finished(one, "") for one in made]
    for row in rows:
        assert (row.status, row.output) == ("COMPLETED", str(lines))
        page = await bench.engine.streams.read(bench.env, row.id, "$log", -1)
        assert page.stream is not None and 0 < page.stream.next_seq <= MAX_LINES + 1
        assert "were dropped" in page.chunks[-1].body


async def test_a_flood_of_metadata_is_folded_and_the_last_value_stays(bench: Bench) -> None:
    times = 11_000

    def flooding(payload: str) -> None:
        for number in range(times):
            metadata.set("number", number)
            metadata.increment("count")

    made = on_both(flooding)
    async with watched(bench, *made):
        rows = [await bench.finished(one, "") for one in made]
    for row in rows:
        assert row.status == "COMPLETED", row.error
        assert await bench.metadata(row.id) == {"number": times - 1, "count": times}


async def test_metadata_that_only_grows_fails_its_run_at_its_limit(bench: Bench) -> None:
    async def growing() -> None:
        for number in range(1_000):
            metadata.append("list", f"{number}" * 60_000)
            await metadata.flush()

    made = defined(growing)
    async with watched(bench, made):
        row = await bench.finished(made)
    assert (row.status, error_of(row)["name"]) == ("FAILED", "InvalidValueError")
    assert "metadata" in error_of(row)["message"]


async def test_a_flood_of_chunks_is_slowed_down_to_what_is_stored(bench: Bench) -> None:
    times = 5_000

    async def flooding() -> None:
        async def source() -> AsyncIterator[int]:
            for number in range(times):
                yield number

        await streams.pipe("flood", source()).wait_until_complete()

    def flooding_too() -> None:
        streams.sync.pipe("flood", iter(range(times))).wait_until_complete()

    made = [defined(flooding), defined(flooding_too)]
    async with watched(bench, *made):
        rows = [await bench.finished(one) for one in made]
    for row in rows:
        assert row.status == "COMPLETED", row.error
        stream = await bench.engine.streams.read(bench.env, row.id, "flood", -1)
        assert [chunk.body for chunk in stream.chunks] == [str(times - 1)]


async def test_a_task_that_leaves_threads_and_asyncio_tasks_behind_ends_all_the_same(
    bench: Bench,
) -> None:
    leave = threading.Event()
    left: list[asyncio.Task[bool]] = []

    async def leaving() -> str:
        threading.Thread(target=leave.wait, args=(10,), daemon=True).start()
        left.append(asyncio.create_task(asyncio.to_thread(leave.wait, 10)))
        return "gone"

    made = defined(leaving)
    async with watched(bench, made):
        row = await bench.finished(made)
        leave.set()
    assert (row.status, row.output) == ("COMPLETED", '"gone"')


async def test_a_task_that_cannot_be_stopped_is_left_behind_when_it_is_canceled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(executor.BUDGETS, Interruption.CANCEL, 0.3)
    begun, leave = threading.Event(), threading.Event()

    def stubborn() -> None:
        begun.set()
        leave.wait(20)

    made = defined(stubborn)
    try:
        async with watched(bench, made):
            run_id = await bench.start(made)
            await until(begun.is_set)
            await bench.engine.runs.cancel(bench.env, run_id)
            assert (await bench.until(run_id)).status == "CANCELED"
            leave.set()
    finally:
        leave.set()
