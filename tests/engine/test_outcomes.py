"""Outcomes of attempts: fenced, once, and one's trouble is not another's."""

import anyio
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runwire.errors import FencedError
from runwire_engine.engine import Engine, open_engine
from runwire_engine.errors import DataRefusedError
from runwire_engine.outcomes import (
    Canceled,
    Completed,
    Crashed,
    Failed,
    Finished,
    Outcome,
    Released,
    TimedOut,
)
from runwire_engine.settings import EngineSettings
from runwire_engine.states import FINAL, RunStatus
from runwire_engine.streams import Append
from runwire_engine.wanted_runs import NewRun
from tests.support.engines import ALL_TASKS, assert_dense, claimed, query, there, triggered
from tests.support.faultproxy import fault_proxy

pytestmark = pytest.mark.anyio

ERROR = '{"name":"E","message":"m"}'


def every_outcome(run_id: str, execution: int) -> list[tuple[Outcome, str, int]]:
    """Return each kind, the status it leads to, and the attempts counted after it."""
    return [
        (Completed(run_id, execution, '{"a":1}'), "COMPLETED", 1),
        (Failed(run_id, execution, ERROR), "FAILED", 1),
        (Failed(run_id, execution, ERROR, retry_in=5.0), "DELAYED", 1),
        (Failed(run_id, execution, ERROR, retry_in=0.0), "QUEUED", 1),
        (Canceled(run_id, execution), "CANCELED", 1),
        (TimedOut(run_id, execution, ERROR), "TIMED_OUT", 1),
        (Crashed(run_id, execution, ERROR), "CRASHED", 1),
        (Crashed(run_id, execution, ERROR, is_ours=True), "SYSTEM_FAILURE", 1),
        (Released(run_id, execution), "QUEUED", 0),
    ]


@pytest.mark.parametrize("which", range(9))
async def test_each_outcome_is_one_revision_however_often_it_is_handed_in(
    engine: Engine, env: int, which: int
) -> None:
    run = await claimed(engine, env)
    outcome, status, attempts = every_outcome(run.id, run.execution)[which]
    expected = Finished(run.id, RunStatus(status))
    assert await engine.outcomes.finish(env, outcome) == expected
    assert await engine.outcomes.finish(env, outcome) == expected
    after = await there(engine, env, run.id)
    assert (after.status, after.attempt, after.revision) == (status, attempts, 3)
    assert (after.worker_id, after.finished_at is not None) == (None, status in FINAL)
    types = await assert_dense(engine, env, run.id)
    released = isinstance(outcome, Released)
    wanted = "final" if status in FINAL else "released" if released else "retrying"
    assert types[-1] == wanted


@pytest.mark.parametrize("which", range(9))
async def test_a_requested_cancellation_beats_every_outcome(
    engine: Engine, env: int, which: int
) -> None:
    run = await claimed(engine, env)
    await engine.runs.cancel(env, run.id)
    outcome, _, _ = every_outcome(run.id, run.execution)[which]
    expected = Finished(run.id, RunStatus.CANCELED)
    assert await engine.outcomes.finish(env, outcome) == expected
    assert await engine.outcomes.finish(env, outcome) == expected
    after = await there(engine, env, run.id)
    assert (after.status, after.output, after.error) == ("CANCELED", None, None)


async def test_the_event_says_what_the_row_became(engine: Engine, env: int) -> None:
    run = await claimed(engine, env)
    await engine.outcomes.finish(env, Completed(run.id, run.execution, '{"b": 1,  "a": 2}'))
    after = await there(engine, env, run.id)
    changed = orjson.loads((await engine.runs.events(env, run.id))[-1].delta)["set"]
    assert after.output == '{"b": 1,  "a": 2}' and after.finished_at is not None
    assert changed == {
        "status": "COMPLETED",
        "workerId": None,
        "durationMs": after.duration_ms,
        "finishedAt": changed["finishedAt"],
        "output": {"b": 1, "a": 2},
        "outputType": "application/json",
    }


async def test_a_large_output_stands_in_the_event_by_its_size(engine: Engine, env: int) -> None:
    run = await claimed(engine, env)
    output = orjson.dumps("x" * 10_000).decode()
    await engine.outcomes.finish(env, Completed(run.id, run.execution, output))
    changed = orjson.loads((await engine.runs.events(env, run.id))[-1].delta)["set"]
    assert changed["output"] == {"$large": {"bytes": 10_002}}
    assert (await there(engine, env, run.id)).output == output


