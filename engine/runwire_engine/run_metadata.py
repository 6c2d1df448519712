"""Metadata of runs: operations applied to the stored documents, in groups.

One transaction locks the runs, applies everybody's operations in the order they came, and stores
each changed document with one revision and one event. What a write asks for happens whole or not at
all, and never disturbs another's.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import orjson

from runwire import _metadata
from runwire.errors import FencedError, InvalidValueError
from runwire.values import MAX_METADATA_BYTES
from runwire.wire import Json, JsonObject
from runwire_engine.database import Database, Row, Transaction
from runwire_engine.doorbell import Doorbell
from runwire_engine.errors import RunFinalError, RunNotFoundError
from runwire_engine.flusher import Flusher
from runwire_engine.states import FINAL
from runwire_engine.writers import StoredError, Writer, error_of, record_of

# Larger deltas stand as a reference; whoever follows reads the document from its row.
MAX_DELTA_BYTES: Final = 8 * 1024
# A flush holds the documents of all its runs, up to 256 KiB each.
_MAX_ITEMS: Final = 200
_WRITING: Final = frozenset({"EXECUTING", "WAITING"})


@dataclass(frozen=True, slots=True)
class MetadataWrite:
    """Operations on one run's metadata, by one writer; all of them or none.

    The run itself writes with its `execution`. Another run gives its id as `writer`, and *its*
    execution; a backend gives neither.
    """

    run_id: str
    operations: Sequence[JsonObject]
    execution: int | None = None
    writer: str | None = None


@dataclass(frozen=True, slots=True)
class MetadataAnswer:
    """The run's revision after the write, and how large its document is."""

    revision: int
    bytes: int


_Outcome: TypeAlias = MetadataAnswer | Exception


@dataclass(eq=False, slots=True)
class _Item:
    environment_id: int
    write: MetadataWrite
    size: int
    outcome: _Outcome = RuntimeError("not flushed")
    # Its environment's transaction is committed: a repeated flush does not do it again.
    is_done: bool = False


@dataclass(slots=True)
class _Document:
    """One run's document under its run's lock, and what has been done to it."""

    run: Row
    body: str
    value: JsonObject
    before: JsonObject
    operations: list[JsonObject] = field(default_factory=list[JsonObject])
    accepted: list[_Item] = field(default_factory=list[_Item])


class RunMetadata:
    """Reads and changes metadata. `run` belongs into a task group, for changes."""

    def __init__(self, database: Database, bell: Doorbell) -> None:
        self._database = database
        self._bell = bell
        self._writer = Writer(database, "metadata")
        self._flusher: Flusher[_Item, MetadataAnswer] = Flusher(
            "metadata", numbered=self._flush, size=lambda item: item.size, max_items=_MAX_ITEMS
        )

    async def run(self) -> None:
        """Flush writes until `close`, and everything handed in before it."""
        await self._flusher.run()

    def close(self) -> None:
        """Take no more writes."""
        self._flusher.close()

    async def drain(self) -> None:
        """Wait until every write handed in so far is stored or refused."""
        await self._flusher.drain()

    async def retrieve(self, environment_id: int, run_id: str) -> str | None:
        """Return the document as JSON text, or None when nothing was ever set."""
        row = await self._database.one(
            "run_metadata.retrieve", {"environment_id": environment_id, "run_id": run_id}
        )
        return None if row is None else str(row["body"])

    async def apply(self, environment_id: int, write: MetadataWrite) -> MetadataAnswer:
        """Apply operations and return once they are committed.

        Raises FencedError, RunNotFoundError, RunFinalError (an hour after the run's end) and
        InvalidValueError (a malformed operation, a document over 256 KiB).
        """
        return await (await self.put(environment_id, write))

    async def put(
        self, environment_id: int, write: MetadataWrite
    ) -> "asyncio.Future[MetadataAnswer]":
        """Queue a write in order, waiting only for room, and return the promise of its answer."""
        size = len(orjson.dumps(list(write.operations)))
        return await self._flusher.put(_Item(environment_id, write, size))

    async def apply_many(
        self, environment_id: int, writes: Sequence[MetadataWrite]
    ) -> list[MetadataAnswer | Exception]:
        """Apply several writes, in order, and return an answer or an error for each."""
        promises = [await self.put(environment_id, write) for write in writes]
        return [await _outcome(promise) for promise in promises]

    async def replace(
        self, environment_id: int, run_id: str, document: JsonObject
    ) -> MetadataAnswer:
        """Replace the whole document."""
        operation = {"type": "update", "value": document}
        return await self.apply(environment_id, MetadataWrite(run_id, (operation,)))

    async def _flush(self, number: int, items: Sequence[_Item]) -> Sequence[_Outcome]:
        repeated = self._writer.repeats(number)
        for environment_id in sorted({item.environment_id for item in items}):
            group = [i for i in items if i.environment_id == environment_id and not i.is_done]
            if group:
                await self._flush_one(environment_id, number, group, repeated)
        return [item.outcome for item in items]

    async def _flush_one(
        self, environment_id: int, number: int, items: Sequence[_Item], repeated: bool
    ) -> None:
        answer = await self._writer.answer_of(environment_id, number) if repeated else None
        if answer is None:
            answer = await self._store(environment_id, number, items)
        if answer is not None:
            _settle(items, answer)
        for item in items:
            item.is_done = True

    async def _store(self, environment_id: int, number: int, items: Sequence[_Item]) -> str | None:
        """Commit one environment's writes; return the answer if a twin had done it already."""
        try:
            async with self._database.transaction() as tx:
                changed = await self._change(tx, environment_id, number, items)
        except StoredError:
            return await self._writer.answer_of(environment_id, number)
        if changed:
            self._bell.ring_feed(environment_id, changed)
        return None

    async def _change(
        self, tx: Transaction, environment_id: int, number: int, items: Sequence[_Item]
    ) -> list[str]:
        documents = await _lock(tx, environment_id, items)
        for item in items:
            _apply(item, documents)
        changed = [document for document in documents.values() if document.operations]
        if changed:
            await tx.run("run_metadata.write", _changes(environment_id, changed))
        _answer(documents)
        recorded = await tx.one(
            "writers.record",
            {
                "environment_id": environment_id,
                "target": self._writer.target,
                "writer_id": self._writer.id,
                "number": number,
                "result": _record(items),
            },
        )
        if recorded is None:
            raise StoredError
        return [document.run["id"] for document in changed]


