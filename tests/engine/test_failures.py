"""What an exception becomes."""

import orjson
import pytest

from runwire.errors import InvalidValueError
from runwire.values import encode
from runwire_engine.failures import MAX_STACK, FailureCode, describe


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def told(error: BaseException) -> dict[str, str]:
    body: dict[str, str] = orjson.loads(describe(error, FailureCode.TASK_ERROR))
    return body


def test_an_error_has_its_name_message_code_and_stack() -> None:
    body = told(raised(ValueError("no such city")))
    assert body["name"] == "ValueError"
    assert body["message"] == "no such city"
    assert body["code"] == "TASK_ERROR"
    assert "test_failures.py" in body["stackTrace"]


@pytest.mark.parametrize("message", ["a\x00b", "a\ud800b", "\udcff"])
def test_text_that_cannot_be_stored_is_cleaned(message: str) -> None:
    body = told(raised(ValueError(message)))
    encode(body)


def test_a_long_message_and_a_deep_stack_are_cut() -> None:
    def fall(depth: int) -> None:
        if depth:
            jump(depth - 1)
        raise ValueError("x" * 100_000)

    def jump(depth: int) -> None:
        fall(depth)

    with pytest.raises(ValueError, match="x") as caught:
        fall(300)
    body = told(caught.value)
    assert len(body["message"]) <= 4096
    assert len(body["stackTrace"].encode()) <= MAX_STACK


def test_an_error_without_a_readable_message_is_still_told() -> None:
    class UnreadableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert "no readable message" in told(raised(UnreadableError()))["message"]


def test_frames_above_the_task_are_left_out_and_those_below_are_kept() -> None:
    with pytest.raises(InvalidValueError) as caught:
        encode(float("nan"))
    trace = told(caught.value)["stackTrace"]
    assert trace.index("test_failures.py") < trace.index("values.py")
