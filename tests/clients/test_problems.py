"""What does not fit a schema, told in one line to the one who sent it."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from runwire._problems import first_problem, problems
from runwire.requests import TagsBody


class Order(BaseModel):
    number: int
    amount: int | str
    lines: list[int] = []


def refused(call: Callable[[], object]) -> ValidationError:
    with pytest.raises(ValidationError) as raised:
        call()
    return raised.value


def test_each_is_told_where_it_is() -> None:
    error = refused(lambda: Order.model_validate({"amount": 1, "lines": [1, {}]}))
    assert problems(error) == "number: Field required; lines.1: Input should be a valid integer"
    assert first_problem(error) == "number: Field required (and 1 more)"


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        (["a" * 129], "tags.0: String should have at most 128 characters"),
        (["a", 5], "tags.1: Input should be a valid string"),
        ([str(n) for n in range(11)], "tags: List should have at most 10 items"),
        ("a" * 129, "tags: String should have at most 128 characters"),
        (5, "tags: Input should be a valid string"),
    ],
)
def test_of_a_union_only_the_form_that_was_meant_is_told(tags: Any, told: str) -> None:
    text = first_problem(refused(lambda: TagsBody.model_validate({"tags": tags})))
    assert text.startswith(told) and "more" not in text and "constrained" not in text


def test_what_has_no_place_is_told_by_what_it_is_of() -> None:
    error = refused(lambda: TypeAdapter(int).validate_python({}))
    assert problems(error) == "Input should be a valid integer"
    assert first_problem(error, at="body") == "body: Input should be a valid integer"


def test_neither_values_nor_many_problems_nor_long_places_are_repeated() -> None:
    many = {"secret " * 50 + str(number): "secret value" for number in range(5_000)}
    error = refused(lambda: TypeAdapter(dict[str, int]).validate_python(many))
    assert len(problems(error)) < 1_000 and "secret value" not in problems(error)
    assert problems(error).endswith("more)")
