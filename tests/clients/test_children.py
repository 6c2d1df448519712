"""The ten ways to start a run, by real tasks in a real worker."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
import orjson
import pytest
from pydantic import BaseModel

from runwire import AbortTaskRunError, Context, SubtaskUnwrapError, batch, sync, task, tasks
from runwire.tasks import AnyTask, BatchEntry
from runwire_engine.runs import RunQuery
from tests.support.working import Bench, error_of, opened_bench, until

pytestmark = pytest.mark.anyio


class Number(BaseModel):
    n: int


@task(id="children-double")
async def double(payload: Number) -> Number:
    if payload.n < 0:
        raise AbortTaskRunError(f"{payload.n} is too small")
    return Number(n=2 * payload.n)


@task(id="children-spell")
def spell(payload: int) -> str:
    return "I" * payload


async def numbers() -> AsyncIterator[BatchEntry[Number]]:
    yield {"payload": Number(n=3)}
    yield {"payload": Number(n=4)}


@task(id="children-parent", retry={"max_attempts": 1})
async def parent(payload: None, ctx: Context) -> dict[str, Any]:
    one = await double.trigger_and_wait(Number(n=1))
    by_id = await tasks.trigger_and_wait("children-spell", 2)
    several = await double.batch_trigger_and_wait(numbers())
    mixed = await batch.trigger_and_wait(
        [{"task": double, "payload": Number(n=5)}, {"task": "children-spell", "payload": 3}]
    )
    typed = await batch.trigger_by_task_and_wait(
        ({"task": spell, "payload": 1}, {"task": double, "payload": Number(n=6)})
    )
    failed = await double.trigger_and_wait(Number(n=-1))
    handles = await batch.trigger_by_task(({"task": spell, "payload": 4},))
    return {
        "one": one.unwrap().n,
        "by id": by_id.unwrap(),
        "several": [each.unwrap().n for each in several.runs],
        "mixed": [each.unwrap() for each in mixed.runs][1],
        "typed": [typed.runs[0].unwrap(), typed.runs[1].unwrap().n],
        "failed": None if failed.error is None else failed.error.message,
        "started": handles.runs[0].id,
    }


@task(id="children-blocking-parent", retry={"max_attempts": 1})
def blocking_parent(payload: int) -> list[str]:
    first = spell.sync.trigger_and_wait(payload).unwrap()
    ended = sync.batch.trigger_by_task_and_wait(({"task": spell, "payload": payload + 1},))
    return [first, ended.runs[0].unwrap()]


@task(id="children-unwrapping", retry={"max_attempts": 1})
async def unwrapping() -> int:
    return (await double.trigger_and_wait(Number(n=-2))).unwrap().n


@task(id="children-keyed", retry={"max_attempts": 1})
async def keyed(payload: None, ctx: Context) -> list[str]:
    first = await double.trigger_and_wait(Number(n=1), idempotency_key=["a", "b"])
    again = await double.trigger_and_wait(Number(n=1), idempotency_key=["a", "b"])
    many = await double.batch_trigger_and_wait(
        [
            {"payload": Number(n=1), "options": {"idempotency_key": ["a", "b"]}},
            {"payload": Number(n=2), "options": {"idempotency_key": "other"}},
            {"payload": Number(n=3), "options": {"idempotency_key": "other"}},
        ]
    )
    return [first.id, again.id, *(each.id for each in many.runs)]


# What each execution of the next task was answered.
started: list[list[str]] = []


@task(id="children-interrupted", retry={"max_attempts": 1})
async def interrupted() -> None:
    one = await spell.trigger(1)
    many = await spell.batch_trigger([{"payload": 2}, {"payload": 3}])
    typed = await batch.trigger_by_task(({"task": double, "payload": Number(n=1)},))
    blocking = await anyio.to_thread.run_sync(lambda: sync.tasks.trigger("children-spell", 4).id)
    started.append([one.id, many.id, typed.id, typed.runs[0].id, blocking])
    if len(started) == 1:
        await anyio.sleep_forever()


TASKS: list[AnyTask] = [double, spell, parent, blocking_parent, unwrapping, keyed]


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened, opened.worker(*TASKS):
        yield opened


async def output(bench: Bench, made: AnyTask, payload: object = None) -> Any:
    row = await bench.finished(made, payload)
    assert row.status == "COMPLETED", row.error
    return orjson.loads(row.output or "null")


async def test_every_form_that_waits_returns_what_the_children_returned(bench: Bench) -> None:
    found = await output(bench, parent)
    started = await bench.until(found.pop("started"))
    assert found == {
        "one": 2,
        "by id": "II",
        "several": [6, 8],
        "mixed": "III",
        "typed": ["I", 12],
        "failed": "-1 is too small",
    }
    assert started.output == '"IIII"' and started.parent_id is not None


async def test_the_blocking_forms_do_the_same(bench: Bench) -> None:
    assert await output(bench, blocking_parent, 2) == ["II", "III"]


async def test_a_failure_that_is_unwrapped_fails_the_parent_and_names_the_child(
    bench: Bench,
) -> None:
    row = await bench.finished(unwrapping)
    error = error_of(row)
    assert (row.status, error["name"]) == ("FAILED", SubtaskUnwrapError.__name__)
    assert "children-double" in error["message"] and "-2 is too small" in error["message"]


async def test_keys_lead_to_the_same_child_also_where_it_is_waited_for(bench: Bench) -> None:
    first, again, third, other, same = await output(bench, keyed)
    assert first == again == third and other == same and other != first
    elsewhere = await output(bench, keyed)
    assert elsewhere[0] != first  # plain text counts within one run


async def test_an_execution_that_takes_over_starts_no_child_twice(
    database_url: str,
) -> None:
    started.clear()
    async with opened_bench(database_url) as bench:
        async with bench.worker(*TASKS, interrupted):
            run_id = await bench.start(interrupted)
            await until(lambda: len(started) == 1)
        async with bench.worker(*TASKS, interrupted):
            row = await bench.until(run_id)
        assert (row.status, row.execution) == ("COMPLETED", 2), row.error
        listed = await bench.engine.runs.list(bench.env, RunQuery(size=100))
    assert started[0] == started[1]
    assert len([run for run in listed.runs if run.parent_id == run_id]) == 5
