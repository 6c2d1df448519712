"""Queues while runs wait in them: paused, limited, and what wins when several say a limit."""

import anyio
import pytest

from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.claims import Claims
from runwire_engine.engine import Engine
from runwire_engine.errors import NoOverrideError, QueueNotFoundError
from runwire_engine.listener import Listener
from runwire_engine.outcomes import Completed
from runwire_engine.wanted_runs import NewRun
from tests.support.engines import ALL_TASKS, query, there, triggered

pytestmark = pytest.mark.anyio


async def claim(engine: Engine, env: int, slots: int = 10) -> int:
    return len(await engine.claims.claim(env, "w1", ALL_TASKS, slots))


async def test_a_queue_tells_its_limits_and_what_waits_and_executes_in_it(
    engine: Engine, env: int
) -> None:
    for key in ("a", "a", "a", "b"):
        await triggered(engine, env, NewRun("limited", concurrency_key=key))
    await triggered(engine, env, NewRun("limited", delay=60))
    await triggered(engine, env)
    assert await claim(engine, env, 3) == 3
    page = await engine.queues.page(env)
    assert [queue.name for queue in page.queues] == ["narrow", "task/other", "task/plain"]
    assert page.count == 3
    narrow = page.queues[0]
    assert (narrow.concurrency_limit, narrow.base_limit, narrow.override_limit) == (2, 2, None)
    assert narrow.running + narrow.queued == 4 and not narrow.paused
    assert [(q.running + q.queued, q.concurrency_limit) for q in page.queues[1:]] == [
        (0, None),
        (1, None),
    ]
    for queue in page.queues:
        assert await engine.queues.retrieve(env, queue.name) == queue
        assert await engine.queues.retrieve(env, queue.id) == queue
    second = await engine.queues.page(env, offset=1, limit=1)
    assert [queue.name for queue in second.queues] == ["task/other"]


async def test_a_queue_nobody_named_is_not_found(engine: Engine, env: int) -> None:
    queues = engine.queues
    for name in ("nobody", "queue_000000000000000000000000"):
        with pytest.raises(QueueNotFoundError, match=name):
            await queues.retrieve(env, name)
        with pytest.raises(QueueNotFoundError):
            await queues.pause(env, name)
        with pytest.raises(QueueNotFoundError):
            await queues.override_concurrency_limit(env, name, 1)
        with pytest.raises(QueueNotFoundError):
            await queues.reset_concurrency_limit(env, name)
    with pytest.raises(QueueNotFoundError):
        await queues.retrieve(env + 1, "narrow")


async def test_a_queue_that_only_triggers_name_is_there_too(engine: Engine, env: int) -> None:
    await triggered(engine, env, NewRun("plain", queue="vip"))
    assert (await engine.queues.retrieve(env, "vip")).queued == 1
    await engine.queues.pause(env, "vip")
    assert await claim(engine, env) == 0


@pytest.mark.parametrize("task", ["plain", "limited"])
async def test_a_paused_queue_starts_nothing_and_goes_on_when_resumed(
    engine: Engine, env: int, task: str
) -> None:
    name = "narrow" if task == "limited" else "task/plain"
    await triggered(engine, env, NewRun(task, concurrency_key="a"))
    assert await claim(engine, env) == 1
    await triggered(engine, env, NewRun(task, concurrency_key="a"))
    paused = await engine.queues.pause(env, name)
    assert (paused.paused, paused.running, paused.queued) == (True, 1, 1)
    await triggered(engine, env, NewRun(task, concurrency_key="b"))
    assert await claim(engine, env) == 0
    resumed = await engine.queues.resume(env, name)
    assert (resumed.paused, resumed.queued) == (False, 2)
    assert await claim(engine, env) == 2


async def test_a_pause_outlasts_the_start_of_workers(engine: Engine, env: int) -> None:
    await engine.queues.pause(env, "task/plain")
    await engine.queues.pause(env, "narrow")
    await engine.catalogue.announce(
        env, [TaskAnnouncement("plain", "task/plain"), TaskAnnouncement("limited", "narrow", 9)]
    )
    for task in ("plain", "limited"):
        await triggered(engine, env, NewRun(task))
    assert await claim(engine, env) == 0
    assert (await engine.queues.retrieve(env, "narrow")).base_limit == 9


