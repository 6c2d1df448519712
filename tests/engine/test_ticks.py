"""One run for each tick: with many servers, lost commits, missed ticks, and schedules gone bad."""

import logging
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta

import anyio
import orjson
import pytest

from runwire import Context, ScheduledTaskPayload, schedules
from runwire.wire import JsonObject
from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.database import Database
from runwire_engine.doorbell import Doorbell
from runwire_engine.engine import Engine, open_engine
from runwire_engine.run_pages import RunQuery
from runwire_engine.run_row import RunRow
from runwire_engine.schedules import ScheduleRow, ScheduleSpec
from runwire_engine.settings import EngineSettings
from runwire_engine.statements import statement
from runwire_engine.ticks import Ticks
from tests.support.engines import query, there
from tests.support.faultproxy import fault_proxy
from tests.support.postgres import opened_database
from tests.support.working import opened_bench, until

pytestmark = pytest.mark.anyio

# Nothing of it comes due by itself while a test runs.
YEARLY = ScheduleSpec("plain", "0 0 1 1 *", "yearly")
MINUTELY = ScheduleSpec("plain", "* * * * *", "minutely")


async def scheduled(engine: Engine, env: int, spec: ScheduleSpec, *, ago: str) -> ScheduleRow:
    """Make a schedule whose next tick was due some time ago, at a full minute."""
    made = await engine.schedules.create(env, spec)
    at = f"date_trunc('minute', now()) - interval '{ago}'"
    await query(
        engine.database,
        f"update runwire.schedules set next_at = {at}, due_at = {at} where id = %s",
        made.id,
    )
    return await again(engine, made)


async def again(engine: Engine, row: ScheduleRow) -> ScheduleRow:
    found = await engine.schedules.retrieve(row.environment_id, row.id)
    assert found is not None
    return found


async def runs_of(engine: Engine, env: int, row: ScheduleRow) -> list[RunRow]:
    """Return the runs of a schedule, by tick."""
    rows = await query(
        engine.database,
        "select id from runwire.runs where schedule_id = %s order by scheduled_at",
        row.id,
    )
    return [await there(engine, env, each["id"]) for each in rows]


def payload(run: RunRow) -> JsonObject:
    found: JsonObject = orjson.loads(run.payload or "")
    return found


async def until_quiet(engine: Engine) -> None:
    while await engine.ticks.once() < 0.1:
        pass


@pytest.fixture
async def database_of_a_server(database_url: str, anyio_backend: str) -> AsyncGenerator[Database]:
    async with opened_database(database_url) as opened:
        yield opened


async def test_a_tick_makes_a_run_that_knows_its_times(engine: Engine, env: int) -> None:
    spec = replace(MINUTELY, timezone="Europe/Berlin", external_id="user_42")
    row = await scheduled(engine, env, spec, ago="0 s")
    await until_quiet(engine)
    [run] = await runs_of(engine, env, row)
    assert (run.status, run.task, run.queue) == ("QUEUED", "plain", "task/plain")
    assert run.scheduled_at == row.next_at and run.revision == 1
    told = ScheduledTaskPayload.model_validate(payload(run))
    assert told.timestamp == row.next_at and told.last_timestamp is None
    assert (told.schedule_id, told.external_id) == (row.id, "user_42")
    assert (told.timezone, told.type) == ("Europe/Berlin", "IMPERATIVE")
    minutes = [(at - told.timestamp).total_seconds() / 60 for at in told.upcoming]
    assert minutes == [1, 2, 3, 4, 5]
    after = await again(engine, row)
    assert after.last_at == row.next_at and after.next_at == told.upcoming[0]
    listed = await engine.runs.list(env, RunQuery(schedule=row.id))
    assert [each.id for each in listed.runs] == [run.id]
    assert after.due_at == after.next_at


