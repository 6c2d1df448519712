"""Announced tasks and the limits of their queues."""

import pytest

from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.engine import Engine
from runwire_engine.wanted_runs import NewRun
from tests.support.engines import ALL_TASKS, query, there, triggered

pytestmark = pytest.mark.anyio


async def limits(engine: Engine) -> dict[str, int]:
    rows = await query(
        engine.database,
        "select queue, concurrency_limit from runwire.queue_groups where concurrency_key = ''",
    )
    return {row["queue"]: row["concurrency_limit"] for row in rows}


async def test_a_task_is_known_once_it_was_announced(engine: Engine, env: int) -> None:
    assert not await engine.catalogue.known(env, "new")
    task = TaskAnnouncement(
        "new", "task/new", None, '{"max_attempts":1}', 9, 60, '{"type":"x"}', "d"
    )
    await engine.catalogue.announce(env, [task])
    assert await engine.catalogue.known(env, "new")
    assert not await engine.catalogue.known(env + 1, "new")
    row = next(row for row in await engine.catalogue.list(env) if row.id == "new")
    assert (row.queue, row.retry) == ("task/new", '{"max_attempts":1}')
    assert (row.max_duration, row.ttl) == (9.0, 60.0)
    assert (row.payload_schema, row.description) == ('{"type":"x"}', "d")
    run = await there(engine, env, await triggered(engine, env, NewRun("new")))
    assert (run.queue, run.max_duration, run.ttl) == ("task/new", 9.0, 60.0)
    other = await there(engine, env, await triggered(engine, env, NewRun("new", ttl=5)))
    assert other.ttl == 5.0


async def test_announcing_again_changes_what_is_known(engine: Engine, env: int) -> None:
    await engine.catalogue.announce(env, [TaskAnnouncement("plain", "elsewhere")])
    assert {row.id: row.queue for row in await engine.catalogue.list(env)} == {
        "limited": "narrow",
        "other": "task/other",
        "plain": "elsewhere",
    }


async def test_a_new_limit_holds_for_every_group_of_the_queue(engine: Engine, env: int) -> None:
    await triggered(engine, env, NewRun("limited", concurrency_key="a"))
    await engine.catalogue.announce(env, [TaskAnnouncement("limited", "narrow", 5)])
    rows = await query(engine.database, "select concurrency_limit as n from runwire.queue_groups")
    assert [row["n"] for row in rows] == [5, 5]


async def test_of_tasks_that_share_a_queue_the_lowest_limit_holds(engine: Engine, env: int) -> None:
    await engine.catalogue.announce(
        env,
        [
            TaskAnnouncement("a", "shared", 4),
            TaskAnnouncement("b", "shared", 2),
            TaskAnnouncement("c", "shared"),
        ],
    )
    assert (await limits(engine))["shared"] == 2


async def test_a_queue_is_announced_without_a_task_and_its_limit_is_one_of_several(
    engine: Engine, env: int
) -> None:
    tasks = [TaskAnnouncement("a", "shared", 4), TaskAnnouncement("b", "open", 4)]
    await engine.catalogue.announce(env, tasks, {"shared": 2, "open": None, "alone": 7})
    held = await limits(engine)
    assert (held["shared"], held["open"], held["alone"]) == (2, 4, 7)


async def test_the_limit_of_the_worker_that_started_last_holds(engine: Engine, env: int) -> None:
    await engine.catalogue.announce(env, [TaskAnnouncement("a", "shared", 2)])
    await engine.catalogue.announce(env, [TaskAnnouncement("b", "shared", 5)])
    assert (await limits(engine))["shared"] == 5


async def test_a_queue_loses_its_limit_when_its_tasks_name_none(engine: Engine, env: int) -> None:
    waiting = await triggered(engine, env, NewRun("limited"))
    await engine.catalogue.announce(env, [TaskAnnouncement("limited", "narrow")])
    assert await limits(engine) == {}
    assert not (await there(engine, env, waiting)).limited
    assert len(await engine.claims.claim(env, "w1", ALL_TASKS, 1)) == 1


async def test_a_limit_named_by_a_task_of_another_worker_stays(engine: Engine, env: int) -> None:
    await engine.catalogue.announce(env, [TaskAnnouncement("guest", "narrow")])
    assert await limits(engine) == {"narrow": 2}