async def test_resuming_rings_for_the_queue(engine: Engine, env: int) -> None:
    await triggered(engine, env)
    await engine.queues.pause(env, "task/plain")
    async with Listener(engine.settings.listen_dsn, environment_id=env) as bells:
        with anyio.fail_after(60):
            async for bell in bells:
                if "task/plain" in bell.work:
                    break
                if bell.scan:  # it listens
                    await engine.queues.resume(env, "task/plain")


async def test_an_override_beats_the_code_until_it_is_reset(engine: Engine, env: int) -> None:
    for _ in range(9):
        await triggered(engine, env, NewRun("limited"))
    queue = await engine.queues.override_concurrency_limit(env, "narrow", 4)
    assert (queue.concurrency_limit, queue.base_limit, queue.override_limit) == (4, 2, 4)
    assert queue.overridden_at is not None
    assert await claim(engine, env) == 4
    await engine.catalogue.announce(env, [TaskAnnouncement("limited", "narrow", 6)])
    await triggered(engine, env, NewRun("limited", queue="narrow", concurrency_limit=7))
    assert await claim(engine, env) == 0
    queue = await engine.queues.reset_concurrency_limit(env, "narrow")
    assert (queue.concurrency_limit, queue.override_limit, queue.overridden_at) == (7, None, None)
    assert await claim(engine, env) == 3
    with pytest.raises(NoOverrideError, match="narrow"):
        await engine.queues.reset_concurrency_limit(env, "narrow")


async def test_a_limit_of_zero_starts_nothing(engine: Engine, env: int) -> None:
    await triggered(engine, env)
    await engine.queues.override_concurrency_limit(env, "task/plain", 0)
    assert await claim(engine, env) == 0


async def test_an_unlimited_queue_gets_a_limit_and_loses_it_while_runs_wait(
    engine: Engine, env: int
) -> None:
    ids = [await triggered(engine, env, NewRun("plain", concurrency_key=k)) for k in "aabbcc"]
    await engine.queues.override_concurrency_limit(env, "task/plain", 1)
    assert all(run.limited for run in await engine.runs.retrieve_many(env, ids))
    runs = await engine.claims.claim(env, "w1", ALL_TASKS, 10)
    assert sorted(run.concurrency_key for run in runs) == ["a", "b", "c"]
    await engine.queues.reset_concurrency_limit(env, "task/plain")
    assert not (await there(engine, env, await triggered(engine, env))).limited
    assert await claim(engine, env) == 4


async def test_triggers_that_race_a_limit_are_all_served_within_it(
    engine: Engine, env: int
) -> None:
    """A trigger reads without a lock whether there is a limit; whoever read the old word waits."""
    executing = most = done = 0

    async def trigger() -> None:
        for _ in range(10):
            await engine.runs.trigger_many(env, [NewRun("plain") for _ in range(3)])

    async def change() -> None:
        for limit in (1, None, 3, None, 2):
            if limit is None:
                await engine.queues.reset_concurrency_limit(env, "task/plain")
            else:
                await engine.queues.override_concurrency_limit(env, "task/plain", limit)

    async def work(worker_id: str) -> None:
        nonlocal executing, most, done
        await engine.workers.register(env, worker_id)
        claims = Claims(engine.database, engine.bell)
        while done < 90:
            runs = await claims.claim(env, worker_id, ALL_TASKS, 5)
            executing += len(runs)
            most = max(most, executing) if changed else most
            for run in runs:
                executing -= 1
                await engine.outcomes.finish(env, Completed(run.id, run.execution, "1"))
                done += 1

    changed = False
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(trigger)
            await change()
            # What was claimed before the last limit is over before it is held against it.
            while (await engine.queues.retrieve(env, "task/plain")).running:
                await anyio.sleep(0.01)
            changed = True
            tasks.start_soon(work, "a")
            tasks.start_soon(work, "b")
    assert done == 90 and most <= 2


async def test_another_limit_holds_for_keys_that_come_later(engine: Engine, env: int) -> None:
    await triggered(engine, env, NewRun("limited", concurrency_key="a"))
    await query(engine.database, "update runwire.queue_groups set concurrency_limit = 50")
    await engine.queues.override_concurrency_limit(env, "narrow", 1)
    # As one that was made while the limit changed: what its queue says is what counts.
    await query(
        engine.database,
        "update runwire.queue_groups set concurrency_limit = 50 where concurrency_key = 'a'",
    )
    await triggered(engine, env, NewRun("limited", concurrency_key="a"))
    assert await claim(engine, env) == 1
