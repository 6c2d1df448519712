"""Who may come in: so many, so fast, and nobody once the server stops."""

import pytest

from runwire_realtime.admission import Admission
from runwire_realtime.allowance import Allowance
from runwire_realtime.errors import RefusedError
from runwire_realtime.limits import HubLimits

LIMITS = HubLimits(connections=3, connect_rate=2.0, connect_burst=4.0)


def test_an_allowance_is_spent_at_once_and_earned_over_time() -> None:
    allowance = Allowance(rate=2.0, burst=3.0, now=10.0)
    assert [allowance.spend(10.0) for _ in range(4)] == [True, True, True, False]
    assert [allowance.spend(10.6), allowance.spend(10.6)] == [True, False]
    # However long nobody came, no more than the burst at once.
    assert [allowance.spend(99.0) for _ in range(4)] == [True, True, True, False]


def test_connections_beyond_the_room_the_pace_or_the_end_are_turned_away() -> None:
    admission = Admission(LIMITS, 0.0)
    for _ in range(2):
        admission.admit(0, 0.0)
    with pytest.raises(RefusedError, match="no room"):
        admission.admit(3, 0.0)
    for _ in range(2):
        admission.admit(2, 0.0)
    with pytest.raises(RefusedError, match="too many connect") as refused:
        admission.admit(0, 0.0)
    assert refused.value.status == 503
    admission.admit(0, 0.5)
    admission.is_draining = True
    with pytest.raises(RefusedError, match="the server stops"):
        admission.admit(0, 100.0)
