"""The machine of a connection, held to the vectors that every client shares."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from runwire._connection import (
    TABLE,
    Act,
    Action,
    Carrier,
    Circumstances,
    Connection,
    Event,
    EventName,
    Fail,
    Phase,
    backoff,
    step,
)
from runwire._link import code_of_status
from runwire.errors import ApiError, SubscriptionError, UnreachableError, api_error
from runwire.wire import JsonObject

_FILE: JsonObject = json.loads(
    (Path(__file__).parents[1] / "wire" / "connection.json").read_text(encoding="utf-8")
)
VECTORS: list[JsonObject] = _FILE["vectors"]
_TIMES = {"awaySince", "readySince", "deadline", "now", "patience", "slept", "silence", "heartbeat"}
_NAMES = {"awaySince": "away_since", "readySince": "ready_since", "refreshable": "is_refreshable"}


def _values(said: JsonObject) -> dict[str, Any]:
    """Return fields under their names here, times in seconds."""
    return {
        _NAMES.get(name, name): value / 1000 if name in _TIMES and value is not None else value
        for name, value in said.items()
    }


def _connection(said: JsonObject) -> Connection:
    values = _values({**_FILE["defaults"]["connection"], **said})
    values["phase"], values["carrier"] = Phase(values["phase"]), Carrier(values["carrier"])
    return Connection(**values)


def _circumstances(said: JsonObject) -> Circumstances:
    values = _values({**_FILE["defaults"]["circumstances"], **said})
    if values["patience"] is None:
        values["patience"] = math.inf
    if values["only"] is not None:
        values["only"] = Carrier(values["only"])
    return Circumstances(**values)


def _event(said: JsonObject) -> Event:
    values = _values({name: value for name, value in said.items() if name != "is"})
    if "final" in values:
        values["is_final"] = values.pop("final")
    if "error" in values:
        error = values["error"]
        values["error"] = api_error(error["status"], "said so", error["code"])
    return Event(EventName(said["is"]), **values)


def _said(action: Action, connection: Connection) -> JsonObject:
    match action:
        case Fail(UnreachableError() as error):
            gone = {"code": "unreachable", "status": None, "after": error.after * 1000}
            return {"do": "fail", "error": gone}
        case Fail(ApiError() as error):
            return {"do": "fail", "error": {"code": error.code, "status": error.status}}
        case Fail(SubscriptionError()):
            # A code that no HTTP status stands for has a class of its own here.
            return {"do": "fail", "error": {"code": "malformed", "status": 400}}
        case Fail(error):
            raise AssertionError(error)
        case Act.OPEN:
            return {"do": "open", "carrier": connection.carrier.value}
        case Act():
            return {"do": action.value}


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_a_connection_does_what_every_client_does(vector: JsonObject) -> None:
    before = _connection(vector["connection"])
    after, actions = step(
        before, _event(vector["event"]), _circumstances(vector.get("circumstances", {}))
    )
    expected = _connection({**vector["connection"], **vector["expect"]["connection"]})
    assert after == expected
    assert [_said(action, after) for action in actions] == vector["expect"]["actions"]


def test_every_phase_takes_every_event_and_has_a_vector_for_it() -> None:
    assert set(TABLE) == set(Phase)
    for row in TABLE.values():
        assert set(row) == set(EventName)
    told = {(vector["connection"]["phase"], vector["event"]["is"]) for vector in VECTORS}
    assert told == {(phase.value, name.value) for phase in Phase for name in EventName}


@pytest.mark.parametrize(("status", "code"), _FILE["statuses"].items())
def test_a_status_that_refuses_a_request_means_a_close_code(status: str, code: int) -> None:
    assert code_of_status(int(status)) == code


def test_the_wait_between_tries_doubles_with_full_jitter_up_to_half_a_minute() -> None:
    assert [backoff(failures, 1.0) for failures in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff(3, 0.25) == 1.0
    assert backoff(10_000, 1.0) == 30.0


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_something_is_due_until_it_is_there_or_over(seed: int) -> None:
    """No walk ends in a phase that waits for nothing."""
    dice = random.Random(seed)
    connection, now = Connection(), 1000.0
    for _ in range(2000):
        name = dice.choice([each for each in EventName if each is not EventName.CLOSE])
        code = dice.choice([1000, 1006, 4001, 4003, 4009, 4401, 4404])
        heartbeat = dice.choice([1.0, 15.0])
        now += dice.expovariate(1 / 5)
        at = Circumstances(now, dice.random(), is_refreshable=dice.random() < 0.9)
        event = Event(name, code=code, heartbeat=heartbeat, slept=dice.choice([0.0, 600.0]))
        connection, _ = step(connection, event, at)
        is_at_rest = connection.phase in (Phase.IDLE, Phase.CLOSED)
        assert (connection.deadline is None) is is_at_rest
        assert (connection.away_since is None) is (
            connection.phase in (Phase.IDLE, Phase.READY, Phase.LINGERING, Phase.CLOSED)
        )
