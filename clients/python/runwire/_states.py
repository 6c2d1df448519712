"""In which state a subscription, and the socket under it, is. [core]

Rule: what moves it is written in TRANSITIONS, every state with every event, and nowhere else.

    CONNECTING ─opened─▶ AUTHENTICATING ─ready─▶ SYNCING ─live─▶ LIVE ◀─live─┐
         ▲                                          ▲ gap ◀──────┘ └─stale─▶ STALE
         └──────────due── WAITING ◀──lost── (each of them)         CLOSED ◀─ended── (each of them)
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class State(StrEnum):
    CONNECTING = "connecting"
    AUTHENTICATING = "authenticating"
    SYNCING = "syncing"  # subscribed; what was missed is on its way
    LIVE = "live"
    STALE = "stale"  # the server has lost its database: nothing is wrong, nothing is new
    WAITING = "waiting"  # for the next try
    CLOSED = "closed"


class Event(StrEnum):
    OPENED = "opened"  # the socket is open
    READY = "ready"  # the credential was accepted
    LIVE = "live"
    STALE = "stale"
    GAP = "gap"
    LOST = "lost"  # the socket is gone, or the server could not serve this for now
    DUE = "due"  # the back-off is over
    ENDED = "ended"  # done, refused, given up or left


def _row(state: State, **moves: State) -> dict[Event, State]:
    row = dict.fromkeys(Event, state)
    row[Event.ENDED] = State.CLOSED
    return row | {Event(name): target for name, target in moves.items()}


_S = State
TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = {
    _S.CONNECTING: _row(_S.CONNECTING, opened=_S.AUTHENTICATING, lost=_S.WAITING),
    _S.AUTHENTICATING: _row(_S.AUTHENTICATING, ready=_S.SYNCING, lost=_S.WAITING),
    _S.SYNCING: _row(_S.SYNCING, live=_S.LIVE, lost=_S.WAITING),
    _S.LIVE: _row(_S.LIVE, stale=_S.STALE, gap=_S.SYNCING, lost=_S.WAITING),
    _S.STALE: _row(_S.STALE, live=_S.LIVE, gap=_S.SYNCING, lost=_S.WAITING),
    _S.WAITING: _row(_S.WAITING, due=_S.CONNECTING),
    _S.CLOSED: _row(_S.CLOSED),
}
