"""Where the server is, and who asks."""

import inspect
import os
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

from runwire.errors import ConfigurationError

DEFAULT_API_URL = "http://127.0.0.1:8420"

# A token, or a callable that returns a fresh one each time it is asked.
AccessToken: TypeAlias = str | Callable[[], str | Awaitable[str]]


@dataclass(frozen=True)
class Settings:
    api_url: str
    access_token: AccessToken | None

    @classmethod
    def of(cls, api_url: str | None = None, access_token: AccessToken | None = None) -> "Settings":
        """Return settings; what is not given comes from `auth.with_auth`, `auth.configure`, or the
        environment: RUNWIRE_API_URL, RUNWIRE_API_KEY, RUNWIRE_ACCESS_TOKEN."""
        here, process, environment = chosen.get(), _process["choice"], os.environ
        url = api_url or here.api_url or process.api_url
        token = access_token or here.access_token or process.access_token
        return cls(
            (url or environment.get("RUNWIRE_API_URL") or DEFAULT_API_URL).rstrip("/"),
            token
            or environment.get("RUNWIRE_API_KEY")
            or environment.get("RUNWIRE_ACCESS_TOKEN")
            or None,
        )


@dataclass(frozen=True)
class Choice:
    """What was said in code; None where nothing was."""

    api_url: str | None = None
    access_token: AccessToken | None = None


_NOTHING = Choice()
_process = {"choice": _NOTHING}
# What `auth.with_auth` chose for the code inside it.
chosen: ContextVar[Choice] = ContextVar("runwire_auth", default=_NOTHING)


def configure(choice: Choice) -> None:
    """Set what every later call in this process uses."""
    _process["choice"] = choice


async def token_of(access_token: AccessToken | None) -> str:
    """Return the token itself, asking the callable where there is one. Raises ConfigurationError
    when there is none, and what the callable raises."""
    if access_token is None:
        raise ConfigurationError(
            "no credential: set RUNWIRE_API_KEY or RUNWIRE_ACCESS_TOKEN, or pass one"
        )
    if isinstance(access_token, str):
        return access_token
    answer: Any = access_token()
    token: Any = await answer if inspect.isawaitable(answer) else answer
    if not isinstance(token, str) or not token:
        kind = type(token).__name__
        raise ConfigurationError(f"the access token callable returned no token but {kind}")
    return token
