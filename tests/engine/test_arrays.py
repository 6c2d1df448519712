"""Lists that go to Postgres as parameters come out as they went in."""

from datetime import UTC, date, datetime
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runwire_engine.arrays import ArrayDumper, parameter, with_arrays

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def returned(dsn: str, kind: str, values: list[Any]) -> Any:
    with psycopg.connect(dsn, context=with_arrays()) as connection:
        row = connection.execute(f"select %s::{kind}[]".encode(), [values]).fetchone()
        assert row is not None
        return row[0]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("text", []),
        ("text", [""]),
        ("text", [None, None]),
        ("text", ["a", None, "null", "NULL", "{", "}", ",", " ", '"', "\\", '\\"', "a\nb", "é☃𝄞"]),
        ("text", ['","', "x"]),
        ("text", [["a", "b"], ["c", 'd"']]),
        ("integer", [1, None, -(2**31)]),
        ("bigint", [2**62, 0]),
        ("double precision", [0.1, 1e300, -2.0, None, float("inf")]),
        ("boolean", [True, False, None]),
        ("date", [date(2026, 11, 25)]),
        ("timestamptz", [datetime(2026, 11, 25, 1, 2, 3, 456789, UTC), None]),
    ],
)
def test_what_goes_in_comes_out(database_url: str, kind: str, values: list[Any]) -> None:
    assert returned(database_url, kind, values) == values


def test_any_texts_go_in_and_come_out(database_url: str) -> None:
    with psycopg.connect(database_url, context=with_arrays()) as connection:

        @given(st.lists(st.none() | TEXT) | st.lists(TEXT))
        def check(values: list[str | None]) -> None:
            row = connection.execute("select %s::text[]", [values]).fetchone()
            assert row == (values,)

        check()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("a\n'é", "a\n'é".encode()),
        (True, b"t"),
        (False, b"f"),
        (-7, b"-7"),
        (0.5, b"0.5"),
        (date(2026, 11, 25), b"2026-11-25"),
        (datetime(2026, 11, 25, 1, 2, 3, 456789, UTC), b"2026-11-25T01:02:03.456789+00:00"),
        ([1, None], b"{1,NULL}"),
    ],
)
def test_a_value_alone_is_a_parameter_too(value: object, text: bytes | None) -> None:
    assert parameter(value) == text


@pytest.mark.parametrize("values", [["a\0b"], [None, "\0"], [["\0"]]])
def test_what_postgres_cannot_hold_is_refused_and_not_cut_off(values: list[object]) -> None:
    with pytest.raises(psycopg.DataError, match="NUL"):
        ArrayDumper(list).dump(values)


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(TypeError, match="dict"):
        parameter({})
    with pytest.raises(TypeError, match="bytes"):
        ArrayDumper(list).dump([b"x"])
