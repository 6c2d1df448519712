"""In which state a subscription is. [core]

Rule: what moves it is written in TRANSITIONS, every state with every event, and nowhere else;
tests/wire/subscription_states.json holds every client to it. Whether there is a connection at all
is another machine's business: `_connection`.

    AWAY ──asked──▶ SYNCING ──live──▶ LIVE ──stale──▶ STALE ──live──▶ LIVE
      ▲               ▲  └──gap────────┴───────────────┘ (back to SYNCING)
      ├─ lost ────────┼── (from each that is asked for)
      └─ drained ── PAUSED ◀─ full      WAITING ◀─ failed       CLOSED ◀─ ended (from each)
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class State(StrEnum):
    AWAY = "away"  # not asked for: there is no connection, or it must be asked for anew
    SYNCING = "syncing"  # asked for; what was missed is on its way
    LIVE = "live"
    STALE = "stale"  # the server has lost its database: nothing is wrong, nothing is new
    WAITING = "waiting"  # refused for now; it is asked for again
    PAUSED = "paused"  # left on the server until what waits here has been read
    CLOSED = "closed"


class Event(StrEnum):
    ASKED = "asked"  # it was sent
    LIVE = "live"
    STALE = "stale"
    GAP = "gap"
    LOST = "lost"  # the connection is gone
    FAILED = "failed"  # the server cannot serve it for now
    FULL = "full"  # too much waits to be read
    DRAINED = "drained"
    ENDED = "ended"  # done, refused, given up or left


def _row(state: State, **moves: State) -> Mapping[Event, State]:
    row = dict.fromkeys(Event, state)
    row[Event.ENDED] = State.CLOSED
    return row | {Event(name): target for name, target in moves.items()}


_S = State
_ASKED: Final = {"lost": _S.AWAY, "failed": _S.WAITING, "full": _S.PAUSED, "gap": _S.SYNCING}
TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = {
    _S.AWAY: _row(_S.AWAY, asked=_S.SYNCING),
    _S.SYNCING: _row(_S.SYNCING, **_ASKED, live=_S.LIVE),
    _S.LIVE: _row(_S.LIVE, **_ASKED, stale=_S.STALE),
    _S.STALE: _row(_S.STALE, **_ASKED, live=_S.LIVE),
    _S.WAITING: _row(_S.WAITING, lost=_S.AWAY, full=_S.PAUSED),
    # Whatever the connection does meanwhile, nothing is asked for.
    _S.PAUSED: _row(_S.PAUSED, drained=_S.AWAY),
    _S.CLOSED: _row(_S.CLOSED),
}
