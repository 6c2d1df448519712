"""The metadata reducer: the vectors shared with TypeScript, and random operations.

RUNWIRE_METADATA_EXAMPLES makes those more (60).
"""

import copy
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runwire import _metadata
from runwire.errors import InvalidValueError
from runwire.wire import Json, JsonObject

EXAMPLES = int(os.environ.get("RUNWIRE_METADATA_EXAMPLES", "60"))
VECTORS: list[JsonObject] = json.loads(
    (Path(__file__).parent.parent / "wire" / "metadata.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_the_reducer_does_what_the_vectors_say(vector: JsonObject) -> None:
    before = copy.deepcopy(vector)
    if "error" in vector:
        with pytest.raises(InvalidValueError) as caught:
            _metadata.apply(vector["document"], vector["operations"])
        assert caught.value.code == vector["error"]
    else:
        result = _metadata.apply(vector["document"], vector["operations"])
        assert _metadata.equal(result, vector["result"]), result
    assert vector == before, "apply changed its input"


def test_every_operation_and_every_error_has_a_vector() -> None:
    kinds = {operation.get("type") for vector in VECTORS for operation in vector["operations"]}
    assert {"set", "delete", "update", "append", "remove", "increment"} <= kinds
    assert {vector.get("error") for vector in VECTORS} == {
        None,
        "operation",
        "key",
        "path",
        "number",
    }


def test_numbers_that_json_cannot_hold_are_refused() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(InvalidValueError):
            _metadata.validate({"type": "increment", "key": "n", "value": value})


scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from([0.1, 1.5, 1e16, "x"])
values: st.SearchStrategy[Json] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=5,
)
documents: st.SearchStrategy[JsonObject] = st.dictionaries(st.sampled_from("abc"), values)
keys = st.sampled_from(["a", "b", "$.a", "$.a.b", "$.b[0]", "$.c[1].a"])
numbers = st.integers(-5, 5) | st.sampled_from([0.1, 0.2, 2**53, -(2**53), 1e16])


def _operation(kind: str) -> st.SearchStrategy[JsonObject]:
    fields: dict[str, st.SearchStrategy[Json]] = {"type": st.just(kind)}
    if kind != "update":
        fields["key"] = keys
    if kind == "update":
        fields["value"] = documents
    elif kind == "increment":
        fields["value"] = numbers
    elif kind != "delete":
        fields["value"] = values
    return st.fixed_dictionaries(fields)


kinds = ["set", "delete", "update", "append", "remove", "increment", "increment", "increment"]
operations = st.lists(st.sampled_from(kinds).flatmap(_operation), max_size=12)


def _outcome(document: JsonObject, given_operations: list[JsonObject]) -> str:
    """Return the document byte for byte, so that 1 and 1.0 differ, or the error's code."""
    try:
        return json.dumps(_metadata.apply(document, given_operations))
    except InvalidValueError as error:
        return error.code


@settings(max_examples=2 * EXAMPLES, deadline=None)
@given(documents, operations)
def test_collapsing_never_changes_the_result(
    document: JsonObject, given_operations: list[JsonObject]
) -> None:
    collapsed = _metadata.collapse(given_operations, document)
    assert len(collapsed) <= len(given_operations)
    assert _outcome(document, collapsed) == _outcome(document, given_operations)


@settings(max_examples=EXAMPLES, deadline=None)
@given(documents, operations)
def test_collapsing_without_the_document_never_changes_the_result_either(
    document: JsonObject, given_operations: list[JsonObject]
) -> None:
    collapsed = _metadata.collapse(given_operations)
    assert _outcome(document, collapsed) == _outcome(document, given_operations)


@settings(max_examples=EXAMPLES, deadline=None)
@given(documents, operations)
def test_apply_never_changes_its_input(
    document: JsonObject, given_operations: list[JsonObject]
) -> None:
    before = json.dumps([document, given_operations])
    _outcome(document, given_operations)
    assert json.dumps([document, given_operations]) == before


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.integers(-100, 100)), st.randoms())
def test_whole_increments_commute(amounts: list[int], order: object) -> None:
    del order
    one = [{"type": "increment", "key": "n", "value": amount} for amount in amounts]
    assert _metadata.apply({}, one) == _metadata.apply({}, one[::-1])


def test_neighbouring_sets_and_increments_are_joined() -> None:
    joined = _metadata.collapse(
        [
            {"type": "increment", "key": "n", "value": 1},
            {"type": "increment", "key": "n", "value": 2},
            {"type": "set", "key": "s", "value": 1},
            {"type": "set", "key": "s", "value": 2},
            {"type": "increment", "key": "n", "value": 3},
        ],
        {},
    )
    assert joined == [
        {"type": "increment", "key": "n", "value": 3},
        {"type": "set", "key": "s", "value": 2},
        {"type": "increment", "key": "n", "value": 3},
    ]