async def test_the_next_tick_tells_of_the_last_one(engine: Engine, env: int) -> None:
    row = await scheduled(engine, env, replace(MINUTELY, missed="all"), ago="1 min")
    await until_quiet(engine)
    first, second = await runs_of(engine, env, row)
    assert "lastTimestamp" not in payload(first)
    assert payload(second)["lastTimestamp"] == payload(first)["timestamp"]


async def test_the_run_has_the_queue_and_the_bounds_of_its_task(engine: Engine, env: int) -> None:
    bounded = TaskAnnouncement("limited", "narrow", 2, max_duration=60.0, ttl=600.0)
    await engine.catalogue.announce(env, [bounded])
    row = await scheduled(engine, env, replace(YEARLY, task="limited"), ago="0 s")
    await until_quiet(engine)
    [run] = await runs_of(engine, env, row)
    assert run.queue == "narrow" and run.limited
    assert (run.max_duration, run.ttl) == (60.0, 600.0) and run.expires_at is not None


async def test_of_missed_ticks_only_the_newest_gets_a_run(engine: Engine, env: int) -> None:
    row = await scheduled(engine, env, MINUTELY, ago="3 days")
    await until_quiet(engine)
    [run] = await runs_of(engine, env, row)
    after = await again(engine, row)
    assert run.scheduled_at is not None and after.next_at is not None
    assert after.next_at - run.scheduled_at == timedelta(minutes=1)
    assert after.next_at > run.created_at - timedelta(minutes=1)


async def test_of_missed_ticks_all_get_a_run_where_that_is_wanted(engine: Engine, env: int) -> None:
    row = await scheduled(engine, env, replace(MINUTELY, missed="all"), ago="5 min")
    await until_quiet(engine)
    times = [run.scheduled_at for run in await runs_of(engine, env, row)]
    assert len(times) in {6, 7} and times[0] == row.next_at  # a minute may have passed
    steps = {b - a for a, b in zip(times, times[1:], strict=False) if a and b}
    assert steps == {timedelta(minutes=1)}


async def test_the_tick_of_a_window_waits_for_its_place(engine: Engine, env: int) -> None:
    row = await engine.schedules.create(env, replace(MINUTELY, cron="*/2 * * * *", window="90%"))
    assert row.next_at is not None and row.due_at is not None and row.due_at >= row.next_at
    # Its time by the cron has come, its run is not due.
    text = "update runwire.schedules set next_at = next_at - interval '2 min', due_at = %s"
    await query(engine.database, text, row.created_at + timedelta(minutes=1))
    await until_quiet(engine)
    assert await runs_of(engine, env, row) == []
    await query(engine.database, "update runwire.schedules set due_at = now()")
    await until_quiet(engine)
    [run] = await runs_of(engine, env, row)
    assert payload(run)["timestamp"].endswith(":00.000Z")


async def test_an_inactive_schedule_does_not_tick(engine: Engine, env: int) -> None:
    row = await scheduled(engine, env, YEARLY, ago="1 h")
    await engine.schedules.deactivate(env, row.id)
    await until_quiet(engine)
    awake = await engine.schedules.activate(env, row.id)
    await until_quiet(engine)
    # What was missed meanwhile is not made up for.
    assert await runs_of(engine, env, row) == [] and await again(engine, row) == awake


async def test_many_servers_make_one_run_for_each_tick(
    engine: Engine, env: int, database_url: str
) -> None:
    rows = [
        await scheduled(engine, env, replace(MINUTELY, key=f"k{n}", missed="all"), ago="4 min")
        for n in range(25)
    ]
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(
                open_engine(EngineSettings(database_url=database_url), sweeping=False, ticking=True)
            )
            for _ in range(4)
        ]
        assert len({id(server.ticks) for server in servers}) == 4

        async def are_through() -> bool:
            found = await query(
                engine.database,
                "select count(*) as n from runwire.schedules where due_at <= now()",
            )
            return bool(found[0]["n"] == 0)

        with anyio.fail_after(60):
            while not await are_through():
                await anyio.sleep(0.02)
    for row in rows:
        ticks = Counter(run.scheduled_at for run in await runs_of(engine, env, row))
        assert len(ticks) in {5, 6} and set(ticks.values()) == {1}
        told = [payload(run) for run in await runs_of(engine, env, row)]
        for before, after in zip(told, told[1:], strict=False):
            assert after["lastTimestamp"] == before["timestamp"]


