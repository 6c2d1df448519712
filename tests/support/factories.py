"""Rows made directly in SQL, for tests of what reads them.

A run made here skips every module of the engine on purpose: a test of `changes` must not fail
because `runs` does.
"""

from collections.abc import Sequence
from itertools import count
from typing import Any, Final

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from runwire_engine.ids import new_run_id
from runwire_engine.states import FINAL, HELD, RunStatus

Connection = AsyncConnection[Any]
_numbers: Final = count(1)


async def make_run(
    connection: Connection,
    environment_id: int,
    *,
    run_id: str | None = None,
    status: RunStatus = RunStatus.QUEUED,
    task: str = "test-task",
    queue: str | None = None,
    tags: Sequence[str] = (),
    batch_id: str | None = None,
    revision: int = 1,
    execution: int = 0,
    created_at: str = "now",
) -> str:
    """Insert a run in any status, valid by the schema's constraints, and return its id."""
    run_id = run_id or new_run_id()
    await connection.execute(
        """
        insert into runwire.runs (environment_id, id, bucket, task, status, revision, execution,
            queue, sort_at, worker_id, tags, batch_id, created_at, updated_at, finished_at)
        select %(environment_id)s, %(id)s, (at at time zone 'UTC')::date, %(task)s, %(status)s,
            %(revision)s, %(execution)s, %(queue)s, at, %(worker_id)s, %(tags)s, %(batch_id)s,
            at, at, case when %(is_final)s then at end
          from (select %(created_at)s::timestamptz as at) clock
        """,
        {
            "environment_id": environment_id,
            "id": run_id,
            "task": task,
            "status": status,
            "revision": revision,
            "execution": execution,
            "queue": queue or f"task/{task}",
            "worker_id": "worker_of_a_test" if status in HELD else None,
            "tags": list(tags),
            "batch_id": batch_id,
            "created_at": created_at,
            "is_final": status in FINAL,
        },
    )
    return run_id


async def change_status(
    connection: Connection, environment_id: int, run_id: str, status: RunStatus
) -> int:
    """Move a run to a status, with its event, in one transaction; return the new revision."""
    async with connection.transaction():
        revision = await _update_status(connection, environment_id, run_id, status)
        kind = "final" if status in FINAL else status.lower()
        await make_event(connection, environment_id, run_id, revision, kind, {"status": status})
    return revision


async def _update_status(
    connection: Connection, environment_id: int, run_id: str, status: RunStatus
) -> int:
    cursor = await connection.execute(
        """
        update runwire.runs
           set status = %(status)s, revision = revision + 1, updated_at = clock_timestamp(),
               worker_id = %(worker_id)s,
               finished_at = case when %(is_final)s then clock_timestamp() end
         where environment_id = %(environment_id)s and id = %(id)s
        returning revision as revision
        """,
        {
            "environment_id": environment_id,
            "id": run_id,
            "status": status,
            "worker_id": "worker_of_a_test" if status in HELD else None,
            "is_final": status in FINAL,
        },
    )
    return int(_only(await cursor.fetchone(), "revision"))


async def make_event(
    connection: Connection,
    environment_id: int,
    run_id: str,
    revision: int,
    type: str = "created",
    set: dict[str, Any] | None = None,
) -> None:
    """Insert an event of a run at a revision."""
    await connection.execute(
        """
        insert into runwire.run_events (bucket, environment_id, run_id, revision, type, delta,
            task, tags, batch_id)
        select bucket, environment_id, id, %(revision)s, %(type)s, %(delta)s::text, task, tags,
               batch_id
          from runwire.runs where environment_id = %(environment_id)s and id = %(id)s
        """,
        {
            "environment_id": environment_id,
            "id": run_id,
            "revision": revision,
            "type": type,
            "delta": Jsonb({"set": set} if set else {}),
        },
    )


async def make_stream(
    connection: Connection,
    environment_id: int,
    run_id: str,
    key: str,
    bodies: Sequence[str],
    *,
    eof_reason: str | None = None,
) -> int:
    """Insert a stream with its chunks, JSON texts of execution 1, and return its id."""
    parameters = {
        "environment_id": environment_id,
        "run_id": run_id,
        "key": key,
        "bodies": list(bodies),
        "eof_reason": eof_reason,
    }
    cursor = await connection.execute(
        """
        insert into runwire.streams (environment_id, run_id, key, bucket, next_seq, execution,
            eof_reason)
        select environment_id, id, %(key)s, bucket, cardinality(%(bodies)s::text[]), 1,
               %(eof_reason)s
          from runwire.runs where environment_id = %(environment_id)s and id = %(run_id)s
        returning id as id
        """,
        parameters,
    )
    stream_id = int(_only(await cursor.fetchone(), "id"))
    await connection.execute(
        """
        insert into runwire.stream_chunks (bucket, stream_id, seq, execution, attempt, body)
        select s.bucket, s.id, chunk.number - 1, 1, 1, chunk.body
          from runwire.streams s, unnest(%(bodies)s::text[]) with ordinality chunk (body, number)
         where s.id = %(stream_id)s
        """,
        {**parameters, "stream_id": stream_id},
    )
    return stream_id


def a_tag() -> str:
    """Return a tag no other test of this process uses."""
    return f"test:{next(_numbers)}"


def _only(row: Any, column: str) -> Any:
    """Read a column of a row, whichever row factory the connection has."""
    assert row is not None, "the statement found nothing to work on"
    return row[0 if isinstance(row, tuple) else column]
