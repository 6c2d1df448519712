"""Claiming: who gets which run, in what order, and never more than a limit allows."""

import random
from collections import Counter
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import orjson
import pytest

from runwire.wire import Json
from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.claims import Claims
from runwire_engine.database import Database, Row
from runwire_engine.engine import Engine, open_engine
from runwire_engine.errors import CommitUnknownError
from runwire_engine.outcomes import Completed, Failed
from runwire_engine.settings import EngineSettings
from runwire_engine.statements import statement
from runwire_engine.wanted_runs import NewRun, TriggerResult
from tests.support.engines import ALL_TASKS, assert_dense, claimed, query, there, triggered
from tests.support.faultproxy import fault_proxy
from tests.support.postgres import opened_database

pytestmark = pytest.mark.anyio

WORKERS = ["a", "b", "c", "d"]
CLAIMING = ["claims.lock_groups", "claims.pick_limited", "claims.take", "claims.take_lone"]


async def make(engine: Engine, env: int, *new: NewRun) -> list[str]:
    results = await engine.runs.trigger_many(env, new)
    return [result.id for result in results if isinstance(result, TriggerResult)]


async def test_a_claimed_run_executes_under_its_worker(engine: Engine, env: int) -> None:
    run = await claimed(engine, env, NewRun("plain", '{"a":1}', metadata="{}", ttl=60))
    assert (run.status, run.worker_id, run.revision) == ("EXECUTING", "w1", 2)
    assert (run.execution, run.attempt, run.max_attempts) == (1, 1, 3)
    assert run.started_at == run.claimed_at is not None
    assert (run.payload, run.metadata, run.expires_at) == ('{"a":1}', "{}", None)
    assert run == await there(engine, env, run.id)
    assert await assert_dense(engine, env, run.id) == ["created", "executing"]


async def test_the_longest_waiting_run_of_any_task_comes_first(engine: Engine, env: int) -> None:
    first, second, third = await make(
        engine,
        env,
        NewRun("plain", priority=-10),
        NewRun("other"),
        NewRun("plain", priority=10),
    )
    order = [run.id for run in await engine.claims.claim(env, "w1", ALL_TASKS, 10)]
    assert order == [third, second, first]


async def test_only_wanted_tasks_and_no_more_than_the_slots_are_claimed(
    engine: Engine, env: int
) -> None:
    await make(engine, env, NewRun("plain"), NewRun("other"), NewRun("plain"), NewRun("limited"))
    assert len(await engine.claims.claim(env, "w1", {"plain": 3}, 1)) == 1
    assert [run.task for run in await engine.claims.claim(env, "w1", {"plain": 3}, 9)] == ["plain"]
    assert await engine.claims.claim(env, "w1", {}, 9) == []
    assert await engine.claims.claim(env, "w1", ALL_TASKS, 0) == []
    assert len(await engine.claims.claim(env, "w1", ALL_TASKS, 9)) == 2


async def test_a_worker_without_a_lease_gets_nothing(engine: Engine, env: int) -> None:
    run_id = await triggered(engine, env)
    await engine.workers.register(env, "stopped")
    await engine.workers.stop("stopped")
    await engine.workers.register(env, "late")
    await query(engine.database, "update runwire.workers set expires_at = now() where id = 'late'")
    for worker_id in ("unknown", "stopped", "late"):
        assert await engine.claims.claim(env, worker_id, ALL_TASKS, 10) == []
        assert await engine.claims.claim(env, worker_id, ALL_TASKS, 10, lone_run=run_id) == []
    assert len(await engine.claims.claim(env, "w1", ALL_TASKS, 10)) == 1


async def test_concurrent_workers_never_claim_one_run_twice(engine: Engine, env: int) -> None:
    ids = await make(engine, env, *(NewRun("plain") for _ in range(400)))
    taken: Counter[str] = Counter()

    async def work(worker_id: str) -> None:
        await engine.workers.register(env, worker_id)
        while runs := await engine.claims.claim(env, worker_id, ALL_TASKS, 7):
            assert {run.worker_id for run in runs} == {worker_id}
            taken.update(run.id for run in runs)

    async with anyio.create_task_group() as tasks:
        for worker_id in WORKERS:
            tasks.start_soon(work, worker_id)
    assert taken == Counter(ids)