@pytest.mark.parametrize("after", [True, False])
async def test_a_lost_answer_to_commit_neither_loses_nor_doubles_a_tick(
    engine: Engine, env: int, database_url: str, after: bool
) -> None:
    row = await scheduled(engine, env, YEARLY, ago="1 min")
    async with fault_proxy(database_url) as proxy, opened_database(proxy.dsn(database_url)) as away:
        bell = Doorbell(database_url)
        ticks = Ticks(away, bell, poll=1.0)
        proxy.cut_next_commit(after=after)
        await ticks.once()
        assert proxy.commits_cut == 1
        await ticks.once()
    [run] = await runs_of(engine, env, row)
    assert run.scheduled_at == row.next_at
    # Workers and subscribers hear of it however the answer was lost.
    assert not bell.idle


async def test_a_server_that_dies_before_its_commit_has_done_nothing(
    engine: Engine, env: int, database_of_a_server: Database
) -> None:
    row = await scheduled(engine, env, YEARLY, ago="1 min")
    async with database_of_a_server.transaction() as tx:
        assert len(await tx.all("ticks.due", {"limit": 10})) == 1
        # Another server passes it by, for as long as that one lives.
        assert await engine.ticks.once() > 0
        assert await runs_of(engine, env, row) == []
        await tx.connection.execute("rollback")
    await until_quiet(engine)
    assert len(await runs_of(engine, env, row)) == 1


async def test_one_tick_can_have_only_one_run(engine: Engine, env: int) -> None:
    row = await scheduled(engine, env, YEARLY, ago="1 min")
    await until_quiet(engine)
    # Somebody brings the schedule back to where it was: a restored table, say.
    await query(
        engine.database,
        "update runwire.schedules set next_at = %s, due_at = %s",
        row.next_at,
        row.next_at,
    )
    await until_quiet(engine)
    assert len(await runs_of(engine, env, row)) == 1


async def test_a_schedule_whose_task_is_unknown_tells_so_and_holds_up_nobody(
    engine: Engine, env: int
) -> None:
    lost = await scheduled(engine, env, replace(MINUTELY, key="lost"), ago="1 h")
    sound = await scheduled(engine, env, MINUTELY, ago="1 min")
    text = "update runwire.schedules set task = 'gone' where id = %s"
    await query(engine.database, text, lost.id)
    await until_quiet(engine)
    assert len(await runs_of(engine, env, sound)) in (1, 2)  # a minute may begin meanwhile
    after = await again(engine, lost)
    assert after.error is not None and "'gone'" in after.error and after.last_at is None
    assert after.next_at is not None and after.next_at > sound.created_at - timedelta(minutes=1)
    assert (await engine.schedules.update(env, lost.id, {"task": "plain"})).error is None


@pytest.mark.parametrize("change", ["cron = '0 0 31 2 *'", "timezone = 'Mars/Olympus'"])
async def test_a_cron_that_became_invalid_stops_its_schedule_only(
    engine: Engine, env: int, change: str
) -> None:
    bad = await scheduled(engine, env, replace(MINUTELY, key="bad"), ago="1 h")
    sound = await scheduled(engine, env, MINUTELY, ago="1 min")
    await query(engine.database, f"update runwire.schedules set {change} where id = %s", bad.id)
    await until_quiet(engine)
    assert len(await runs_of(engine, env, sound)) in (1, 2)  # a minute may begin meanwhile
    after = await again(engine, bad)
    assert after.error is not None and after.next_at is None and after.active
    fixed = await engine.schedules.create(env, replace(MINUTELY, key="bad"))
    assert fixed.error is None and fixed.next_at is not None


