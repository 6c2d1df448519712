"""The states of a subscription, held to the vectors that every client shares."""

import json
from pathlib import Path

import pytest

from runwire._states import TRANSITIONS, Event, State
from runwire.wire import JsonObject

VECTORS: list[JsonObject] = json.loads(
    (Path(__file__).parents[1] / "wire" / "subscription_states.json").read_text(encoding="utf-8")
)["vectors"]
NAMES = [f"{vector['state']}, {vector['event']}" for vector in VECTORS]


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
def test_a_subscription_is_in_the_state_that_every_client_says(vector: JsonObject) -> None:
    assert TRANSITIONS[State(vector["state"])][Event(vector["event"])].value == vector["expect"]


def test_every_state_says_what_every_event_does_and_only_the_end_is_final() -> None:
    assert set(TRANSITIONS) == set(State)
    for state, row in TRANSITIONS.items():
        assert set(row) == set(Event)
        assert row[Event.ENDED] is State.CLOSED
        assert (set(row.values()) == {State.CLOSED}) == (state is State.CLOSED)
    told = {(vector["state"], vector["event"]) for vector in VECTORS}
    assert len(VECTORS) == len(told) == len(State) * len(Event)


def test_only_the_server_makes_it_live_and_only_after_it_was_asked() -> None:
    live = {(s, e) for s, row in TRANSITIONS.items() for e, to in row.items() if to is State.LIVE}
    assert live - {(State.LIVE, event) for event in Event} == {
        (State.SYNCING, Event.LIVE),
        (State.STALE, Event.LIVE),
    }
