"""What a retry waits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runwire._backoff import next_delay
from runwire.tasks import RetryOptions


@pytest.mark.parametrize(
    ("attempt", "random", "delay"),
    [(1, 0.0, 1.0), (2, 0.0, 2.0), (3, 0.0, 4.0), (2, 0.5, 3.0), (9, 0.9, 60.0)],
)
def test_the_delay_grows_by_the_factor_up_to_the_longest(
    attempt: int, random: float, delay: float
) -> None:
    assert next_delay(RetryOptions(max_attempts=10), attempt, random) == delay


def test_without_randomize_the_random_number_does_not_matter() -> None:
    options = RetryOptions(factor=1.8, min_timeout=0.5, max_timeout=30, randomize=False)
    assert next_delay(options, 2, 0.99) == 0.9


def test_no_delay_is_given_when_the_attempts_are_used_up() -> None:
    assert next_delay(RetryOptions(), 2, 0.0) is not None
    assert next_delay(RetryOptions(), 3, 0.0) is None


def test_a_runs_own_number_of_attempts_beats_the_options() -> None:
    assert next_delay(RetryOptions(), 1, 0.0, max_attempts=1) is None
    assert next_delay(RetryOptions(max_attempts=1), 1, 0.0, max_attempts=5) == 1.0


@given(
    attempt=st.integers(1, 1_000_000),
    random=st.floats(0, 1, exclude_max=True),
    factor=st.floats(1, 1e6),
)
def test_a_delay_is_never_longer_than_the_longest(
    attempt: int, random: float, factor: float
) -> None:
    options = RetryOptions(factor=factor)
    delay = next_delay(options, attempt, random, max_attempts=2_000_000)
    assert delay is not None and 0 <= delay <= options.max_timeout