async def test_a_tick_that_cannot_be_stored_is_put_off_and_holds_up_nobody(
    engine: Engine, env: int, caplog: pytest.LogCaptureFixture
) -> None:
    bad = await scheduled(engine, env, replace(YEARLY, key="bad"), ago="1 h")
    sound = await scheduled(engine, env, replace(YEARLY, key="sound"), ago="1 min")
    await query(
        engine.database,
        "create function refuse() returns trigger language plpgsql as $$ begin"
        f" if new.schedule_id = '{bad.id}' then raise 'not this one'; end if; return new; end $$;"
        " create trigger refuse before update on runwire.runs"
        " for each row execute function refuse()",
    )
    with caplog.at_level(logging.CRITICAL, logger="runwire.ticks"):
        await until_quiet(engine)
    assert len(await runs_of(engine, env, sound)) in (1, 2)  # a minute may begin meanwhile
    after = await again(engine, bad)
    assert after.error is not None and "not this one" in after.error
    assert after.next_at == bad.next_at and after.due_at is not None
    assert after.due_at > after.created_at + timedelta(seconds=30)
    # It is tried again, for the same tick.
    await query(engine.database, "drop trigger refuse on runwire.runs")
    await query(
        engine.database,
        "update runwire.schedules set due_at = now() where due_at < now() + interval '1 h'",
    )
    await until_quiet(engine)
    [run] = await runs_of(engine, env, bad)
    assert run.scheduled_at == bad.next_at and (await again(engine, bad)).error is None


async def test_the_loop_sleeps_until_the_tick_and_not_until_it_next_polls(
    engine: Engine, env: int, database_url: str
) -> None:
    row = await scheduled(engine, env, YEARLY, ago="0 s")
    await query(
        engine.database,
        "update runwire.schedules set due_at = clock_timestamp() + interval '0.3 s'",
    )
    row = await again(engine, row)
    settings = EngineSettings(database_url=database_url, poll=60)
    async with open_engine(settings, sweeping=False, ticking=True):
        with anyio.fail_after(60):
            while not (runs := await runs_of(engine, env, row)):
                await anyio.sleep(0.02)
    assert row.due_at is not None
    assert timedelta() <= runs[0].created_at - row.due_at < timedelta(seconds=5)


# Declared schedules and the workers that declare them ------------------------------------------


async def declared(engine: Engine, env: int) -> ScheduleRow:
    spec = ScheduleSpec("plain", "0 0 1 1 *", "plain")
    await engine.schedules.declare(env, [spec], ["plain"])
    page = await engine.schedules.list(env, page=1, size=10)
    at = "date_trunc('minute', now()) - interval '1 min'"
    await query(engine.database, f"update runwire.schedules set next_at = {at}, due_at = {at}")
    return await again(engine, page.schedules[0])


async def test_a_declared_schedule_ticks_while_a_worker_declares_it(
    engine: Engine, env: int
) -> None:
    row = await declared(engine, env)
    # Neither the worker of this engine, which declares nothing, nor one of another environment.
    await engine.workers.register(env + 1, "elsewhere", declares=["plain"])
    await until_quiet(engine)
    waiting = await again(engine, row)
    assert waiting.suspended_at is not None and waiting.next_at == row.next_at
    assert await engine.ticks.once() > 0.1
    # A worker that comes back finds its tick.
    await engine.workers.register(env, "back", declares=["other", "plain"])
    await until_quiet(engine)
    [run] = await runs_of(engine, env, row)
    assert run.scheduled_at == row.next_at and payload(run)["type"] == "DECLARATIVE"
    assert (await again(engine, row)).suspended_at is None


@pytest.mark.parametrize("end", ["stopped", "late"])
async def test_a_worker_that_is_gone_declares_nothing(engine: Engine, env: int, end: str) -> None:
    await engine.workers.register(env, "w2", declares=["plain"])
    if end == "stopped":
        await engine.workers.stop("w2")
    else:
        await query(engine.database, "update runwire.workers set expires_at = now()")
    row = await declared(engine, env)
    await until_quiet(engine)
    assert await runs_of(engine, env, row) == []