async def test_limits_are_never_exceeded_under_concurrent_claimers(
    engine: Engine, env: int
) -> None:
    keys = ["a", "b", "c"]
    await make(engine, env, *(NewRun("limited", concurrency_key=keys[n % 3]) for n in range(90)))
    executing: Counter[str] = Counter()
    most: Counter[str] = Counter()
    done = 0

    async def work(worker_id: str) -> None:
        nonlocal done
        await engine.workers.register(env, worker_id)
        while done < 90:
            for run in await engine.claims.claim(env, worker_id, ALL_TASKS, 5):
                executing[run.concurrency_key] += 1
                most[run.concurrency_key] = max(
                    most[run.concurrency_key], executing[run.concurrency_key]
                )
                # Between claim and outcome others must see the run.
                await anyio.lowlevel.checkpoint()
                executing[run.concurrency_key] -= 1
                await engine.outcomes.finish(env, Completed(run.id, run.execution, "1"))
                done += 1

    async def watch() -> None:
        while done < 90:
            rows = await query(
                engine.database,
                "select concurrency_key, count(*) as n from runwire.runs"
                " where status = 'EXECUTING' group by 1",
            )
            assert all(row["n"] <= 2 for row in rows)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            for worker_id in WORKERS:
                tasks.start_soon(work, worker_id)
    assert done == 90
    assert all(count <= 2 for count in most.values())


async def test_a_key_with_many_runs_does_not_keep_another_waiting(engine: Engine, env: int) -> None:
    await make(engine, env, *(NewRun("limited", concurrency_key="busy") for _ in range(50)))
    late = await triggered(engine, env, NewRun("limited", concurrency_key="quiet"))
    runs = await engine.claims.claim(env, "w1", ALL_TASKS, 2)
    assert late in {run.id for run in runs}
    assert {run.concurrency_key for run in runs} == {"busy", "quiet"}


async def test_keys_are_served_in_turns(engine: Engine, env: int) -> None:
    keys = ["a", "b", "c", "d"]
    await make(engine, env, *(NewRun("limited", concurrency_key=k) for k in keys for _ in range(6)))
    served: list[str] = []
    while runs := await engine.claims.claim(env, "w1", ALL_TASKS, 1):
        served.append(runs[0].concurrency_key)
        await engine.outcomes.finish(env, Completed(runs[0].id, runs[0].execution, "1"))
    assert len(served) == 24
    for turn in range(6):
        assert sorted(served[turn * 4 : turn * 4 + 4]) == keys


async def test_keys_get_as_many_runs_as_others_whatever_the_slots_of_a_claim(
    engine: Engine, env: int
) -> None:
    keys = ["a", "b"]
    await make(
        engine, env, *(NewRun("limited", concurrency_key=k) for k in keys for _ in range(15))
    )
    served: Counter[str] = Counter()
    for _ in range(8):  # three of four places, so that one key gets two each time
        runs = await engine.claims.claim(env, "w1", ALL_TASKS, 3)
        served.update(run.concurrency_key for run in runs)
        assert abs(served["a"] - served["b"]) <= 1
        for run in runs:
            await engine.outcomes.finish(env, Completed(run.id, run.execution, "1"))
    assert served.total() == 24


