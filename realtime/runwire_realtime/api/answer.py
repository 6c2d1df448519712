"""HTTP answers: JSON bodies, and one place where an error becomes a status and a sentence."""

import logging
import random
from collections.abc import Mapping
from typing import Final

import orjson
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from runwire._problems import first_problem
from runwire.errors import FencedError, InvalidValueError
from runwire.wire import ErrorCode, Json
from runwire_engine.errors import (
    BatchNotFoundError,
    DatabaseUnavailableError,
    DataRefusedError,
    NoOverrideError,
    NotDelayedError,
    QueueNotFoundError,
    RunFinalError,
    RunNotFoundError,
    ScheduleDeclaredError,
    ScheduleNotFoundError,
    StreamFullError,
    TokenUsedError,
    TransitionRefusedError,
    UnknownTaskError,
    WaitpointNotFoundError,
)
from runwire_realtime.errors import RefusedError, ScopeError, UnauthorizedError

logger = logging.getLogger("runwire.api")

_LONGEST_RETRY: Final = 5  # seconds
_STATUS_CODES: Final = {
    400: ErrorCode.MALFORMED,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.MALFORMED,
    413: ErrorCode.TOO_LARGE,
}


def answer(
    body: BaseModel | Json, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a JSON response; absent fields of a model are left out, never sent as null."""
    if isinstance(body, BaseModel):
        body = body.model_dump(mode="json", by_alias=True, exclude_none=True)
    return Response(
        orjson.dumps(body),
        status_code=status,
        media_type="application/json",
        headers={"cache-control": "no-store", **(headers or {})},
    )


def refusal(error: Exception) -> Response:
    """Return the response that tells a caller what was wrong, and nothing about our insides."""
    refused = refused_by(error)
    headers: dict[str, str] = {}
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refused.status == 503:
        # Spread out: whoever was refused together need not come back together.
        headers["retry-after"] = str(random.randint(1, _LONGEST_RETRY))
    if refused.retry is not None:
        headers["x-should-retry"] = "true" if refused.retry else "false"
    if isinstance(error, HTTPException):
        headers.update(error.headers or {})
    return answer({"error": refused.message, "code": refused.code}, refused.status, headers)


def refused_by(error: Exception) -> RefusedError:
    """Return any error as a refusal; one that nobody foresaw is logged and told as internal."""
    match error:
        case RefusedError():
            return error
        case ValidationError():
            return RefusedError(ErrorCode.MALFORMED, first_problem(error, at="body"))
        case InvalidValueError():
            large = error.code == "too_large"
            return RefusedError(ErrorCode.TOO_LARGE if large else ErrorCode.MALFORMED, str(error))
        case ScopeError() | DataRefusedError() | NoOverrideError():
            return RefusedError(ErrorCode.MALFORMED, str(error))
        case TokenUsedError():
            return UnauthorizedError("the one-time token was used up")
        case WaitpointNotFoundError():
            return RefusedError(ErrorCode.NOT_FOUND, str(error))
        case UnknownTaskError() | RunNotFoundError() | BatchNotFoundError() | QueueNotFoundError():
            return RefusedError(ErrorCode.NOT_FOUND, str(error))
        case ScheduleNotFoundError():
            return RefusedError(ErrorCode.NOT_FOUND, str(error))
        case ScheduleDeclaredError() | NotDelayedError():
            return RefusedError(ErrorCode.CONFLICT, str(error))
        case RunFinalError() | TransitionRefusedError() | FencedError():
            return RefusedError(ErrorCode.CONFLICT, str(error))
        case StreamFullError():
            return RefusedError(ErrorCode.TOO_LARGE, str(error))
        case DatabaseUnavailableError():
            logger.warning("a request could not be served: %s", error)
            return RefusedError(ErrorCode.UNAVAILABLE, "the database is busy; try again shortly")
        case HTTPException():
            code = _STATUS_CODES.get(error.status_code, ErrorCode.MALFORMED)
            return RefusedError(code, error.detail, status=error.status_code)
        case _:
            logger.error("a request failed", exc_info=error)
            return RefusedError(ErrorCode.INTERNAL, "the server failed; the failure was logged")


def unauthorized(message: str) -> Response:
    return refusal(UnauthorizedError(message))
