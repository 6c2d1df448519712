from contextvars import copy_context
from typing import assert_type

import pytest

from runwire import NotSetError, locals
from tests.support.recording_run import executing

NAME = locals.create[str]("name")


def test_a_value_is_kept_in_the_attempt_it_was_set_in() -> None:
    with executing():
        assert locals.get(NAME) is None
        assert_type(locals.set(NAME, "Ada"), str)
        assert_type(locals.get(NAME), str | None)
        assert_type(locals.get_or_throw(NAME), str)
        assert (locals.get(NAME), locals.get_or_throw(NAME)) == ("Ada", "Ada")
    with executing():
        assert locals.get(NAME) is None


def test_what_was_not_set_is_a_clear_error() -> None:
    with pytest.raises(NotSetError, match="'name'") as raised:
        locals.get_or_throw(NAME)
    assert raised.value.key == "name" and isinstance(raised.value, LookupError)


def test_two_keys_of_one_name_are_two() -> None:
    other = locals.create[int]("name")
    with executing():
        locals.set(NAME, "Ada")
        assert locals.get(other) is None


def test_outside_of_a_run_values_belong_to_the_context() -> None:
    def inside() -> str:
        locals.set(NAME, "Ada")
        return locals.get_or_throw(NAME)

    assert copy_context().run(inside) == "Ada"
    assert locals.get(NAME) is None


def test_none_is_a_value() -> None:
    key = locals.create[str | None]("maybe")
    with executing():
        locals.set(key, None)
        assert locals.get_or_throw(key) is None
