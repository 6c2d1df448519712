"""Trying parts of a task again: what is retried, how long it waits, and what comes out of it."""

import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type, cast

import anyio
import anyio.lowlevel
import httpx
import pytest

from runwire import AbortTaskRunError, FencedError, InvalidValueError, TaskError, retry
from runwire._refetch import ByHeaders, FetchRetry, fetch_retry, fits
from runwire.tasks import RetryOptions
from tests.support.scripted_http import ScriptedHttp, scripted_http

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 24, 20, tzinfo=UTC)
FAST: dict[str, Any] = {"min_timeout": 0.001, "randomize": False}


@pytest.fixture
def server() -> Iterator[ScriptedHttp]:
    with scripted_http() as started:
        yield started


# on_throw ----------------------------------------------------------------------------------------


class Flaky:
    """Raises so many times."""

    def __init__(
        self, times: int, error: Callable[[], Exception] = lambda: ValueError("no")
    ) -> None:
        self.left = times
        self.error = error
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.left > 0:
            self.left -= 1
            raise self.error()
        return self.calls

    async def later(self) -> int:
        await anyio.lowlevel.checkpoint()
        return self()


async def test_a_function_is_called_until_it_does_not_raise() -> None:
    assert await retry.on_throw(Flaky(2), **FAST) == 3
    assert await retry.on_throw(Flaky(2).later, **FAST) == 3
    assert retry.sync.on_throw(Flaky(2), **FAST) == 3


async def test_the_last_error_is_raised_when_the_attempts_are_used_up() -> None:
    for flaky in (Flaky(9), Flaky(9)):
        with pytest.raises(ValueError, match="no"):
            await retry.on_throw(flaky.later, max_attempts=4, **FAST)
        assert flaky.calls == 4
    blocking = Flaky(9)
    with pytest.raises(ValueError, match="no"):
        retry.sync.on_throw(blocking, max_attempts=2, **FAST)
    assert blocking.calls == 2


@pytest.mark.parametrize(
    "error", [lambda: AbortTaskRunError("no"), lambda: FencedError("no", run_id="run_a")]
)
async def test_an_error_that_ends_the_run_is_raised_at_once(error: Callable[[], Exception]) -> None:
    flaky = Flaky(9, error)
    with pytest.raises(type(error())):
        await retry.on_throw(flaky.later, max_attempts=5, **FAST)
    with pytest.raises(type(error())):
        retry.sync.on_throw(flaky, max_attempts=5, **FAST)
    assert flaky.calls == 2


async def test_the_function_may_name_which_attempt_it_is() -> None:
    told: list[tuple[int, int]] = []

    async def note(attempt: int, max_attempts: int) -> None:
        told.append((attempt, max_attempts))
        raise ValueError

    with pytest.raises(ValueError):
        await retry.on_throw(note, max_attempts=2, **FAST)
    assert told == [(1, 2), (2, 2)]
    with pytest.raises(ZeroDivisionError):
        retry.sync.on_throw(divide, max_attempts=2, **FAST)


def divide(attempt: int) -> float:
    return 1 / (attempt - attempt)


async def test_options_that_are_none_are_refused_before_the_first_call() -> None:
    flaky = Flaky(0)
    with pytest.raises(TaskError, match="attempts"):
        await cast(Any, retry.on_throw)(flaky, attempts=3)
    with pytest.raises(TaskError):
        retry.sync.on_throw(flaky, max_attempts=0)
    assert flaky.calls == 0


async def test_waits_grow_as_those_of_a_task() -> None:
    begun: list[float] = []

    async def failing() -> None:
        begun.append(anyio.current_time())
        raise ValueError

    with pytest.raises(ValueError):
        await retry.on_throw(failing, max_attempts=3, min_timeout=0.05, factor=2, randomize=False)
    assert begun[1] - begun[0] >= 0.049 and begun[2] - begun[1] >= 0.099


