"""Ids sort by age and never meet."""

import re
import time
from collections.abc import Callable
from datetime import date

import pytest

from runwire_engine.id_format import day_of, spelled
from runwire_engine.ids import new_batch_id, new_run_id, new_worker_id


@pytest.mark.parametrize(
    ("make", "prefix"), [(new_run_id, "run"), (new_batch_id, "batch"), (new_worker_id, "worker")]
)
def test_an_id_is_its_prefix_and_25_characters(make: Callable[[], str], prefix: str) -> None:
    assert re.fullmatch(rf"{prefix}_[0-9a-v]{{25}}", make())


def test_ids_differ() -> None:
    assert len({new_run_id() for _ in range(10_000)}) == 10_000


def test_a_later_id_sorts_after_an_earlier_one() -> None:
    earlier = new_run_id()
    made = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 == made:  # until the clock's next millisecond
        pass
    assert earlier < new_run_id()


def test_an_id_tells_when_it_was_made() -> None:
    before = time.time_ns() // 1_000_000
    digits = new_run_id().removeprefix("run_")[:9]

    assert before <= int(digits, 32) <= time.time_ns() // 1_000_000


def test_the_day_of_an_id_is_read_from_it_and_of_other_texts_there_is_none() -> None:
    assert day_of(f"run_{spelled(1_582_977_600_000, 7)}") == date(2020, 2, 29)
    assert day_of(f"run_{'v' * 25}") is not None
    for text in (
        "",
        "run_",
        "run_a0000000",
        f"run_{'w' * 25}",
        f"run_{'0' * 24}",
        f"run-{'0' * 25}",
    ):
        assert day_of(text) is None
