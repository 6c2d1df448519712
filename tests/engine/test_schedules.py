"""Schedules as they are made, changed, declared and deleted."""

from dataclasses import replace
from datetime import timedelta

import anyio
import pytest

from runwire.errors import InvalidValueError
from runwire_engine.database import Database
from runwire_engine.engine import Engine, open_engine
from runwire_engine.errors import (
    ScheduleDeclaredError,
    ScheduleNotFoundError,
    UnknownTaskError,
)
from runwire_engine.schedules import ScheduleRow, ScheduleSpec
from runwire_engine.settings import EngineSettings
from tests.support.engines import query
from tests.support.faultproxy import fault_proxy

pytestmark = pytest.mark.anyio

HOURLY = ScheduleSpec("plain", "0 * * * *", "hourly")


async def declared(engine: Engine, env: int) -> list[ScheduleRow]:
    page = await engine.schedules.list(env, page=1, size=100)
    return [row for row in page.schedules if row.type == "DECLARATIVE"]


async def test_a_schedule_has_its_next_tick(engine: Engine, env: int) -> None:
    made = await engine.schedules.create(env, replace(HOURLY, timezone="Asia/Kolkata"))
    assert made.type == "IMPERATIVE" and made.active and made.last_at is None
    assert made.next_at is not None and made.next_at.minute == 30
    assert timedelta() < made.next_at - made.created_at <= timedelta(hours=1)
    assert await engine.schedules.retrieve(env, made.id) == made


async def test_the_same_key_is_the_same_schedule_and_keeps_its_tick(
    engine: Engine, env: int
) -> None:
    made = await engine.schedules.create(env, replace(HOURLY, window="50%"))
    long_ago = "update runwire.schedules set next_at = next_at - interval '2 h'"
    await query(engine.database, long_ago)
    again = await engine.schedules.create(env, replace(HOURLY, window="50%", external_id="e"))
    assert again.id == made.id and again.external_id == "e"
    # A tick that is overdue is still to come.
    assert made.next_at is not None and again.next_at == made.next_at - timedelta(hours=2)
    other = await engine.schedules.create(env, replace(HOURLY, cron="30 * * * *"))
    assert other.id == made.id and other.next_at is not None
    assert other.next_at.minute == 30 and other.next_at > other.updated_at


async def test_fifty_calls_with_one_key_at_once_make_one_schedule(engine: Engine, env: int) -> None:
    found: set[str] = set()

    async def create() -> None:
        found.add((await engine.schedules.create(env, HOURLY)).id)

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(create)
    assert len(found) == 1
    assert (await engine.schedules.list(env, page=1, size=10)).count == 1


