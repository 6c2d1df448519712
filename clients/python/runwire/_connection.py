"""When the server is connected to, by what, and when that is given up and done again. [core]

Rule: what a connection does next is written in TABLE, every phase with every event, and nowhere
else. Nothing here has a clock, a random number or a socket: the shell (`_socket`) passes the first
two in and carries out the actions that come back. The TypeScript client has the same machine;
tests/wire/connection.json holds both to it.

             needed          token            opened             ready
    IDLE ───────────▶ TOKEN ──────▶ CONNECTING ─────▶ AUTHENTICATING ─────▶ READY ◀──▶ LINGERING
                       ▲  ◀────────────── WAITING ◀── lost, deadline ────────┘           │ deadline
                       └ deadline, wake ────┘                                    IDLE ◀──┘
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeAlias

from runwire.errors import RunwireError, SubscriptionError, UnreachableError, error_of_code
from runwire.wire import (
    AUTH_TIMEOUT,
    FRAME_TOO_LARGE,
    HEARTBEAT,
    SILENCE,
    CloseCode,
    ErrorCode,
    may_reconnect,
)

FIRST_WAIT: Final = 0.5  # seconds; full jitter, so that a thousand clients do not return at once
LONGEST_WAIT: Final = 30.0
STABLE: Final = 60.0  # a connection that lived so long starts the count again
TOKEN_TIMEOUT: Final = 30.0  # for the application to return a token
OPEN_TIMEOUT: Final = 10.0
PONG_TIMEOUT: Final = 5.0  # after a wake-up a ping must be answered by then
LINGER: Final = 5.0
# Heartbeats after which a server that says nothing is gone.
HEARTBEATS: Final = 2.5
# So many tries that came to nothing, and the other carrier has its turn.
MISSES: Final = 2
# The first token may have ended on its way; a second one that is refused is wrong.
REFUSALS: Final = 1


class Phase(StrEnum):
    IDLE = "idle"  # nobody is subscribed
    TOKEN = "token"  # the application is asked for a token
    CONNECTING = "connecting"
    AUTHENTICATING = "authenticating"
    READY = "ready"
    LINGERING = "lingering"  # nobody is subscribed any more, it is kept for whoever comes next
    WAITING = "waiting"  # until the next try
    CLOSED = "closed"  # by the application, for good


class Carrier(StrEnum):
    """What carries the messages."""

    SOCKET = "socket"
    EVENTS = "events"  # server-sent events, where websockets do not pass


@dataclass(frozen=True)
class Connection:
    phase: Phase = Phase.IDLE
    # What carries the try under way, or else the next one.
    carrier: Carrier = Carrier.SOCKET
    # Tries since the last stable connection.
    attempts: int = 0
    # Tries in a row that never got to `ready`; from MISSES on the carriers take turns.
    misses: int = 0
    # Tokens in a row that the server refused.
    refusals: int = 0
    # When the server was last lost; None while it is there.
    away_since: float | None = None
    ready_since: float = 0.0
    # Seconds without a word after which the server counts as gone.
    silence: float = SILENCE
    # When the event `deadline` is due; None: never.
    deadline: float | None = None


class EventName(StrEnum):
    NEEDED = "needed"
    UNNEEDED = "unneeded"
    TOKEN = "token"
    TOKEN_FAILED = "token_failed"
    TOKEN_EXPIRING = "token_expiring"
    OPENED = "opened"
    READY = "ready"
    HEARD = "heard"
    LOST = "lost"
    DEADLINE = "deadline"
    WAKE = "wake"
    CLOSE = "close"


@dataclass(frozen=True)
class Event:
    """What happened; each field belongs to the event that is named beside it."""

    name: EventName
    # token_failed
    error: RunwireError | None = None
    is_final: bool = False
    # ready: seconds after which the server says something.
    heartbeat: float = HEARTBEAT
    # lost: see wire.CloseCode.
    code: int = 0
    reason: str = ""
    # wake: seconds in which nothing could run.
    slept: float = 0.0


class Act(StrEnum):
    FETCH_TOKEN = "fetch_token"
    OPEN = "open"  # the carrier that the connection names
    AUTHENTICATE = "authenticate"  # send the last token the application gave
    SUBSCRIBE = "subscribe"  # send every subscription that this connection has not got yet
    PING = "ping"
    HANG_UP = "hang_up"


@dataclass(frozen=True)
class Fail:
    """End every subscription with this error."""

    error: RunwireError


Action: TypeAlias = Act | Fail


@dataclass(frozen=True)
class Circumstances:
    now: float
    random: float  # in [0, 1)
    # Whether asking for a token again may give another one.
    is_refreshable: bool
    # Seconds the server may stay away.
    patience: float = math.inf
    # The one carrier that may be used; None: both.
    only: Carrier | None = None


Step: TypeAlias = tuple[Connection, tuple[Action, ...]]
Take: TypeAlias = Callable[[Connection, Event, Circumstances], Step]

_IDLE: Final = Connection()


def backoff(failures: int, random: float) -> float:
    """Return the seconds before try number `failures` (from 0), `random` in [0, 1)."""
    return random * min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(failures, 16))


def _stay(connection: Connection, event: Event, at: Circumstances) -> Step:
    return connection, ()


def _needed(connection: Connection, event: Event, at: Circumstances) -> Step:
    return _begin(connection, at)


def _begin(connection: Connection, at: Circumstances, *actions: Action) -> Step:
    """Ask for a token, which starts a try."""
    away_since = at.now if connection.away_since is None else connection.away_since
    given_up = _given_up(away_since, at)
    if given_up is not None:
        return given_up[0], (*actions, *given_up[1])
    begun = replace(connection, phase=Phase.TOKEN, away_since=away_since)
    return _within(begun, TOKEN_TIMEOUT, at), (*actions, Act.FETCH_TOKEN)


def _retry(connection: Connection, at: Circumstances, *actions: Action) -> Step:
    """Wait for the next try, or give up when the server has been away too long."""
    away_since = at.now if connection.away_since is None else connection.away_since
    given_up = _given_up(away_since, at)
    if given_up is not None:
        return given_up[0], (*actions, *given_up[1])
    attempts = connection.attempts + 1
    waiting = replace(connection, phase=Phase.WAITING, attempts=attempts, away_since=away_since)
    return _within(waiting, backoff(connection.attempts, at.random), at), actions


def _given_up(away_since: float, at: Circumstances) -> Step | None:
    if at.now - away_since < at.patience:
        return None
    message = f"the server could not be reached for {at.patience:g} s"
    return _fail(UnreachableError(message, after=at.patience))


def _within(connection: Connection, seconds: float, at: Circumstances) -> Connection:
    away_since = at.now if connection.away_since is None else connection.away_since
    return replace(connection, deadline=min(at.now + seconds, away_since + at.patience))


def _fail(error: RunwireError) -> Step:
    return _IDLE, (Fail(error),)


def _opens(connection: Connection, at: Circumstances, *actions: Action) -> Step:
    away_since = at.now if connection.away_since is None else connection.away_since
    carrier = connection.carrier if at.only is None else at.only
    opening = replace(connection, phase=Phase.CONNECTING, carrier=carrier, away_since=away_since)
    return _within(opening, OPEN_TIMEOUT, at), (*actions, Act.OPEN)


def _open(connection: Connection, event: Event, at: Circumstances) -> Step:
    return _opens(connection, at)


def _reopen(connection: Connection, event: Event, at: Circumstances) -> Step:
    """Ask for something else, or by a fresh token, which events take only as they are opened."""
    return _opens(connection, at, Act.HANG_UP)


def _token_failed(connection: Connection, event: Event, at: Circumstances) -> Step:
    if event.is_final and event.error is not None:
        return _fail(event.error)
    return _retry(connection, at)


def _token_overdue(connection: Connection, event: Event, at: Circumstances) -> Step:
    return _retry(connection, at, Act.HANG_UP)


def _opened(connection: Connection, event: Event, at: Circumstances) -> Step:
    is_socket = connection.carrier is Carrier.SOCKET
    actions = (Act.AUTHENTICATE,) if is_socket else (Act.AUTHENTICATE, Act.SUBSCRIBE)
    return _within(replace(connection, phase=Phase.AUTHENTICATING), AUTH_TIMEOUT, at), actions


def _ready(connection: Connection, event: Event, at: Circumstances) -> Step:
    silence = HEARTBEATS * event.heartbeat
    ready = replace(
        connection,
        phase=Phase.READY,
        misses=0,
        refusals=0,
        away_since=None,
        ready_since=at.now,
        silence=silence,
        deadline=at.now + silence,
    )
    return ready, (Act.SUBSCRIBE,) if connection.carrier is Carrier.SOCKET else ()


def _refresh(connection: Connection, event: Event, at: Circumstances) -> Step:
    return connection, (Act.FETCH_TOKEN,) if at.is_refreshable else ()


def _authenticate(connection: Connection, event: Event, at: Circumstances) -> Step:
    return connection, (Act.AUTHENTICATE,)


def _subscribe(connection: Connection, event: Event, at: Circumstances) -> Step:
    return connection, (Act.SUBSCRIBE,)


def _heard(connection: Connection, event: Event, at: Circumstances) -> Step:
    return replace(connection, deadline=at.now + connection.silence), ()


def _linger(connection: Connection, event: Event, at: Circumstances) -> Step:
    return replace(connection, phase=Phase.LINGERING, deadline=at.now + LINGER), ()


def _resume(connection: Connection, event: Event, at: Circumstances) -> Step:
    if _is_overdue(connection, at):
        return _begin(connection, at, Act.HANG_UP)
    deadline = at.now + connection.silence
    return replace(connection, phase=Phase.READY, deadline=deadline), (Act.SUBSCRIBE,)


def _missed(connection: Connection) -> Connection:
    """Note that a try never got to `ready`."""
    misses = connection.misses + 1
    carrier = connection.carrier
    if misses >= MISSES:
        carrier = Carrier.EVENTS if carrier is Carrier.SOCKET else Carrier.SOCKET
    return replace(connection, misses=misses, carrier=carrier)


def _dropped(connection: Connection, at: Circumstances) -> Connection:
    """Note the end of what was ready. After events the websocket has one try: the network may be
    another one."""
    is_stable = at.now - connection.ready_since >= STABLE
    left = replace(connection, attempts=0 if is_stable else connection.attempts)
    if connection.carrier is Carrier.SOCKET:
        return left
    return replace(left, carrier=Carrier.SOCKET, misses=MISSES - 1)


def _lost(connection: Connection, event: Event, at: Circumstances) -> Step:
    is_ready = connection.phase is Phase.READY
    if event.code in (CloseCode.TOKEN_EXPIRED, CloseCode.INVALID_TOKEN):
        # One that was good until now was not refused.
        is_refused = not is_ready or event.code == CloseCode.INVALID_TOKEN
        refusals = connection.refusals + is_refused
        if not at.is_refreshable or refusals > REFUSALS:
            return _fail(_refusal(event))
        left = _dropped(connection, at) if is_ready else connection
        return _retry(replace(left, refusals=refusals), at)
    if not may_reconnect(event.code):
        return _fail(_refusal(event))
    return _retry(_dropped(connection, at) if is_ready else _missed(connection), at)


def _overdue(connection: Connection, event: Event, at: Circumstances) -> Step:
    return _retry(_missed(connection), at, Act.HANG_UP)


def _silent(connection: Connection, event: Event, at: Circumstances) -> Step:
    return _retry(_dropped(connection, at), at, Act.HANG_UP)


def _rest(connection: Connection, *actions: Action) -> Step:
    """Be idle, and keep what was learnt about carriers."""
    return replace(_IDLE, carrier=connection.carrier, misses=connection.misses), actions


def _abandon(connection: Connection, event: Event, at: Circumstances) -> Step:
    return _rest(connection, Act.HANG_UP)


def _gone(connection: Connection, event: Event, at: Circumstances) -> Step:
    return _rest(connection)


def _close(connection: Connection, event: Event, at: Circumstances) -> Step:
    return replace(_IDLE, phase=Phase.CLOSED), (Act.HANG_UP,)


def _is_overdue(connection: Connection, at: Circumstances) -> bool:
    return connection.deadline is not None and at.now >= connection.deadline


def _rested(connection: Connection, event: Event) -> Connection:
    """The time one slept through is not time in which the server was away."""
    if connection.away_since is None:
        return connection
    return replace(connection, away_since=connection.away_since + event.slept)


def _try_again(connection: Connection, event: Event, at: Circumstances) -> Step:
    """What was waited for came while nobody listened, or will not come: begin the try again."""
    awake = _rested(connection, event)
    return _begin(awake, at, Act.HANG_UP) if _is_overdue(awake, at) else (awake, ())


def _look_for_life(connection: Connection, event: Event, at: Circumstances) -> Step:
    """After a sleep the server may be gone without anybody having said so."""
    if _is_overdue(connection, at):
        left = _dropped(connection, at)
        return _begin(replace(left, attempts=left.attempts + 1), at, Act.HANG_UP)
    is_socket = connection.carrier is Carrier.SOCKET
    # Events cannot be asked for a sign of life: one comes with every heartbeat.
    seconds = PONG_TIMEOUT + (0.0 if is_socket else connection.silence / HEARTBEATS)
    deadline = math.inf if connection.deadline is None else connection.deadline
    looking = replace(connection, deadline=min(deadline, at.now + seconds))
    return looking, (Act.PING,) if is_socket else ()


def _wake_lingering(connection: Connection, event: Event, at: Circumstances) -> Step:
    return _rest(connection, Act.HANG_UP) if _is_overdue(connection, at) else (connection, ())


def _wake_waiting(connection: Connection, event: Event, at: Circumstances) -> Step:
    return _begin(_rested(connection, event), at)


def _by(socket: Take, events: Take) -> Take:
    """One thing for a websocket, another for events."""

    def take(connection: Connection, event: Event, at: Circumstances) -> Step:
        chosen = socket if connection.carrier is Carrier.SOCKET else events
        return chosen(connection, event, at)

    return take


_WORD_OF_CLOSE: Final[dict[int, ErrorCode]] = {
    CloseCode.TOKEN_EXPIRED: ErrorCode.UNAUTHORIZED,
    CloseCode.INVALID_TOKEN: ErrorCode.UNAUTHORIZED,
    CloseCode.REVOKED: ErrorCode.UNAUTHORIZED,
    CloseCode.FORBIDDEN: ErrorCode.FORBIDDEN,
    CloseCode.NOT_FOUND: ErrorCode.NOT_FOUND,
    CloseCode.MALFORMED: ErrorCode.MALFORMED,
    FRAME_TOO_LARGE: ErrorCode.TOO_LARGE,
}


def _refusal(event: Event) -> RunwireError:
    message = event.reason or f"the server closed the connection with code {event.code}"
    word = _WORD_OF_CLOSE.get(event.code)
    if word is not None:
        return error_of_code(word, message)
    return SubscriptionError(message, code=str(event.code))


def _row(**takes: Take) -> Mapping[EventName, Take]:
    row: dict[EventName, Take] = dict.fromkeys(EventName, _stay)
    row[EventName.CLOSE] = _close
    return row | {EventName(name): take for name, take in takes.items()}


TABLE: Final[Mapping[Phase, Mapping[EventName, Take]]] = {
    Phase.IDLE: _row(needed=_needed),
    Phase.TOKEN: _row(
        unneeded=_abandon,
        token=_open,
        token_failed=_token_failed,
        deadline=_token_overdue,
        wake=_try_again,
    ),
    Phase.CONNECTING: _row(
        unneeded=_abandon, opened=_opened, lost=_lost, deadline=_overdue, wake=_try_again
    ),
    Phase.AUTHENTICATING: _row(
        needed=_by(_stay, _reopen),
        unneeded=_abandon,
        ready=_ready,
        lost=_lost,
        deadline=_overdue,
        wake=_try_again,
    ),
    Phase.READY: _row(
        needed=_by(_subscribe, _reopen),
        unneeded=_by(_linger, _abandon),
        token_expiring=_refresh,
        token=_by(_authenticate, _reopen),
        # The answer to a fresh token.
        ready=_by(_subscribe, _stay),
        heard=_heard,
        lost=_lost,
        deadline=_silent,
        wake=_look_for_life,
    ),
    Phase.LINGERING: _row(needed=_resume, lost=_gone, deadline=_abandon, wake=_wake_lingering),
    Phase.WAITING: _row(unneeded=_abandon, deadline=_needed, wake=_wake_waiting),
    Phase.CLOSED: _row(close=_stay),
}


def step(connection: Connection, event: Event, at: Circumstances) -> Step:
    """Take one event."""
    return TABLE[connection.phase][event.name](connection, event, at)
