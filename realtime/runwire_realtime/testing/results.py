"""Reads back all that became of a run."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson

from runwire import _metadata
from runwire._logs import entry_of
from runwire._stream_keys import LOG_KEY, is_reserved
from runwire.errors import InvalidValueError
from runwire.requests import RunStatus
from runwire.runs import LogEntry, RunError
from runwire.tasks import AnyTask
from runwire.testing import TaskResult
from runwire.wire import Json, JsonObject
from runwire_engine.bells import ChunkRow
from runwire_engine.engine import Engine
from runwire_engine.run_row import RunRow


class Results:
    """The runs of one test's database."""

    def __init__(self, engine: Engine, environment_id: int, tasks: Mapping[str, AnyTask]) -> None:
        self._engine = engine
        self._environment_id = environment_id
        self._tasks = tasks

    async def of(self, run_id: str) -> TaskResult[Any]:
        """Return a run as it is now, with its streams, its metadata and its children."""
        row = await self._engine.runs.retrieve(self._environment_id, run_id)
        assert row is not None, run_id
        return TaskResult(
            id=row.id,
            task=row.task,
            status=cast(RunStatus, row.status),
            output=self._output(row),
            error=_error(row.error),
            attempts=row.attempt,
            tags=row.tags,
            metadata=orjson.loads(row.metadata or "{}"),
            metadata_history=await self._metadata_history(run_id),
            streams={
                key: tuple([orjson.loads(chunk.body) for chunk in await self._chunks(run_id, key)])
                for key in row.stream_keys
                if not is_reserved(key)
            },
            logs=await self._log(run_id),
            children=tuple([await self.of(child) for child in await self._children(run_id)]),
        )

    def _output(self, row: RunRow) -> Any:
        if row.output is None:
            return None
        output = orjson.loads(row.output)
        task = self._tasks.get(row.task)
        return output if task is None else task.parse_output(output)

    async def _children(self, run_id: str) -> Sequence[str]:
        parameters = {"environment_id": self._environment_id, "run_id": run_id}
        rows = await self._engine.database.all("testing.children", parameters)
        return [row["id"] for row in rows]

    async def _log(self, run_id: str) -> tuple[LogEntry, ...]:
        chunks = await self._chunks(run_id, LOG_KEY)
        lines = [(orjson.loads(chunk.body), chunk.seq, chunk.attempt) for chunk in chunks]
        return tuple(entry_of(*line) for line in lines)

    async def _chunks(self, run_id: str, key: str) -> list[ChunkRow]:
        chunks: list[ChunkRow] = []
        while True:
            page = await self._engine.streams.read(
                self._environment_id, run_id, key, from_seq=len(chunks)
            )
            if not page.chunks:
                return chunks
            chunks += page.chunks

    async def _metadata_history(self, run_id: str) -> tuple[JsonObject, ...]:
        """Return the document after each operation. What is too large for an event is left out."""
        history: list[JsonObject] = []
        document: JsonObject = {}
        for event in await self._engine.runs.events(self._environment_id, run_id):
            delta: JsonObject = orjson.loads(event.delta)
            first: Json = delta.get("set", {}).get("metadata")
            if isinstance(first, dict):
                document = cast(JsonObject, first)
                history.append(document)
            for operation in cast("list[JsonObject]", delta.get("metadata", [])):
                try:
                    document = _metadata.apply(document, [operation])
                except InvalidValueError:
                    continue  # has no effect on the stored document either
                history.append(document)
        return tuple(history)


def _error(text: str | None) -> RunError | None:
    if text is None:
        return None
    body: JsonObject = orjson.loads(text)
    return RunError(
        name=body.get("name") or "",
        message=body.get("message") or "",
        code=body.get("code"),
        stack_trace=body.get("stackTrace"),
    )
