"""POST /api/v1/auth/public-tokens: mint a token for a browser. API keys only."""

import time
from typing import Final

from pydantic import BaseModel
from starlette.responses import Response

from runwire.durations import seconds
from runwire.requests import PublicTokenBody
from runwire.wire import ErrorCode
from runwire_realtime.api.answer import answer
from runwire_realtime.api.call import Call
from runwire_realtime.api.operation import Operation
from runwire_realtime.errors import RefusedError
from runwire_realtime.scope import Action, parse_scopes
from runwire_realtime.tokens import DEFAULT_LIFETIME, MAX_FIELDS

_TRIGGERS: Final[frozenset[Action]] = frozenset({"trigger", "batchTrigger"})
# A number of seconds this large is a date, not a span.
_UNIX_TIME: Final = 1e9


class PublicToken(BaseModel):
    token: str


async def mint(call: Call) -> Response:
    """Return a new token with the scopes asked for."""
    body = await call.body(PublicTokenBody)
    now = time.time()
    _check(body)
    minted = call.services.tokens.mint(
        call.environment_id,
        body.scopes,
        now=now,
        lifetime=_lifetime(body.expiration_time, now),
        one_time=body.one_time_use,
        fields=body.fields,
        streams=body.streams,
    )
    return answer(PublicToken(token=minted.token))


def _check(body: PublicTokenBody) -> None:
    scopes = parse_scopes(body.scopes)
    if body.one_time_use and not all(scope.action in _TRIGGERS for scope in scopes):
        raise _refused("oneTimeUse is for tokens that only trigger")
    for what, names in (("fields", body.fields), ("streams", body.streams)):
        if len(names or ()) > MAX_FIELDS or any(len(name) > 128 for name in names or ()):
            raise _refused(f"{what}: at most {MAX_FIELDS} names of at most 128 characters")


def _lifetime(wanted: str | float | None, now: float) -> float:
    if wanted is None:
        return DEFAULT_LIFETIME
    if isinstance(wanted, float) and wanted >= _UNIX_TIME:
        return wanted - now
    return seconds(wanted)


def _refused(message: str) -> RefusedError:
    return RefusedError(ErrorCode.MALFORMED, message)


OPERATIONS: Final = (
    Operation(
        "POST",
        "/api/v1/auth/public-tokens",
        "createPublicToken",
        "Mint a public token: 15 minutes unless asked otherwise, at most 24 hours",
        mint,
        PublicToken,
        credential="key",
        body=PublicTokenBody,
        errors=(408, 413, 415),
    ),
)