def types_flow() -> None:
    async def one() -> int:
        return 1

    async def use() -> None:
        assert_type(await retry.on_throw(one), int)
        assert_type(await retry.on_throw(lambda: "text"), str)
        assert_type(retry.sync.on_throw(lambda: "text"), str)
        assert_type(await retry.fetch("http://localhost"), httpx.Response)

    assert callable(use)


# Whether and when a request is sent again --------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "pattern", "expected"),
    [
        (429, "429", True),
        (428, "429", False),
        (500, "500-599", True),
        (599, "500-599", True),
        (499, "500-599", False),
        (503, "5xx", True),
        (404, "5xx", False),
        (408, "40x", True),
        (418, "40x", False),
        (409, "408,409, 5xx", True),
        (500, "408,409, 5xx", True),
        (410, "408,409, 5xx", False),
        (404, "all", True),
    ],
)
def test_patterns_name_statuses(status: int, pattern: str, expected: bool) -> None:
    assert fits(status, pattern) is expected


def after(rules: FetchRetry, status: int, attempt: int = 1, **headers: str) -> float | None:
    named = httpx.Headers({name.replace("_", "-"): value for name, value in headers.items()})
    return rules.after_response(status, named, attempt, NOW, 0.0)


def test_by_default_what_may_pass_is_sent_three_times() -> None:
    for status in (408, 409, 429, 500, 503):
        assert [after(FetchRetry(), status, attempt) for attempt in (1, 2, 3)] == [1.0, 2.0, None]
    for status in (200, 204, 301, 400, 401, 404):
        assert after(FetchRetry(), status) is None


def test_the_first_pattern_that_fits_says_how_long_to_wait() -> None:
    rules = fetch_retry(
        {
            "by_status": {
                "503": {"strategy": "backoff", "min_timeout": 5, "randomize": False},
                "5xx": {"strategy": "backoff", "max_attempts": 1},
            }
        }
    )
    assert (after(rules, 503), after(rules, 500), after(rules, 429)) == (5.0, None, None)


@pytest.mark.parametrize(
    ("format", "told", "expected"),
    [
        ("unix_timestamp", str(NOW.timestamp() + 30), 30.0),
        ("unix_timestamp_in_ms", str(int(NOW.timestamp() * 1000) + 1500), 1.5),
        ("iso_8601", (NOW + timedelta(minutes=2)).isoformat(), 120.0),
        ("iso_8601", "2026-11-24T20:00:10Z", 10.0),
        ("iso_8601", "2026-11-24T20:00:10", 10.0),
        ("iso_8601_duration_openai_variant", "1m2.5s", 62.5),
        ("iso_8601_duration_openai_variant", "6ms", 0.006),
        ("unix_timestamp", "1", 0.0),  # it has passed
        ("unix_timestamp", "soon", None),
        ("unix_timestamp", "1e400", None),
        ("unix_timestamp", "nan", None),
        ("iso_8601", "tomorrow", None),
        ("iso_8601_duration_openai_variant", "", None),
    ],
)
def test_a_header_tells_when_the_request_may_be_sent_again(
    format: Any, told: str, expected: float | None
) -> None:
    rules = fetch_retry(
        {
            "by_status": {
                "429": {"strategy": "headers", "reset_header": "x-reset", "reset_format": format}
            }
        }
    )
    assert after(rules, 429, x_reset=told) == expected
    assert after(rules, 429) is None


def test_headers_also_tell_that_the_limit_was_not_the_reason_or_that_nothing_is_allowed() -> None:
    strategy = ByHeaders("x-reset", limit_header="x-limit", remaining_header="x-remaining")
    rules = FetchRetry(by_status={"429": strategy})
    later = str(NOW.timestamp() + 30)
    assert after(rules, 429, x_reset=later, x_remaining="0", x_limit="10") == 30.0
    assert after(rules, 429, x_reset=later, x_remaining="3") == 1.0
    assert after(rules, 429, x_reset=later, x_limit="0") is None
    assert after(rules, 429, 9, x_reset=later) == 30.0
    assert after(rules, 429, 10, x_reset=later) is None


