"""Tokens: what is minted verifies, and everything else is one refusal."""

import base64
import json
import re
from collections.abc import Callable

import jwt
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from runwire_realtime import tokens as module
from runwire_realtime.errors import RefusedError, ScopeError, UnauthorizedError
from runwire_realtime.scope import Scope
from runwire_realtime.tokens import MAX_TOKEN_BYTES, Tokens

NOW = 1_795_000_000.0
SECRET = "s" * 40
OTHER = "o" * 40


@pytest.fixture
def tokens() -> Tokens:
    return Tokens(SECRET)


def _header(token: str) -> dict[str, object]:
    return dict(jwt.get_unverified_header(token))


def _forge(tokens: Tokens, **changes: object) -> str:
    """Sign claims with the right key: what a bug elsewhere might let through."""
    minted = tokens.mint(7, ["read:runs"], now=NOW).token
    kid = str(_header(minted)["kid"])
    claims = jwt.decode(minted, options={"verify_signature": False})
    for name, value in changes.items():
        if value is None:
            claims.pop(name)
        else:
            claims[name] = value
    key = HKDF(SHA256(), 32, salt=None, info=f"runwire/token/v1/7/{kid}".encode()).derive(
        SECRET.encode()
    )
    signing = b".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": "HS256", "typ": "JWT", "kid": kid}, claims)
    )
    signature = jwt.get_algorithm_by_name("HS256").sign(signing, key)
    return (signing + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def test_a_minted_token_grants_what_was_asked(tokens: Tokens) -> None:
    minted = tokens.mint(
        7, ["read:runs:run_1"], now=NOW, lifetime=60, fields=["status"], streams=["text"]
    )
    grant = tokens.verify(minted.token, now=NOW + 59)
    assert grant.environment_id == 7
    assert grant.scopes == frozenset({Scope("read", "runs", "run_1")})
    assert grant.fields == frozenset({"status"}) and grant.streams == frozenset({"text"})
    assert grant.expires_at == minted.expires_at == NOW + 60
    assert not grant.api_key and not grant.one_time and not grant.internal and grant.jti


def test_forged_with_the_right_key_and_nothing_changed_it_verifies(tokens: Tokens) -> None:
    assert tokens.verify(_forge(tokens), now=NOW).environment_id == 7


def test_two_tokens_of_the_same_second_are_not_the_same(tokens: Tokens) -> None:
    first, second = (tokens.mint(7, ["trigger:tasks:t"], now=NOW, one_time=True) for _ in range(2))
    assert tokens.verify(first.token, now=NOW).jti != tokens.verify(second.token, now=NOW).jti


def test_a_token_ends_at_its_time_but_for_the_leeway(tokens: Tokens) -> None:
    minted = tokens.mint(7, ["read:runs"], now=NOW, lifetime=10)
    tokens.verify(minted.token, now=NOW + 14)
    with pytest.raises(UnauthorizedError, match="expired"):
        tokens.verify(minted.token, now=NOW + 16)


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": None},
        {"iat": None},
        {"sub": None},
        {"iss": None},
        {"aud": None},
        {"jti": None},
        {"pub": None},
        {"scopes": None},
        {"pub": 1},
        {"pub": "true"},
        {"pub": False},
        {"exp": str(int(NOW + 60))},
        {"exp": True},
        {"exp": float("nan")},
        {"exp": 1e400},
        {"exp": 10**4000},
        {"exp": -1},
        {"iat": NOW + 60},
        {"iat": "now"},
        {"nbf": NOW + 10_000_000_000},
        {"sub": 7},
        {"sub": "07"},
        {"sub": "7; drop table"},
        {"sub": "8"},
        {"sub": ""},
        {"iss": "https://id.trigger.dev"},
        {"iss": ["https://runwire.dev"]},
        {"aud": "runwire:session"},
        {"aud": "runwire"},
        {"aud": 5},
        {"jti": 5},
        {"jti": "x"},
        {"jti": "a/../b-and-more"},
        {"scopes": "read:runs"},
        {"scopes": [1]},
        {"scopes": ["read:runs", "admin"]},
        {"scopes": ["read:runs"] * 65},
        {"scopes": {"read": "runs"}},
        {"fields": "status"},
        {"fields": [1]},
        {"fields": ["f"] * 65},
        {"streams": {}},
        {"otu": "yes"},
        {"int": 1},
    ],
)
def test_a_claim_that_is_not_what_it_must_be_refuses_the_token(
    tokens: Tokens, changes: dict[str, object]
) -> None:
    with pytest.raises(UnauthorizedError):
        tokens.verify(_forge(tokens, **changes), now=NOW)


def _segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _resign(change: Callable[[dict[str, object]], dict[str, object]]) -> Callable[[str], str]:
    def changed(token: str) -> str:
        header, payload, signature = token.split(".")
        plain = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
        return f"{_segment(change(plain))}.{payload}.{signature}"

    return changed


