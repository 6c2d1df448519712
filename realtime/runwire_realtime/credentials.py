"""From the text of a credential to what it allows: API keys and public tokens, one door for all.

An API key is looked up by its SHA-256 and the answer kept for a few seconds: the hot path triggers
thousands of runs a second with one key, and a revoked key may live that much longer.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from runwire_engine.environments import is_key
from runwire_realtime.errors import UnauthorizedError
from runwire_realtime.scope import Grant
from runwire_realtime.tokens import Tokens

_KEPT_SECONDS: Final = 5.0
_KEPT_KEYS: Final = 1000  # more distinct keys than any server has; bounds a flood of wrong ones


class Credentials:
    """Turns a bearer text into a Grant; `find_key` returns an API key's environment, if any."""

    def __init__(self, tokens: Tokens, find_key: Callable[[str], Awaitable[int | None]]) -> None:
        self._tokens = tokens
        self._find_key = find_key
        self._known: OrderedDict[str, tuple[float, Grant]] = OrderedDict()

    async def grant(self, credential: str) -> Grant:
        """Return what an API key or token allows. Raises UnauthorizedError for anything else."""
        if not is_api_key(credential):
            return self._tokens.verify(credential, now=time.time())
        return self._remembered(credential) or await self._looked_up(credential)

    def _remembered(self, key: str) -> Grant | None:
        until, grant = self._known.get(key, (0.0, None))
        return grant if time.monotonic() < until else None

    async def _looked_up(self, key: str) -> Grant:
        environment_id = await self._find_key(key)
        if environment_id is None:
            self._known.pop(key, None)
            raise UnauthorizedError("the API key is not known here")
        grant = Grant(environment_id=environment_id, api_key=True)
        self._known[key] = (time.monotonic() + _KEPT_SECONDS, grant)
        if len(self._known) > _KEPT_KEYS:
            self._known.popitem(last=False)
        return grant


def is_api_key(credential: str) -> bool:
    """Say whether a credential can only be an API key: keys of any form may have been fixed."""
    return not credential.startswith("eyJ") and is_key(credential)


def bearer(authorization: str | None) -> str:
    """Return the credential of an Authorization header. Raises UnauthorizedError without one."""
    scheme, _, credential = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not credential.strip():
        raise UnauthorizedError("send the credential as `Authorization: Bearer <key or token>`")
    return credential.strip()
