"""The payload of the line to try fits the task it is for."""

from datetime import datetime
from typing import Annotated, Any, Literal

import orjson
import pytest
from pydantic import BaseModel, Field, TypeAdapter

from runwire_realtime.sample_payload import sample_payload


class Item(BaseModel):
    name: str = Field(min_length=8)
    count: int = Field(gt=3, lt=9)


class Order(BaseModel):
    item: Item
    more: list[Item] = Field(min_length=2)
    due: datetime
    kind: Literal["new", "old"]
    share: Annotated[float, Field(gt=0, lt=1)]
    note: str | None
    pair: tuple[int, str]
    is_urgent: bool
    limit: int = 5
    tags: list[str] = []


class Tree(BaseModel):
    value: int
    left: "Tree | None"


class Defaults(BaseModel):
    question: str = "why?"


@pytest.mark.parametrize(
    "taken",
    [Order, Item, Tree, Defaults, dict[str, Any], list[int], str, int, bool, None, Any, object],
    ids=str,
)
def test_it_fits_what_the_task_takes(taken: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(taken)
    text = sample_payload(adapter.json_schema())
    adapter.validate_json(text)


def test_required_fields_are_there_and_defaults_are_left_out() -> None:
    assert sample_payload(Defaults.model_json_schema()) == "{}"
    order = orjson.loads(sample_payload(Order.model_json_schema()))
    assert set(order) == set(Order.model_fields) - {"limit", "tags"}
    assert order["kind"] == "new" and order["note"] is None and len(order["more"]) == 2


def test_a_schema_that_contains_itself_ends() -> None:
    endless = {"$defs": {"A": {"required": ["a"], "properties": {"a": {"$ref": "#/$defs/A"}}}}}
    assert len(sample_payload({**endless, "$ref": "#/$defs/A"})) < 100