async def test_a_key_that_was_served_too_often_waits_until_the_others_have_caught_up(
    engine: Engine, env: int
) -> None:
    await make(engine, env, *(NewRun("limited", concurrency_key=k) for k in "aaaaabbbbb"))
    await query(
        engine.database,
        "update runwire.queue_groups set turns = 2, last_served = now()"
        " where concurrency_key = 'a'",
    )
    await query(
        engine.database,
        "update runwire.queue_groups set last_served = now() + interval '1 s'"
        " where concurrency_key = 'b'",
    )
    served: list[str] = []
    for _ in range(4):
        (run,) = await engine.claims.claim(env, "w1", ALL_TASKS, 1)
        served.append(run.concurrency_key)
        await engine.outcomes.finish(env, Completed(run.id, run.execution, "1"))
    assert served == ["b", "b", "a", "b"]


async def test_a_key_that_is_new_waits_for_its_turn_like_the_others(
    engine: Engine, env: int
) -> None:
    await make(engine, env, *(NewRun("limited", concurrency_key=k) for k in "aabb"))
    served: list[str] = []
    for _ in range(3):
        late = await triggered(engine, env, NewRun("limited", concurrency_key=f"new{len(served)}"))
        (run,) = await engine.claims.claim(env, "w1", ALL_TASKS, 1)
        served.append(run.concurrency_key)
        assert run.id != late
        await engine.outcomes.finish(env, Completed(run.id, run.execution, "1"))
    assert served == ["a", "b", "new0"]


async def test_a_key_that_is_ahead_of_another_comes_after_all_others_for_a_moment(
    engine: Engine, env: int
) -> None:
    queues = [TaskAnnouncement("limited", "one", 1), TaskAnnouncement("other", "two", 1)]
    await engine.catalogue.announce(env, queues)
    await make(engine, env, *(NewRun("limited", concurrency_key=k) for k in "aabb"))
    (held,) = await engine.claims.claim(env, "w1", ALL_TASKS, 1)
    await make(engine, env, *(NewRun("other", concurrency_key="c") for _ in range(2)))
    await query(
        engine.database,
        "update runwire.queue_groups set last_served = now() + %s,"
        " turns = case concurrency_key when 'b' then 1 when 'c' then 2 else 0 end"
        " where concurrency_key <> ''",
        timedelta(minutes=1),
    )
    (first,) = await engine.claims.claim(env, "w1", ALL_TASKS, 1)
    assert (held.concurrency_key, first.concurrency_key) == ("a", "c")
    await engine.outcomes.finish(env, Completed(first.id, first.execution, "1"))
    await query(
        engine.database,
        "update runwire.queue_groups set last_served = now() - interval '1 s'"
        " where concurrency_key = 'a'",
    )
    (second,) = await engine.claims.claim(env, "w1", ALL_TASKS, 1)
    assert second.concurrency_key == "b"