async def test_an_execution_that_lost_its_run_changes_nothing(engine: Engine, env: int) -> None:
    run = await claimed(engine, env)
    await engine.outcomes.finish(env, Released(run.id, run.execution))
    (again,) = await engine.claims.claim(env, "w1", ALL_TASKS, 1)
    for outcome, _, _ in every_outcome(run.id, run.execution):
        with pytest.raises(FencedError) as caught:
            await engine.outcomes.finish(env, outcome)
        assert caught.value.run_id == run.id
    assert await there(engine, env, run.id) == again


async def test_after_the_end_another_outcome_is_refused(engine: Engine, env: int) -> None:
    run = await claimed(engine, env)
    await engine.outcomes.finish(env, Completed(run.id, run.execution, "1"))
    with pytest.raises(FencedError):
        await engine.outcomes.finish(env, Failed(run.id, run.execution, ERROR))
    assert (await there(engine, env, run.id)).status == "COMPLETED"


async def test_one_output_that_cannot_be_stored_disturbs_no_other(engine: Engine, env: int) -> None:
    for _ in range(8):
        await triggered(engine, env)
    runs = await engine.claims.claim(env, "w1", ALL_TASKS, 10)
    outcomes: list[Outcome] = [Completed(run.id, run.execution, "1") for run in runs]
    outcomes[3] = Completed(runs[3].id, runs[3].execution, '"\x00"')
    outcomes[5] = Completed("run_00000000unknown", 1, "1")
    answers = await engine.outcomes.finish_many(env, outcomes)
    kinds = [type(answer) for answer in answers]
    assert kinds[3] is DataRefusedError and kinds[5] is FencedError
    assert [kind for at, kind in enumerate(kinds) if at not in {3, 5}] == [Finished] * 6
    assert (await there(engine, env, runs[3].id)).status == "EXECUTING"


async def test_two_outcomes_of_one_run_in_one_flush_let_the_first_win(
    engine: Engine, env: int
) -> None:
    run = await claimed(engine, env)
    first, second, third = await engine.outcomes.finish_many(
        env,
        [
            Completed(run.id, run.execution, "1"),
            Failed(run.id, run.execution, ERROR),
            Completed(run.id, run.execution, "1"),
        ],
    )
    assert first == third == Finished(run.id, RunStatus.COMPLETED)
    assert isinstance(second, FencedError)


async def test_the_end_of_a_run_is_the_end_of_its_streams(engine: Engine, env: int) -> None:
    run = await claimed(engine, env)
    for key in ("log", "tokens"):
        await engine.streams.append(
            env, Append(run.id, key, ('"x"',), execution=run.execution, attempt=1)
        )
    await engine.outcomes.finish(env, Failed(run.id, run.execution, ERROR))
    streams = await engine.streams.streams_of(env, run.id)
    assert [(stream.key, stream.eof_reason) for stream in streams] == [
        ("log", "failed"),
        ("tokens", "failed"),
    ]


async def test_a_retry_leaves_streams_open_and_tells_why_it_waits(engine: Engine, env: int) -> None:
    run = await claimed(engine, env)
    await engine.streams.append(
        env, Append(run.id, "log", ('"x"',), execution=run.execution, attempt=1)
    )
    await engine.outcomes.finish(env, Failed(run.id, run.execution, ERROR, retry_in=60))
    (stream,) = await engine.streams.streams_of(env, run.id)
    after = await there(engine, env, run.id)
    assert stream.eof_reason is None
    assert (after.status, after.error) == ("DELAYED", ERROR)
    assert after.delayed_until is not None and after.delayed_until > after.updated_at


async def test_the_time_of_all_executions_is_counted(engine: Engine, env: int) -> None:
    run = await claimed(engine, env)
    await query(engine.database, "update runwire.runs set claimed_at = claimed_at - interval '2 s'")
    await engine.outcomes.finish(env, Failed(run.id, run.execution, ERROR, retry_in=0))
    (again,) = await engine.claims.claim(env, "w1", ALL_TASKS, 1)
    await query(engine.database, "update runwire.runs set claimed_at = claimed_at - interval '3 s'")
    await engine.outcomes.finish(env, Completed(again.id, again.execution, "1"))
    assert 5_000 <= (await there(engine, env, run.id)).duration_ms < 15_000


async def test_a_cancellation_racing_a_completion_has_one_winner(engine: Engine, env: int) -> None:
    winners: set[str] = set()
    for _ in range(10):
        for _ in range(20):
            await triggered(engine, env)
        runs = await engine.claims.claim(env, "w1", ALL_TASKS, 20)
        async with anyio.create_task_group() as tasks:
            for run in runs:
                tasks.start_soon(engine.outcomes.finish, env, Completed(run.id, run.execution, "1"))
                tasks.start_soon(engine.runs.cancel, env, run.id)
        for run in runs:
            after = await there(engine, env, run.id)
            types = await assert_dense(engine, env, run.id)
            winners.add(after.status)
            assert types.count("final") == 1
            assert (after.status == "COMPLETED") == ("canceling" not in types)
            assert (after.output is not None) == (after.status == "COMPLETED")
    assert winners <= {"COMPLETED", "CANCELED"}


