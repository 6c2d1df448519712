"""Mints and verifies public tokens and dashboard sessions.

HS256 only. The key is derived per environment and `kid` by HKDF from the server's master secret,
so a leaked token key opens one environment and the API keys can be rotated apart. `kid` is looked
up in the closed set {current secret, previous secret}; no header field is ever a path or a query.

Verification is ordered so that nothing expensive or surprising sees unchecked input: length and
characters, then the header's `kid`, then the signature, then the type of every claim. Whatever goes
wrong, the caller gets one UnauthorizedError, and no part of the token is in its text.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import jwt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from runwire.wire import ErrorCode
from runwire_realtime.errors import RefusedError, ScopeError, UnauthorizedError
from runwire_realtime.scope import Grant, parse_scopes

ISSUER: Final = "https://runwire.dev"
AUDIENCE: Final = "runwire:realtime"
SESSION_AUDIENCE: Final = "runwire:session"

MAX_TOKEN_BYTES: Final = 4096
MIN_SECRET_BYTES: Final = 32
LEEWAY: Final = 5.0  # seconds of clock skew between servers
DEFAULT_LIFETIME: Final = 15 * 60.0
TRIGGER_LIFETIME: Final = 60 * 60.0  # of the token that a trigger's answer carries
# A public token sits in a browser and cannot be asked back for good: a day, then mint a new one.
MAX_LIFETIME: Final = 24 * 60 * 60.0
SESSION_LIFETIME: Final = 7 * 24 * 60 * 60.0  # of the dashboard's cookie, which only mints tokens
MAX_FIELDS: Final = 64

_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_ENVIRONMENT = re.compile(r"[1-9][0-9]{0,9}")
_JTI = re.compile(r"[A-Za-z0-9_-]{8,64}")
_REQUIRED = ["exp", "iat", "aud", "iss", "sub", "jti"]
_KEYS_KEPT: Final = 1024  # derived keys; one per environment and secret

# Not an audience of tokens: names the key of the addresses that complete wait tokens.
_CALLBACK: Final = "callback"
_NOUNS: Final = {AUDIENCE: "token", SESSION_AUDIENCE: "session", _CALLBACK: "callback"}

_jwt = jwt.PyJWT(options={"enforce_minimum_key_length": True})


@dataclass(frozen=True)
class Minted:
    """A new token and when it ends (Unix seconds)."""

    token: str
    expires_at: float


class Tokens:
    """Mints and verifies tokens with one master secret, and verifies those of the one before it."""

    def __init__(self, secret: str, previous: str | None = None) -> None:
        self._secrets = {_kid(text): text.encode() for text in (secret, previous) if text}
        self._current = _kid(secret)
        self._keys: dict[tuple[str, str, str], bytes] = {}

    def mint(
        self,
        environment_id: int,
        scopes: Sequence[str],
        *,
        now: float,
        lifetime: float = DEFAULT_LIFETIME,
        one_time: bool = False,
        fields: Sequence[str] | None = None,
        streams: Sequence[str] | None = None,
        internal: bool = False,
    ) -> Minted:
        """Sign a public token. Raises ScopeError for a scope outside the grammar, RefusedError for
        a lifetime that is not between a second and MAX_LIFETIME or a token that grew too long.
        """
        parse_scopes(scopes)
        if not 1.0 <= lifetime <= MAX_LIFETIME:
            raise RefusedError(
                ErrorCode.MALFORMED,
                "a token lives between one second and 24 hours; mint a new one before it ends",
            )
        claims: dict[str, object] = {"pub": True, "scopes": list(scopes)}
        if one_time:
            claims["otu"] = True
        if internal:
            claims["int"] = True
        if fields is not None:
            claims["fields"] = sorted(set(fields))
        if streams is not None:
            claims["streams"] = sorted(set(streams))
        return self._sign(environment_id, AUDIENCE, claims, now, lifetime)

    def verify(self, token: str, *, now: float) -> Grant:
        """Return what a public token allows. Raises UnauthorizedError, whatever is wrong."""
        environment_id, claims = self._open(token, AUDIENCE, now)
        if claims.get("pub") is not True:
            raise _refused()
        try:
            scopes = parse_scopes(_texts(claims.get("scopes")))
        except ScopeError as error:
            raise UnauthorizedError(f"the token is refused: {error}") from None
        return Grant(
            environment_id=environment_id,
            scopes=frozenset(scopes),
            expires_at=_number(claims, "exp"),
            jti=cast(str, claims["jti"]),
            fields=_names(claims, "fields"),
            streams=_names(claims, "streams"),
            one_time=_flag(claims, "otu"),
            internal=_flag(claims, "int"),
        )

    def callback(self, environment_id: int, waitpoint_id: str) -> str:
        """Return what an address needs to hold to complete one wait token."""
        mac = self._mac(environment_id, waitpoint_id, self._current)
        return f"{environment_id}.{self._current}.{mac}"

    def verify_callback(self, text: str, waitpoint_id: str) -> int:
        """Return the environment of a wait token that may be completed with this.

        Raises UnauthorizedError.
        """
        environment, _, rest = text.partition(".")
        kid, _, mac = rest.partition(".")
        if _ENVIRONMENT.fullmatch(environment) is None or kid not in self._secrets:
            raise _refused()
        expected = self._mac(int(environment), waitpoint_id, kid)
        if not hmac.compare_digest(expected.encode(), mac.encode()):
            raise _refused()
        return int(environment)

    def _mac(self, environment_id: int, waitpoint_id: str, kid: str) -> str:
        key = self._key(_CALLBACK, str(environment_id), kid)
        return hmac.new(key, waitpoint_id.encode(), hashlib.sha256).hexdigest()

    def mint_session(self, environment_id: int, *, now: float) -> Minted:
        """Sign a dashboard session: a cookie that can do nothing but mint short tokens."""
        return self._sign(environment_id, SESSION_AUDIENCE, {}, now, SESSION_LIFETIME)

    def verify_session(self, session: str, *, now: float) -> int:
        """Return the environment a dashboard session is for. Raises UnauthorizedError."""
        return self._open(session, SESSION_AUDIENCE, now)[0]

    def _sign(
        self,
        environment_id: int,
        audience: str,
        claims: Mapping[str, object],
        now: float,
        lifetime: float,
    ) -> Minted:
        expires_at = int(now + lifetime)
        token = _jwt.encode(
            {
                **claims,
                "iss": ISSUER,
                "aud": audience,
                "sub": str(environment_id),
                "iat": int(now),
                "exp": expires_at,
                "jti": secrets.token_urlsafe(16),
            },
            self._key(audience, str(environment_id), self._current),
            algorithm="HS256",
            headers={"kid": self._current},
        )
        if len(token) > MAX_TOKEN_BYTES:
            raise RefusedError(
                ErrorCode.TOO_LARGE,
                f"the token would be {len(token)} bytes; at most {MAX_TOKEN_BYTES} are accepted, "
                "so name fewer scopes, fields or streams",
            )
        return Minted(token, float(expires_at))

    def _open(self, token: str, audience: str, now: float) -> tuple[int, dict[str, Any]]:
        if len(token) > MAX_TOKEN_BYTES or _SHAPE.fullmatch(token) is None:
            raise _refused()
        try:
            claims = self._decode(token, audience)
        except Exception:
            # PyJWT also lets errors of its parsers through; none of them may become a 500.
            raise _refused() from None
        environment = claims["sub"]
        if not isinstance(environment, str) or _ENVIRONMENT.fullmatch(environment) is None:
            raise _refused()
        if not isinstance(claims["jti"], str) or _JTI.fullmatch(claims["jti"]) is None:
            raise _refused()
        if _number(claims, "iat") > now + LEEWAY:
            raise _refused()
        if _number(claims, "exp") <= now - LEEWAY:
            raise UnauthorizedError("the token has expired")
        return int(environment), claims

    def _decode(self, token: str, audience: str) -> dict[str, Any]:
        unverified = jwt.decode_complete(token, options={"verify_signature": False})
        kid, environment = unverified["header"].get("kid"), unverified["payload"].get("sub")
        if not isinstance(kid, str) or kid not in self._secrets:
            raise _refused()
        if not isinstance(environment, str) or _ENVIRONMENT.fullmatch(environment) is None:
            raise _refused()
        return _jwt.decode(
            token,
            self._key(audience, environment, kid),
            algorithms=["HS256"],
            audience=audience,
            issuer=ISSUER,
            # Times are compared by the caller with its own clock, after their types are.
            options={"require": _REQUIRED, "verify_exp": False, "verify_iat": False},
        )

    def _key(self, audience: str, environment: str, kid: str) -> bytes:
        name = (audience, environment, kid)
        key = self._keys.get(name)
        if key is None:
            if len(self._keys) >= _KEYS_KEPT:
                self._keys.clear()
            noun = _NOUNS[audience]
            info = f"runwire/{noun}/v1/{environment}/{kid}".encode()
            key = HKDF(SHA256(), 32, salt=None, info=info).derive(self._secrets[kid])
            self._keys[name] = key
        return key


def made_scopes(kind: str, id: str) -> list[str]:
    """Return the scopes of the token of what was made: a "run", a "batch", a "waitpoint"."""
    if kind == "batch":
        return [f"read:batch:{id}"]
    if kind == "waitpoint":
        return [f"write:waitpoints:{id}"]
    return [f"read:runs:{id}", f"write:inputStreams:{id}"]


def callback_url(base: str, hash: str, waitpoint_id: str) -> str:
    """Return the address that completes a wait token with what is posted to it."""
    return f"{base}/api/v1/waitpoints/tokens/{waitpoint_id}/callback/{hash}"


def check_secret(secret: str) -> str | None:
    """Return what is wrong with a master secret, or None."""
    if len(secret.encode()) < MIN_SECRET_BYTES:
        return f"RUNWIRE_SECRET must have at least {MIN_SECRET_BYTES} bytes"
    return None


def new_secret() -> str:
    """Return a new master secret."""
    return secrets.token_urlsafe(48)


def _kid(secret: str) -> str:
    return hashlib.sha256(b"runwire/kid/v1/" + secret.encode()).hexdigest()[:8]


def _refused() -> UnauthorizedError:
    return UnauthorizedError("the token is not valid")


def _number(claims: Mapping[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _refused()
    # Beyond the year 9999 nothing computes with it safely; also refuses NaN.
    if not 0 <= value < 253_402_300_800:
        raise _refused()
    return float(value)


def _flag(claims: Mapping[str, Any], name: str) -> bool:
    value = claims.get(name, False)
    if not isinstance(value, bool):
        raise _refused()
    return value


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        raise _refused()
    items = cast(list[object], value)
    if not all(isinstance(item, str) for item in items):
        raise _refused()
    return cast(list[str], items)


def _names(claims: Mapping[str, Any], name: str) -> frozenset[str] | None:
    if name not in claims:
        return None
    names = _texts(claims[name])
    if len(names) > MAX_FIELDS:
        raise _refused()
    return frozenset(names)
