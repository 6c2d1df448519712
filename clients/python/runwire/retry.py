"""Trying parts of a task again, instead of the whole of it.

    answer = await retry.on_throw(lambda: ask(model), max_attempts=5)
    response = await retry.fetch(
        "https://api.example.com/stories",
        timeout="10s",
        retry={"by_status": {"429": {"strategy": "headers", "reset_header": "x-ratelimit-reset"}}},
    )

What is not retried any more is raised, or returned, as it is. Blocking twins: `retry.sync`.
"""

import inspect
import random
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, TypedDict, TypeVar, Unpack, overload

import anyio
import httpx

from runwire._backoff import next_delay
from runwire._refetch import (
    BackoffStrategy,
    FetchRetry,
    FetchRetryKeywords,
    HeadersStrategy,
    fetch_retry,
)
from runwire._task_options import RetryKeywords, RetryOptions, retry_options
from runwire.durations import Duration, seconds
from runwire.errors import AbortTaskRunError, FencedError

__all__ = [
    "BackoffStrategy",
    "FetchRetry",
    "FetchRetryKeywords",
    "HeadersStrategy",
    "Request",
    "fetch",
    "on_throw",
    "sync",
]

T = TypeVar("T")

# Tells the other side which try this is, from 1.
RETRY_COUNT: Final = "x-retry-count"
# Trying again changes nothing: it was meant to be the end, or the run is another execution's.
_FINAL: Final = (AbortTaskRunError, FencedError)


class Request(TypedDict, total=False):
    """What `retry.fetch` passes on to httpx, under the same names."""

    method: str
    params: Any
    headers: Mapping[str, str]
    json: Any
    content: str | bytes
    data: Mapping[str, Any]
    files: Any
    cookies: Mapping[str, str]
    auth: Any
    follow_redirects: bool


@overload
async def on_throw(
    function: Callable[..., Coroutine[Any, Any, T]], **options: Unpack[RetryKeywords]
) -> T: ...


@overload
async def on_throw(function: Callable[..., T], **options: Unpack[RetryKeywords]) -> T: ...


async def on_throw(function: Callable[..., Any], **options: Unpack[RetryKeywords]) -> Any:
    """Call a function until it does not raise, and return what it returns.

    It may name `attempt` (from 1) and `max_attempts`. Options and defaults are those of a task's
    `retry`. The last error is raised; AbortTaskRunError and FencedError at once.
    """
    chosen, attempt = retry_options(options), 0
    named = _named(function)
    while True:
        attempt += 1
        try:
            result = function(**_told(named, attempt, chosen))
            return await result if inspect.isawaitable(result) else result
        except _FINAL:
            raise
        except Exception:
            delay = next_delay(chosen, attempt, random.random())
            if delay is None:
                raise
        await anyio.sleep(delay)


async def fetch(
    url: str | httpx.URL,
    *,
    timeout: Duration | None = None,
    retry: FetchRetry | FetchRetryKeywords | None = None,
    client: httpx.AsyncClient | None = None,
    **request: Unpack[Request],
) -> httpx.Response:
    """Send a request until its response is no reason to send it again; return the response.

    `timeout` bounds each try, body included. `retry` says what is tried again: `by_status`,
    `timeout` and `connection_error`; by default each 3 times with back-off, of the statuses 408,
    409, 429 and 5xx. Raises httpx.TransportError when no response came in the last try.
    """
    if client is None:
        async with httpx.AsyncClient(timeout=None) as own:
            return await fetch(url, timeout=timeout, retry=retry, client=own, **request)
    rules, limit = fetch_retry(retry), None if timeout is None else seconds(timeout)
    attempt = 0
    while True:
        attempt += 1
        try:
            with _in_time(limit):
                response = await client.request(**_request(url, request, attempt))
            delay = _after(rules, response, attempt)
            if delay is None:
                return response
        except httpx.TransportError as error:
            delay = _after_error(rules, error, attempt)
            if delay is None:
                raise
        await anyio.sleep(delay)


class Sync:
    """The blocking twins, for `def` tasks and scripts."""

    def on_throw(self, function: Callable[..., T], **options: Unpack[RetryKeywords]) -> T:
        """Call a function until it does not raise, as `retry.on_throw` does."""
        chosen, attempt = retry_options(options), 0
        named = _named(function)
        while True:
            attempt += 1
            try:
                return function(**_told(named, attempt, chosen))
            except _FINAL:
                raise
            except Exception:
                delay = next_delay(chosen, attempt, random.random())
                if delay is None:
                    raise
            time.sleep(delay)

    def fetch(
        self,
        url: str | httpx.URL,
        *,
        timeout: Duration | None = None,
        retry: FetchRetry | FetchRetryKeywords | None = None,
        **request: Unpack[Request],
    ) -> httpx.Response:
        """Send a request until its response will do, as `retry.fetch` does."""

        async def fetched() -> httpx.Response:
            return await fetch(url, timeout=timeout, retry=retry, **request)

        return anyio.run(fetched)


sync = Sync()


def _named(function: Callable[..., object]) -> set[str]:
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a function written in C
        return set()
    return {"attempt", "max_attempts"} & set(parameters)


def _told(named: set[str], attempt: int, options: RetryOptions) -> dict[str, int]:
    offered = {"attempt": attempt, "max_attempts": options.max_attempts}
    return {name: offered[name] for name in named}


@contextmanager
def _in_time(limit: float | None) -> Generator[None]:
    try:
        with anyio.fail_after(limit):
            yield
    except TimeoutError as error:
        raise httpx.ReadTimeout(f"no whole response came within {limit:g} s") from error


def _request(url: str | httpx.URL, request: Request, attempt: int) -> dict[str, Any]:
    headers = {**(request.get("headers") or {}), RETRY_COUNT: str(attempt)}
    return {"method": "GET", **request, "url": url, "headers": headers}


def _after(rules: FetchRetry, response: httpx.Response, attempt: int) -> float | None:
    now, chance = datetime.now(UTC), random.random()
    return rules.after_response(response.status_code, response.headers, attempt, now, chance)


def _after_error(rules: FetchRetry, error: httpx.TransportError, attempt: int) -> float | None:
    timed_out = isinstance(error, httpx.TimeoutException)
    return next_delay(
        rules.timeout if timed_out else rules.connection_error, attempt, random.random()
    )