async def test_what_no_worker_has_declared_for_a_week_is_forgotten(
    engine: Engine, env: int
) -> None:
    row = await declared(engine, env)
    await until_quiet(engine)
    text = "update runwire.schedules set suspended_at = now() - interval '8 days'"
    await query(engine.database, text)
    await Ticks(engine.database, engine.bell, poll=1.0).once()
    assert await engine.schedules.retrieve(env, row.id) is None


async def test_a_task_with_a_cron_runs_by_itself(database_url: str) -> None:
    seen: list[tuple[ScheduledTaskPayload, str | None]] = []

    @schedules.task(id="digest", cron={"pattern": "0 0 1 1 *", "timezone": "Asia/Tokyo"})
    async def digest(payload: ScheduledTaskPayload, ctx: Context) -> None:
        seen.append((payload, ctx.run.schedule_id))

    async with opened_bench(database_url) as bench, bench.worker(digest):
        row = (await bench.engine.schedules.list(bench.env, page=1, size=10)).schedules[0]
        assert (row.task, row.timezone, row.active) == ("digest", "Asia/Tokyo", True)
        await bench.sql("update runwire.schedules set due_at = now()")
        await bench.engine.ticks.once()
        await until(lambda: bool(seen))
    [(told, schedule_id)] = seen
    assert isinstance(told, ScheduledTaskPayload)
    assert told.schedule_id == schedule_id == row.id and told.timestamp == row.next_at


async def test_a_schedule_of_other_environments_is_not_declared(database_url: str) -> None:
    @schedules.task(
        id="digest-of-production", cron={"pattern": "0 0 1 1 *", "environments": ["production"]}
    )
    async def digest(payload: ScheduledTaskPayload) -> None: ...

    async with opened_bench(database_url) as bench, bench.worker(digest):
        assert (await bench.engine.schedules.list(bench.env, page=1, size=10)).count == 0


# Ten thousand of them ---------------------------------------------------------------------------

MANY = 10_000
_FILL = """
    insert into runwire.schedules (environment_id, id, type, task, cron, deduplication_key, next_at,
                                   due_at, created_at, updated_at)
    select %s, 'sched_' || lpad(n::text, 25, '0'), 'IMPERATIVE', 'plain', '0 0 1 1 *', n::text,
           now() + n * interval '1 h', now() + n * interval '1 h', now(), now()
      from generate_series(1, %s) n
"""


async def test_a_look_at_ten_thousand_schedules_reads_the_first_ones_only(
    engine: Engine, env: int, database: Database
) -> None:
    # Prepared, with a generic plan, while the table is empty.
    for _ in range(15):
        await engine.ticks.once()
    await query(database, _FILL, env, MANY)
    row = await scheduled(engine, env, YEARLY, ago="0 s")
    for name, parameters in (("ticks.look", {}), ("ticks.due", {"limit": 100})):
        async with database.transaction() as tx:
            await tx.connection.execute("set local plan_cache_mode = force_generic_plan")
            cursor = await tx.connection.execute(
                f"explain (analyze, format json) {statement(name)}".encode(), parameters
            )
            found = await cursor.fetchone()
        assert found is not None
        plan = next(iter(found.values()))[0]["Plan"]
        assert _rows(plan) < 50, _outline(plan)
    await until_quiet(engine)
    assert len(await runs_of(engine, env, row)) == 1


def _outline(plan: JsonObject) -> str:
    inner = ", ".join(_outline(child) for child in plan.get("Plans", []))
    name = plan.get("Index Name", plan.get("Relation Name", ""))
    return f"{plan['Node Type']} {name} {plan['Actual Rows']:g} ({inner})"


def _rows(plan: JsonObject) -> float:
    """Return how many rows of schedules a plan has read."""
    own = 0.0
    if plan.get("Relation Name") == "schedules":
        own = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    return own + sum(_rows(child) for child in plan.get("Plans", []))
