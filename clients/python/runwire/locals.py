"""Values shared by everything that runs in one attempt: middleware, hooks and the task function.

    database = locals.create[Connection]("database")

    @tasks.middleware
    async def connected(next: Next) -> None:
        async with connect() as connection:
            locals.set(database, connection)
            await next()

    locals.get_or_throw(database)       # in the task, and in every hook

Each attempt begins with none. Outside of a run they belong to the current context, so that a test
may set what a task's function reads.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Generic, TypeVar, cast

from runwire import _context
from runwire.errors import NotSetError

__all__ = ["LocalsKey", "create", "get", "get_or_throw", "set"]

T = TypeVar("T")


class LocalsKey(Generic[T]):
    """Under what a value is kept. Every key is one of its own, whatever its id."""

    def __init__(self, id: str) -> None:
        self.id = id

    def __repr__(self) -> str:
        return f"<locals key {self.id}>"


# `locals.create[Connection]("database")`
create = LocalsKey

_outside: ContextVar[Mapping[LocalsKey[Any], object] | None] = ContextVar(
    "runwire_locals", default=None
)


def get(key: LocalsKey[T]) -> T | None:
    """Return the value of a key, or None while it is not set."""
    return cast(T | None, _held().get(key))


def get_or_throw(key: LocalsKey[T]) -> T:
    """Return the value of a key. Raises NotSetError while it is not set."""
    held = _held()
    if key not in held:
        raise NotSetError(f"locals: nothing is set under {key.id!r} in this attempt", key=key.id)
    return cast(T, held[key])


def set(key: LocalsKey[T], value: T) -> T:
    """Set the value of a key for the rest of this attempt, and return it."""
    runtime = _context.current()
    if runtime is None:
        _outside.set({**_held(), key: value})
    else:
        runtime.locals()[key] = value
    return value


def _held() -> Mapping[LocalsKey[Any], object]:
    runtime = _context.current()
    return (_outside.get() or {}) if runtime is None else runtime.locals()
