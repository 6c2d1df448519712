"""The metadata of the executing run: a JSON object that everybody who follows the run sees.

    metadata.set("status", "thinking").increment("steps")
    metadata.parent.append("children", ctx.run.id)

Every operation applies at once to what this attempt reads, is queued, and is flushed soon; they can
be chained. Outside of a run reads give None and writes do nothing. A key that starts with "$." is a
path: `metadata.set("$.steps[0].done", True)`. `flush` and `stream` have blocking twins for `def`
tasks: `metadata.sync`.
"""

from collections.abc import AsyncIterable, Iterable, Mapping
from typing import Any, Self, TypeVar

import orjson

from runwire._context import MetadataTarget
from runwire._context import current as _current_run
from runwire._pipe import Nowhere, Pipe, SyncPipe
from runwire.streams import default_streams as _streams
from runwire.streams import sync as _sync_streams
from runwire.values import MAX_METADATA_BYTES, encode
from runwire.wire import MAX_CHUNK_BYTES, Json, JsonObject

__all__ = [
    "append",
    "current",
    "decrement",
    "del_",
    "delete",
    "flush",
    "get",
    "increment",
    "parent",
    "remove",
    "replace",
    "root",
    "set",
    "stream",
    "sync",
]

T = TypeVar("T")


class Operations:
    """The operations on one document. Each returns the same object, to be chained."""

    def __init__(self, target: MetadataTarget) -> None:
        self._target: MetadataTarget = target

    def set(self, key: str, value: object) -> Self:
        """Replace the value of a key."""
        return self._apply({"type": "set", "key": key, "value": _plain(value)})

    def delete(self, key: str) -> Self:
        """Drop a key."""
        return self._apply({"type": "delete", "key": key})

    def del_(self, key: str) -> Self:
        """Drop a key: `delete` under the name that Trigger.dev gives it."""
        return self.delete(key)

    def replace(self, document: Mapping[str, object]) -> Self:
        """Replace the whole document."""
        return self._apply({"type": "update", "value": _plain(document)})

    def append(self, key: str, value: object) -> Self:
        """Add a value to the end of a list; a missing list is made."""
        return self._apply({"type": "append", "key": key, "value": _plain(value)})

    def remove(self, key: str, value: object) -> Self:
        """Drop every element of a list that equals a value."""
        return self._apply({"type": "remove", "key": key, "value": _plain(value)})

    def increment(self, key: str, by: float = 1) -> Self:
        """Add to a number; what is none counts as 0."""
        return self._apply({"type": "increment", "key": key, "value": _plain(by)})

    def decrement(self, key: str, by: float = 1) -> Self:
        """Subtract from a number; what is none counts as 0."""
        return self._apply({"type": "increment", "key": key, "value": _plain(-by)})

    def _apply(self, operation: JsonObject) -> Self:
        runtime = _current_run()
        if runtime is not None:
            runtime.metadata_apply(self._target, operation)
        return self


class Sync:
    """The blocking twins, for `def` tasks."""

    def flush(self) -> None:
        """Wait until every operation so far is stored."""
        runtime = _current_run()
        if runtime is not None:
            runtime.metadata_flush_blocking()

    def stream(self, key: str, source: Iterable[T]) -> SyncPipe[T]:
        """Write what a source yields to the run's stream, and yield it."""
        if _current_run() is None:
            return SyncPipe(source, lambda body: None, lambda: None, _chunk)
        return _sync_streams.pipe(key, source)


def current() -> dict[str, Json] | None:
    """Return the document as this attempt sees it, or None outside of a run."""
    runtime = _current_run()
    return None if runtime is None else runtime.metadata_current()


def get(key: str) -> Any:
    """Return the value of a key, or None."""
    document = current()
    return None if document is None else document.get(key)


async def flush() -> None:
    """Wait until every operation so far is stored."""
    runtime = _current_run()
    if runtime is not None:
        await runtime.metadata_flush()


async def stream(key: str, source: AsyncIterable[T] | Iterable[T]) -> Pipe[T]:
    """Write what a source yields to the run's stream of this key; iterate over the result to read
    it as well: `async for chunk in await metadata.stream("openai", completion)`.

    It is written as it is read; `await (await metadata.stream(…)).wait_until_complete()` reads it
    for you, and where neither is done it goes on by itself.
    """
    return Pipe(source, Nowhere(), _chunk) if _current_run() is None else _streams.pipe(key, source)


def _chunk(chunk: object) -> str:
    return encode(chunk, what="chunk", limit=MAX_CHUNK_BYTES)


def _plain(value: object) -> Json:
    return orjson.loads(encode(value, what="metadata", limit=MAX_METADATA_BYTES))


_self = Operations("self")
# The same operations on the run that triggered this one, and on the first of the chain.
parent = Operations("parent")
root = Operations("root")
set = _self.set
delete = _self.delete
del_ = _self.del_
replace = _self.replace
append = _self.append
remove = _self.remove
increment = _self.increment
decrement = _self.decrement
sync = Sync()
