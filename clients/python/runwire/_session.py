"""One connection and the subscriptions on it: connects, resumes, gives up. [core]

The shell (`_socket`) says what happened and when: `token`, `opened`, `receive`, `lost`, `tick`; it
sends what `outgoing` returns, carries out `order`, and calls `tick` no later than `next_tick`.
`_connection` decides about the connection, `_states` about each subscription.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import orjson

from runwire._connection import (
    Act,
    Carrier,
    Circumstances,
    Connection,
    EventName,
    Fail,
    Phase,
    backoff,
    step,
)
from runwire._connection import Event as ConnectionEvent
from runwire._items import Request
from runwire._positions import HoleError
from runwire._states import Event, State
from runwire._subscription import Subscription
from runwire._views import Views
from runwire.errors import RunwireError, SubscriptionError, UnreachableError, error_of_code
from runwire.wire import (
    HEARTBEAT,
    MAX_CLIENT_FRAME_BYTES,
    MAX_EVENTS_BODY_BYTES,
    ErrorCode,
    Json,
    JsonObject,
)

# Errors of a subscription that pass: it is asked for again instead of ended.
_PASSING: Final = frozenset({ErrorCode.UNAVAILABLE, ErrorCode.INTERNAL, ErrorCode.RATE_LIMITED})
# Seconds. The server warns of a short token, or of an old one that was handed out again, as soon as
# it is shown: that must not be a loop. One that ends meanwhile is replaced with its connection.
REFRESH_PAUSE: Final = 10.0
# What events ask for is one list.
_LIST_BYTES: Final = MAX_EVENTS_BODY_BYTES - 1


class Session:
    """The state of one connection, of those that replace it, and of what they carry."""

    def __init__(self, *, is_refreshable: bool) -> None:
        self.connection = Connection()
        self.subscriptions: dict[str, Subscription] = {}
        # Whether asking for the token again may give another one.
        self._is_refreshable = is_refreshable
        self._orders: deque[Act] = deque()
        self._token = ""
        # Before this time no other fresh token is asked for on what is open.
        self._refresh_from = 0.0
        # Why the application has no token for now.
        self._trouble: BaseException | None = None
        self._epoch: str | None = None
        self._is_stale = False
        self._views = Views()
        self._outgoing: deque[JsonObject] = deque()
        # Bytes left of what can be asked for by events.
        self._room = _LIST_BYTES
        self._refusal: str | None = None
        self._holes: set[tuple[str, str, int | None]] = set()
        self._count = 0

    # What the application does

    def add(self, request: Request, now: float) -> Subscription:
        """Begin a subscription."""
        subscription = Subscription(self._name(), request, now)
        subscription.phase = self.connection.phase
        self.subscriptions[subscription.name] = subscription
        self._happened(EventName.NEEDED, now)
        return subscription

    def remove(self, subscription: Subscription, now: float) -> None:
        """End a subscription from this side; with the last one goes the connection."""
        subscription.end(None)
        if self.subscriptions.pop(subscription.name, None) is not None:
            self._leave(subscription)
        if not self.subscriptions:
            self._rest(now)

    def drained(self, subscription: Subscription, now: float) -> None:
        """Take up again a subscription that was left because it was not read."""
        if subscription.is_paused and subscription.name in self.subscriptions:
            subscription.away_since = now
            subscription.move(Event.DRAINED)
            self._happened(EventName.NEEDED, now)

    def close(self, error: RunwireError, now: float) -> None:
        """End everything, for good."""
        self._end(error)
        self._happened(EventName.CLOSE, now)

    def _name(self) -> str:
        self._count += 1
        return f"s{self._count}"

    # What the shell asks

    def outgoing(self) -> list[JsonObject]:
        """Return what is to be sent, once."""
        messages = list(self._outgoing)
        self._outgoing.clear()
        return messages

    @property
    def order(self) -> Act | None:
        """What the shell is to do: FETCH_TOKEN, OPEN or HANG_UP. It stands until `did`."""
        return self._orders[0] if self._orders else None

    def did(self, order: Act) -> None:
        if order in self._orders:
            self._orders.remove(order)

    def next_tick(self) -> float | None:
        """Return when `tick` is due, or None."""
        times = [self.connection.deadline]
        for subscription in self.subscriptions.values():
            times += [subscription.retry_at, subscription.gives_up_at]
        return min((time for time in times if time is not None), default=None)

    # What happens

    def token(self, token: str, now: float) -> None:
        """Take the token that was asked for, the first or a fresh one."""
        self.did(Act.FETCH_TOKEN)
        self._token, self._trouble = token, None
        self._happened(EventName.TOKEN, now)

    def token_failed(
        self, error: RunwireError, *, is_final: bool, now: float, random: float
    ) -> None:
        """Note that the application has no token; `is_final`: nor will it have one."""
        self.did(Act.FETCH_TOKEN)
        self._trouble = error
        self._happened(EventName.TOKEN_FAILED, now, random, error=error, is_final=is_final)

    def opened(self, now: float) -> None:
        self.did(Act.OPEN)
        self._refusal = None
        self._happened(EventName.OPENED, now)

    def lost(self, code: int, reason: str, now: float, random: float) -> None:
        """Note that the connection was closed, or never opened. Codes: see wire.CloseCode."""
        self._let_go(now)
        reason = self._refusal or reason
        self._happened(EventName.LOST, now, random, code=code, reason=reason)

    def refuse(self, error: RunwireError, now: float) -> None:
        """End everything with an error: another try would be refused as well."""
        self._end(error)
        self._rest(now)

    def tick(self, now: float, random: float, slept: float = 0.0) -> None:
        """Note the time. `slept`: seconds in which nothing could run."""
        for subscription in list(self.subscriptions.values()):
            if subscription.away_since is not None:
                subscription.away_since += slept
            self.expire(subscription, now)
            if subscription.retry_at is not None and now >= subscription.retry_at:
                self._ask_again(subscription, now)
        deadline = self.connection.deadline
        if slept:
            self._happened(EventName.WAKE, now, random, slept=slept)
        elif deadline is not None and now >= deadline:
            self._happened(EventName.DEADLINE, now, random)

    def expire(self, subscription: Subscription, now: float) -> None:
        """Give one subscription up, if its time has come."""
        gives_up = subscription.gives_up_at
        if gives_up is not None and now >= gives_up:
            self._give_up(subscription)

    def receive(self, messages: Sequence[JsonObject], now: float, random: float) -> bool:
        """Take the messages of one frame. Return whether the connection is to be dropped.

        That is so when the server broke its promise, and going on would leave a hole.
        """
        self._happened(EventName.HEARD, now)
        try:
            for message in messages:
                handler = _HANDLERS.get(message["type"])
                if handler is not None:
                    handler(self, message, now, random)
                if Act.HANG_UP in self._orders:
                    break  # another connection takes over from here
        except HoleError:
            return True
        except (KeyError, TypeError, AttributeError, ValueError):
            return True
        self._pause(now)
        return False

    def _pause(self, now: float) -> None:
        """Leave what is not read on the server."""
        full = [each for each in self.subscriptions.values() if each.is_full and not each.is_paused]
        for subscription in full:
            subscription.move(Event.FULL)
            self._leave(subscription)
        if full and self.connection.carrier is Carrier.EVENTS:
            self._happened(EventName.NEEDED, now)

    def _happened(self, name: EventName, now: float, random: float = 0.0, **said: Any) -> None:
        """Have `_connection` decide, and do what it says."""
        at = Circumstances(now=now, random=random, is_refreshable=self._is_refreshable)
        self.connection, actions = step(self.connection, ConnectionEvent(name, **said), at)
        for subscription in self.subscriptions.values():
            subscription.phase = self.connection.phase
        for action in actions:
            match action:
                case Fail(error):
                    self._end(error)
                case Act.AUTHENTICATE:
                    self._outgoing.append({"type": "auth", "token": self._token})
                case Act.SUBSCRIBE:
                    self._subscribe()
                case Act.PING:
                    self._outgoing.append({"type": "ping"})
                case Act.HANG_UP:
                    self._let_go(now)
                case Act.FETCH_TOKEN | Act.OPEN:
                    self._orders.append(action)

    def _let_go(self, now: float) -> None:
        """Forget what belonged to the connection that ends."""
        self._outgoing.clear()
        self._orders.clear()
        self._orders.append(Act.HANG_UP)
        self._room = _LIST_BYTES
        for subscription in self.subscriptions.values():
            if subscription.away_since is None:
                subscription.away_since = now
            subscription.retry_at = None
            subscription.move(Event.LOST)

    def _rest(self, now: float) -> None:
        self._happened(EventName.UNNEEDED, now)
        if self.connection.phase is Phase.LINGERING:
            # Nobody is left who could keep it: there is no task behind this.
            self._happened(EventName.DEADLINE, now)

    def _end(self, error: RunwireError) -> None:
        for subscription in list(self.subscriptions.values()):
            self._close(subscription, error)

    def _give_up(self, subscription: Subscription) -> None:
        after = subscription.request.deadline or 0.0
        error = UnreachableError(f"the server could not be reached for {after:g} s", after=after)
        error.__cause__ = self._trouble
        self._close(subscription, error)

    # Messages

    def _on_ready(self, message: JsonObject, now: float, random: float) -> None:
        before, self._epoch = self._epoch, message["epoch"]
        if self.connection.phase is not Phase.READY:
            self._is_stale = False
        if before not in (None, self._epoch):
            self._views.clear()
            for subscription in self.subscriptions.values():
                subscription.restart("epoch_changed")
        heartbeat = message.get("heartbeat", HEARTBEAT)
        self._happened(EventName.READY, now, heartbeat=heartbeat)
        if before not in (None, self._epoch) and self.connection.carrier is Carrier.EVENTS:
            # It was asked for with positions of another history.
            self._ask_for_all(now)

    def _on_snapshot(self, message: JsonObject, now: float, random: float) -> None:
        subscription = self.subscriptions.get(message["sub"])
        documents: list[JsonObject] = message["runs"]
        if subscription is None or subscription.is_paused:
            for document in documents:
                self._on_run({"run": document}, now, random)
            return
        for document in documents:
            self._views.hold(document)
        subscription.served()
        for document in documents:
            subscription.joined(document["id"])
            self._offer(document["id"], None)
        if message.get("cursor") is not None:
            subscription.moved_to(message["cursor"])
        if not message["more"]:
            subscription.synced()

    def _on_base(self, message: JsonObject, now: float, random: float) -> None:
        document: JsonObject = message["run"]
        subscription = self.subscriptions.get(message["sub"])
        self._views.hold(document)
        if subscription is not None:
            subscription.based(document)

    def _on_live(self, message: JsonObject, now: float, random: float) -> None:
        subscription = self.subscriptions.get(message["sub"])
        if subscription is None:
            return
        subscription.served()
        subscription.move(Event.LIVE)
        if self._is_stale:
            subscription.move(Event.STALE)
        run = subscription.request.to.get("run")
        if run is not None and self._views.get(run) is None:
            # Resumed by a new process: nothing new, but patches need their base.
            self._refetch(run, now)

    def _on_joined(self, message: JsonObject, now: float, random: float) -> None:
        subscription = self.subscriptions.get(message["sub"])
        if subscription is not None:
            subscription.joined(message["run"])
            if self._views.get(message["run"]) is None:
                self._refetch(message["run"], now)
            self._offer(message["run"], None)

    def _on_removed(self, message: JsonObject, now: float, random: float) -> None:
        subscription = self.subscriptions.get(message["sub"])
        if subscription is not None:
            subscription.removed(message["run"])
            self._forget()

    def _on_run(self, message: JsonObject, now: float, random: float) -> None:
        document: JsonObject = message["run"]
        self._adopt(document["id"])
        # What nobody reads now must not run ahead of where it is taken up again.
        if not self._is_left(document["id"]):
            self._views.hold(document)
            self._offer(document["id"], None)

    def _on_patch(self, message: JsonObject, now: float, random: float) -> None:
        self._adopt(message["run"])
        if self._is_left(message["run"]):
            return
        touched = self._views.patch(message)
        if touched is None:
            if self._views.is_behind(message):
                self._refetch(message["run"], now)
            return
        self._offer(message["run"], touched)

    def _on_chunks(self, message: JsonObject, now: float, random: float) -> None:
        run, stream, seq = message["run"], message["stream"], message["seq"]
        data: list[Json] = message["data"]
        self._adopt(run)
        attempt, writer = message.get("attempt"), message.get("writer")
        readers = self._readers(run, stream)
        for subscription in readers:
            take = partial(subscription.chunks, run, stream, seq, data, attempt, writer)
            take = partial(take, is_shared=len(readers) > 1)
            self._or_gap(subscription, (run, stream, seq), take)

    def _on_text(self, message: JsonObject, now: float, random: float) -> None:
        run, stream = message["run"], message["stream"]
        for subscription in self._readers(run, stream):
            subscription.text(run, stream, message["upTo"], message["value"])

    def _on_attempt(self, message: JsonObject, now: float, random: float) -> None:
        run, stream = message["run"], message["stream"]
        self._adopt(run)
        for subscription in self._readers(run, stream):
            subscription.attempt(run, stream, message["fromSeq"])

    def _on_eof(self, message: JsonObject, now: float, random: float) -> None:
        run, stream, next = message["run"], message["stream"], message["next"]
        readers = self._readers(run, stream)
        for subscription in readers:
            take = partial(subscription.eof, run, stream, next, message["reason"])
            take = partial(take, is_shared=len(readers) > 1)
            self._or_gap(subscription, (run, stream, next), take)

    def _on_done(self, message: JsonObject, now: float, random: float) -> None:
        subscription = self.subscriptions.get(message["sub"])
        if subscription is None or subscription.is_paused:
            return
        if not subscription.has_missed:
            self._close(subscription, None)
        elif subscription.may_ask_again():
            self._ask_again(subscription, now)
        else:
            self._close(subscription, SubscriptionError("the server skipped chunks", code="gap"))

    def _on_cursor(self, message: JsonObject, now: float, random: float) -> None:
        subscription = self.subscriptions.get(message["sub"])
        if subscription is not None and not subscription.is_paused:
            subscription.moved_to(message["cursor"])

    def _on_gap(self, message: JsonObject, now: float, random: float) -> None:
        subscription = self.subscriptions.get(message["sub"])
        if subscription is None:
            return
        reason, run, stream = message["reason"], message.get("run"), message.get("stream")
        if run is not None and stream is not None:
            subscription.stream_gap(run, stream, reason, message.get("next"))
            return
        for member in subscription.members:
            self._views.drop(member)
        subscription.gap(reason)

    def _on_state(self, message: JsonObject, now: float, random: float) -> None:
        self._is_stale = message["state"] == "stale"
        event = Event.STALE if self._is_stale else Event.LIVE
        for subscription in self.subscriptions.values():
            if subscription.state in (State.LIVE, State.STALE):
                subscription.move(event)

    def _on_token_expiring(self, message: JsonObject, now: float, random: float) -> None:
        if now >= self._refresh_from:
            self._refresh_from = now + REFRESH_PAUSE
            self._happened(EventName.TOKEN_EXPIRING, now)

    def _on_error(self, message: JsonObject, now: float, random: float) -> None:
        name, code, text = message.get("sub"), message["code"], message["message"]
        if name is None:
            self._refusal = text
            return
        subscription = self.subscriptions.get(name)
        if subscription is None:
            return
        if code in _PASSING:
            subscription.failures += 1
            subscription.retry_at = now + backoff(subscription.failures, random)
            if subscription.away_since is None:
                subscription.away_since = now
            subscription.move(Event.FAILED)
            return
        self._close(subscription, error_of_code(code, text))

    # Parts

    def _adopt(self, run: str) -> None:
        for subscription in self.subscriptions.values():
            if subscription.request.adopts_runs:
                subscription.joined(run)

    def _is_left(self, run: str) -> bool:
        """Whether those that follow a run are all paused, so that what comes of it is too early."""
        members = [each for each in self.subscriptions.values() if run in each.members]
        return bool(members) and all(each.is_paused for each in members)

    def _offer(self, run: str, touched: frozenset[str] | None) -> None:
        document = self._views.get(run)
        if document is None:
            return
        for subscription in self.subscriptions.values():
            if subscription.follows(run):
                subscription.offer(document, touched)

    def _readers(self, run: str, stream: str) -> Sequence[Subscription]:
        return [
            subscription
            for subscription in self.subscriptions.values()
            if subscription.follows(run) and subscription.reads(stream)
        ]

    def _or_gap(
        self, subscription: Subscription, place: tuple[str, str, int], take: Callable[[], None]
    ) -> None:
        """Take chunks; ask again for missing ones, and if they are still missing, say so."""
        try:
            take()
        except HoleError:
            if place not in self._holes:
                self._holes.add(place)
                raise
            self._holes.discard(place)
            subscription.stream_gap(place[0], place[1], "retention", place[2])
            take()

    def _refetch(self, run: str, now: float) -> None:
        """Ask for a whole run."""
        if self.connection.carrier is Carrier.SOCKET:
            self._outgoing.append({"type": "refetch", "run": run})
            return
        for subscription in self.subscriptions.values():
            if subscription.follows(run):
                subscription.begin_anew()
                self._ask_again(subscription, now)
                return

    def _ask_again(self, subscription: Subscription, now: float) -> None:
        """Subscribe under a new name, so that nothing said about the old one counts."""
        self.subscriptions.pop(subscription.name, None)
        subscription.name = self._name()
        self.subscriptions[subscription.name] = subscription
        subscription.retry_at = None
        subscription.move(Event.LOST)
        self._happened(EventName.NEEDED, now)

    def _ask_for_all(self, now: float) -> None:
        for subscription in self.subscriptions.values():
            subscription.move(Event.LOST)
        self._happened(EventName.NEEDED, now)

    def _subscribe(self) -> None:
        """Send every subscription that this connection has not got yet."""
        # One that wants each revision first: what others are told of a run would not be news then.
        by_mode = sorted(self.subscriptions.values(), key=lambda each: each.request.mode != "every")
        for subscription in by_mode:
            if subscription.state is State.AWAY:
                self._ask(subscription)

    def _ask(self, subscription: Subscription) -> None:
        """Send what begins or goes on with a subscription, unless the server could not take it.

        It would close the socket under all the others, or refuse what they ask for with it.
        """
        message = subscription.subscribe()
        size = len(orjson.dumps(message))
        is_socket = self.connection.carrier is Carrier.SOCKET
        room = MAX_CLIENT_FRAME_BYTES if is_socket else min(MAX_CLIENT_FRAME_BYTES, self._room)
        if size > room:
            text = f"what is asked for takes {size} bytes, more than the {room} there is room for"
            self._close(subscription, error_of_code(ErrorCode.TOO_LARGE, text))
            return
        self._room -= size + 1
        subscription.move(Event.ASKED)
        self._outgoing.append(message)

    def _leave(self, subscription: Subscription) -> None:
        if self.connection.carrier is Carrier.SOCKET and self.connection.phase is Phase.READY:
            self._outgoing.append({"type": "unsubscribe", "sub": subscription.name})
        self._forget()

    def _close(self, subscription: Subscription, error: RunwireError | None) -> None:
        self.subscriptions.pop(subscription.name, None)
        subscription.retry_at = None
        subscription.end(error)
        self._forget()

    def _forget(self) -> None:
        """Hold only the runs that somebody follows."""
        followed: set[str] = set()
        for subscription in self.subscriptions.values():
            followed |= subscription.members
        self._views.keep(followed)


_HANDLERS: Final[dict[str, Any]] = {
    name.removeprefix("_on_"): value
    for name, value in vars(Session).items()
    if name.startswith("_on_")
}