async def test_a_key_does_not_get_the_share_of_one_that_somebody_else_has_just_served(
    engine: Engine, env: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(engine, env, *(NewRun("limited", concurrency_key=k) for k in "aabb"))
    look, looks = vars(Claims)["_lock_groups"], 0

    async def lock_groups(*given: Any) -> tuple[list[Row], int]:
        nonlocal looks
        looks += 1
        locked, open_groups = await look(*given)
        return [dict(g, is_served=looks == 1 and g is locked[0]) for g in locked], open_groups

    monkeypatch.setattr(Claims, "_lock_groups", lock_groups)
    runs = await engine.claims.claim(env, "w1", ALL_TASKS, 2)
    assert sorted(run.concurrency_key for run in runs) == ["a", "b"]


async def test_very_many_keys_of_one_queue_are_all_served_and_hide_no_other_queue(
    engine: Engine, env: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runwire_engine.claims._KEYS_AT_ONCE", 4)
    await engine.catalogue.announce(env, [TaskAnnouncement("other", "zz", 5)])
    keys = [f"k{n:02}" for n in range(30)]
    await make(engine, env, *(NewRun("limited", concurrency_key=key) for key in keys))
    last = await triggered(engine, env, NewRun("other"))
    first = await engine.claims.claim(env, "w1", ALL_TASKS, 6)
    assert len(first) == 6 and last in {run.id for run in first}
    served = [run.concurrency_key for run in first if run.task == "limited"]
    while runs := await engine.claims.claim(env, "w1", ALL_TASKS, 6):
        served += [run.concurrency_key for run in runs]
    assert sorted(served) == keys


async def test_a_full_claim_is_had_of_keys_that_one_look_does_not_reach(
    engine: Engine, env: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runwire_engine.claims._KEYS_AT_ONCE", 4)
    await make(
        engine, env, *(NewRun("limited", concurrency_key=f"k{n}") for n in range(9) for _ in "ab")
    )
    runs = await engine.claims.claim(env, "w1", ALL_TASKS, 18)
    assert len({run.id for run in runs}) == len(runs) >= 12
    executing = Counter(run.concurrency_key for run in runs)
    assert max(executing.values()) <= 2


async def test_a_run_past_its_ttl_never_starts(engine: Engine, env: int) -> None:
    for task in ("plain", "limited"):
        await triggered(engine, env, NewRun(task, ttl=60))
    await query(engine.database, "update runwire.runs set expires_at = now()")
    ids = [await triggered(engine, env, NewRun(task)) for task in ("plain", "limited")]
    runs = await engine.claims.claim(env, "w1", ALL_TASKS, 2)
    assert sorted(run.id for run in runs) == sorted(ids)


async def test_what_waits_on_the_wrong_side_of_a_limit_is_claimed_all_the_same(
    engine: Engine, env: int
) -> None:
    ids = [
        await triggered(engine, env, NewRun("limited", concurrency_key="a")),
        await triggered(engine, env, NewRun("limited", concurrency_key="b")),
        await triggered(engine, env, NewRun("plain")),
    ]
    await query(engine.database, "delete from runwire.queue_groups where concurrency_key <> ''")
    await query(
        engine.database,
        "update runwire.runs set limited = not limited where concurrency_key <> 'a'",
    )
    runs = await engine.claims.claim(env, "w1", ALL_TASKS, 5)
    assert sorted(run.id for run in runs) == sorted(ids)
    assert sorted(run.limited for run in runs) == [False, True, True]


async def test_neither_limited_nor_unlimited_queues_starve(engine: Engine, env: int) -> None:
    await make(
        engine,
        env,
        *(NewRun("limited", concurrency_key=f"k{n}") for n in range(40)),
        *(NewRun("plain") for _ in range(40)),
    )
    seen: Counter[str] = Counter()
    for _ in range(10):
        runs = await engine.claims.claim(env, "w1", ALL_TASKS, 2)
        seen.update(run.task for run in runs)
    assert seen == {"limited": 10, "plain": 10}


@pytest.mark.parametrize("block", ["concurrency_limit = 0", "paused = true"])
async def test_a_paused_queue_and_one_of_limit_zero_give_nothing(
    engine: Engine, env: int, block: str
) -> None:
    await make(engine, env, NewRun("limited"), NewRun("limited", concurrency_key="a"))
    await query(engine.database, f"update runwire.queue_groups set {block}")
    assert await engine.claims.claim(env, "w1", ALL_TASKS, 10) == []


async def test_a_full_group_is_no_obstacle_for_the_others(engine: Engine, env: int) -> None:
    await make(engine, env, *(NewRun("limited", concurrency_key="full") for _ in range(5)))
    assert len(await engine.claims.claim(env, "w1", ALL_TASKS, 10)) == 2
    await query(engine.database, "update runwire.queue_groups set last_served = '-infinity'")
    late = await triggered(engine, env, NewRun("limited", concurrency_key="zz"))
    assert [run.id for run in await engine.claims.claim(env, "w1", ALL_TASKS, 1)] == [late]


async def test_due_runs_are_queued_and_the_next_one_is_announced(engine: Engine, env: int) -> None:
    soon, later = await make(
        engine, env, NewRun("plain", delay=60, priority=3), NewRun("plain", delay=600)
    )
    wait = await engine.claims.promote_due(env)
    assert wait is not None and 50 < wait <= 60
    await query(
        engine.database,
        "update runwire.runs set delayed_until = now() - interval '1 s' where id = %s",
        soon,
    )
    wait = await engine.claims.promote_due(env)
    assert wait is not None and 590 < wait <= 600
    run = await there(engine, env, soon)
    assert (run.status, (await there(engine, env, later)).status) == ("QUEUED", "DELAYED")
    assert run.queued_at is not None and run.sort_at == run.queued_at - timedelta(seconds=3)
    assert await assert_dense(engine, env, soon) == ["created", "queued"]


async def test_a_retry_is_a_new_execution_and_attempt(engine: Engine, env: int) -> None:
    run = await claimed(engine, env)
    await engine.outcomes.finish(env, Failed(run.id, run.execution, '{"name":"E"}', retry_in=0))
    (again,) = await engine.claims.claim(env, "w1", ALL_TASKS, 10)
    assert (again.execution, again.attempt, again.error) == (2, 2, None)
    assert again.started_at == run.started_at and again.claimed_at != run.claimed_at
    assert await assert_dense(engine, env, run.id) == [
        "created",
        "executing",
        "retrying",
        "executing",
    ]


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("after", [True, False])
async def test_a_claim_whose_answer_was_lost_is_handed_out_by_the_next(
    database_url: str, engine: Engine, env: int, after: bool, alone: bool
) -> None:
    async with fault_proxy(database_url) as proxy:
        settings = EngineSettings(database_url=proxy.dsn(database_url))
        async with open_engine(settings, sweeping=False) as behind:
            first = await claimed(behind, env)
            warm = await triggered(behind, env)
            assert await behind.claims.claim(env, "w1", ALL_TASKS, 10, lone_run=warm)
            second = await triggered(behind, env)
            lone_run = second if alone else None
            proxy.cut_next_commit(after=after)
            with pytest.raises(CommitUnknownError):
                await behind.claims.claim(env, "w1", ALL_TASKS, 10, lone_run=lone_run)
            # Whatever a bell says meanwhile.
            (run,) = await behind.claims.claim(env, "w1", ALL_TASKS, 10, lone_run=first.id)
            assert (run.id, run.execution) == (second, 1)
            assert await behind.claims.claim(env, "w1", ALL_TASKS, 10) == []
    assert first.id != second


# One run by its id -----------------------------------------------------------------------------


async def alone(engine: Engine, env: int, run_id: str, worker_id: str = "w1") -> list[str]:
    """Claim the only run that is known to be ready; return what was claimed."""
    runs = await engine.claims.claim(env, worker_id, ALL_TASKS, 10, lone_run=run_id)
    return [run.id for run in runs]


async def test_a_run_claimed_alone_is_as_one_that_was_looked_for(engine: Engine, env: int) -> None:
    await query(engine.database, "update runwire.workers set version = 'v7' where id = 'w1'")
    new = NewRun("plain", '{"a":1}', metadata='{"b":2}', ttl=60, tags=("t",))
    sought = await claimed(engine, env, new)
    run_id = await triggered(engine, env, new)
    (run,) = await engine.claims.claim(env, "w1", ALL_TASKS, 10, lone_run=run_id)
    assert run == await there(engine, env, run_id)
    assert run.version == "v7" and run.started_at == run.claimed_at == run.updated_at
    times = ("sort_at", "created_at", "queued_at", "updated_at", "started_at", "claimed_at")
    same = {"id": "", **dict.fromkeys(times)}
    assert run._asdict() | same == sought._asdict() | same
    _, deltas = zip(*[await last_two(engine, env, id) for id in (sought.id, run_id)], strict=True)
    assert deltas[0].keys() == deltas[1].keys()
    assert {**deltas[0], "startedAt": ""} == {**deltas[1], "startedAt": ""}
    assert await assert_dense(engine, env, run_id) == ["created", "executing"]


async def last_two(engine: Engine, env: int, run_id: str) -> list[dict[str, Json]]:
    """Return what the last two revisions of a run set."""
    events = await engine.runs.events(env, run_id)
    return [orjson.loads(event.delta)["set"] for event in events[-2:]]


async def test_nothing_is_looked_for_where_another_worker_has_the_only_run(
    engine: Engine, env: int
) -> None:
    await engine.workers.register(env, "w2")
    run_id = await triggered(engine, env)
    assert await alone(engine, env, run_id, "w2") == [run_id]
    (other,) = await make(engine, env, NewRun("plain"))
    assert await alone(engine, env, run_id) == []
    assert await alone(engine, env, "run_nowhere00") == []
    # Nor while the other one is at it: nobody waits.
    async with engine.database.transaction() as tx:
        await tx.connection.execute("select from runwire.runs for update")
        with anyio.fail_after(10):
            assert await alone(engine, env, other) == []
    assert await alone(engine, env, other) == [other]


@pytest.mark.parametrize(
    "change",
    [
        "limited = true",  # by a trigger that raced the limit
        "execution = 1, attempt = 1",
        "execution = 1, parked_by = 'w1', resuming = true, attempt = 1",
    ],
)
async def test_what_cannot_be_claimed_alone_is_looked_for(
    engine: Engine, env: int, change: str
) -> None:
    run_id = await triggered(engine, env)
    await query(engine.database, f"update runwire.runs set {change}")
    before = await there(engine, env, run_id)
    (run,) = await engine.claims.claim(env, "w1", ALL_TASKS, 10, lone_run=run_id)
    resumes = "resuming" in change
    assert (run.execution, run.attempt) == (before.execution + 1, before.attempt + (not resumes))


async def test_a_run_whose_queue_has_got_a_limit_is_not_claimed_past_it(
    engine: Engine, env: int
) -> None:
    run_id = await triggered(engine, env)
    await query(
        engine.database,
        "insert into runwire.queue_groups (environment_id, queue, concurrency_key,"
        " concurrency_limit) values (%s, 'task/plain', '', 0)",
        env,
    )
    assert await alone(engine, env, run_id) == []
    await query(engine.database, "update runwire.queue_groups set concurrency_limit = 1")
    assert await alone(engine, env, run_id) == [run_id]
    assert (await there(engine, env, run_id)).limited


async def test_a_run_past_its_ttl_or_of_another_task_is_not_claimed_alone(
    engine: Engine, env: int
) -> None:
    expired, other = await make(engine, env, NewRun("plain", ttl=60), NewRun("other"))
    await query(engine.database, "update runwire.runs set expires_at = now() where ttl = 60")
    assert await alone(engine, env, expired) == []
    assert not await engine.claims.claim(env, "w1", {"plain": 3}, 10, lone_run=other)


# Plans -----------------------------------------------------------------------------------------


async def fill(database: Database, env: int) -> None:
    """Make many finished runs and some ready ones."""
    await query(
        database,
        """
        insert into runwire.runs (environment_id, id, bucket, task, status, queue, limited,
            concurrency_key, sort_at, created_at, updated_at, finished_at)
        select %s, 'run_' || lpad(n::text, 12, '0'), current_date,
               case when n %% 2 = 0 then 'plain' else 'limited' end,
               case when n %% 100 in (0, 1) then 'QUEUED' else 'COMPLETED' end,
               case when n %% 2 = 0 then 'task/plain' else 'narrow' end, n %% 2 = 1, '',
               now(), now(), now(), case when n %% 100 in (0, 1) then null else now() end
          from generate_series(1, 30000) n
        """,
        env,
    )


def nodes(plan: Json) -> list[Json]:
    return [plan, *(node for part in plan.get("Plans", []) for node in nodes(part))]


async def ready(database: Database) -> list[str]:
    rows = await query(
        database, "select id from runwire.runs where status = 'QUEUED' and not limited limit 10"
    )
    return [row["id"] for row in rows]


def arguments(env: int, ids: list[str]) -> dict[str, object]:
    """Return what the statements around a claim take."""
    none: list[object] = [None] * len(ids)
    return {
        "environment_id": env,
        "worker_id": "w1",
        "tasks": list(ALL_TASKS),
        "max_attempts": list(ALL_TASKS.values()),
        "slots": 10,
        "turns": 10,
        "reach": 80,
        "cursor_queues": [],
        "cursor_keys": [],
        "held_queues": [],
        "held_keys": [],
        "queues": ["narrow"],
        "keys": [""],
        "had_turns": [0],
        "limits": [2],
        "ids": ids,
        "run_id": ids[0],
        "executions": [1] * len(ids),
        "statuses": ["COMPLETED"] * len(ids),
        "outputs": none,
        "output_types": none,
        "errors": none,
        "delays": none,
        "released": [False] * len(ids),
        "lost": [False] * len(ids),
        "alone": False,
        "limit": 10,
    }


@pytest.mark.parametrize("name", CLAIMING)
async def test_claiming_never_looks_at_finished_runs(engine: Engine, env: int, name: str) -> None:
    await fill(engine.database, env)
    await query(engine.database, "analyze runwire.runs")
    parameters = arguments(env, await ready(engine.database))
    async with engine.database.transaction() as tx:
        explain = b"explain (analyze, format json) " + statement(name).encode()
        cursor = await tx.connection.execute(explain, parameters)
        (row,) = await cursor.fetchall()
    of_runs = [
        node
        for node in nodes(row["QUERY PLAN"][0]["Plan"])
        if node.get("Relation Name") == "runs" and node["Node Type"] != "ModifyTable"
    ]
    assert of_runs
    for node in of_runs:
        assert node["Node Type"] in {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}, node
        assert node.get("Rows Removed by Filter", 0) < 50, node


async def test_plans_made_for_empty_tables_do_not_read_full_ones_through(
    engine: Engine, database_url: str, env: int
) -> None:
    names = [*CLAIMING, "outcomes.record", "outcomes.statuses", "claims.promote", "workers.expire"]
    async with opened_database(database_url, max_size=1) as database:
        # The first five times Postgres makes a plan each; then it keeps one.
        for _ in range(8):
            async with database.transaction() as tx:
                for name in names:
                    await tx.all(name, arguments(env, ["run_12345678"]))
        await fill(database, env)
        ids = await ready(database)
        for name in names:
            async with database.transaction() as tx:
                await tx.all(name, arguments(env, ids))
                cursor = await tx.connection.execute(
                    "select coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) as read"
                    " from pg_stat_xact_user_tables where relname = 'runs'"
                )
                (row,) = await cursor.fetchall()
            assert row["read"] < 2_000, (name, row)


async def test_many_random_claims_and_outcomes_leave_every_run_final_and_dense(
    engine: Engine, env: int
) -> None:
    chance = random.Random(7)
    ids = await make(
        engine,
        env,
        *(NewRun(chance.choice(list(ALL_TASKS)), max_attempts=2) for _ in range(60)),
    )
    await engine.catalogue.announce(env, [TaskAnnouncement("plain", "task/plain")])

    async def work(seed: int) -> None:
        chance = random.Random(seed)
        claims = Claims(engine.database, engine.bell)
        while True:
            lone_run = chance.choice([None, *ids])
            runs = await claims.claim(env, "w1", ALL_TASKS, 4, lone_run=lone_run)
            for run in runs:
                again = 0.0 if run.attempt < 2 and chance.random() < 0.5 else None
                await engine.outcomes.finish(
                    env,
                    Failed(run.id, run.execution, "{}", again)
                    if chance.random() < 0.5
                    else Completed(run.id, run.execution, "1"),
                )
            left = await query(
                engine.database, "select 1 from runwire.runs where finished_at is null limit 1"
            )
            if not left:
                return

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for seed in range(3):
                tasks.start_soon(work, seed)
    for run_id in ids:
        types = await assert_dense(engine, env, run_id)
        assert types.count("final") == 1 and types[-1] == "final"