@pytest.mark.parametrize(
    "spec",
    [
        replace(HOURLY, cron="* * * * * *"),
        replace(HOURLY, timezone="Mars/Olympus"),
        replace(HOURLY, window="25h"),
        replace(HOURLY, key=""),
        replace(HOURLY, key="a\x00b"),
        replace(HOURLY, external_id="e" * 257),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    engine: Engine, env: int, spec: ScheduleSpec
) -> None:
    made = await engine.schedules.create(env, HOURLY)
    with pytest.raises(InvalidValueError):
        await engine.schedules.create(env, spec)
    if spec.key == HOURLY.key:
        changes = {"cron": spec.cron, "timezone": spec.timezone, "window": spec.window}
        with pytest.raises(InvalidValueError):
            await engine.schedules.update(
                env, made.id, {**changes, "external_id": spec.external_id}
            )
    assert await engine.schedules.retrieve(env, made.id) == made


async def test_a_task_that_nobody_announced_is_refused(engine: Engine, env: int) -> None:
    with pytest.raises(UnknownTaskError):
        await engine.schedules.create(env, replace(HOURLY, task="unheard-of"))
    made = await engine.schedules.create(env, HOURLY)
    with pytest.raises(UnknownTaskError):
        await engine.schedules.update(env, made.id, {"task": "unheard-of"})


async def test_only_what_is_given_is_updated(engine: Engine, env: int) -> None:
    made = await engine.schedules.create(env, replace(HOURLY, external_id="e", window="30m"))
    changed = await engine.schedules.update(env, made.id, {"task": "other", "external_id": None})
    assert changed.task == "other" and changed.external_id is None and changed.due_window == "30m"
    assert (changed.next_at, changed.due_at) == (made.next_at, made.due_at)


async def test_an_inactive_schedule_has_no_tick_until_it_is_activated(
    engine: Engine, env: int
) -> None:
    made = await engine.schedules.create(env, HOURLY)
    still = await engine.schedules.deactivate(env, made.id)
    assert not still.active and still.next_at is None
    # A change of its cron does not wake it.
    assert (await engine.schedules.create(env, replace(HOURLY, cron="5 * * * *"))).next_at is None
    awake = await engine.schedules.activate(env, made.id)
    assert awake.active and awake.next_at is not None and awake.next_at > awake.updated_at
    assert await engine.schedules.activate(env, made.id) == awake


async def test_a_deleted_schedule_is_gone(engine: Engine, env: int) -> None:
    made = await engine.schedules.create(env, HOURLY)
    await engine.schedules.delete(env, made.id)
    assert await engine.schedules.retrieve(env, made.id) is None
    for call in (engine.schedules.delete, engine.schedules.activate, engine.schedules.deactivate):
        with pytest.raises(ScheduleNotFoundError):
            await call(env, made.id)
    assert (await engine.schedules.create(env, HOURLY)).id != made.id


async def test_schedules_are_listed_in_pages_oldest_first(
    engine: Engine, env: int, database: Database
) -> None:
    made = [
        (await engine.schedules.create(env, replace(HOURLY, key=f"key {n}"))).id for n in range(5)
    ]
    pages = [await engine.schedules.list(env, page=n, size=2) for n in (1, 2, 3, 4)]
    assert [[row.id for row in page.schedules] for page in pages] == [
        made[:2],
        made[2:4],
        made[4:],
        [],
    ]
    assert {page.count for page in pages} == {5}
    assert (await engine.schedules.list(env + 1, page=1, size=2)).count == 0


async def test_environments_do_not_see_each_others_schedules(engine: Engine, env: int) -> None:
    made = await engine.schedules.create(env, HOURLY)
    assert await engine.schedules.retrieve(env + 1, made.id) is None
    with pytest.raises(ScheduleNotFoundError):
        await engine.schedules.update(env + 1, made.id, {"cron": "5 * * * *"})
    with pytest.raises(ScheduleNotFoundError):
        await engine.schedules.delete(env + 1, made.id)


async def test_what_code_declares_comes_changes_and_goes_with_it(engine: Engine, env: int) -> None:
    tasks = ["plain", "other"]
    plain = ScheduleSpec("plain", "0 * * * *", "plain")
    await engine.schedules.declare(env, [plain, ScheduleSpec("other", "5 * * * *", "other")], tasks)
    before = {row.task: row for row in await declared(engine, env)}
    assert set(before) == {"plain", "other"}
    # Announced again by a worker that starts: nothing changes.
    await engine.schedules.declare(env, [plain, ScheduleSpec("other", "9 * * * *", "other")], tasks)
    after = {row.task: row for row in await declared(engine, env)}
    assert after["plain"] == before["plain"]
    assert after["other"].id == before["other"].id and after["other"].cron == "9 * * * *"
    # The cron is taken out of the code of one; the other's worker says nothing of it.
    await engine.schedules.declare(env, [], ["other"])
    assert [row.task for row in await declared(engine, env)] == ["plain"]


async def test_a_declared_schedule_is_changed_in_its_code_only(engine: Engine, env: int) -> None:
    spec = ScheduleSpec("plain", "0 * * * *", "plain")
    await engine.schedules.declare(env, [spec], ["plain"])
    [row] = await declared(engine, env)
    with pytest.raises(ScheduleDeclaredError):
        await engine.schedules.update(env, row.id, {"cron": "5 * * * *"})
    with pytest.raises(ScheduleDeclaredError):
        await engine.schedules.delete(env, row.id)
    # It can be switched off, and stays so when a worker announces it again.
    await engine.schedules.deactivate(env, row.id)
    await engine.schedules.declare(env, [spec], ["plain"])
    assert not (await declared(engine, env))[0].active


async def test_a_key_may_be_that_of_a_declared_task(engine: Engine, env: int) -> None:
    await engine.schedules.declare(env, [ScheduleSpec("plain", "0 * * * *", "plain")], ["plain"])
    made = await engine.schedules.create(env, replace(HOURLY, key="plain"))
    await engine.schedules.declare(env, [], ["plain"])
    assert await engine.schedules.retrieve(env, made.id) == made


async def test_a_declaration_that_cannot_be_names_its_task(engine: Engine, env: int) -> None:
    with pytest.raises(InvalidValueError, match="'plain'.*IANA"):
        spec = ScheduleSpec("plain", "0 * * * *", "plain", timezone="Mars/Olympus")
        await engine.schedules.declare(env, [spec], ["plain"])


@pytest.mark.parametrize("after", [True, False])
async def test_a_lost_answer_to_commit_neither_loses_nor_doubles_a_schedule(
    engine: Engine, env: int, database_url: str, after: bool
) -> None:
    async with fault_proxy(database_url) as proxy:
        settings = EngineSettings(database_url=proxy.dsn(database_url))
        async with open_engine(settings, sweeping=False) as lossy:
            proxy.cut_next_commit(after=after)
            made = await lossy.schedules.create(env, HOURLY)
            proxy.cut_next_commit(after=after)
            await lossy.schedules.delete(env, made.id)
            assert proxy.commits_cut == 2
    assert (await engine.schedules.list(env, page=1, size=10)).count == 0
