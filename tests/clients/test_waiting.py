"""Waiting for children: what the calls ask of the run, what they return, and of which type."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

import pytest
from pydantic import BaseModel

from runwire import (
    AsyncRunwire,
    InvalidValueError,
    NotInRunError,
    Runwire,
    SubtaskUnwrapError,
    batch,
    idempotency_keys,
    sync,
    task,
    tasks,
)
from runwire._context import ChildResult
from runwire.batch import BatchResult, BatchRunHandle
from runwire.requests import BatchItem
from runwire.tasks import BatchEntry, RunHandle, TaskRunFailure, TaskRunResult, TaskRunSuccess
from tests.support.recording_run import RecordingRun, executing

pytestmark = pytest.mark.anyio


class Word(BaseModel):
    text: str


@task(id="waiting-shout")
async def shout(payload: Word) -> Word:
    return Word(text=payload.text.upper())


@task(id="waiting-count")
def count(payload: str) -> int:
    return len(payload)


def failing(self: RecordingRun, item: BatchItem) -> ChildResult:
    error = {"name": "ValueError", "message": "no", "stackTrace": "…"}
    return ChildResult(f"run_{item.index}", item.task, "FAILED", None, None, error, False)


def answering(self: RecordingRun, item: BatchItem) -> ChildResult:
    output = "3" if item.task == count.id else '{"text":"SEA"}'
    return ChildResult(f"run_{item.index}", item.task, "COMPLETED", output, None, None, False)


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecordingRun, "child_result", answering)


async def words() -> AsyncIterator[BatchEntry[Word]]:
    for text in ("a", "b"):
        yield {"payload": Word(text=text)}


def letters() -> Iterator[BatchEntry[str]]:
    yield {"payload": "g"}
    yield {"payload": "h"}


async def test_a_result_is_the_output_of_the_task() -> None:
    with executing() as run:
        result = await shout.trigger_and_wait(Word(text="sea"), tags="x")
        assert result == TaskRunSuccess("run_0", "waiting-shout", Word(text="SEA"))
        assert result.ok and result.unwrap() == Word(text="SEA")
        by_id = await tasks.trigger_and_wait("waiting-shout", {"text": "sea"})
        assert by_id.unwrap() == {"text": "SEA"}
        assert (await tasks.trigger_and_wait(count, "sea")).unwrap() == 3
        assert count.sync.trigger_and_wait("sea").unwrap() == 3
        assert sync.tasks.trigger_and_wait(shout, Word(text="sea")).unwrap() == Word(text="SEA")
    assert run.told == [
        ("trigger_and_wait", ("waiting-shout", '{"text":"sea"}')),
        ("trigger_and_wait", ("waiting-shout", '{"text":"sea"}')),
        ("trigger_and_wait", ("waiting-count", '"sea"')),
        ("trigger_and_wait", ("waiting-count", '"sea"')),
        ("trigger_and_wait", ("waiting-shout", '{"text":"sea"}')),
    ]


async def test_a_batch_has_a_result_for_each_item_in_order() -> None:
    with executing() as run:
        ended = await shout.batch_trigger_and_wait(words())
        assert (ended.id, [each.unwrap().text for each in ended.runs]) == ("batch_a", ["SEA"] * 2)
        mixed = await batch.trigger_and_wait(
            [{"task": shout, "payload": Word(text="c")}, {"task": count, "payload": "c"}]
        )
        blocking = sync.batch.trigger_and_wait([{"task": "waiting-count", "payload": "d"}])
        listed = sync.tasks.batch_trigger_and_wait(count, [{"payload": "e"}])
        more = await tasks.batch_trigger_and_wait("waiting-count", [{"payload": "f"}])
        same = count.sync.batch_trigger_and_wait(letters())
        assert [each.id for each in mixed.runs] == ["run_0", "run_1"]
        assert [each.unwrap() for each in blocking.runs + listed.runs + more.runs] == [3] * 3
        assert len(same.runs) == 2
        first, second = (
            await batch.trigger_by_task_and_wait(
                ({"task": shout, "payload": Word(text="i")}, {"task": count, "payload": "j"})
            )
        ).runs
        assert (first.unwrap(), second.unwrap()) == (Word(text="SEA"), 3)
        sync.batch.trigger_by_task_and_wait([{"task": count, "payload": "k"}])
    assert [len(told) - 1 for told in run.told] == [2, 2, 1, 1, 1, 2, 2, 1]


async def test_a_failure_is_told_and_raised_when_it_is_unwrapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RecordingRun, "child_result", failing)
    with executing():
        result = await shout.trigger_and_wait(Word(text="sea"))
    assert isinstance(result, TaskRunFailure) and result.ok is False and result.output is None
    assert (result.error.name, result.error.message) == ("ValueError", "no")
    with pytest.raises(SubtaskUnwrapError, match=r"run_0.*waiting-shout.*no") as raised:
        result.unwrap()
    assert (raised.value.run_id, raised.value.task_identifier) == ("run_0", "waiting-shout")
    assert raised.value.error == result.error


async def test_an_output_that_its_task_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def strange(self: RecordingRun, item: BatchItem) -> ChildResult:
        return ChildResult("run_0", item.task, "COMPLETED", "[]", None, None, False)

    monkeypatch.setattr(RecordingRun, "child_result", strange)
    with executing(), pytest.raises(InvalidValueError, match="output does not fit"):
        await shout.trigger_and_wait(Word(text="sea"))


async def test_outside_of_a_run_nothing_waits() -> None:
    for call in (
        lambda: shout.trigger_and_wait(Word(text="a")),
        lambda: shout.batch_trigger_and_wait([{"payload": Word(text="a")}]),
        lambda: tasks.trigger_and_wait("waiting-count", "a"),
        lambda: tasks.batch_trigger_and_wait("waiting-count", [{}]),
        lambda: batch.trigger_and_wait([{"task": "waiting-count"}]),
        lambda: batch.trigger_by_task_and_wait([{"task": count, "payload": "a"}]),
    ):
        with pytest.raises(NotInRunError, match="subscribe_to_run"):
            await call()
    with pytest.raises(NotInRunError):
        count.sync.trigger_and_wait("a")
    with pytest.raises(NotInRunError):
        sync.batch.trigger_by_task_and_wait([{"task": count, "payload": "a"}])


async def test_a_client_of_its_own_does_not_wait_either() -> None:
    with executing() as run:
        async with AsyncRunwire(api_url="http://127.0.0.1:1", access_token="t") as client:
            with pytest.raises(NotInRunError, match="client of its own"):
                await client.tasks.trigger_and_wait(shout, Word(text="a"))
        with (
            Runwire(api_url="http://127.0.0.1:1", access_token="t") as blocking,
            pytest.raises(NotInRunError, match="client of its own"),
        ):
            blocking.batch.trigger_and_wait([{"task": "waiting-count"}])
    assert run.told == []


async def test_a_batch_that_is_waited_for_is_checked_before_anything_starts() -> None:
    with executing() as run:
        with pytest.raises(InvalidValueError, match="1 to 1000"):
            await shout.batch_trigger_and_wait([])
        with pytest.raises(InvalidValueError, match="does not fit"):
            await shout.batch_trigger_and_wait([{"payload": Word(text="a")}, {}])
        with pytest.raises(TypeError, match="names a task"):
            wrong: Any = [{"task": "waiting-count"}]
            await batch.trigger_by_task_and_wait(wrong)
    assert run.told == []


async def test_a_batch_by_task_has_a_handle_for_each_run() -> None:
    with executing():
        handle = await batch.trigger_by_task(
            ({"task": shout, "payload": Word(text="a")}, {"task": count, "payload": "b"}),
            idempotency_key=idempotency_keys.create("k"),
        )
        same = sync.batch.trigger_by_task([{"task": count, "payload": "b"}])
    assert (handle.id, handle.run_count) == ("batch_a", 2)
    assert [(each.id, each.task_identifier) for each in handle.runs] == [
        ("run_0", "waiting-shout"),
        ("run_1", "waiting-count"),
    ]
    assert len(same.runs) == 1


def test_types_flow_from_the_tasks_to_the_results() -> None:
    async def use() -> None:
        result = await shout.trigger_and_wait(Word(text="a"))
        assert_type(result, TaskRunResult[Word])
        assert_type(result.unwrap(), Word)
        if result.ok is True:
            assert_type(result.output, Word)
        else:
            assert_type(result.error.message, str)
        assert_type(await tasks.trigger_and_wait(count, "a"), TaskRunResult[int])
        assert_type(await tasks.trigger_and_wait("a", 1), TaskRunResult[Any])
        ended = await count.batch_trigger_and_wait([{"payload": "a"}])
        assert_type(ended, BatchResult[tuple[TaskRunResult[int], ...]])
        by_task = await batch.trigger_by_task_and_wait(
            ({"task": shout, "payload": Word(text="a")}, {"task": count, "payload": "b"})
        )
        assert_type(by_task, BatchResult[tuple[TaskRunResult[Word], TaskRunResult[int]]])
        handles = await batch.trigger_by_task(
            ({"task": count, "payload": "b"}, {"task": shout, "payload": Word(text="a")})
        )
        assert_type(handles, BatchRunHandle[tuple[RunHandle[int], RunHandle[Word]]])
        listed = await batch.trigger_by_task([{"task": count}, {"task": shout}])
        assert_type(listed, BatchRunHandle[tuple[RunHandle[Any], ...]])

    def use_blocking() -> None:
        assert_type(count.sync.trigger_and_wait("a").unwrap(), int)
        assert_type(sync.tasks.trigger_and_wait(shout, Word(text="a")), TaskRunResult[Word])
        by_task = sync.batch.trigger_by_task_and_wait(({"task": count, "payload": "a"},))
        assert_type(by_task.runs[0].unwrap(), int)
        handles = sync.batch.trigger_by_task(({"task": count, "payload": "a"},))
        assert_type(handles.runs[0], RunHandle[int])

    assert all(callable(one) for one in (use, use_blocking))
