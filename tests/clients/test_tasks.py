from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type, cast

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from runwire import (
    Context,
    InvalidValueError,
    Signal,
    TaskError,
    idempotency_keys,
    queue,
    queues,
    task,
    tasks,
)
from runwire._options import trigger_options
from runwire.tasks import QueueOptions, RetryOptions, RunHandle, registry


class Story(BaseModel):
    topic: str
    words: int = Field(default=100, ge=1)


@dataclass
class Point:
    x: int
    y: int


class Row(TypedDict):
    name: str
    born: datetime


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    held = dict(registry())
    registry().clear()
    yield
    registry().clear()
    for one in held.values():
        registry().add(one)


def write_story(payload: Story, ctx: Context | None = None) -> str:
    return payload.topic * payload.words


def test_a_task_is_the_plain_function_when_it_is_called() -> None:
    defined = task(id="story")(write_story)
    assert_type(defined(Story(topic="a", words=2)), str)
    assert defined(Story(topic="a", words=2)) == "aa"
    assert defined.id == "story" and defined.function is write_story and not defined.is_async
    assert defined.parameters == ("payload", "ctx")


@pytest.mark.anyio
async def test_an_async_task_is_the_plain_coroutine_when_it_is_called() -> None:
    @task(id="double")
    async def double(number: int) -> int:
        return 2 * number

    assert_type(await double(2), int)
    assert await double(2) == 4
    assert double.is_async and double.parameters == ("payload",)


def test_a_task_may_take_nothing_or_any_of_what_is_offered() -> None:
    @task(id="nothing")
    def nothing() -> None: ...

    @task(id="all")
    def everything(payload: int, signal: Signal, ctx: Context, init: object) -> None: ...

    @task(id="only-ctx")
    def only_ctx(ctx: Context) -> None: ...

    assert nothing.parameters == () and nothing.payload_schema() is None
    assert everything.parameters == ("payload", "ctx", "init", "signal")
    assert only_ctx.parameters == ("ctx",)
    offered = {"ctx": object(), "init": object(), "signal": object()}
    assert everything.bind(5, offered) == ((5,), offered)
    assert only_ctx.bind(None, offered) == ((), {"ctx": offered["ctx"]})
    assert nothing.bind(None, offered) == ((), {})


def test_options_have_defaults_and_durations_become_seconds() -> None:
    plain = task(id="plain")(write_story)
    assert plain.retry == RetryOptions(3, 2.0, 1.0, 60.0, True)
    assert plain.queue == QueueOptions("task/plain", None)
    assert plain.max_duration is None and plain.ttl is None
    registry().clear()
    chosen = task(
        id="plain",
        retry={"max_attempts": 10, "min_timeout": "500ms", "max_timeout": timedelta(seconds=30)},
        queue={"concurrency_limit": 4},
        max_duration="1m30s",
        ttl="2h",
    )(write_story)
    assert chosen.retry == RetryOptions(10, 2.0, 0.5, 30.0, True)
    assert chosen.queue == QueueOptions("task/plain", 4) and chosen.max_duration == 90.0
    assert chosen.ttl == 7200.0
    registry().clear()
    assert task(id="plain", queue="mail")(write_story).queue == QueueOptions("mail", None)


