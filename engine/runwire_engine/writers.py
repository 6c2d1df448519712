"""Numbered flushes: how a lost COMMIT acknowledgement is answered without writing twice.

A flush writes its number, and what it answered, to its row of runwire.writers in its own
transaction, as the last statement before COMMIT. Repeating a flush, `answer_of` takes that row's
lock, so that it waits for a transaction that is still committing, and returns what was answered.
"""

from typing import Final

from runwire.errors import FencedError, InvalidValueError
from runwire.wire import JsonObject
from runwire_engine.database import Database
from runwire_engine.errors import (
    RunFinalError,
    RunNotFoundError,
    StreamFullError,
)
from runwire_engine.ids import new_worker_id

_KEPT: Final[dict[str, type[Exception]]] = {
    kind.__name__: kind
    for kind in (
        FencedError,
        InvalidValueError,
        RunFinalError,
        RunNotFoundError,
        StreamFullError,
    )
}


class Writer:
    """One flusher's row in runwire.writers, for each environment it writes to."""

    def __init__(self, database: Database, target: str) -> None:
        self.target = target
        self.id = new_worker_id().replace("worker_", "writer_")
        self._database = database
        self._tried = 0
        # The last flush of which a COMMIT got no answer: it may still be on its way.
        self.unsure = 0

    def repeats(self, number: int) -> bool:
        """Note a try of a flush and return whether it is not the first."""
        repeated, self._tried = number == self._tried, number
        return repeated

    async def answer_of(self, environment_id: int, number: int) -> str | None:
        """Return what the flush of this number answered, or None when it never committed."""
        parameters = {
            "environment_id": environment_id,
            "target": self.target,
            "writer_id": self.id,
        }
        async with self._database.transaction() as tx:
            # Without a row there is no lock to wait at.
            await tx.run("writers.ensure", parameters)
            row = await tx.one("writers.answered", parameters)
        if row is None or row["last_no"] < number:
            return None
        if row["last_no"] > number:
            raise RuntimeError(f"flush {number} of {self.id} is repeated after {row['last_no']}")
        return str(row["last_result"])

    async def close(self, environment_id: int) -> int:
        """End it: nothing of it is stored from now on. Return the number of the last that is."""
        row = await self._database.one(
            "writers.close",
            {"environment_id": environment_id, "target": self.target, "writer_id": self.id},
        )
        return 0 if row is None else int(row["last_no"])


class StoredError(Exception):
    """The flush finds its number stored already: it must roll back and read the answer."""


def record_of(error: Exception) -> JsonObject:
    """Return an error as JSON, for `error_of`."""
    return {"error": type(error).__name__, "message": str(error), "data": vars(error)}


def error_of(record: JsonObject) -> Exception:
    """Return the error that was recorded."""
    kind = _KEPT.get(record["error"], RuntimeError)
    error = kind.__new__(kind, record["message"])
    vars(error).update(record["data"])
    return error
