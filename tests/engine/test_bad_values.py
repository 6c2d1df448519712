"""Whatever a task writes or raises, its run ends once, with a code, and others do not notice."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

import anyio
import orjson
import pytest

from runwire import metadata, streams, tags
from runwire_engine.failures import MAX_MESSAGE, MAX_STACK
from tests.support.history import check, read_ledger
from tests.support.working import Bench, defined, error_of, opened_bench

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        yield opened


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
    async with bench.worker(made) as worker:
        before = worker.worker_id
        ids = [await bench.start(made, {"write": w, "value": v}) for w, v in cases]
        rows = [await bench.until(run_id) for run_id in ids]
        assert worker.worker_id == before
    for case, row in zip(cases, rows, strict=True):
        error = error_of(row)
        assert (row.status, row.attempt <= 2) == ("FAILED", True), case
        assert (error["name"], error["code"]) == ("InvalidValueError", "TASK_ERROR"), case
        assert len(error["message"]) <= MAX_MESSAGE, case
        assert await bench.metadata(row.id) is None and await bench.chunks(row.id, "log") == []
    assert check(await read_ledger(bench.database_url, bench.env)) == []


@pytest.mark.parametrize("tag", ["", "a\x00b", "\ud800", "x" * 10_000_000])
async def test_a_tag_that_cannot_be_fails_its_run(bench: Bench, tag: str) -> None:
    async def tagging() -> None:
        await tags.add([tag])

    made = defined(tagging, retry={"max_attempts": 2, "min_timeout": 0.01})
    async with bench.worker(made):
        row = await bench.finished(made)
    assert (row.status, row.tags, error_of(row)["code"]) == ("FAILED", (), "TASK_ERROR")
    assert len(error_of(row)["message"]) <= MAX_MESSAGE


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
}


@pytest.mark.parametrize("in_a_thread", [False, True], ids=["on the loop", "in a thread"])
async def test_whatever_a_task_raises_its_run_fails_with_an_error_that_can_be_stored(
    bench: Bench, in_a_thread: bool
) -> None:
    async def on_the_loop(payload: str) -> None:
        raise ERRORS[payload]()

    def blocking(payload: str) -> None:
        raise ERRORS[payload]()

    made = defined(blocking if in_a_thread else on_the_loop)
    async with bench.worker(made, concurrency=len(ERRORS)) as worker:
        before = worker.worker_id
        ids = {name: await bench.start(made, name) for name in ERRORS}
        rows = {name: await bench.until(run_id) for name, run_id in ids.items()}
        assert worker.worker_id == before
        with anyio.fail_after(60):
            while worker.held:
                await anyio.sleep(0.01)
    for name, row in rows.items():
        error = error_of(row)
        assert (row.status, error["code"]) == ("FAILED", "TASK_ERROR"), name
        assert len(orjson.dumps(error)) < 2 * (MAX_MESSAGE + MAX_STACK), name
