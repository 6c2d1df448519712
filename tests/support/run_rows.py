"""Rows of runs as the engine would have left them, for tests of what builds on runs."""

from runwire_engine.database import Database
from runwire_engine.ids import new_run_id

_INSERT = """
insert into runwire.runs
       (environment_id, id, bucket, task, status, execution, attempt, queue, worker_id, tags,
        batch_id, sort_at, created_at, updated_at, finished_at)
values (%(env)s, %(id)s, (now() at time zone 'UTC')::date, %(task)s, %(status)s, %(execution)s,
        %(execution)s, %(task)s,
        case when %(status)s in ('EXECUTING', 'DEQUEUED') then 'worker_test' end, %(tags)s,
        %(batch)s, now(), now(), now(),
        case when %(final)s then now() - make_interval(secs => %(finished_ago)s) end)
"""
_FINAL = {"COMPLETED", "CANCELED", "FAILED", "CRASHED", "SYSTEM_FAILURE", "EXPIRED", "TIMED_OUT"}


async def insert_run(
    database: Database,
    env: int,
    *,
    status: str = "EXECUTING",
    execution: int = 1,
    task: str = "write-story",
    tags: tuple[str, ...] = (),
    batch: str | None = None,
    finished_ago: float = 0.0,
) -> str:
    """Insert a run without its history and return its id."""
    run_id = new_run_id()
    async with database.transaction() as tx:
        await tx.connection.execute(
            _INSERT,
            {
                "env": env,
                "id": run_id,
                "task": task,
                "status": status,
                "execution": execution,
                "tags": list(tags),
                "batch": batch,
                "final": status in _FINAL,
                "finished_ago": finished_ago,
            },
        )
    return run_id


async def set_run(database: Database, env: int, run_id: str, status: str, execution: int) -> None:
    """Move a run as the engine would, without history."""
    async with database.transaction() as tx:
        await tx.connection.execute(
            """
            update runwire.runs
               set execution = %(execution)s,
                   worker_id = case when %(status)s = 'EXECUTING' then 'worker_test' end
             where environment_id = %(env)s and id = %(id)s and status = %(status)s
            """,
            {"env": env, "id": run_id, "status": status, "execution": execution},
        )
        await tx.connection.execute(
            """
            update runwire.runs
               set status = %(status)s, execution = %(execution)s,
                   worker_id = case when %(status)s = 'EXECUTING' then 'worker_test' end,
                   finished_at = case when %(final)s then now() end
             where environment_id = %(env)s and id = %(id)s and status <> %(status)s
            """,
            {
                "env": env,
                "id": run_id,
                "status": status,
                "execution": execution,
                "final": status in _FINAL,
            },
        )
