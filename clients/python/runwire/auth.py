"""Who asks: public tokens for others, and the credential this process uses.

    token = await auth.create_public_token(scopes={"read": {"tags": ["user:42"]}})

Blocking twins: `runwire.sync.auth`.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Literal, TypeAlias

import orjson

from runwire import _default, _settings
from runwire._client import Client
from runwire._run import WIRE_NAMES
from runwire._settings import AccessToken, Choice
from runwire.durations import Duration, seconds
from runwire.errors import InvalidValueError
from runwire.requests import PublicTokenBody
from runwire.wire import JsonObject

__all__ = [
    "Auth",
    "configure",
    "create_batch_trigger_public_token",
    "create_public_token",
    "create_trigger_public_token",
    "with_auth",
]

Action: TypeAlias = Literal["read", "write", "trigger", "batchTrigger"]
OneOrMore: TypeAlias = str | Sequence[str]
# {"read": {"runs": ["run_…"], "tags": "user:42"}, "write": {"runs": True}}; True: all of the type.
Scopes: TypeAlias = Mapping[Action, Mapping[str, OneOrMore | bool]]
Expiry: TypeAlias = Duration | datetime


class Auth:
    """Mints public tokens, over one client; this needs an API key."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect

    async def create_public_token(
        self,
        *,
        scopes: Scopes,
        expiration_time: Expiry = "15m",
        fields: Sequence[str] | None = None,
        streams: Sequence[str] | None = None,
    ) -> str:
        """Return a token that may do what any one of the scopes allows, to hand to a browser.

        `fields` and `streams` narrow what it sees of a run, wherever it looks.
        """
        return await self._mint(
            PublicTokenBody(
                scopes=flattened(scopes),
                expiration_time=_expiry(expiration_time),
                fields=_fields(fields),
                streams=None if streams is None else list(streams),
            )
        )

    async def create_trigger_public_token(
        self, task: OneOrMore, *, expiration_time: Expiry = "15m", multiple_use: bool = False
    ) -> str:
        """Return a token that triggers a task, or any of several; once, unless told otherwise."""
        return await self._trigger_token("trigger", task, expiration_time, multiple_use)

    async def create_batch_trigger_public_token(
        self, task: OneOrMore, *, expiration_time: Expiry = "15m", multiple_use: bool = False
    ) -> str:
        """Return a token that triggers batches of a task, or of any of several."""
        return await self._trigger_token("batchTrigger", task, expiration_time, multiple_use)

    async def _trigger_token(
        self, action: Action, task: OneOrMore, expiration_time: Expiry, multiple_use: bool
    ) -> str:
        return await self._mint(
            PublicTokenBody(
                scopes=flattened({action: {"tasks": task}}),
                expiration_time=_expiry(expiration_time),
                one_time_use=not multiple_use,
            )
        )

    async def _mint(self, body: PublicTokenBody) -> str:
        response = await self._connect().http.post(
            "/api/v1/auth/public-tokens",
            json=body.model_dump(mode="json", by_alias=True, exclude_none=True),
        )
        answer: JsonObject = orjson.loads(response.content)
        token: str = answer["token"]
        return token


def configure(*, api_url: str | None = None, access_token: AccessToken | None = None) -> None:
    """Say where the server is and who asks, for every later call in this process.

    What is not given here comes from RUNWIRE_API_URL, RUNWIRE_API_KEY, RUNWIRE_ACCESS_TOKEN.
    """
    _settings.configure(Choice(api_url, access_token))


@contextmanager
def with_auth(
    *, api_url: str | None = None, access_token: AccessToken | None = None
) -> Generator[None]:
    """Use another server or credential for the calls inside: `with auth.with_auth(…):`."""
    before = _settings.chosen.set(Choice(api_url, access_token))
    try:
        yield
    finally:
        _settings.chosen.reset(before)


def flattened(scopes: Scopes) -> list[str]:
    """Return scopes as the texts a token carries. Raises InvalidValueError when there are none."""
    texts: list[str] = []
    for action, types in scopes.items():
        for type, ids in types.items():
            if isinstance(ids, bool):
                texts += [f"{action}:{type}"] if ids else []
            else:
                chosen = [ids] if isinstance(ids, str) else ids
                texts += [f"{action}:{type}:{id}" for id in chosen]
    if not texts:
        raise InvalidValueError("a token without a scope opens nothing", code="scopes")
    return texts


def _expiry(value: Expiry) -> str | float:
    # A number on the wire is a time, so spans travel as text.
    return value.timestamp() if isinstance(value, datetime) else f"{seconds(value):.3f}s"


def _fields(fields: Sequence[str] | None) -> list[str] | None:
    if fields is None:
        return None
    unknown = sorted(set(fields) - set(WIRE_NAMES))
    if unknown:
        raise InvalidValueError(f"a run has no field {', '.join(unknown)}", code="fields")
    return [WIRE_NAMES[name] for name in fields]


_default_auth = Auth(_default.client)
create_public_token = _default_auth.create_public_token
create_trigger_public_token = _default_auth.create_trigger_public_token
create_batch_trigger_public_token = _default_auth.create_batch_trigger_public_token
