"""Lists of runs: filters, pages and cursors."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from runwire.errors import InvalidValueError
from runwire.wire import Json
from runwire_engine.engine import Engine
from runwire_engine.run_pages import RunQuery
from runwire_engine.statements import statement
from runwire_engine.wanted_runs import NewRun, Parent, TriggerResult
from tests.support.engines import ALL_TASKS, query, there

pytestmark = pytest.mark.anyio


async def make(engine: Engine, env: int, *new: NewRun) -> list[str]:
    """Make runs one after another and return their ids, newest first."""
    ids: list[str] = []
    for each in new:
        result = await engine.runs.trigger(env, each)
        assert isinstance(result, TriggerResult)
        ids.insert(0, result.id)
    return ids


async def listed(engine: Engine, env: int, wanted: RunQuery) -> list[str]:
    return [run.id for run in (await engine.runs.list(env, wanted)).runs]


async def all_pages(engine: Engine, env: int, wanted: RunQuery) -> list[list[str]]:
    """Go to the last page and back, and return the pages there were."""
    there: list[list[str]] = []
    page = await engine.runs.list(env, wanted)
    assert page.previous is None
    there.append([run.id for run in page.runs])
    while page.next is not None:
        page = await engine.runs.list(env, replace(wanted, after=page.next))
        there.append([run.id for run in page.runs])
    back = [there[-1]]
    while page.previous is not None:
        page = await engine.runs.list(env, replace(wanted, before=page.previous))
        back.insert(0, [run.id for run in page.runs])
    assert back == there
    return there


def chunks(ids: Sequence[str], size: int) -> list[list[str]]:
    return [list(ids[start : start + size]) for start in range(0, len(ids), size)]


@pytest.mark.parametrize("size", [1, 3, 7, 50])
async def test_pages_go_newest_first_there_and_back(engine: Engine, env: int, size: int) -> None:
    ids = await make(engine, env, *(NewRun("plain") for _ in range(7)))
    assert await all_pages(engine, env, RunQuery(size=size)) == chunks(ids, size)


async def test_runs_of_one_moment_are_told_apart_by_their_ids(engine: Engine, env: int) -> None:
    results = await engine.runs.trigger_many(env, [NewRun("plain") for _ in range(10)])
    ids = sorted((r.id for r in results if isinstance(r, TriggerResult)), reverse=True)
    assert await all_pages(engine, env, RunQuery(size=3)) == chunks(ids, 3)


async def test_each_filter_narrows_the_list(engine: Engine, env: int) -> None:
    batch = await engine.batches.create(env, 1)
    plain, tagged, other, delayed = reversed(
        await make(
            engine,
            env,
            NewRun("plain"),
            NewRun("plain", tags=("a", "b")),
            NewRun("other", tags=("b", "c")),
            NewRun("other", delay=60),
        )
    )
    await engine.batches.add_items(env, batch.id, [(0, NewRun("plain", batch=(batch.id, 0)))])
    after = await engine.batches.retrieve(env, batch.id)
    assert after is not None
    (item,) = after.run_ids
    middle = (await there(engine, env, other)).created_at
    for wanted, expected in [
        (RunQuery(), [item, delayed, other, tagged, plain]),
        (RunQuery(task=["plain"]), [item, tagged, plain]),
        (RunQuery(task=["plain", "other"]), [item, delayed, other, tagged, plain]),
        (RunQuery(tag=["b"]), [other, tagged]),
        (RunQuery(tag=["a", "c"]), [other, tagged]),
        (RunQuery(tag=["b"], task=["other"]), [other]),
        (RunQuery(batch=batch.id), [item]),
        (RunQuery(batch=batch.id, tag=["a"]), []),
        (RunQuery(status=["DELAYED"]), [delayed]),
        (RunQuery(status=["QUEUED"], tag=["a", "b"]), [other, tagged]),
        (RunQuery(created_from=middle), [item, delayed, other]),
        (RunQuery(created_to=middle), [other, tagged, plain]),
        (RunQuery(created_from=middle, created_to=middle), [other]),
        (RunQuery(tag=["nobody"]), []),
    ]:
        assert await listed(engine, env, wanted) == expected, wanted
        flat = [id for page in await all_pages(engine, env, replace(wanted, size=2)) for id in page]
        assert flat == expected, wanted
    assert await listed(engine, env + 1, RunQuery()) == []


async def test_a_runs_children_are_listed(engine: Engine, env: int) -> None:
    await make(engine, env, NewRun("plain"))
    (parent,) = await engine.claims.claim(env, "w1", ALL_TASKS, 1)
    of = Parent(parent.id, parent.execution)
    children = await make(
        engine,
        env,
        NewRun("plain", parent=of),
        NewRun("other", parent=of, tags=("a",)),
        NewRun("plain", parent=of),
    )
    await make(engine, env, NewRun("plain"))
    pages = await all_pages(engine, env, RunQuery(parent=parent.id, size=2))
    assert pages == chunks(children, 2)
    wanted = RunQuery(parent=parent.id, task=["plain"], status=["QUEUED"])
    assert await listed(engine, env, wanted) == [children[0], children[2]]
    assert await listed(engine, env, RunQuery(parent=parent.id, tag=["a"])) == [children[1]]
    assert await listed(engine, env, RunQuery(parent=children[0])) == []
    assert await listed(engine, env + 1, RunQuery(parent=parent.id)) == []


async def test_the_runs_of_a_schedule_are_listed(engine: Engine, env: int) -> None:
    await make(engine, env, NewRun("plain"))
    ids = await make(engine, env, *(NewRun("plain") for _ in range(3)))
    await query(
        engine.database,
        "update runwire.runs set schedule_id = 'sched_1', scheduled_at = created_at"
        " where id = any(%s)",
        ids,
    )
    pages = await all_pages(engine, env, RunQuery(schedule="sched_1", size=2))
    assert pages == chunks(ids, 2)
    assert await listed(engine, env, RunQuery(schedule="sched_1", task=["other"])) == []
    assert await listed(engine, env, RunQuery(schedule="sched_2")) == []


async def test_what_executes_is_listed(engine: Engine, env: int) -> None:
    await make(engine, env, *(NewRun("plain") for _ in range(5)))
    runs = await engine.claims.claim(env, "w1", ALL_TASKS, 3)
    expected = sorted((run.id for run in runs), reverse=True)
    pages = await all_pages(engine, env, RunQuery(status=["EXECUTING"], size=2))
    assert sorted((id for page in pages for id in page), reverse=True) == expected


async def test_a_list_leaves_out_payloads_and_outputs(engine: Engine, env: int) -> None:
    await make(engine, env, NewRun("plain", '"large"', metadata="{}", tags=("t",)))
    (run,) = (await engine.runs.list(env, RunQuery())).runs
    assert (run.payload, run.output, run.metadata, run.tags) == (None, None, "{}", ("t",))


@pytest.mark.parametrize("cursor", ["", "x", "W10", "WzEsMl0", "é", "bnVsbA"])
async def test_a_made_up_cursor_is_refused(engine: Engine, env: int, cursor: str) -> None:
    with pytest.raises(InvalidValueError):
        await engine.runs.list(env, RunQuery(after=cursor))


def scans(plan: Json) -> list[Json]:
    return [plan, *(node for part in plan.get("Plans", []) for node in scans(part))]


@pytest.mark.parametrize("name", ["by_creation", "by_task", "by_tag", "held"])
@pytest.mark.parametrize("direction", ["after", "before"])
async def test_a_page_reads_little_more_than_itself(
    engine: Engine, env: int, name: str, direction: str
) -> None:
    await query(
        engine.database,
        """
        with made as (
            insert into runwire.runs (environment_id, id, bucket, task, status, queue, sort_at,
                tags, created_at, updated_at, finished_at)
            select %s, 'run_' || lpad(n::text, 12, '0'), current_date, 'plain', 'COMPLETED', 'q',
                   now(), '{t}', now() - n * interval '1 s', now(), now()
              from generate_series(1, 20000) n
            returning *
        )
        insert into runwire.run_tags select environment_id, 't', created_at, id from made
        """,
        env,
    )
    await query(engine.database, "analyze runwire.runs")
    await query(engine.database, "analyze runwire.run_tags")
    parameters: dict[str, object] = {
        "environment_id": env,
        "task": "plain",
        "tag": "t",
        "statuses": None,
        "tasks": None,
        "tags": None,
        "batch_id": None,
        "created_from": None,
        "created_to": None,
        "from_time": None,
        "from_id": None,
        "limit": 26,
    }
    async with engine.database.transaction() as tx:
        text = f"explain (analyze, format json) {statement(f'run_pages.{name}_{direction}')}"
        cursor = await tx.connection.execute(text.encode(), parameters)
        (row,) = await cursor.fetchall()
    for node in scans(row["QUERY PLAN"][0]["Plan"]):
        assert node["Node Type"] != "Seq Scan", node
        assert node["Actual Rows"] * node["Actual Loops"] <= 30, node
        assert node.get("Rows Removed by Filter", 0) == 0, node
