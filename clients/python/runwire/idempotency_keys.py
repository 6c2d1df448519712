"""Keys under which a trigger happens once.

A key given as plain text has the scope "run": inside a run the same text in another run is another
key; outside of a run every scope is global.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

import orjson

from runwire import _context
from runwire.errors import InvalidValueError

Scope: TypeAlias = Literal["run", "attempt", "global"]
MAX_LENGTH = 2048

_HASHED = re.compile(r"[0-9a-f]{64}")


class IdempotencyKey(str):
    """A key made by `create`: 64 hexadecimal digits."""


def create(key: str | Sequence[str], *, scope: Scope = "run") -> IdempotencyKey:
    """Return the key of these parts in this scope; one that `create` made is returned as it is.

    Parts are hashed with their bounds, so that ["a", "b"] and "a-b" are two keys.
    """
    if isinstance(key, str):
        if _HASHED.fullmatch(key):
            return IdempotencyKey(key)
        key = [key]
    parts = list(key)
    if not parts or not all(parts) or sum(map(len, parts)) > MAX_LENGTH:
        raise InvalidValueError(
            f"an idempotency key is one or more texts, together 1 to {MAX_LENGTH} characters",
            code="idempotency_key",
        )
    return IdempotencyKey(hashlib.sha256(orjson.dumps([*_scope(scope), parts])).hexdigest())


def _scope(scope: Scope) -> list[str | int]:
    runtime = _context.current()
    if scope not in ("run", "attempt", "global"):
        raise InvalidValueError(f"{scope!r} is not a scope", code="scope")
    if runtime is None or scope == "global":
        return ["global"]
    if scope == "run":
        return ["run", runtime.ctx.run.id]
    return ["attempt", runtime.ctx.run.id, runtime.ctx.attempt.number]