_DAMAGE: list[Callable[[str], str]] = [
    lambda t: "",
    lambda t: "x",
    lambda t: "a.b.c",
    lambda t: t + ".d",
    lambda t: t[:-2],
    lambda t: t[:-1] + ("A" if t[-1] != "A" else "B"),
    lambda t: t + "=",
    lambda t: " " + t,
    lambda t: t + "\n",
    lambda t: t + "\ud800",
    lambda t: t + "\x00",
    lambda t: t + "é",
    lambda t: "a" * 5_000_000 + "." + t,
    lambda t: t.rsplit(".", 1)[0] + ".",
    lambda t: t.split(".")[0] + "." + _segment([1]) + "." + t.split(".")[2],
    lambda t: t.split(".")[0] + "." + _segment({"sub": "7"}) + "." + t.split(".")[2],
    lambda t: t.split(".")[0] + "." + "W" * 3000 + "." + t.split(".")[2],
    _resign(lambda h: {**h, "alg": "none"}),
    _resign(lambda h: {**h, "alg": "HS512"}),
    _resign(lambda h: {**h, "alg": "RS256"}),
    _resign(lambda h: {**h, "alg": ["HS256"]}),
    _resign(lambda h: {k: v for k, v in h.items() if k != "alg"}),
    _resign(lambda h: {k: v for k, v in h.items() if k != "kid"}),
    _resign(lambda h: {**h, "kid": 5}),
    _resign(lambda h: {**h, "kid": "../../secret"}),
    _resign(lambda h: {**h, "kid": "deadbeef"}),
    _resign(lambda h: {**h, "crit": ["x"], "x": 1}),
    _resign(lambda h: {**h, "jku": "https://evil.example"}),
]


@pytest.mark.parametrize("damage", _DAMAGE)
def test_a_damaged_token_is_refused_with_one_kind_of_error(
    tokens: Tokens, damage: Callable[[str], str]
) -> None:
    token = damage(tokens.mint(7, ["read:runs"], now=NOW).token)
    with pytest.raises(UnauthorizedError) as refused:
        tokens.verify(token, now=NOW)
    assert refused.value.status == 401
    assert not re.search(r"eyJ", str(refused.value))


def test_a_deeply_nested_payload_is_a_refusal(tokens: Tokens) -> None:
    header = tokens.mint(7, ["read:runs"], now=NOW).token.split(".")[0]
    deep = base64.urlsafe_b64encode(b"[" * 1400 + b"]" * 1400).rstrip(b"=").decode()
    with pytest.raises(UnauthorizedError):
        tokens.verify(f"{header}.{deep}.c2ln", now=NOW)


def test_another_secret_refuses_the_token() -> None:
    minted = Tokens(OTHER).mint(7, ["read:runs"], now=NOW)
    with pytest.raises(UnauthorizedError):
        Tokens(SECRET).verify(minted.token, now=NOW)


def test_after_a_rotation_the_old_tokens_stay_good_while_the_old_secret_is_told() -> None:
    minted = Tokens(OTHER).mint(7, ["read:runs"], now=NOW)
    rotated = Tokens(SECRET, previous=OTHER)
    assert rotated.verify(minted.token, now=NOW).environment_id == 7
    assert _header(rotated.mint(7, ["read:runs"], now=NOW).token) != _header(minted.token)


def test_a_token_says_nothing_of_another_environment(tokens: Tokens) -> None:
    seven = tokens.mint(7, ["read:runs"], now=NOW).token.split(".")
    eight = tokens.mint(8, ["read:runs"], now=NOW).token.split(".")
    with pytest.raises(UnauthorizedError):
        tokens.verify(".".join((eight[0], eight[1], seven[2])), now=NOW)


def test_a_session_is_not_a_token_and_a_token_not_a_session(tokens: Tokens) -> None:
    session = tokens.mint_session(7, now=NOW)
    assert tokens.verify_session(session.token, now=NOW) == 7
    with pytest.raises(UnauthorizedError):
        tokens.verify(session.token, now=NOW)
    with pytest.raises(UnauthorizedError):
        tokens.verify_session(tokens.mint(7, ["read:runs"], now=NOW).token, now=NOW)


def test_what_cannot_be_minted_is_said_at_the_minting(tokens: Tokens) -> None:
    with pytest.raises(ScopeError):
        tokens.mint(7, ["admin"], now=NOW)
    for lifetime in (0.0, -5.0, 25 * 3600.0, float("nan")):
        with pytest.raises(RefusedError, match="24 hours"):
            tokens.mint(7, ["read:runs"], now=NOW, lifetime=lifetime)
    with pytest.raises(RefusedError, match=str(MAX_TOKEN_BYTES)):
        tokens.mint(7, [f"read:tags:{'t' * 120}{n}" for n in range(40)], now=NOW)


def test_secrets_of_any_strength_but_the_right_one_are_refused() -> None:
    assert module.check_secret("short") is not None
    assert module.check_secret("s" * 31) is not None
    assert module.check_secret("ü" * 16) is None
    assert module.check_secret(module.new_secret()) is None