@pytest.mark.parametrize(
    "options",
    [
        {"id": ""},
        {"id": "x" * 129},
        {"id": "a\nb"},
        {"id": "a", "retry": {"attempts": 3}},
        {"id": "a", "retry": {"max_attempts": 0}},
        {"id": "a", "retry": {"min_timeout": 5, "max_timeout": 1}},
        {"id": "a", "queue": {"limit": 3}},
        {"id": "a", "queue": {"name": "", "concurrency_limit": 1}},
        {"id": "a", "max_duration": 0},
        {"id": "a", "ttl": 0},
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TaskError):
        task(**options)(write_story)


@pytest.mark.parametrize("option", ["machine", "cron", "region", "run"])
def test_options_that_are_not_built_yet_are_refused(option: str) -> None:
    with pytest.raises(TypeError, match=option):
        task(id="a", **cast(Any, {option: 1}))


def test_a_queue_is_shared_and_the_lowest_limit_said_of_it_is_announced() -> None:
    queues.registry().clear()
    mail = queue("mail", concurrency_limit=5)
    assert mail == QueueOptions("mail", 5)
    assert task(id="plain", queue=mail)(write_story).queue == mail
    queue(name="mail", concurrency_limit=3)
    queue("mail")
    queue("open")
    assert dict(queues.registry()) == {"mail": 3, "open": None}
    queues.registry().clear()
    with pytest.raises(TaskError, match="queue name"):
        queue("")
    with pytest.raises(TaskError, match="negative"):
        queue("mail", concurrency_limit=-1)
    assert not queues.registry()


def test_functions_that_ask_for_what_there_is_not_are_refused() -> None:
    def with_output(payload: int, output: object) -> None: ...

    def with_rest(*payloads: int) -> None: ...

    def with_keyword(*, payload: int) -> None: ...

    def generator(payload: int) -> Iterator[int]:
        yield payload

    for function in (with_output, with_rest, with_keyword, generator):
        with pytest.raises(TaskError):
            task(id="a")(cast(Any, function))


def test_two_tasks_cannot_have_one_id_but_a_reload_replaces_itself() -> None:
    task(id="a")(write_story)
    again = task(id="a")(write_story)
    assert registry()["a"] is again and list(registry()) == ["a"]
    with pytest.raises(TaskError, match="two tasks have the id 'a'"):

        @task(id="a")
        def other(payload: int) -> None: ...


def test_annotations_of_every_kind_are_the_schema() -> None:
    @task(id="model")
    def model(payload: Story) -> None: ...

    @task(id="dataclass")
    def dataclass_(payload: Point) -> None: ...

    @task(id="typed-dict")
    def typed_dict(payload: Row) -> None: ...

    @task(id="plain")
    def plain(payload: list[int]) -> None: ...

    assert model.parse_payload('{"topic": "sea"}') == Story(topic="sea", words=100)
    assert dataclass_.parse_payload('{"x": 1, "y": "2"}') == Point(1, 2)
    born = typed_dict.parse_payload('{"name": "a", "born": "2026-11-23T20:00:00Z"}')
    assert born == {"name": "a", "born": datetime(2026, 11, 23, 20, tzinfo=UTC)}
    assert plain.parse_payload("[1, 2]") == [1, 2]
    assert (model.payload_schema() or {})["required"] == ["topic"]


def test_a_payload_that_does_not_fit_is_refused_on_both_sides() -> None:
    defined = task(id="a")(write_story)
    for text in ("{}", '{"topic": 5}', '{"topic": "a", "words": 0}', "[]", "null"):
        with pytest.raises(InvalidValueError, match="payload does not fit task 'a'"):
            defined.parse_payload(text)
    with pytest.raises(InvalidValueError) as raised:
        defined.dump_payload({"words": 1})
    assert raised.value.code == "payload_invalid"


def test_payload_types_of_other_clients_are_understood() -> None:
    defined = task(id="a")(write_story)
    story = Story(topic="a", words=1)
    text = '{"json": {"topic": "a", "words": 1}, "meta": {"values": {}}}'
    assert defined.parse_payload(text, "application/super+json") == story

    @task(id="text")
    def text_task(payload: str) -> None: ...

    assert text_task.parse_payload("hello", "text/plain") == "hello"


def test_a_payload_with_a_default_may_be_left_out() -> None:
    @task(id="a")
    def defined(payload: int = 7) -> int:
        return payload

    assert defined.dump_payload(None) is None
    assert defined.parse_payload(None) == 7
    assert defined.parse_payload("8") == 8


def test_a_payload_is_written_with_its_defaults_and_by_its_fields() -> None:
    defined = task(id="a")(write_story)
    assert defined.dump_payload(Story(topic="sea")) == '{"topic":"sea","words":100}'
    assert defined.dump_payload({"topic": "sea"}) == '{"topic":"sea","words":100}'

    @task(id="none")
    def none() -> None: ...

    with pytest.raises(InvalidValueError, match="takes no payload"):
        none.dump_payload(1)


def test_an_output_is_read_back_as_what_the_function_returned() -> None:
    @task(id="a")
    def point(payload: int) -> Point:
        return Point(payload, payload)

    assert_type(point.parse_output({"x": 1, "y": 2}), Point)
    assert point.parse_output({"x": 1, "y": 2}) == Point(1, 2)
    with pytest.raises(InvalidValueError):
        point.parse_output({"x": 1})


def test_types_flow_from_the_function_to_the_handle() -> None:
    @task(id="a")
    async def story(payload: Story, ctx: Context) -> Point:
        return Point(0, 0)

    async def use() -> None:
        assert_type(await story.trigger(Story(topic="a")), RunHandle[Point])
        assert_type(await tasks.trigger(story, Story(topic="a")), RunHandle[Point])
        assert_type(await tasks.trigger("a", {"topic": "a"}, tags=["x"]), RunHandle[Any])
        await story.batch_trigger([{"payload": Story(topic="a"), "options": {"delay": "1h"}}])

    def use_blocking() -> None:
        assert_type(story.sync.trigger(Story(topic="a"), max_attempts=3), RunHandle[Point])

    assert all(callable(one) for one in (use, use_blocking))


def test_trigger_options_travel_in_the_words_of_the_wire() -> None:
    due = datetime(2026, 11, 23, 20, tzinfo=UTC)
    options = trigger_options(
        {
            "tags": "user:42",
            "metadata": {"at": due},
            "delay": due,
            "ttl": "1h30m",
            "idempotency_key": "k",
            "idempotency_key_ttl": timedelta(minutes=1),
            "queue": {"name": "q", "concurrency_limit": 2},
            "concurrency_key": "c",
            "max_attempts": 5,
            "max_duration": "90s",
            "priority": 10,
            "test": True,
            "debounce": {"key": "d", "delay": "5s", "mode": "trailing", "max_delay": "1m"},
        }
    )
    body = options.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert datetime.fromisoformat(body.pop("delay")) == due
    assert body == {
        "payloadType": "application/json",
        "tags": ["user:42"],
        "metadata": {"at": "2026-11-23T20:00:00+00:00"},
        "ttl": 5400.0,
        "idempotencyKey": idempotency_keys.create("k"),
        "idempotencyKeyTTL": 60.0,
        "queue": {"name": "q", "concurrencyLimit": 2},
        "concurrencyKey": "c",
        "maxAttempts": 5,
        "maxDuration": 90.0,
        "priority": 10.0,
        "test": True,
        "debounce": {"key": "d", "delay": 5.0, "mode": "trailing", "maxDelay": 60.0},
    }
    shared = trigger_options({"queue": QueueOptions("q", 2)})
    assert shared.queue == options.queue


@pytest.mark.parametrize("option", ["machine", "region", "version", "colour"])
def test_trigger_options_that_do_not_exist_yet_are_refused(option: str) -> None:
    with pytest.raises(TypeError, match=option):
        trigger_options(cast(Any, {option: 1}))


@pytest.mark.parametrize(
    "options",
    [
        {"tags": ["x"] * 11},
        {"tags": ["x" * 129]},
        {"tags": ""},
        {"metadata": [1]},
        {"metadata": {"x": float("nan")}},
        {"delay": "soon"},
        {"max_attempts": 0},
        {"max_duration": 0},
        {"idempotency_key": ""},
        {"idempotency_key_ttl": 60},
        {"queue": {"name": ""}},
        {"queue": {"concurrency_limit": 3}},
        {"debounce": {"key": "k"}},
        {"debounce": {"key": "", "delay": 1}},
        {"debounce": {"key": "k", "delay": "soon"}},
        {"debounce": {"key": "k", "delay": 1, "mode": "both"}},
    ],
)
def test_trigger_options_that_cannot_be_are_refused_before_anything_is_sent(
    options: dict[str, Any],
) -> None:
    with pytest.raises(InvalidValueError):
        trigger_options(cast(Any, options))


def test_idempotency_keys_keep_their_parts_apart() -> None:
    assert idempotency_keys.create(["a", "b"]) != idempotency_keys.create("a-b")
    assert idempotency_keys.create(["ab"]) != idempotency_keys.create(["a", "b"])
    assert idempotency_keys.create("a") == idempotency_keys.create(["a"])
    key = idempotency_keys.create("a", scope="global")
    assert len(key) == 64 and idempotency_keys.create(key) == key
    with pytest.raises(InvalidValueError):
        idempotency_keys.create([])
    with pytest.raises(InvalidValueError):
        idempotency_keys.create("a", scope=cast(Any, "team"))
