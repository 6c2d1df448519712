"""Wait tokens: created, completed from anywhere, read.

Completing one that is completed or has timed out changes nothing and answers as the first time, as
webhooks come twice.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.responses import Response

from runwire.durations import seconds
from runwire.requests import TokenBody
from runwire.values import MAX_PAYLOAD_BYTES, encode
from runwire.wire import ErrorCode, Json
from runwire_engine.new_runs import parse_time, tags_of
from runwire_engine.waitpoints import (
    DEFAULT_KEY_TTL,
    NewWaitpoint,
    Status,
    WaitpointQuery,
    WaitpointRow,
)
from runwire_realtime.api.answer import answer
from runwire_realtime.api.call import Call
from runwire_realtime.api.operation import Operation
from runwire_realtime.api.run_tokens import TOKEN_HEADERS, waitpoint_token
from runwire_realtime.errors import ForbiddenError, NotFoundError, RefusedError
from runwire_realtime.tokens import callback_url

_LONGEST: Final = 366 * 86_400.0


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", alias_generator=to_camel, populate_by_name=True)


class CreatedAnswer(_Body):
    id: str
    is_cached: bool
    # Whoever posts JSON to it completes the token with that.
    url: str


class CompleteBody(_Body):
    """What the run that waits gets: any JSON value."""

    data: Json = None


class Completed(BaseModel):
    success: bool = True


class TokenAnswer(_Body):
    """A wait token; output is JSON text, as official clients expect it."""

    id: str
    url: str
    status: Status
    tags: list[str]
    created_at: datetime
    completed_at: datetime | None = None
    timeout_at: datetime | None = None
    idempotency_key: str | None = None
    idempotency_key_expires_at: datetime | None = None
    output: str | None = None
    output_type: str | None = None
    output_is_error: bool | None = None


class Pagination(BaseModel):
    next: str | None = None
    previous: str | None = None


class TokensAnswer(BaseModel):
    data: list[TokenAnswer]
    pagination: Pagination


class TokensQuery(BaseModel):
    """The filters of a list; several values of one filter are separated by commas."""

    model_config = ConfigDict(extra="ignore")

    status: Annotated[str | None, Field(alias="filter[status]", max_length=100)] = None
    key: Annotated[str | None, Field(alias="filter[idempotencyKey]", max_length=2048)] = None
    tags: Annotated[str | None, Field(alias="filter[tags]", max_length=2600)] = None
    period: Annotated[str | None, Field(alias="filter[createdAt][period]", max_length=40)] = None
    created_from: Annotated[str | None, Field(alias="filter[createdAt][from]", max_length=40)] = (
        None
    )
    created_to: Annotated[str | None, Field(alias="filter[createdAt][to]", max_length=40)] = None
    size: Annotated[int, Field(alias="page[size]", ge=1, le=100)] = 25
    after: Annotated[str | None, Field(alias="page[after]", max_length=128)] = None
    before: Annotated[str | None, Field(alias="page[before]", max_length=128)] = None


async def create(call: Call) -> Response:
    """Create a token; the answer's header carries one that completes it."""
    body = await call.optional_body(TokenBody)
    timeout, timeout_at = _timeout(body.timeout)
    new = NewWaitpoint(
        timeout=timeout,
        timeout_at=timeout_at,
        idempotency_key=body.idempotency_key,
        idempotency_ttl=_span(body.idempotency_key_ttl, "idempotencyKeyTTL") or DEFAULT_KEY_TTL,
        tags=tags_of(body.tags),
    )
    row, is_cached = await call.services.engine.waitpoints.create(call.environment_id, new)
    made = CreatedAnswer(id=row.id, is_cached=is_cached, url=_url(call, row.id))
    return answer(made, headers=waitpoint_token(call, row.id))


async def complete(call: Call) -> Response:
    """Complete a token with data."""
    waitpoint_id = call.id("waitpointId")
    if not call.grant.may_complete_waitpoint(waitpoint_id):
        raise ForbiddenError("the token does not allow completing this wait token")
    body = await call.optional_body(CompleteBody)
    await _complete(call, call.environment_id, waitpoint_id, body.data)
    return answer(Completed())


async def call_back(call: Call) -> Response:
    """Complete a token with the body of a webhook; what is no JSON counts as {}."""
    waitpoint_id = call.id("waitpointId")
    environment_id = call.services.tokens.verify_callback(call.id("hash"), waitpoint_id)
    text = await call.read()
    try:
        data: Json = orjson.loads(text)
    except orjson.JSONDecodeError:
        data = {}
    await _complete(call, environment_id, waitpoint_id, data)
    return answer(Completed())


async def retrieve(call: Call) -> Response:
    """Return a token and what it was completed with."""
    waitpoint_id = call.id("waitpointId")
    if not call.grant.may_read_waitpoint(waitpoint_id):
        raise ForbiddenError("the token does not allow reading this wait token")
    row = await call.services.engine.waitpoints.retrieve(call.environment_id, waitpoint_id)
    if row is None:
        raise NotFoundError("there is no such wait token")
    return answer(_token(call, row, whole=True))


