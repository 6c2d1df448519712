"""How a person signs in to the dashboard: same-origin HTTP only.

A one-time code (or an API key typed in) is exchanged for a cookie that no script can read and that
is sent to these routes only; the cookie can do nothing but mint short tokens, and only for a page
of this server's own origin. So a token that was stolen is worthless within a quarter of an hour.
"""

import time
from typing import Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.responses import Response

from runwire_realtime.api.answer import answer
from runwire_realtime.api.call import Call
from runwire_realtime.api.ok import Ok
from runwire_realtime.api.operation import Operation
from runwire_realtime.errors import ForbiddenError, UnauthorizedError
from runwire_realtime.origins import own_origin
from runwire_realtime.sign_in import is_code
from runwire_realtime.tokens import DEFAULT_LIFETIME, SESSION_LIFETIME

COOKIE: Final = "runwire_session"
_SCOPES: Final = (
    "read:runs",
    "read:tasks",
    "read:tags",
    "read:batch",
    "write:runs",
    "write:streams",
    "trigger:tasks",
    "batchTrigger:tasks",
)


class SignInBody(BaseModel):
    """A one-time code from the link that `runwire dev` prints, or an API key."""

    model_config = ConfigDict(extra="ignore", alias_generator=to_camel, populate_by_name=True)

    code: str | None = Field(default=None, max_length=256)
    api_key: str | None = Field(default=None, max_length=256)


class SessionToken(BaseModel):
    """A token for the dashboard; renew it before it ends (Unix seconds)."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    token: str
    expires_at: float
    environment: str


async def sign_in(call: Call) -> Response:
    """Exchange a one-time code for a session."""
    _refuse_foreign_page(call)
    body = await call.body(SignInBody)
    return _session(call, await _environment(call, body), fresh=True)


async def renew(call: Call) -> Response:
    """Return a fresh token for the session in the cookie."""
    _refuse_foreign_page(call)
    cookie = call.request.cookies.get(COOKIE)
    if not cookie:
        raise UnauthorizedError("there is no session; open the sign-in link")
    environment_id = call.services.tokens.verify_session(cookie, now=time.time())
    return _session(call, environment_id, fresh=False)


async def sign_out(call: Call) -> Response:
    """Forget the session."""
    _refuse_foreign_page(call)
    response = answer(Ok())
    response.delete_cookie(COOKIE, path=_path(call), httponly=True, samesite="strict")
    return response


async def _environment(call: Call, body: SignInBody) -> int:
    services = call.services
    if body.code is not None and services.sign_in.redeem(body.code):
        return services.environment_id
    if body.api_key is not None:
        grant = await services.credentials.grant(body.api_key)
        if grant.api_key:
            return grant.environment_id
        raise UnauthorizedError("the session needs an API key, which a token is not")
    if body.code is None:
        raise UnauthorizedError("send a sign-in code or an API key")
    if not is_code(body.code):
        raise UnauthorizedError("that is neither a sign-in link nor an API key; paste all of it")
    raise UnauthorizedError("the sign-in code is used up or expired; ask for a new link")


def _session(call: Call, environment_id: int, *, fresh: bool) -> Response:
    services, now = call.services, time.time()
    minted = services.tokens.mint(
        environment_id, _SCOPES, now=now, lifetime=DEFAULT_LIFETIME, internal=True
    )
    response = answer(
        SessionToken(
            token=minted.token,
            expires_at=minted.expires_at,
            environment=services.settings.environment,
        )
    )
    if fresh:
        response.set_cookie(
            COOKIE,
            services.tokens.mint_session(environment_id, now=now).token,
            max_age=int(SESSION_LIFETIME),
            path=_path(call),
            secure=call.request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
    return response


def _path(call: Call) -> str:
    return f"{call.request.scope.get('root_path', '')}/api/v1/auth"


def _refuse_foreign_page(call: Call) -> None:
    headers = call.request.headers
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    foreign_origin = origin is not None and origin != own_origin(
        call.request.url.scheme, headers.get("host", "")
    )
    # A same-site page is another port of this host, so another program.
    if foreign_origin or site not in {None, "same-origin", "none"}:
        raise ForbiddenError("signing in works only from the server's own pages")
    # A form can post text/plain across origins without asking; JSON it cannot.
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ForbiddenError("signing in takes a body of application/json")


OPERATIONS: Final = (
    Operation(
        "POST",
        "/api/v1/auth/sign-in",
        "signIn",
        "Sign in to the dashboard with a one-time code",
        sign_in,
        SessionToken,
        credential="open",
        body=SignInBody,
        errors=(401, 403, 408, 413, 415),
    ),
    Operation(
        "POST",
        "/api/v1/auth/session",
        "renewSession",
        "Mint a fresh token for the signed-in dashboard",
        renew,
        SessionToken,
        credential="open",
        errors=(401, 403),
    ),
    Operation(
        "POST",
        "/api/v1/auth/sign-out",
        "signOut",
        "Forget the dashboard's session",
        sign_out,
        Ok,
        credential="open",
        errors=(403,),
    ),
)
