"""Keys under which a trigger happens once.

A key given as plain text has the scope "run": inside a run the same text in another run is another
key; outside of a run every scope is global. A key belongs to a task and an environment, is good for
30 days unless told otherwise, and is freed by a run that fails. Blocking twin:
`runwire.sync.idempotency_keys`.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeAlias
from urllib.parse import quote

import orjson

from runwire import _context, _default
from runwire._client import Client
from runwire._default import Blocking
from runwire.errors import InvalidValueError, NotFoundError

Scope: TypeAlias = Literal["run", "attempt", "global"]
MAX_LENGTH = 2048

_HASHED = re.compile(r"[0-9a-f]{64}")


class Named(Protocol):
    """A task."""

    id: str


class IdempotencyKey(str):
    """A key made by `create`: 64 hexadecimal digits."""


def create(key: str | Sequence[str], *, scope: Scope = "run") -> IdempotencyKey:
    """Return the key of these parts in this scope; one that `create` made is returned as it is.

    Parts are hashed with their bounds, so that ["a", "b"] and "a-b" are two keys. For a key of a
    whole payload, give its JSON text, or a hash of it.
    """
    return key_in(key, scope)


def key_in(
    key: str | Sequence[str],
    scope: Scope,
    run_id: str | None = None,
    attempt_number: int | None = None,
) -> IdempotencyKey:
    """Return a key in the scope of a run (by default the executing one) or of an attempt at it."""
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
    named = [*_scope(scope, run_id, attempt_number), parts]
    return IdempotencyKey(hashlib.sha256(orjson.dumps(named)).hexdigest())


def _scope(scope: Scope, run_id: str | None, attempt_number: int | None) -> list[str | int]:
    if scope not in ("run", "attempt", "global"):
        raise InvalidValueError(f"{scope!r} is not a scope", code="scope")
    runtime = _context.current()
    if runtime is not None and run_id is None:
        run_id = runtime.ctx.run.id
        attempt_number = attempt_number or runtime.ctx.attempt.number
    if run_id is None or scope == "global":
        return ["global"]
    if scope == "run":
        return ["run", run_id]
    if attempt_number is None:
        raise InvalidValueError("a key of an attempt needs its attempt_number", code="scope")
    return ["attempt", run_id, attempt_number]


class IdempotencyKeys:
    """Everything about idempotency keys, over one client."""

    def __init__(self, connect: Callable[[], Client], client: Callable[[], Client | None]) -> None:
        self._connect = connect
        self._client = client

    def create(self, key: str | Sequence[str], *, scope: Scope = "run") -> IdempotencyKey:
        """Return the key of these parts in this scope."""
        return create(key, scope=scope)

    async def reset(
        self,
        task: str | Named,
        key: str | Sequence[str],
        *,
        scope: Scope = "run",
        parent_run_id: str | None = None,
        attempt_number: int | None = None,
    ) -> bool:
        """Free a key: the next trigger of the task with it makes a new run.

        The key is given as it was at the trigger, or as `create` returned it; with `parent_run_id`
        and `attempt_number` one of another run's scope. Says whether it was held. The run that it
        led to goes on.
        """
        name = task if isinstance(task, str) else task.id
        hashed = key_in(key, scope, parent_run_id, attempt_number)
        client = self._client()
        runtime = _context.current() if client is None else None
        if runtime is not None:
            return await runtime.reset_idempotency_key(name, hashed)
        return await _reset_over_http(client or self._connect(), name, hashed)


class SyncIdempotencyKeys:
    """Keys under which a trigger happens once; in code without a loop."""

    def __init__(
        self, owner: Callable[[], Blocking], chosen: Callable[[], Blocking | None]
    ) -> None:
        self._owner = owner
        # Who asks: None while the executing run goes first.
        self._chosen = chosen

    def create(self, key: str | Sequence[str], *, scope: Scope = "run") -> IdempotencyKey:
        """Return the key of these parts in this scope."""
        return create(key, scope=scope)

    def reset(
        self,
        task: str | Named,
        key: str | Sequence[str],
        *,
        scope: Scope = "run",
        parent_run_id: str | None = None,
        attempt_number: int | None = None,
    ) -> bool:
        """Free a key: the next trigger of the task with it makes a new run."""
        name = task if isinstance(task, str) else task.id
        hashed = key_in(key, scope, parent_run_id, attempt_number)
        owner = self._chosen()
        runtime = _context.current() if owner is None else None
        if runtime is not None:
            return runtime.reset_idempotency_key_blocking(name, hashed)
        owner = owner or self._owner()
        return owner.run(_reset_over_http(owner.client, name, hashed))


async def _reset_over_http(client: Client, task: str, key: str) -> bool:
    """Free a key of a task; False when it was not held."""
    path = f"/api/v1/idempotencyKeys/{quote(key, safe='')}/reset"
    try:
        await client.http.post(path, json={"taskIdentifier": task})
    except NotFoundError:
        return False
    return True


def _nobody() -> Client | None:
    return None


reset = IdempotencyKeys(_default.client, _nobody).reset
