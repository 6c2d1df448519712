"""One connection's protocol: messages in, messages out. [core]

First a credential, then subscriptions. Everything is told the time (`now`, monotonic seconds);
what takes waiting is the shell's: `receive` returns a token to be verified, and the shell comes
back with `authenticated` or `refused`. What is wrong with a message is answered, and nothing else
disturbed; what cannot be a message at all ends the connection.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import cast

import orjson
from pydantic import ValidationError

from runwire._problems import first_problem
from runwire.wire import (
    CLIENT_MESSAGE,
    Auth,
    CloseCode,
    ErrorCode,
    Json,
    JsonObject,
    Ping,
    Refetch,
    Subscribe,
    Unsubscribe,
)
from runwire_realtime import messages
from runwire_realtime.allowance import Allowance
from runwire_realtime.errors import RefusedError
from runwire_realtime.feed_members import FeedMembers
from runwire_realtime.follower import Follower
from runwire_realtime.hub import Hub
from runwire_realtime.outbox import Outbox
from runwire_realtime.requests import subscription_of
from runwire_realtime.scope import Grant
from runwire_realtime.subscription import RunTarget

_TOO_BIG = 1009  # the websocket protocol's own code, as the server below us would send


class Phase(StrEnum):
    """How far a connection has come."""

    STRANGER = "stranger"  # it has not shown a credential
    READY = "ready"
    CLOSED = "closed"


class Subscriber:
    """The protocol of one connection, whatever carries it."""

    # One for each connection, and many of them: no dict beside it.
    __slots__ = (
        "_allowance",
        "_began",
        "_expires_at",
        "_hub",
        "_is_browser",
        "_is_restless",
        "_is_warned",
        "_limits",
        "_load",
        "_written_at",
        "follower",
        "outbox",
        "phase",
    )

    def __init__(
        self,
        hub: Hub,
        outbox: Outbox,
        load: Callable[[FeedMembers], None],
        now: float,
        *,
        is_browser: bool,
    ) -> None:
        self.phase = Phase.STRANGER
        self.outbox = outbox
        self.follower: Follower | None = None
        self._hub = hub
        self._limits = hub.limits
        self._load = load
        self._is_browser = is_browser
        self._began = now
        self._written_at = now
        # Of inbound messages.
        self._allowance = Allowance(self._limits.inbound_rate, self._limits.inbound_burst, now)
        self._expires_at: float | None = None
        self._is_warned = False
        # What is due, and when, may have changed.
        self._is_restless = True
        hub.knocked(outbox)

    # Messages

    def receive(self, frame: str | bytes, now: float) -> str | None:
        """Take a frame. Return a token when one is to be verified before anything else."""
        if self.phase is Phase.CLOSED or self.outbox.closing is not None:
            return None
        self._is_restless = True
        body = self._read(frame, now)
        if body is None:
            return None
        try:
            message = CLIENT_MESSAGE.validate_python(body)
        except ValidationError as error:
            self._answer_malformed(body, error)
            return None
        if isinstance(message, Auth):
            return message.token
        if self.follower is None:
            self.refused(ErrorCode.UNAUTHORIZED, "the first message must be auth")
            return None
        self._take(message, self.follower, now)
        return None

    def _take(
        self,
        message: Subscribe | Unsubscribe | Refetch | Ping,
        follower: Follower,
        now: float,
    ) -> None:
        match message:
            case Subscribe():
                self.subscribe(message, now)
            case Unsubscribe():
                subscription = follower.subscriptions.get(message.sub)
                if subscription is not None:
                    follower.close(subscription)
            case Refetch():
                follower.refetch(message.run)
            case Ping():
                self.outbox.say(messages.PONG)

    def subscribe(self, message: Subscribe, now: float) -> None:
        """Begin a subscription, or say why not."""
        follower = self.follower
        assert follower is not None
        held = follower.subscriptions.get(message.sub)
        if held is not None:
            # `error` with a name ends what has that name, on both sides.
            follower.refuse(held, ErrorCode.CONFLICT, "there is a subscription by that name")
            return
        try:
            if len(follower.subscriptions) >= self._limits.subscriptions:
                most = self._limits.subscriptions
                raise RefusedError(ErrorCode.TOO_MANY, f"a connection has {most} subscriptions")
            follower.add(subscription_of(message, follower.grant, now))
        except RefusedError as error:
            self.outbox.say(messages.error(error.code, error.message, message.sub))

    def _read(self, frame: str | bytes, now: float) -> JsonObject | None:
        """Return the object in a frame; what is none ends the connection."""
        if not self._allowance.spend(now):
            self.outbox.close(CloseCode.RATE_LIMITED, "too many messages")
            return None
        if isinstance(frame, bytes):
            self._hang_up("messages are text")
            return None
        if len(frame) > self._limits.client_frame_bytes:
            self.outbox.close(_TOO_BIG, "the message is too large")
            return None
        try:
            body: Json = orjson.loads(frame)
        except (orjson.JSONDecodeError, UnicodeEncodeError):
            self._hang_up("the message is not JSON")
            return None
        if not isinstance(body, dict):
            self._hang_up("a message is a JSON object")
            return None
        return cast(JsonObject, body)

    def _hang_up(self, why: str) -> None:
        self.outbox.say(messages.error(ErrorCode.MALFORMED, why))
        self.outbox.close(CloseCode.MALFORMED, why)

    def _answer_malformed(self, body: JsonObject, error: ValidationError) -> None:
        sub: Json = body.get("sub")
        name = sub if isinstance(sub, str) and 1 <= len(sub) <= 64 else None
        if error.errors(include_url=False, include_input=False)[0]["type"] == "union_tag_invalid":
            text = "there is no client message of that type"
        else:
            text = first_problem(error, at="message")
        if self.follower is None:
            self.refused(ErrorCode.UNAUTHORIZED, "the first message must be auth")
        else:
            held = self.follower.subscriptions.get(name or "")
            self.outbox.say(messages.error(ErrorCode.MALFORMED, text, None if held else name))

    # The credential

    def authenticated(self, grant: Grant, now: float, wall: float) -> None:
        """Take a verified credential, the first or a fresh one."""
        if self.phase is Phase.CLOSED or self.outbox.closing is not None:
            return
        if grant.api_key and self._is_browser:
            text = "an API key does not belong into a browser; use a public token"
            self.outbox.say(messages.error(ErrorCode.FORBIDDEN, text))
            self.outbox.close(CloseCode.FORBIDDEN, text)
            return
        held = None if self.follower is None else self.follower.grant
        if held is not None and grant.environment_id != held.environment_id:
            self.refused(ErrorCode.UNAUTHORIZED, "the new token is of another environment")
            return
        if not self._hub.has_room_for(grant, held):
            self.outbox.close(CloseCode.OVERLOADED, "too many connections with this credential")
            return
        self._is_restless = True
        self._expires_at = None if grant.expires_at is None else now + grant.expires_at - wall
        self._is_warned = False
        self.outbox.say(messages.ready(self._hub.epoch, self._limits.heartbeat_seconds))
        if self.follower is None:
            self.phase = Phase.READY
            self.follower = Follower(self._hub, grant, self.outbox, self._load)
            self._hub.enter(self.follower)
        else:
            self._hub.regrant(self.follower, grant)

    def refused(self, code: ErrorCode, text: str) -> None:
        """End the connection: its credential is not good."""
        self.outbox.say(messages.error(code, text))
        self.outbox.close(CloseCode.INVALID_TOKEN, text)

    # Time

    @property
    def is_restless(self) -> bool:
        """Whether `tick` may have something to do, or to plan, before it said it would."""
        return self._is_restless or (self.follower is not None and self.follower.is_restless)

    def wrote(self, now: float) -> None:
        """Note that a frame left."""
        self._written_at = max(self._written_at, now)

    def tick(self, now: float, wall: Callable[[], str]) -> None:
        """Do what is due."""
        self._is_restless = False
        if self.phase is Phase.STRANGER and now >= self._began + self._limits.auth_seconds:
            self.outbox.close(CloseCode.AUTH_TIMEOUT, "no auth in time")
        self._look_at_token(now)
        if self.follower is not None:
            self.follower.is_restless = False
            self._give_up_waiting(self.follower, now)
            if self.outbox.is_underway:
                self.follower.cursors(now)
        if now >= self._written_at + self._limits.heartbeat_seconds and self.outbox.is_drained:
            self.outbox.say(messages.heartbeat(wall()))

    def _look_at_token(self, now: float) -> None:
        if self._expires_at is None:
            return
        if now >= self._expires_at:
            self.outbox.close(CloseCode.TOKEN_EXPIRED, "the token has expired")
        elif not self._is_warned and now >= self._expires_at - self._limits.warning_seconds:
            self._is_warned = True
            self.outbox.say(messages.token_expiring(self._expires_at - now))

    def _give_up_waiting(self, follower: Follower, now: float) -> None:
        for subscription in list(follower.subscriptions.values()):
            until = subscription.awaited_until
            if until is not None and now >= until and isinstance(subscription.target, RunTarget):
                reader = follower.readers.get(subscription.target.run_id)
                if reader is not None:
                    reader.give_up(subscription)

    def next_tick(self) -> float:
        """Return when `tick` has something to do, unless something else happens before."""
        times = [self._written_at + self._limits.heartbeat_seconds]
        if self.phase is Phase.STRANGER:
            times.append(self._began + self._limits.auth_seconds)
        if self._expires_at is not None:
            warning = 0.0 if self._is_warned else self._limits.warning_seconds
            times.append(self._expires_at - warning)
        if self.follower is not None:
            times += [
                each.awaited_until
                for each in self.follower.subscriptions.values()
                if each.awaited_until is not None
            ]
            cursor_at = self.follower.next_cursor_at()
            if cursor_at is not None:
                times.append(cursor_at)
        return min(times)

    def close(self) -> None:
        """Note that the connection is gone."""
        self.phase = Phase.CLOSED
        self._hub.strangers.pop(self.outbox, None)
        if self.follower is not None:
            self._hub.leave(self.follower)
