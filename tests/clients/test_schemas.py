"""Schemas given to a task: of every kind, checked when it is triggered and again before it runs."""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any, NewType, assert_type, cast

import pytest
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from runwire import Context, InvalidValueError, Task, TaskError, schema_task, task, tasks
from runwire.tasks import RunHandle, registry


class Story(BaseModel):
    topic: str
    words: int = Field(default=100, ge=1)


@dataclass
class Point:
    x: int
    y: int = 0


class Row(TypedDict):
    name: str
    at: datetime


UserId = NewType("UserId", int)


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    held = dict(registry())
    registry().clear()
    yield
    registry().clear()
    for one in held.values():
        registry().add(one)


def shout(value: str) -> list[str]:
    """Split a text, and refuse what is none: not what it returns."""
    if not isinstance(cast(object, value), str):
        raise ValueError("a text is wanted")
    return value.upper().split()


def defined(schema: object) -> Task[Any, Any, ..., Any]:
    registry().clear()

    @task(id="a", schema=schema)
    def with_schema(payload: Any) -> None: ...

    return with_schema


GOOD: list[tuple[object, object, str, object]] = [
    (Story, {"topic": "sea"}, '{"topic":"sea"}', Story(topic="sea", words=100)),
    (Story, Story(topic="sea"), '{"topic":"sea","words":100}', Story(topic="sea", words=100)),
    (Point, {"x": 1}, '{"x":1}', Point(1, 0)),
    (Point, Point(1, 2), '{"x":1,"y":2}', Point(1, 2)),
    (
        Row,
        {"name": "a", "at": "2026-11-24T00:00:00"},
        '{"name":"a","at":"2026-11-24T00:00:00"}',
        {"name": "a", "at": datetime(2026, 11, 24)},
    ),
    (list[int], ["1", 2], '["1",2]', [1, 2]),
    (int | None, None, "null", None),
    (UserId, 5, "5", 5),
    (Annotated[int, Field(gt=3)], 4, "4", 4),
    (TypeAdapter(timedelta), "PT1M", '"PT1M"', timedelta(minutes=1)),
    (shout, "a b", '"a b"', ["A", "B"]),
    (partial(int, base=2), "101", '"101"', 5),
    (Annotated[list[str], BeforeValidator(str.split)], "a b", '"a b"', ["a", "b"]),
]


@pytest.mark.parametrize(("schema", "given", "text", "parsed"), GOOD)
def test_a_payload_travels_as_it_was_given_and_arrives_as_the_schema_makes_it(
    schema: object, given: object, text: str, parsed: object
) -> None:
    made = defined(schema)
    assert made.dump_payload(given) == text
    assert made.parse_payload(text) == parsed


def missing(value: dict[str, int]) -> int:
    return value["missing"]


BAD: list[tuple[object, object]] = [
    (Story, {"words": 1}),
    (Story, {"topic": "a", "words": 0}),
    (Point, {"y": 1}),
    (Row, {"name": "a"}),
    (list[int], ["x"]),
    (UserId, "x"),
    (Annotated[int, AfterValidator(lambda n: 1 / n)], "x"),
    (shout, 5),
    (missing, {}),
    (partial(int, base=2), "102"),
]


@pytest.mark.parametrize(("schema", "given"), BAD)
def test_a_payload_that_does_not_fit_is_refused_on_both_sides(
    schema: object, given: object
) -> None:
    made = defined(schema)
    for refuse in (
        lambda: made.dump_payload(given),
        lambda: made.parse_payload(tasks.wanted("other", given, {}).payload),
    ):
        with pytest.raises(InvalidValueError, match="payload does not fit task 'a'") as raised:
            refuse()
        assert raised.value.code == "payload_invalid" and raised.value.__cause__ is not None


def test_a_task_named_by_its_id_is_not_validated_when_it_is_triggered() -> None:
    defined(Story)
    assert tasks.wanted("a", {"words": 1}, {}).payload == '{"words":1}'


def test_the_schema_counts_and_not_the_annotation() -> None:
    @task(id="a", schema=shout)
    def words(payload: list[str], ctx: Context) -> int:
        return len(payload)

    assert words.parse_payload('"a b"') == ["A", "B"] and words.parameters == ("payload", "ctx")
    assert words.payload_schema() is None
    assert (defined(Story).payload_schema() or {})["required"] == ["topic"]


def test_a_payload_with_a_default_is_not_asked_of_the_schema_when_it_is_left_out() -> None:
    @task(id="a", schema=shout)
    def words(payload: list[str] | None = None) -> None: ...

    assert words.dump_payload(None) is None and words.parse_payload(None) is None


def test_schemas_that_cannot_be_are_refused() -> None:
    async def later(value: object) -> object:
        return value

    class Own:
        pass

    for schema in (later, Own, "Story", 5, [1]):
        with pytest.raises(TaskError, match="schema of task 'a'"):
            defined(schema)
    with pytest.raises(TaskError, match="takes no payload"):
        task(id="b", schema=Story)(cast(Any, lambda: None))


def parse_point(value: dict[str, int]) -> Point:
    return Point(**value)


def test_types_flow_from_the_schema_to_the_trigger_and_the_function() -> None:
    @task(id="a", schema=parse_point)
    async def moved(payload: Point, ctx: Context) -> int:
        return payload.x

    @schema_task(id="b", schema=Story, retry={"max_attempts": 2})
    def told(payload: Story) -> str:
        return payload.topic

    assert_type(told(Story(topic="a")), str)

    async def use() -> None:
        assert_type(await moved.trigger({"x": 1}), RunHandle[int])
        assert_type(await moved(Point(1), cast(Context, None)), int)
        assert_type(told.sync.trigger(Story(topic="a")), RunHandle[str])
        await moved.trigger(Point(1))  # type: ignore[arg-type]

    checked: list[Callable[[], Awaitable[None]]] = [use]
    assert told.retry.max_attempts == 2 and checked


def test_a_schema_of_another_type_than_the_function_takes_is_a_type_error() -> None:
    @task(id="a", schema=parse_point)  # type: ignore[arg-type]
    def wrong(payload: str) -> None: ...

    assert callable(wrong)
