"""Logs of runs: bounded, in order, never in the way."""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import anyio
import anyio.to_thread
import orjson
import pytest

from runwire import logger
from runwire._context import require
from runwire._stream_keys import LOG_KEY
from runwire_engine import log_writer
from runwire_engine.captured_logs import RunHandler
from runwire_engine.run_row import RunRow
from runwire_engine.streams import Append
from tests.support.recording_run import executing
from tests.support.working import Bench, defined, error_of, opened_bench

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        yield opened


async def lines(bench: Bench, run: RunRow) -> list[tuple[str, str, Mapping[str, Any]]]:
    stored = await bench.chunks(run.id, LOG_KEY)
    return [(line["level"], line["message"], line.get("attributes", {})) for line in stored]


async def test_lines_are_stored_in_order_with_their_attempt_and_are_no_news_of_the_run(
    bench: Bench,
) -> None:
    async def logging_task() -> None:
        logger.debug("too little")
        logger.info("first", {"order": 7})
        logger.log("second")
        await asyncio.sleep(0)
        logger.warn("third", {"nested": {"list": [1, 2]}})
        logger.error("fourth")

    made = defined(logging_task)
    async with bench.worker(made):
        row = await bench.finished(made)
    assert await lines(bench, row) == [
        ("info", "first", {"order": 7}),
        ("log", "second", {}),
        ("warn", "third", {"nested": {"list": [1, 2]}}),
        ("error", "fourth", {}),
    ]
    page = await bench.engine.streams.read(bench.env, row.id, LOG_KEY)
    assert page.stream is not None and page.stream.eof_reason == "completed"
    assert {chunk.attempt for chunk in page.chunks} == {1}
    # Created, claimed, ended: no revision tells of the log, and the run does not list it.
    assert row.revision == 3 and row.stream_keys == ()


async def test_the_level_of_a_worker_decides_what_is_stored(bench: Bench) -> None:
    async def logging_all() -> None:
        logger.debug("a")
        logger.info("b")
        logger.warning("c")

    made = defined(logging_all)
    async with bench.worker(made, run_log_level="debug"):
        everything = await bench.finished(made)
    async with bench.worker(made, run_log_level="warn"):
        little = await bench.finished(made)
    assert [message for _, message, _ in await lines(bench, everything)] == ["a", "b", "c"]
    assert [message for _, message, _ in await lines(bench, little)] == ["c"]


async def test_what_logging_is_told_inside_a_run_is_in_its_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    ours = logging.getLogger("an.application")

    async def with_logging(payload: int) -> None:
        ours.info("info %d", payload)
        await asyncio.to_thread(ours.warning, "from a thread", extra={"order": payload})
        logging.getLogger("runwire.worker").warning("of Runwire itself")

    def blocking_with_logging(payload: int) -> None:
        try:
            raise ValueError("it broke")
        except ValueError:
            ours.exception("failed %s", payload)

    first, second = defined(with_logging), defined(blocking_with_logging)
    with caplog.at_level(logging.INFO):
        async with bench.worker(first, second):
            row, other = await bench.finished(first, 1), await bench.finished(second, 2)
            ours.info("outside of any run")
    assert await lines(bench, row) == [
        ("info", "info 1", {}),
        ("warn", "from a thread", {"order": 1}),
    ]
    (failed,) = await lines(bench, other)
    assert failed[:2] == ("error", "failed 2") and "ValueError: it broke" in failed[2]["exception"]
    assert (await bench.chunks(row.id, LOG_KEY))[0]["logger"] == "an.application"
    assert not any(type(h).__name__ == "RunHandler" for h in logging.getLogger().handlers)


async def test_a_record_whose_arguments_do_not_fit_is_still_a_line() -> None:
    record = logging.LogRecord("app", logging.INFO, __file__, 1, "not %d", ("a number",), None)
    with executing() as run:
        RunHandler().handle(record)
    assert run.told == [("log", "info", "not %d", {})]


async def test_the_log_of_an_attempt_that_failed_is_there_and_the_next_one_goes_on(
    bench: Bench,
) -> None:
    async def failing() -> None:
        attempt = require("this test").ctx.attempt.number
        logger.info(f"attempt {attempt}")
        if attempt == 1:
            raise RuntimeError("it broke")

    made = defined(failing, retry={"max_attempts": 2, "min_timeout": 0.01, "randomize": False})
    async with bench.worker(made):
        row = await bench.finished(made)
    page = await bench.engine.streams.read(bench.env, row.id, LOG_KEY)
    said = [(chunk.attempt, orjson.loads(chunk.body)["message"]) for chunk in page.chunks]
    assert said == [(1, "attempt 1"), (2, "attempt 2")]


