"""The token an answer carries: it reads just what was made, for an hour."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import orjson

from runwire_realtime.api.call import Call
from runwire_realtime.tokens import TRIGGER_LIFETIME, made_scopes

TOKEN_HEADER: Final = "x-trigger-jwt"
CLAIMS_HEADER: Final = "x-trigger-jwt-claims"
TOKEN_HEADERS: Final = (TOKEN_HEADER, CLAIMS_HEADER)


def run_token(call: Call, run_id: str) -> Mapping[str, str]:
    """Return the headers with a token that reads one run and writes its input streams."""
    return _headers(call, made_scopes("run", run_id))


def batch_token(call: Call, batch_id: str) -> Mapping[str, str]:
    """Return the headers with a token that reads one batch and its runs."""
    return _headers(call, made_scopes("batch", batch_id))


def waitpoint_token(call: Call, waitpoint_id: str) -> Mapping[str, str]:
    """Return the headers with a token that completes one wait token."""
    return _headers(call, made_scopes("waitpoint", waitpoint_id))


def one_time(call: Call) -> tuple[str, datetime] | None:
    """Return what a trigger writes down to use up a one-time token; else None."""
    grant = call.grant
    if not grant.one_time or grant.jti is None or grant.expires_at is None:
        return None
    return grant.jti, datetime.fromtimestamp(grant.expires_at, UTC)


def _headers(call: Call, scopes: Sequence[str]) -> Mapping[str, str]:
    grant = call.grant
    # What was triggered with a narrowed token is read through the same narrowing.
    minted = call.services.tokens.mint(
        call.environment_id,
        scopes,
        now=time.time(),
        lifetime=TRIGGER_LIFETIME,
        fields=None if grant.fields is None else sorted(grant.fields),
        streams=None if grant.streams is None else sorted(grant.streams),
    )
    claims = orjson.dumps({"sub": str(call.environment_id), "pub": True}).decode()
    return {TOKEN_HEADER: minted.token, CLAIMS_HEADER: claims}