async def _lock(
    tx: Transaction, environment_id: int, items: Sequence[_Item]
) -> dict[str, _Document]:
    ids = {item.write.run_id for item in items}
    ids |= {item.write.writer for item in items if item.write.writer is not None}
    parameters = {"environment_id": environment_id, "ids": sorted(ids)}
    runs = await tx.all("run_metadata.lock_runs", parameters)
    rows = await tx.all("run_metadata.documents", parameters)
    bodies: dict[str, str] = {row["run_id"]: row["body"] for row in rows}
    return {run["id"]: _document(run, bodies.get(run["id"], "{}")) for run in runs}


def _document(run: Row, body: str) -> _Document:
    value: JsonObject = orjson.loads(body)
    return _Document(run, body, value, value)


def _apply(item: _Item, documents: Mapping[str, _Document]) -> None:
    """Apply a write to its document, or note why not."""
    refusal = _refuse(item.write, documents)
    if refusal is not None:
        item.outcome = refusal
        return
    document = documents[item.write.run_id]
    try:
        value = _metadata.apply(document.value, item.write.operations)
        body = _text(value)
    except InvalidValueError as error:
        item.outcome = error
        return
    document.accepted.append(item)
    if body != document.body:
        document.value, document.body = value, body
        document.operations += map(_metadata.validate, item.write.operations)


def _refuse(write: MetadataWrite, documents: Mapping[str, _Document]) -> Exception | None:
    owner = documents.get(write.run_id)
    if owner is None:
        return RunNotFoundError(write.run_id)
    if write.execution is not None:
        holder_id = write.run_id if write.writer is None else write.writer
        holder = documents.get(holder_id)
        if holder is None or not _holds(holder.run, write.execution):
            return FencedError(
                f"this execution of {holder_id} no longer holds the run", run_id=holder_id
            )
    if owner.run["closed"] and owner.run["status"] in FINAL:
        return RunFinalError(write.run_id, owner.run["status"])
    return None


def _holds(run: Row, execution: int) -> bool:
    return bool(run["execution"] == execution and run["status"] in _WRITING)


def _text(value: JsonObject) -> str:
    encoded = orjson.dumps(value)
    if len(encoded) > MAX_METADATA_BYTES:
        raise InvalidValueError(
            f"metadata would be {len(encoded)} bytes as JSON; at most {MAX_METADATA_BYTES} are"
            " stored",
            code="too_large",
        )
    return encoded.decode()


def _changes(environment_id: int, documents: Sequence[_Document]) -> dict[str, object]:
    return {
        "environment_id": environment_id,
        "run_ids": [document.run["id"] for document in documents],
        "bodies": [document.body for document in documents],
        "deltas": [_delta(document) for document in documents],
    }


def _delta(document: _Document) -> str:
    operations = _metadata.collapse(document.operations, document.before)
    delta = orjson.dumps({"metadata": operations})
    if len(delta) > MAX_DELTA_BYTES:
        large = {"$large": {"bytes": len(document.body.encode())}}
        delta = orjson.dumps({"set": {"metadata": large}})
    return delta.decode()


def _answer(documents: Mapping[str, _Document]) -> None:
    for document in documents.values():
        revision = document.run["revision"] + bool(document.operations)
        answer = MetadataAnswer(revision, len(document.body.encode()))
        for item in document.accepted:
            item.outcome = answer


def _record(items: Sequence[_Item]) -> str:
    return orjson.dumps([_recorded(item.outcome) for item in items]).decode()


def _recorded(outcome: _Outcome) -> Json:
    return record_of(outcome) if isinstance(outcome, Exception) else outcome


def _settle(items: Sequence[_Item], text: str) -> None:
    answers: list[Json] = orjson.loads(text)
    for item, answer in zip(items, answers, strict=True):
        item.outcome = error_of(answer) if "error" in answer else MetadataAnswer(**answer)


async def _outcome(promise: "asyncio.Future[MetadataAnswer]") -> _Outcome:
    try:
        return await promise
    except Exception as error:
        return error
