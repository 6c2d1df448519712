"""HTTP requests to the server: repeated while that is safe, errors as classes."""

import math
import random
import uuid
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import anyio
import httpx
import orjson
from pydantic import TypeAdapter, ValidationError

from runwire._settings import Settings, token_of
from runwire.errors import (
    ApiError,
    RateLimitedError,
    UnreachableError,
    api_error,
)

TRIES: Final = 5
FIRST_WAIT: Final = 1.0  # seconds
LONGEST_WAIT: Final = 30.0
FACTOR: Final = 1.6
TIMEOUT: Final = 30.0

# 409 is a conflict that passes; a lasting one is 422.
_REPEATED: Final = frozenset({408, 409, 429})


class Http:
    """One pool of connections. Every request carries a key, so that its repeats count once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # No bound of its own on connections: each subscription by events may keep one.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        self._pool = httpx.AsyncClient(base_url=settings.api_url, timeout=TIMEOUT, limits=limits)

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> httpx.Response:
        return await self._request("GET", path, params=params)

    async def post(
        self,
        path: str,
        *,
        json: object = None,
        content: bytes | None = None,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        body = content if content is not None or json is None else orjson.dumps(json)
        sent = {"content-type": content_type, **(headers or {})}
        return await self._request("POST", path, content=body, sent=sent)

    async def put(self, path: str, *, json: object) -> httpx.Response:
        sent = {"content-type": "application/json"}
        return await self._request("PUT", path, content=orjson.dumps(json), sent=sent)

    async def delete(self, path: str) -> httpx.Response:
        return await self._request("DELETE", path)

    def stream(
        self, path: str, content: bytes, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[httpx.Response]:
        """Post once and read the answer as it comes, for as long as it takes."""
        return self._pool.stream("POST", path, content=content, headers=headers, timeout=None)

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def __aenter__(self) -> "Http":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        sent: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        fixed = {**(sent or {}), "x-trigger-request-idempotency-key": str(uuid.uuid4())}
        started = anyio.current_time()
        for attempt in range(TRIES):
            token = await token_of(self._settings.access_token)
            headers = {**fixed, "authorization": f"Bearer {token}"}
            last = attempt == TRIES - 1
            try:
                response = await self._pool.request(
                    method, path, params=params, content=content, headers=headers
                )
            except httpx.TransportError as error:
                if last:
                    raise self._unreachable(error, started) from error
                await anyio.sleep(_wait(attempt))
                continue
            if response.is_success:
                return response
            if last or not _may_repeat(response):
                raise _refusal(response)
            await anyio.sleep(_wait(attempt, response))
        raise AssertionError("the last try returns or raises")

    def _unreachable(self, error: httpx.TransportError, started: float) -> UnreachableError:
        return UnreachableError(
            f"{self._settings.api_url} could not be reached: {error or type(error).__name__}",
            after=anyio.current_time() - started,
        )


@dataclass(frozen=True)
class _Words:
    error: str
    code: str = "internal"


_WORDS: Final = TypeAdapter(_Words)


def _may_repeat(response: httpx.Response) -> bool:
    said: str | None = response.headers.get("x-should-retry")
    if said in ("true", "false"):
        return said == "true"
    return response.status_code in _REPEATED or response.status_code >= 500


def _wait(attempt: int, response: httpx.Response | None = None) -> float:
    if response is not None and (asked := _retry_after(response)) is not None:
        return min(asked, LONGEST_WAIT)
    longest = min(LONGEST_WAIT, FIRST_WAIT * FACTOR**attempt)
    return longest * (0.5 + random.random() / 2)


def _retry_after(response: httpx.Response) -> float | None:
    try:
        asked = float(response.headers.get("retry-after", "nan"))
    except ValueError:
        return None
    return asked if math.isfinite(asked) and asked >= 0 else None


def _refusal(response: httpx.Response) -> ApiError:
    said = _said(response)
    error = api_error(response.status_code, said.error, said.code)
    if isinstance(error, RateLimitedError):
        error.retry_after = _retry_after(response)
    return error


def _said(response: httpx.Response) -> _Words:
    try:
        return _WORDS.validate_json(response.content)
    except ValidationError:
        return _Words(f"the server answered {response.status_code}", "internal")
