"""What every process does every few seconds."""

import logging
from datetime import timedelta

import anyio
import pytest

from runwire_engine.engine import Engine, open_engine
from runwire_engine.retention import Retention
from runwire_engine.settings import EngineSettings
from runwire_engine.sweep import Sweep
from runwire_engine.wanted_runs import NewRun
from tests.support.engines import ALL_TASKS, query, triggered, until_status

pytestmark = pytest.mark.anyio


async def count(engine: Engine, table: str) -> int:
    rows = await query(engine.database, f"select count(*) as n from runwire.{table}")
    return int(rows[0]["n"])


async def test_partitions_are_made_a_week_ahead(engine: Engine, env: int) -> None:
    await engine.sweep.tidy()
    rows = await query(
        engine.database,
        "select to_regclass('runwire.run_events_' || to_char(current_date + 7, 'YYYYMMDD'))"
        " is not null as there",
    )
    assert rows[0]["there"]


async def test_what_served_its_time_is_deleted_and_nothing_else(engine: Engine, env: int) -> None:
    for age, name in ((48, "old"), (0, "new")):
        for text in (
            "insert into runwire.request_keys values (%s, 'trigger', %s, 'run', {at})",
            "insert into runwire.idempotency_keys values (%s, 'plain', %s, 'run', {at}, {at})",
            "insert into runwire.used_tokens values (%s, %s, {at})",
            "insert into runwire.revoked_tokens values (%s, %s, {at})",
            "insert into runwire.writers values (%s, 'chunks', %s, 1, 'null', {at})",
            "insert into runwire.queue_groups values (%s, 'narrow', %s, 2, {at})",
        ):
            at = f"now() - interval '{age} hours' + interval '1 minute'"
            await query(engine.database, text.format(at=at), env, name)
    await engine.sweep.tidy()
    for table in ("request_keys", "idempotency_keys", "used_tokens", "revoked_tokens", "writers"):
        assert await count(engine, table) == 1, table
    rows = await query(
        engine.database, "select concurrency_key from runwire.queue_groups order by 1"
    )
    assert [row["concurrency_key"] for row in rows] == ["", "new"]


async def test_a_group_is_kept_while_runs_wait_or_execute_in_it(engine: Engine, env: int) -> None:
    await triggered(engine, env, NewRun("limited", concurrency_key="a"))
    for _ in ("waits", "executes"):
        await engine.sweep.tidy()
        assert await count(engine, "queue_groups") == 2
        await engine.claims.claim(env, "w1", ALL_TASKS, 1)
        await query(
            engine.database,
            "update runwire.queue_groups set last_served = now() - interval '1 hour'",
        )


async def test_runs_on_the_wrong_side_of_a_limit_are_put_right(engine: Engine, env: int) -> None:
    ids = [
        await triggered(engine, env, NewRun("limited", concurrency_key="a")),
        await triggered(engine, env, NewRun("plain")),
    ]
    await query(engine.database, "update runwire.runs set limited = not limited")
    await query(engine.database, "delete from runwire.queue_groups where concurrency_key = 'a'")
    await engine.sweep.tidy()
    assert [run.limited for run in await engine.runs.retrieve_many(env, ids)] == [True, False]
    assert await count(engine, "queue_groups") == 2


async def test_the_loop_queues_due_runs_and_goes_on_after_a_failure(
    engine: Engine, env: int, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = await triggered(engine, env, NewRun("plain", delay=0.05))
    await query(engine.database, "alter table runwire.writers rename to away")
    retention = Retention(engine.database, history=timedelta(days=7), runs=timedelta(days=30))
    sweep = Sweep(
        engine.database,
        engine.workers,
        engine.batches,
        engine.waits,
        engine.waitpoints,
        engine.cancellations,
        retention,
        engine.sweep.alarms,
        interval=0.05,
    )
    with caplog.at_level(logging.WARNING, "runwire.sweep"):
        await sweep.once()
    assert "delete_writers" in caplog.text
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sweep.run)
        await until_status(engine, env, run_id, "QUEUED")
        tasks.cancel_scope.cancel()


async def test_an_engine_sweeps_by_itself(engine: Engine, database_url: str, env: int) -> None:
    run_id = await triggered(engine, env, NewRun("plain", delay=0.05))
    async with open_engine(EngineSettings(database_url=database_url, sweep=0.05)):
        await until_status(engine, env, run_id, "QUEUED")


async def test_a_young_table_that_grew_fast_gets_statistics(engine: Engine, env: int) -> None:
    await query(
        engine.database,
        """
        with made as (
            insert into runwire.request_keys (environment_id, operation, key, target_id)
            select %s, 'trigger', n::text, 'run' from generate_series(1, 600) n
            returning 1
        )
        select count(*), pg_stat_force_next_flush() from made
        """,
        env,
    )
    await engine.sweep.once()
    rows = await query(
        engine.database, "select reltuples from pg_class where relname = 'request_keys'"
    )
    assert rows[0]["reltuples"] == 600
