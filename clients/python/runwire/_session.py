"""One socket and the subscriptions on it: connects, resumes, gives up. [core]

The shell (`_socket`) says what happened and when: `opened`, `receive`, `lost`, `tick`; it sends
what `outgoing` returns, and calls `tick` again no later than `next_tick`.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import orjson

from runwire._items import Request
from runwire._positions import HoleError
from runwire._reconnect import Reconnect, backoff
from runwire._states import TRANSITIONS, Event, State
from runwire._subscription import Subscription
from runwire._views import Views
from runwire.errors import RunwireError, SubscriptionError, UnreachableError, error_of_code
from runwire.wire import MAX_CLIENT_FRAME_BYTES, SILENCE, ErrorCode, Json, JsonObject

# Errors of a subscription that pass: it is asked for again instead of ended.
_PASSING: Final = frozenset({ErrorCode.UNAVAILABLE, ErrorCode.INTERNAL, ErrorCode.RATE_LIMITED})


class Session:
    """The state of one socket, of the sockets that replace it, and of what they carry."""

    def __init__(self, *, is_refreshable: bool) -> None:
        self.state = State.CONNECTING
        self.subscriptions: dict[str, Subscription] = {}
        # The shell fetches a fresh token and calls `authenticate`.
        self.wants_token = False
        self.reconnect = Reconnect(is_refreshable=is_refreshable)
        self._heard_at = 0.0
        self._epoch: str | None = None
        self._is_stale = False
        self._views = Views()
        self._outgoing: deque[JsonObject] = deque()
        self._refusal: str | None = None
        self._holes: set[tuple[str, str, int | None]] = set()
        self._count = 0

    # What the application does

    def add(self, request: Request, now: float) -> Subscription:
        """Begin a subscription."""
        subscription = Subscription(self._name(), request, now)
        self.subscriptions[subscription.name] = subscription
        subscription.state = State.SYNCING if self.is_open else self.state
        if self.is_open:
            self._ask(subscription)
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """End a subscription from this side."""
        subscription.end(None)
        if self.subscriptions.pop(subscription.name, None) is not None and self.is_open:
            self._leave(subscription)

    def drained(self, subscription: Subscription) -> None:
        """Take up again a subscription that was left because it was not read."""
        if not subscription.is_paused or subscription.name not in self.subscriptions:
            return
        subscription.is_paused = False
        if self.is_open:
            self._ask_again(subscription)

    @property
    def is_open(self) -> bool:
        return self.state in (State.SYNCING, State.LIVE, State.STALE)

    def _name(self) -> str:
        self._count += 1
        return f"s{self._count}"

    # What the shell asks

    def outgoing(self) -> JsonObject | None:
        """Return the next message to be sent, once, or None."""
        return self._outgoing.popleft() if self._outgoing else None

    def next_tick(self) -> float | None:
        """Return when `tick` is due, or None."""
        times = [self.reconnect.due]
        if self.state not in (State.WAITING, State.CLOSED):
            times.append(self._heard_at + SILENCE)
        for subscription in self.subscriptions.values():
            times += [subscription.retry_at, _given_up_at(subscription)]
        return min((time for time in times if time is not None), default=None)

    # What happens

    def connecting(self, now: float) -> None:
        self._heard_at = now

    def opened(self, token: str | None, now: float) -> None:
        """Note that the socket is open."""
        self._heard_at = now
        self._refusal = None
        self._move(Event.OPENED)
        self.authenticate(token)

    def authenticate(self, token: str | None) -> None:
        """Show the server a token, the first or a fresh one."""
        self.wants_token = False
        self._outgoing.append({"type": "auth", "token": token or ""})

    def lost(self, code: int, reason: str, now: float, random: float) -> None:
        """Note that the socket was closed, or never opened. Codes: see wire.CloseCode."""
        self._outgoing.clear()
        refusal = self.reconnect.lost(code, self._refusal or reason, now, random)
        if refusal is not None:
            self.refuse(refusal)
            return
        for subscription in self.subscriptions.values():
            if subscription.away_since is None:
                subscription.away_since = now
            subscription.retry_at = None
        self._move(Event.LOST)

    def refuse(self, error: RunwireError) -> None:
        """End everything with an error: another try would be refused as well."""
        for subscription in list(self.subscriptions.values()):
            self._close(subscription, error)
        self._move(Event.ENDED)

    def tick(self, now: float, random: float) -> bool:
        """Note the time. Return whether the socket is to be dropped: it was silent too long."""
        for subscription in list(self.subscriptions.values()):
            gives_up = _given_up_at(subscription)
            if gives_up is not None and now >= gives_up:
                after = subscription.request.deadline or 0.0
                error = UnreachableError(
                    f"the server could not be reached for {after:g} s", after=after
                )
                self._close(subscription, error)
            elif subscription.retry_at is not None and now >= subscription.retry_at:
                self._ask_again(subscription)
        if self.reconnect.is_due(now):
            self._heard_at = now
            self._move(Event.DUE)
        if self.state in (State.WAITING, State.CLOSED):
            return False
        return now - self._heard_at >= SILENCE

    def receive(self, messages: Sequence[JsonObject], now: float, random: float) -> bool:
        """Take the messages of one frame. Return whether the socket is to be dropped.

        That is so when the server broke its promise, and going on would leave a hole.
        """
        self._heard_at = now
        try:
            for message in messages:
                handler = _HANDLERS.get(message["type"])
                if handler is not None:
                    handler(self, message, now, random)
        except HoleError:
            return True
        except (KeyError, TypeError, AttributeError, ValueError):
            return True
        for subscription in self.subscriptions.values():
            if subscription.is_full and not subscription.is_paused and self.is_open:
                subscription.is_paused = True
                self._leave(subscription)
        return False

    # Messages

    def _on_ready(self, message: JsonObject, now: float, random: float) -> None:
        if self.is_open:
            return  # the answer to a fresh token
        if self._epoch is not None and message["epoch"] != self._epoch:
            self._views.clear()
            for subscription in self.subscriptions.values():
                subscription.restart("epoch_changed")
        self._epoch = message["epoch"]
        self._is_stale = False
        self.reconnect.ready(now)
        self._move(Event.READY)
        for subscription in list(self.subscriptions.values()):
            if not subscription.is_paused:
                self._ask(subscription)

    def _on_snapshot(self, message: JsonObject, now: float, random: float) -> None:
        subscription = self.subscriptions.get(message["sub"])
        documents: list[JsonObject] = message["runs"]
        for document in documents:
            self._views.hold(document)
        if subscription is None or subscription.is_paused:
            return
        subscription.served()
        for document in documents:
            subscription.joined(document["id"])
            self._offer(document["id"], None)
        if message.get("cursor") is not None:
            subscription.moved_to(message["cursor"])
        if not message["more"]:
            subscription.synced()

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
            self._outgoing.append({"type": "refetch", "run": run})

    def _on_joined(self, message: JsonObject, now: float, random: float) -> None:
        subscription = self.subscriptions.get(message["sub"])
        if subscription is not None:
            subscription.joined(message["run"])
            if self._views.get(message["run"]) is None:
                self._outgoing.append({"type": "refetch", "run": message["run"]})
            self._offer(message["run"], None)

    def _on_removed(self, message: JsonObject, now: float, random: float) -> None:
        subscription = self.subscriptions.get(message["sub"])
        if subscription is not None:
            subscription.removed(message["run"])
            self._forget()

    def _on_run(self, message: JsonObject, now: float, random: float) -> None:
        document: JsonObject = message["run"]
        self._views.hold(document)
        self._adopt(document["id"])
        self._offer(document["id"], None)

    def _on_patch(self, message: JsonObject, now: float, random: float) -> None:
        self._adopt(message["run"])
        touched = self._views.patch(message)
        if touched is None:
            if self._views.is_behind(message):
                self._outgoing.append({"type": "refetch", "run": message["run"]})
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
            self._ask_again(subscription)
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
        self.wants_token = self.reconnect.is_refreshable

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
            subscription.move(Event.LOST)
            return
        self._close(subscription, error_of_code(code, text))

    # Parts

    def _adopt(self, run: str) -> None:
        for subscription in self.subscriptions.values():
            if subscription.request.adopts_runs:
                subscription.joined(run)

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

    def _ask_again(self, subscription: Subscription) -> None:
        """Subscribe under a new name, so that nothing said about the old one counts."""
        self.subscriptions.pop(subscription.name, None)
        subscription.name = self._name()
        self.subscriptions[subscription.name] = subscription
        subscription.retry_at = None
        subscription.state = State.SYNCING
        self._ask(subscription)

    def _ask(self, subscription: Subscription) -> None:
        """Send what begins or goes on with a subscription, unless the server could not take it.

        It would close the socket under all the others.
        """
        message = subscription.subscribe()
        size = len(encoded(message).encode())
        if size > MAX_CLIENT_FRAME_BYTES:
            text = f"what is asked for takes {size} bytes, more than {MAX_CLIENT_FRAME_BYTES}"
            self._close(subscription, error_of_code(ErrorCode.TOO_LARGE, text))
        else:
            self._outgoing.append(message)

    def _leave(self, subscription: Subscription) -> None:
        self._outgoing.append({"type": "unsubscribe", "sub": subscription.name})
        self._forget()

    def _close(self, subscription: Subscription, error: RunwireError | None) -> None:
        self.subscriptions.pop(subscription.name, None)
        subscription.end(error)
        self._forget()

    def _forget(self) -> None:
        """Hold only the runs that somebody follows."""
        followed: set[str] = set()
        for subscription in self.subscriptions.values():
            followed |= subscription.members
        self._views.keep(followed)

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state][event]
        for subscription in self.subscriptions.values():
            subscription.move(event)


_HANDLERS: Final[dict[str, Any]] = {
    name.removeprefix("_on_"): value
    for name, value in vars(Session).items()
    if name.startswith("_on_")
}


def encoded(message: JsonObject) -> str:
    """Return a message as it is sent."""
    return orjson.dumps(message).decode()


def _given_up_at(subscription: Subscription) -> float | None:
    deadline, away_since = subscription.request.deadline, subscription.away_since
    return None if deadline is None or away_since is None else away_since + deadline