async def test_a_flood_of_lines_neither_fails_nor_holds_up_the_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "MAX_LINES", 50)

    async def flooding() -> str:
        for number in range(20_000):
            logger.info(f"line {number}")
        return "still here"

    made = defined(flooding)
    async with bench.worker(made):
        row = await bench.finished(made)
    assert row.output == '"still here"'
    said = await lines(bench, row)
    assert [message for _, message, _ in said[:-1]] == [f"line {at}" for at in range(50)]
    level, _, attributes = said[-1]
    assert (level, attributes) == ("warn", {"dropped": 19_950})


async def test_all_attempts_share_the_bounds_of_a_log(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "MAX_LINES", 5)

    async def retried() -> None:
        for number in range(4):
            logger.info(f"line {number}")
        raise RuntimeError("it broke")

    made = defined(retried, retry={"max_attempts": 2, "min_timeout": 0.01, "randomize": False})
    async with bench.worker(made):
        row = await bench.finished(made)
    said = await lines(bench, row)
    assert len(said) <= 5 + 2
    assert said[-1][2]["dropped"] >= 2


async def test_what_cannot_be_logged_is_told_as_well_as_it_can_be(bench: Bench) -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    async def odd() -> None:
        wrong: Any = Odd()
        logger.info("nul \x00 and surrogate \ud800", {"nan": float("nan"), "fine": 1})
        logger.info("x" * 100_000)
        logger.info("large", {"text": "x" * 100_000})
        logger.info(wrong, {"odd": wrong})

    made = defined(odd)
    async with bench.worker(made):
        row = await bench.finished(made)
    nul, long, large, strange = await lines(bench, row)
    assert nul[1] == "nul \ufffd and surrogate ?" and nul[2] == {"nan": "nan", "fine": 1}
    assert len(long[1]) < 20_000 and long[1].endswith("more characters)")
    assert large[2]["$names"] == ["text"]
    assert "cannot be shown" in strange[1] and "cannot be shown" in strange[2]["odd"]


async def test_a_log_whose_database_refuses_it_does_not_fail_the_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def logging_only() -> str:
        logger.info("lost")
        return "done"

    made = defined(logging_only)
    async with bench.worker(made):
        real = Append.__init__

        def refuse(self: Append, *given: Any, **named: Any) -> None:
            real(self, *given, **named)
            if self.key == LOG_KEY:
                raise RuntimeError("refused")

        monkeypatch.setattr(Append, "__init__", refuse)
        row = await bench.finished(made)
    assert (row.status, row.output) == ("COMPLETED", '"done"')


async def test_lines_of_many_threads_are_all_there(bench: Bench) -> None:
    async def threaded() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(anyio.to_thread.run_sync, several, number)

    def several(number: int) -> None:
        for at in range(50):
            logger.info(f"{number} {at}", {"thread": threading.current_thread().name})

    made = defined(threaded)
    async with bench.worker(made):
        row = await bench.finished(made)
    said = [message for _, message, _ in await lines(bench, row)]
    assert sorted(said) == sorted(f"{number} {at}" for number in range(4) for at in range(50))
    for number in range(4):
        own = [message for message in said if message.startswith(f"{number} ")]
        assert own == [f"{number} {at}" for at in range(50)]


async def test_a_run_that_logs_nothing_has_no_log(bench: Bench) -> None:
    async def silent() -> None: ...

    made = defined(silent)
    async with bench.worker(made):
        row = await bench.finished(made)
    assert await bench.engine.streams.streams_of(bench.env, row.id) == []


async def test_nobody_appends_to_a_log_but_its_run(bench: Bench) -> None:
    async def appending() -> None:
        await require("this test").stream_append("self", LOG_KEY, ['"forged"'])

    made = defined(appending)
    async with bench.worker(made):
        row = await bench.finished(made)
    assert "is reserved" in error_of(row)["message"]


async def test_outside_of_a_run_lines_go_to_logging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        logger.info("plain")
        logger.error("with", {"a": 1})
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("runwire.task", "INFO", "plain"),
        ("runwire.task", "ERROR", "with {'a': 1}"),
    ]
