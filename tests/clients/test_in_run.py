"""What a task calls while it runs: metadata, streams, tags, triggers, keys."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import pytest
from pydantic import BaseModel

from runwire import (
    InvalidValueError,
    NotInRunError,
    batch,
    idempotency_keys,
    metadata,
    streams,
    sync,
    tags,
    task,
    tasks,
)
from runwire.tasks import BatchEntry
from tests.support.recording_run import executing

pytestmark = pytest.mark.anyio


class Word(BaseModel):
    text: str


async def words() -> AsyncIterator[Word]:
    yield Word(text="a")
    yield Word(text="b")


async def test_metadata_operations_apply_at_once_and_can_be_chained() -> None:
    with executing() as run:
        metadata.set("n", 1).increment("n", 2).decrement("n").append("list", "x")
        metadata.append("list", "y").remove("list", "x").set("$.deep.key", True)
        metadata.set("gone", 1).delete("gone").set("too", 1).del_("too")
        expected = {"n": 2, "list": ["y"], "deep": {"key": True}}
        assert metadata.current() == expected and run.document == expected
        assert metadata.get("n") == 2 and metadata.get("nothing") is None
        metadata.replace({"only": Word(text="a")})
        assert metadata.current() == {"only": {"text": "a"}}


async def test_operations_on_the_parent_and_the_root_name_their_target() -> None:
    with executing() as run:
        metadata.parent.increment("done").append("children", "run_a")
        metadata.root.set("x", 1)
    assert run.told == [
        ("parent", {"type": "increment", "key": "done", "value": 1}),
        ("parent", {"type": "append", "key": "children", "value": "run_a"}),
        ("root", {"type": "set", "key": "x", "value": 1}),
    ]


async def test_outside_of_a_run_metadata_reads_nothing_and_writes_nothing() -> None:
    metadata.set("a", 1).increment("b")
    metadata.parent.increment("a")
    await metadata.flush()
    metadata.sync.flush()
    assert metadata.current() is None and metadata.get("a") is None
    assert [one async for one in await metadata.stream("k", words())] == [
        Word(text="a"),
        Word(text="b"),
    ]
    assert list(metadata.sync.stream("k", [1, 2])) == [1, 2]


async def test_metadata_that_has_no_json_form_is_refused() -> None:
    for value in (float("nan"), object(), "\x00", "\ud800"):
        with executing(), pytest.raises(InvalidValueError):
            metadata.set("a", value)


async def test_a_stream_is_captured_before_it_is_handed_out_and_then_ended() -> None:
    with executing() as run:
        read: list[str] = []
        async for word in await metadata.stream("words", words()):
            assert run.told[-1] == ("write", "self", "words", f'{{"text":"{word.text}"}}')
            read.append(word.text)
        assert read == ["a", "b"] and run.told[-1] == ("end", "self", "words")


async def test_a_pipe_may_be_left_to_run_by_itself() -> None:
    with executing() as run:
        await streams.pipe("k", ["a", None], target="root").wait_until_complete()
        await streams.pipe(words()).wait_until_complete()
    assert run.told == [
        ("write", "root", "k", '"a"'),
        ("write", "root", "k", "null"),
        ("end", "root", "k"),
        ("write", "self", "default", '{"text":"a"}'),
        ("write", "self", "default", '{"text":"b"}'),
        ("end", "self", "default"),
    ]


async def test_a_source_that_fails_fails_the_task_and_does_not_end_the_stream() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise RuntimeError("the model went away")

    with executing() as run, pytest.raises(RuntimeError, match="went away"):
        await streams.pipe("k", broken()).wait_until_complete()
    assert run.told == [("write", "self", "k", "1")]


async def test_the_blocking_twins_do_the_same() -> None:
    with executing() as run:
        assert list(sync.metadata.stream("k", [1, 2])) == [1, 2]
        assert streams.sync.append("k", "x") == 7
        sync.streams.pipe("p", [3], target="parent").wait_until_complete()
        metadata.sync.flush()
        tags.sync.add("a")
    assert run.told == [
        ("write", "self", "k", "1"),
        ("write", "self", "k", "2"),
        ("end", "self", "k"),
        ("append", "self", "k", '"x"'),
        ("write", "parent", "p", "3"),
        ("end", "parent", "p"),
        ("flush",),
        ("tags", "a"),
    ]


async def test_appending_takes_a_key_or_none() -> None:
    with executing() as run:
        assert await streams.append("k", {"a": 1}) == 7
        await streams.append(5)
        with pytest.raises(TypeError):
            await streams.append(1, 2)  # type: ignore[call-overload]  # pyright: ignore
        with pytest.raises(TypeError):
            streams.pipe("k")
    assert run.told == [("append", "self", "k", '{"a":1}'), ("append", "self", "default", "5")]


async def test_what_needs_a_run_says_so_outside_of_one() -> None:
    with pytest.raises(NotInRunError, match="tags.add"):
        await tags.add("x")
    with pytest.raises(NotInRunError, match="target 'self'"):
        await streams.append("k", 1)


async def test_triggers_go_through_the_run() -> None:
    @task(id="in-run-child")
    def child(payload: Word) -> int:
        return 1

    with executing() as run:
        handle = await child.trigger(Word(text="a"), tags="x")
        assert (handle.id, handle.task_identifier, handle.is_cached) == (
            "run_b",
            "in-run-child",
            False,
        )
        await tasks.trigger("other", [1])
        assert child.sync.trigger(Word(text="b")).public_access_token == "token"
        sync.tasks.trigger("other")
        many = await child.batch_trigger([{"payload": Word(text="c")}, {"payload": Word(text="d")}])
        assert (many.batch_id, many.id, many.run_count) == ("batch_a", "batch_a", 2)
        await batch.trigger([{"task": child, "payload": Word(text="e")}, {"task": "other"}])
        sync.batch.trigger([{"task": "other", "payload": 1}])
        await child.batch_trigger(letters())
        child.sync.batch_trigger(more_letters())
    assert run.told == [
        ("trigger", "in-run-child", '{"text":"a"}', ["x"]),
        ("trigger", "other", "[1]", None),
        ("trigger", "in-run-child", '{"text":"b"}', None),
        ("trigger", "other", None, None),
        ("batch", ("in-run-child", '{"text":"c"}'), ("in-run-child", '{"text":"d"}')),
        ("batch", ("in-run-child", '{"text":"e"}'), ("other", None)),
        ("batch", ("other", "1")),
        ("batch", ("in-run-child", '{"text":"g"}'), ("in-run-child", '{"text":"h"}')),
        ("batch", ("in-run-child", '{"text":"i"}'), ("in-run-child", '{"text":"j"}')),
    ]


async def letters() -> AsyncIterator[BatchEntry[Word]]:
    yield {"payload": Word(text="g")}
    yield {"payload": Word(text="h")}


def more_letters() -> Iterator[BatchEntry[Word]]:
    yield {"payload": Word(text="i")}
    yield {"payload": Word(text="j")}


async def test_a_key_is_reset_through_the_run() -> None:
    with executing() as run:
        assert await idempotency_keys.reset("other", "k")
        assert sync.idempotency_keys.reset("other", ["a", "b"], scope="global")
        hashed = idempotency_keys.create("k")
    assert run.told == [
        ("reset", "other", hashed),
        ("reset", "other", idempotency_keys.create(["a", "b"], scope="global")),
    ]


async def test_a_batch_is_checked_before_it_is_sent() -> None:
    with executing() as run:
        with pytest.raises(InvalidValueError, match="1 to 1000"):
            await tasks.batch_trigger("other", [])
        with pytest.raises(TypeError, match="colour"):
            await tasks.batch_trigger("other", [cast(Any, {"colour": 1})])
    assert run.told == []


async def test_idempotency_keys_have_a_scope() -> None:
    with executing(attempt=1):
        first = {scope: key(scope) for scope in ("run", "attempt", "global")}
        assert key(None) == first["run"]
    with executing(attempt=2):
        second = {scope: key(scope) for scope in ("run", "attempt", "global")}
    assert first["run"] == second["run"] and first["global"] == second["global"]
    assert first["attempt"] != second["attempt"]
    assert len({*first.values()}) == 3
    assert key("run") == key("attempt") == key("global") == first["global"]


def key(scope: str | None) -> str:
    return idempotency_keys.create("k", **({} if scope is None else {"scope": cast(Any, scope)}))