@pytest.mark.parametrize(
    "given",
    [
        {"by_code": {}},
        {"by_status": {"teapot": {"strategy": "backoff"}}},
        {"by_status": {"5xx,": {"strategy": "backoff"}}},
        {"by_status": {"429": {"strategy": "guess"}}},
        {"by_status": {"429": {}}},
        {"by_status": {"429": {"strategy": "headers"}}},
        {"by_status": {"429": {"strategy": "headers", "reset_header": "x", "body_filter": {}}}},
        {"by_status": {"429": {"strategy": "headers", "reset_header": "x", "reset_format": "y"}}},
        {"by_status": {"429": {"strategy": "backoff", "attempts": 3}}},
        {"timeout": {"max_attempts": 0}},
        {"connection_error": {"min_timeout": "soon"}},
    ],
)
def test_rules_that_cannot_work_are_refused(given: Any) -> None:
    with pytest.raises(InvalidValueError) as raised:
        fetch_retry(given)
    assert raised.value.code == "option"


# fetch -------------------------------------------------------------------------------------------


async def sent(twin: str, url: str, **options: Any) -> httpx.Response:
    if twin == "blocking":
        return await anyio.to_thread.run_sync(lambda: retry.sync.fetch(url, **options))
    return await retry.fetch(url, **options)


twins = pytest.mark.parametrize("twin", ["async", "blocking"])


@twins
async def test_a_request_is_sent_again_until_its_response_will_do(
    server: ScriptedHttp, twin: str
) -> None:
    server.answer(503)
    server.answer(429, x_ratelimit_reset="1")
    server.answer(200, {"fine": True})
    response = await sent(
        twin,
        server.url,
        method="POST",
        json={"n": 1},
        headers={"x-own": "1"},
        retry={
            "by_status": {
                "429": {"strategy": "headers", "reset_header": "x-ratelimit-reset"},
                "5xx": {"strategy": "backoff", **FAST},
            }
        },
    )
    assert response.json() == {"fine": True}
    assert [asked.headers["x-retry-count"] for asked in server.asked] == ["1", "2", "3"]
    assert {(asked.method, asked.json["n"], asked.headers["x-own"]) for asked in server.asked} == {
        ("POST", 1, "1")
    }


@twins
async def test_a_response_that_is_not_retried_any_more_is_returned(
    server: ScriptedHttp, twin: str
) -> None:
    server.answer(500, {"away": True})
    strategy = {"strategy": "backoff", "max_attempts": 2, **FAST}
    response = await sent(twin, server.url, retry={"by_status": {"500": strategy}})
    assert (response.status_code, response.json(), len(server.asked)) == (500, {"away": True}, 2)


@twins
async def test_a_response_that_does_not_come_in_time_is_waited_for_again(twin: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(httpx.TimeoutException):
            await sent(twin, url, timeout="50ms", retry={"timeout": {"max_attempts": 2, **FAST}})
        for _ in range(2):
            silent.accept()[0].close()
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.accept()


@twins
async def test_a_connection_that_is_refused_is_tried_again(twin: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}"
    with pytest.raises(httpx.ConnectError):
        await sent(twin, url, retry={"connection_error": {"max_attempts": 2, **FAST}})


async def test_a_client_of_the_application_is_used_and_left_open(server: ScriptedHttp) -> None:
    server.answer(200, 1)
    async with httpx.AsyncClient(base_url=server.url, headers={"x-mine": "1"}) as client:
        assert (await retry.fetch("/here", client=client)).json() == 1
        assert (await client.get("/")).json() == 1
    assert [asked.headers["x-mine"] for asked in server.asked] == ["1", "1"]
    assert server.asked[0].path == "/here"


def test_the_objects_are_the_same_as_the_dicts() -> None:
    given = FetchRetry(timeout=RetryOptions(max_attempts=5))
    assert fetch_retry(given) is given
    assert fetch_retry({"timeout": {"max_attempts": 5}}) == given
    assert fetch_retry(None) == FetchRetry()
