"""Plans that Postgres makes while the tables are small stay good when they have grown.

A prepared statement's generic plan is kept until somebody analyzes its tables. So the statements of
the hot path reach rows by key, whatever the planner believes of the tables' sizes.
"""

import pytest
from anyio import create_task_group

from runwire_engine.database import Database
from runwire_engine.doorbell import Doorbell
from runwire_engine.placement import Append
from runwire_engine.streams import Streams
from tests.support.run_rows import insert_run

pytestmark = pytest.mark.anyio

RUNS = 20_000
_GROW = """
    insert into runwire.streams (environment_id, run_id, key, bucket)
    select %s, 'run_' || lpad(n::text, 25, '0'), 'other', current_date
      from generate_series(1, %s) n
"""


async def test_appends_do_not_walk_the_streams_of_other_runs(database: Database, env: int) -> None:
    bell = Doorbell(database.dsn)
    streams = Streams(database, bell)
    run_id = await insert_run(database, env)
    read = RUNS
    async with create_task_group() as tasks:
        tasks.start_soon(bell.run)
        tasks.start_soon(streams.run)
        append = Append(run_id, "own", ('"chunk"',), execution=1, attempt=1)
        for _ in range(15):  # so often that the statements are prepared with a generic plan
            await streams.append(env, append)
        async with database.transaction() as tx:
            await tx.connection.execute(_GROW, (env, RUNS))
        before = await _rows_read(database)
        for _ in range(20):
            await streams.append(env, append)
        read = await _rows_read(database) - before
        streams.close()
        await streams.drain()
        tasks.cancel_scope.cancel()
    assert read < RUNS


async def _rows_read(database: Database) -> int:
    """Return how many rows sequential scans of the streams have read, in every session."""
    async with database.transaction() as tx:
        await tx.connection.execute("select pg_stat_force_next_flush()")
    async with database.transaction() as tx:
        cursor = await tx.connection.execute(
            "select seq_tup_read from pg_stat_all_tables"
            " where schemaname = 'runwire' and relname = 'streams'"
        )
        row = await cursor.fetchone()
    assert row is not None
    return int(row["seq_tup_read"])
