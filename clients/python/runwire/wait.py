"""Waiting inside a run, durably: its slot is free meanwhile, however long it takes.

    await wait.for_("3d")
    await wait.until(datetime(2027, 1, 1, tzinfo=UTC))

    token = await wait.create_token(timeout="1h")          # give token.url to a webhook, or
    result = await wait.for_token(token)                   # token.public_access_token to a browser
    if result.ok:
        print(result.output)

The code goes on where it was. If its worker has gone away in the meantime, another one runs the
function again up to that point, without doing again what the run did through runwire: the how-to
on waits says what that means for your own code. Blocking twins: `runwire.sync.wait`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar, cast
from urllib.parse import quote

import orjson

from runwire import _context, _default, idempotency_keys
from runwire._client import Client
from runwire._context import CreatedToken, TokenRequest, WaitResult
from runwire._context import require as _require
from runwire._default import Blocking
from runwire._run import RunError, run_error
from runwire.durations import Duration, seconds
from runwire.errors import InvalidValueError, WaitTimeoutError
from runwire.requests import MAX_TAGS
from runwire.values import MAX_PAYLOAD_BYTES, encode

__all__ = [
    "SyncWait",
    "Token",
    "TokenResult",
    "TokenState",
    "Wait",
    "complete_token",
    "create_token",
    "for_",
    "for_token",
    "list_tokens",
    "retrieve_token",
    "until",
]

T = TypeVar("T")

LONGEST = 366 * 86_400.0
DEFAULT_TIMEOUT = 600.0
DEFAULT_KEY_TTL = 3_600.0


@dataclass(frozen=True)
class Token:
    """What somebody outside of the run completes, once."""

    id: str
    # Whether an idempotency key led to an earlier token; it may be completed already.
    is_cached: bool
    # Whoever posts JSON to it completes the token. None in a worker without RUNWIRE_SECRET.
    url: str | None
    # Completes just this token, for an hour: for a browser.
    public_access_token: str | None


@dataclass(frozen=True)
class TokenResult(Generic[T]):
    """How a token was decided: completed with `output`, or (not `ok`) timed out."""

    id: str
    ok: bool
    output: T | None = None
    error: RunError | None = None

    def unwrap(self) -> T:
        """Return the output. Raises WaitTimeoutError when nobody completed the token in time."""
        if not self.ok:
            message = self.error.message if self.error else "nobody completed the token in time"
            raise WaitTimeoutError(message, token_id=self.id)
        return cast(T, self.output)


@dataclass(frozen=True)
class TokenState:
    """A token as it is now. `status`: WAITING, COMPLETED or TIMED_OUT."""

    id: str
    url: str
    status: str
    tags: tuple[str, ...]
    created_at: datetime
    completed_at: datetime | None
    timeout_at: datetime | None
    idempotency_key: str | None
    # Of a completed token that was retrieved by itself.
    output: Any = None


async def for_(duration: Duration) -> None:
    """Wait for a duration: seconds, timedelta or text like "1h30m", at most 366 days.

    Raises NotInRunError outside of a run.
    """
    await _require("wait.for_").wait_until(_span(duration))


async def until(time: datetime) -> None:
    """Wait until a time; one that has passed is no wait. A time without a zone is this machine's.

    Raises NotInRunError outside of a run.
    """
    await _require("wait.until").wait_until(_time(time))


async def for_token(token: Token | str) -> TokenResult[Any]:
    """Wait until a token is completed or times out; one that is already is no wait.

    Raises NotInRunError outside of a run, InvalidValueError where there is no such token.
    """
    id = _id(token)
    return _result(id, await _require("wait.for_token").wait_for_token(id))


class Wait:
    """Tokens to wait for, over one client."""

    def __init__(self, connect: Callable[[], Client], client: Callable[[], Client | None]) -> None:
        self._connect = connect
        self._client = client

    async def create_token(
        self,
        *,
        timeout: Duration | datetime | None = DEFAULT_TIMEOUT,
        idempotency_key: str | Sequence[str] | None = None,
        idempotency_key_ttl: Duration = DEFAULT_KEY_TTL,
        tags: str | Sequence[str] = (),
    ) -> Token:
        """Create a token, in a run or anywhere else.

        It times out after ten minutes unless told otherwise; None: never. The same idempotency key
        leads to the same token for an hour.
        """
        request = _request(timeout, idempotency_key, idempotency_key_ttl, tags)
        client = self._client()
        runtime = _context.current() if client is None else None
        if runtime is not None:
            return _token(await runtime.create_token(request))
        client = client or self._connect()
        response = await client.http.post("/api/v1/waitpoints/tokens", json=_body(request))
        made = response.json()
        token = response.headers.get("x-trigger-jwt")
        return Token(made["id"], made["isCached"], made["url"], token)

    async def complete_token(self, token: Token | str, data: object = None) -> None:
        """Complete a token with any JSON value; one that is completed or timed out stays so."""
        body = None if data is None else encode(data, what="data", limit=MAX_PAYLOAD_BYTES)
        client = self._client()
        runtime = _context.current() if client is None else None
        if runtime is not None:
            await runtime.complete_token(_id(token), body)
            return
        client = client or self._connect()
        sent = {} if body is None else {"data": orjson.loads(body)}
        await client.http.post(f"{_path(token)}/complete", json=sent)

    async def retrieve_token(self, token: Token | str) -> TokenState:
        """Return a token as it is now. Raises NotFoundError."""
        response = await self._connect().http.get(_path(token))
        return _state(response.json())

    async def list_tokens(
        self,
        *,
        status: str | Sequence[str] = (),
        tags: str | Sequence[str] = (),
        idempotency_key: str | None = None,
        limit: int = 25,
    ) -> list[TokenState]:
        """Return the newest tokens, at most 100, of these statuses and with any of these tags."""
        given = {
            "filter[status]": ",".join(_several(status)),
            "filter[tags]": ",".join(_several(tags)),
            "filter[idempotencyKey]": idempotency_key,
            "page[size]": str(limit),
        }
        params = {name: value for name, value in given.items() if value}
        response = await self._connect().http.get("/api/v1/waitpoints/tokens", params=params)
        return [_state(each) for each in response.json()["data"]]


class SyncWait:
    """Waiting, and tokens to wait for, in code without a loop."""

    def __init__(
        self, owner: Callable[[], Blocking], chosen: Callable[[], Blocking | None]
    ) -> None:
        self._owner = owner
        # Who asks: None while the executing run goes first.
        self._chosen = chosen
        self._wait = Wait(lambda: owner().client, lambda: owner().client)

    def for_(self, duration: Duration) -> None:
        """Wait for a duration, as `wait.for_` does."""
        _require("wait.for_").wait_until_blocking(_span(duration))

    def until(self, time: datetime) -> None:
        """Wait until a time, as `wait.until` does."""
        _require("wait.until").wait_until_blocking(_time(time))

    def for_token(self, token: Token | str) -> TokenResult[Any]:
        """Wait until a token is completed or times out, as `wait.for_token` does."""
        id = _id(token)
        return _result(id, _require("wait.for_token").wait_for_token_blocking(id))

    def create_token(
        self,
        *,
        timeout: Duration | datetime | None = DEFAULT_TIMEOUT,
        idempotency_key: str | Sequence[str] | None = None,
        idempotency_key_ttl: Duration = DEFAULT_KEY_TTL,
        tags: str | Sequence[str] = (),
    ) -> Token:
        """Create a token, as `wait.create_token` does."""
        runtime = _context.current() if self._chosen() is None else None
        if runtime is not None:
            request = _request(timeout, idempotency_key, idempotency_key_ttl, tags)
            return _token(runtime.create_token_blocking(request))
        return self._owner().run(
            self._wait.create_token(
                timeout=timeout,
                idempotency_key=idempotency_key,
                idempotency_key_ttl=idempotency_key_ttl,
                tags=tags,
            )
        )

    def complete_token(self, token: Token | str, data: object = None) -> None:
        """Complete a token, as `wait.complete_token` does."""
        runtime = _context.current() if self._chosen() is None else None
        if runtime is not None:
            body = None if data is None else encode(data, what="data", limit=MAX_PAYLOAD_BYTES)
            runtime.complete_token_blocking(_id(token), body)
            return
        self._owner().run(self._wait.complete_token(token, data))

    def retrieve_token(self, token: Token | str) -> TokenState:
        """Return a token as it is now. Raises NotFoundError."""
        return self._owner().run(self._wait.retrieve_token(token))

    def list_tokens(
        self,
        *,
        status: str | Sequence[str] = (),
        tags: str | Sequence[str] = (),
        idempotency_key: str | None = None,
        limit: int = 25,
    ) -> list[TokenState]:
        """Return the newest tokens, as `wait.list_tokens` does."""
        return self._owner().run(
            self._wait.list_tokens(
                status=status, tags=tags, idempotency_key=idempotency_key, limit=limit
            )
        )


def _request(
    timeout: Duration | datetime | None,
    idempotency_key: str | Sequence[str] | None,
    idempotency_key_ttl: Duration,
    tags: str | Sequence[str],
) -> TokenRequest:
    listed = _several(tags)
    if len(listed) > MAX_TAGS:
        raise InvalidValueError(f"a wait token has at most {MAX_TAGS} tags", code="tags")
    key = None if idempotency_key is None else idempotency_keys.create(idempotency_key)
    at = _time(timeout) if isinstance(timeout, datetime) else None
    span = None if timeout is None or isinstance(timeout, datetime) else _positive(timeout)
    return TokenRequest(span, at, key, _positive(idempotency_key_ttl), listed)


def _body(request: TokenRequest) -> dict[str, object]:
    timeout = request.timeout if request.timeout_at is None else request.timeout_at.isoformat()
    body: dict[str, object] = {}
    if timeout is not None:
        body["timeout"] = timeout
    if request.idempotency_key is not None:
        body["idempotencyKey"] = request.idempotency_key
        body["idempotencyKeyTTL"] = request.idempotency_key_ttl
    if request.tags:
        body["tags"] = list(request.tags)
    return body


def _token(created: CreatedToken) -> Token:
    return Token(created.id, created.is_cached, created.url, created.public_access_token)


def _result(id: str, result: WaitResult) -> TokenResult[Any]:
    if not result.ok:
        return TokenResult(id, False, error=run_error(result.error or {"message": "it timed out"}))
    return TokenResult(id, True, None if result.output is None else orjson.loads(result.output))


def _state(body: dict[str, Any]) -> TokenState:
    output = body.get("output")
    return TokenState(
        id=body["id"],
        url=body["url"],
        status=body["status"],
        tags=tuple(body["tags"]),
        created_at=datetime.fromisoformat(body["createdAt"]),
        completed_at=_date(body.get("completedAt")),
        timeout_at=_date(body.get("timeoutAt")),
        idempotency_key=body.get("idempotencyKey"),
        output=None if output is None or body.get("outputIsError") else orjson.loads(output),
    )


def _date(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _id(token: Token | str) -> str:
    return token if isinstance(token, str) else token.id


def _path(token: Token | str) -> str:
    return f"/api/v1/waitpoints/tokens/{quote(_id(token), safe='')}"


def _several(values: str | Sequence[str]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)


def _span(duration: Duration) -> float:
    span = seconds(duration)
    if not 0 <= span <= LONGEST:
        raise InvalidValueError("a wait lasts 0 seconds to 366 days", code="duration")
    return span


def _positive(duration: Duration) -> float:
    span = _span(duration)
    if span == 0:
        raise InvalidValueError("a token lives for more than 0 seconds", code="duration")
    return span


def _time(time: datetime) -> datetime:
    return time if time.tzinfo is not None else time.astimezone()


def _no_client() -> None:
    """Say that the executing run goes first, and the environment decides elsewhere."""


_default_wait = Wait(_default.client, _no_client)
create_token = _default_wait.create_token
complete_token = _default_wait.complete_token
retrieve_token = _default_wait.retrieve_token
list_tokens = _default_wait.list_tokens
sync = SyncWait(_default.blocking, _no_client)