async def list_tokens(call: Call) -> Response:
    """Return a page of tokens, newest first."""
    query = call.query(TokensQuery)
    if query.after is not None and query.before is not None:
        raise RefusedError(ErrorCode.MALFORMED, "give page[after] or page[before], not both")
    waitpoints = call.services.engine.waitpoints
    wanted = WaitpointQuery(
        status=_statuses(query.status),
        idempotency_key=query.key,
        tags=tuple(tag for tag in (query.tags or "").split(",") if tag),
        created_from=_created_from(query),
        created_to=None if query.created_to is None else _time(query.created_to),
        size=query.size + 1,
        after=await _place(call, query.after),
        before=await _place(call, query.before),
    )
    rows = await waitpoints.list(call.environment_id, wanted)
    more = len(rows) > query.size
    backwards = query.before is not None
    rows = rows[1:] if more and backwards else rows[: query.size]
    older = more or backwards
    newer = (more and backwards) or query.after is not None
    page = Pagination(
        next=rows[-1].id if rows and older else None,
        previous=rows[0].id if rows and newer else None,
    )
    return answer(TokensAnswer(data=[_token(call, row) for row in rows], pagination=page))


async def _complete(call: Call, environment_id: int, waitpoint_id: str, data: Json) -> None:
    body = None if data is None else encode(data, what="data", limit=MAX_PAYLOAD_BYTES)
    await call.services.engine.waitpoints.complete(environment_id, waitpoint_id, body)


async def _place(call: Call, cursor: str | None) -> tuple[datetime, str] | None:
    """Return where a page begins: a cursor is the id of a token."""
    if cursor is None:
        return None
    row = await call.services.engine.waitpoints.retrieve(call.environment_id, cursor)
    if row is None:
        raise RefusedError(ErrorCode.MALFORMED, "this is not a cursor of a list of wait tokens")
    return row.created_at, row.id


def _url(call: Call, waitpoint_id: str) -> str:
    base = str(call.request.base_url).rstrip("/")
    hash = call.services.tokens.callback(call.environment_id, waitpoint_id)
    return callback_url(base, hash, waitpoint_id)


def _token(call: Call, row: WaitpointRow, *, whole: bool = False) -> TokenAnswer:
    shown = row.output if row.error is None else row.error
    decided = whole and row.ok is not None
    return TokenAnswer(
        id=row.id,
        url=_url(call, row.id),
        status=row.status,
        tags=list(row.tags),
        created_at=row.created_at,
        completed_at=row.completed_at,
        timeout_at=row.timeout_at,
        idempotency_key=row.idempotency_key,
        idempotency_key_expires_at=row.idempotency_expires_at,
        output=shown if decided else None,
        output_type=row.output_type if decided else None,
        output_is_error=not row.ok if decided else None,
    )


def _timeout(timeout: str | float | None) -> tuple[float | None, datetime | None]:
    """Return a span, or the time that a text with a date is; neither: it never times out."""
    if isinstance(timeout, str) and timeout[:4].isdigit() and "-" in timeout:
        return None, parse_time(timeout, "timeout")
    return _span(timeout, "timeout"), None


def _span(value: str | float | None, what: str) -> float | None:
    if value is None:
        return None
    span = seconds(value)
    if not 0 < span <= _LONGEST:
        raise RefusedError(ErrorCode.MALFORMED, f"{what} must be more than 0 and at most 366 days")
    return span


def _statuses(text: str | None) -> tuple[Status, ...]:
    known: dict[str, Status] = {status: status for status in get_args(Status)}
    named = [name for name in (text or "").split(",") if name]
    unknown = [name for name in named if name not in known]
    if unknown:
        raise RefusedError(
            ErrorCode.MALFORMED, f"filter[status]: {unknown[0][:40]!r} is no status of a wait token"
        )
    return tuple(known[name] for name in named)


def _created_from(query: TokensQuery) -> datetime | None:
    if query.period is not None:
        return datetime.now(UTC) - timedelta(seconds=_span(query.period, "period") or 0)
    return None if query.created_from is None else _time(query.created_from)


def _time(text: str) -> datetime:
    if text.isascii() and text.isdigit() and len(text) <= 14:
        return datetime.fromtimestamp(int(text) / 1000, UTC)
    return parse_time(text, "filter[createdAt]")


OPERATIONS: Final = (
    Operation(
        "POST",
        "/api/v1/waitpoints/tokens",
        "createWaitToken",
        "Create a wait token",
        create,
        CreatedAnswer,
        credential="key",
        body=TokenBody,
        body_required=False,
        answer_headers=TOKEN_HEADERS,
        errors=(408, 413, 415),
    ),
    Operation(
        "GET",
        "/api/v1/waitpoints/tokens",
        "listWaitTokens",
        "List wait tokens",
        list_tokens,
        TokensAnswer,
        credential="key",
        query=TokensQuery,
    ),
    Operation(
        "GET",
        "/api/v1/waitpoints/tokens/{waitpointId}",
        "retrieveWaitToken",
        "Retrieve a wait token",
        retrieve,
        TokenAnswer,
        scopes="read:waitpoints:<waitpointId>",
        errors=(404,),
    ),
    Operation(
        "POST",
        "/api/v1/waitpoints/tokens/{waitpointId}/complete",
        "completeWaitToken",
        "Complete a wait token",
        complete,
        Completed,
        scopes="write:waitpoints:<waitpointId>",
        body=CompleteBody,
        body_required=False,
        errors=(404, 408, 413, 415),
    ),
    Operation(
        "POST",
        "/api/v1/waitpoints/tokens/{waitpointId}/callback/{hash}",
        "callBackWaitToken",
        "Complete a wait token by its address",
        call_back,
        Completed,
        credential="open",
        errors=(401, 404, 408, 413, 415),
    ),
)
