"""Which runs debounced triggers lead to: properties that hold for any triggers of one key."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runwire_engine.debouncing import Debounce, Waiting, debounced

SPANS = st.floats(0.1, 100)
TRIGGERS = st.lists(
    st.builds(
        Debounce,
        key=st.just("k"),
        delay=SPANS,
        is_trailing=st.booleans(),
        max_delay=st.none() | SPANS,
    ).map(lambda d: d if d.max_delay is None else replace(d, max_delay=d.delay + d.max_delay)),
    min_size=1,
    max_size=8,
)
HELD = st.none() | st.builds(Waiting, run_id=st.just("held"), age=st.floats(0, 100))


@given(HELD, TRIGGERS)
def test_each_trigger_leads_to_one_run_in_the_order_they_came(
    held: Waiting | None, triggers: list[Debounce]
) -> None:
    named = [(str(at), each) for at, each in enumerate(triggers)]
    runs = debounced(held, named)
    assert [id for run in runs for id in run.triggers] == [id for id, _ in named]
    assert all(run.run_id == run.triggers[0] for run in runs if run.is_new)
    assert [run.is_new for run in runs] in ([True] * len(runs), [False] + [True] * len(runs[1:]))


@given(HELD, TRIGGERS)
def test_no_run_is_pushed_beyond_what_a_trigger_allows(
    held: Waiting | None, triggers: list[Debounce]
) -> None:
    said = {str(at): each for at, each in enumerate(triggers)}
    for run in debounced(held, list(said.items())):
        assert run.delay == max(said[id].delay for id in run.triggers)
        for id in run.triggers:
            longest = said[id].max_delay
            assert longest is None or run.age + said[id].delay <= longest


@given(HELD, TRIGGERS)
def test_a_run_says_what_its_last_trailing_trigger_said(
    held: Waiting | None, triggers: list[Debounce]
) -> None:
    said = {str(at): each for at, each in enumerate(triggers)}
    for run in debounced(held, list(said.items())):
        trailing = [id for id in run.triggers if said[id].is_trailing]
        first = run.triggers[0] if run.is_new else None
        assert run.source == (trailing[-1] if trailing else first)


@pytest.mark.parametrize(("age", "runs"), [(4.0, ["held"]), (5.0, ["held"]), (5.1, ["a"])])
def test_a_run_that_has_waited_enough_is_left_and_the_next_one_begins(
    age: float, runs: list[str]
) -> None:
    made = debounced(Waiting("held", age), [("a", Debounce("k", 5.0, max_delay=10.0))])
    assert [run.run_id for run in made] == runs