@pytest.mark.parametrize("after", [True, False])
async def test_a_lost_answer_to_commit_neither_loses_nor_doubles_an_outcome(
    database_url: str, engine: Engine, env: int, after: bool
) -> None:
    run = await claimed(engine, env)
    retried = await claimed(engine, env)
    async with fault_proxy(database_url) as proxy:
        settings = EngineSettings(database_url=proxy.dsn(database_url))
        async with open_engine(settings, sweeping=False) as behind:
            proxy.cut_next_commit(after=after)
            answers = await behind.outcomes.finish_many(
                env,
                [
                    Completed(run.id, run.execution, "1"),
                    Failed(retried.id, retried.execution, ERROR, retry_in=60),
                ],
            )
    assert answers == [
        Finished(run.id, RunStatus.COMPLETED),
        Finished(retried.id, RunStatus.DELAYED),
    ]
    assert (await there(engine, env, run.id)).revision == 3
    assert (await there(engine, env, retried.id)).revision == 3


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(st.sampled_from(["claim", "cancel", "promote", *"012345678"]), max_size=8))
async def test_no_walk_of_calls_breaks_a_run(engine: Engine, env: int, steps: list[str]) -> None:
    run_id = await triggered(engine, env, NewRun("plain", max_attempts=2))
    for step in steps:
        before = await there(engine, env, run_id)
        match step:
            case "claim":
                await engine.claims.claim(env, "w1", ALL_TASKS, 10)
            case "cancel":
                await engine.runs.cancel(env, run_id)
            case "promote":
                await engine.claims.promote_due(env)
            case _:
                outcome, _, _ = every_outcome(run_id, before.execution)[int(step)]
                await engine.outcomes.finish_many(env, [outcome])
        after = await there(engine, env, run_id)
        assert after == before if before.status in FINAL else after.revision >= before.revision
    types = await assert_dense(engine, env, run_id)
    assert types.count("final") == (1 if (await there(engine, env, run_id)).finished_at else 0)


async def test_a_stream_made_while_the_outcome_waits_for_it_is_ended_too(
    engine: Engine, env: int
) -> None:
    run = await claimed(engine, env)
    async with anyio.create_task_group() as tasks:
        async with engine.database.transaction() as tx:
            # What a writer from outside does: it holds the run, makes a stream, and commits.
            await tx.connection.execute(
                "update runwire.runs set stream_keys = '{late}', revision = revision + 1"
                " where id = %s",
                (run.id,),
            )
            await tx.connection.execute(
                "insert into runwire.streams (environment_id, run_id, key, bucket)"
                " values (%s, %s, 'late', %s)",
                (env, run.id, run.bucket),
            )
            tasks.start_soon(engine.outcomes.finish, env, Completed(run.id, run.execution, "1"))
            await somebody_waits_for_a_lock(engine)
    (stream,) = await engine.streams.streams_of(env, run.id)
    assert stream.eof_reason == "completed"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ("cancel_requested_at = now()", "CANCELED"),
        ("awaited = true", "COMPLETED"),
        ("execution = execution + 1", "EXECUTING"),
    ],
)
async def test_an_outcome_that_waits_for_a_change_of_its_run_goes_by_what_the_run_is_then(
    engine: Engine, env: int, change: str, status: str
) -> None:
    run, other = await claimed(engine, env), await claimed(engine, env)
    told: list[Finished | Exception] = []

    async def finish() -> None:
        outcomes = [Completed(each.id, each.execution, "1") for each in (run, other)]
        told.extend(await engine.outcomes.finish_many(env, outcomes))

    async with anyio.create_task_group() as tasks:
        async with engine.database.transaction() as tx:
            await tx.connection.execute(
                f"update runwire.runs set {change} where id = %s".encode(), (run.id,)
            )
            tasks.start_soon(finish)
            await somebody_waits_for_a_lock(engine)
    after = await there(engine, env, run.id)
    assert (after.status, after.revision) == (status, 2 + (status in FINAL))
    assert isinstance(told[0], FencedError) == (status == "EXECUTING")
    assert told[1] == Finished(other.id, RunStatus.COMPLETED)
    await assert_dense(engine, env, run.id)


async def somebody_waits_for_a_lock(engine: Engine) -> None:
    with anyio.fail_after(60):
        waiting = False
        while not waiting:
            rows = await query(
                engine.database,
                "select 1 from pg_stat_activity"
                " where datname = current_database() and wait_event_type = 'Lock'",
            )
            waiting = bool(rows)
