"""What an operator may turn of the hub; its other bounds are in `limits`.

Three defaults deserve a word. A client that comes back subscribes to everything it had, so that 250
messages may come at once before the rate counts. A hub that dies sends its clients to the others
within a second: 1 000 of them are let in at once, and 200 a second after that. And an environment
may have half of a server's connections rather than a tenth: most installations have one.
"""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from runwire.wire import AUTH_TIMEOUT, HEARTBEAT, MAX_SUBSCRIPTIONS
from runwire_realtime.limits import HubLimits


class HubSettings(BaseSettings):
    """The hub's settings. Spans are seconds."""

    model_config = SettingsConfigDict(
        env_prefix="RUNWIRE_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
    )

    max_connections: int = Field(
        default=10_000,
        ge=1,
        le=100_000,
        description="Sockets and event streams that one server serves; more are answered 503.",
    )
    max_environment_connections: int = Field(
        default=5_000,
        ge=1,
        le=100_000,
        description="Those of one environment on one server; more are closed with 4009.",
    )
    max_token_connections: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="Those of one public token on one server; more are closed with 4009.",
    )
    max_strangers: int = Field(
        default=1_000,
        ge=1,
        le=100_000,
        description="Sockets that have shown no credential yet; beyond, the one that has waited"
        " longest is closed with 4009.",
    )
    connect_rate: float = Field(
        default=200.0,
        ge=1,
        le=100_000,
        description="New connections a second that one server takes; more are answered 503.",
    )
    connect_burst: int = Field(
        default=1_000,
        ge=1,
        le=100_000,
        description="New connections that it takes at once, before the rate counts.",
    )
    auth_timeout: float = Field(
        default=AUTH_TIMEOUT,
        ge=0.1,
        le=60,
        description="How long a socket may take to show its credential (4002).",
    )
    max_subscriptions: int = Field(
        default=MAX_SUBSCRIPTIONS,
        ge=1,
        le=1_000,
        description="Subscriptions of one connection (`too_many`). Our clients open another socket"
        f" beyond {MAX_SUBSCRIPTIONS}.",
    )
    max_followed_runs: int = Field(
        default=10_000,
        ge=10,
        le=100_000,
        description="Runs that one connection follows, in all its feeds (`gap` overflow).",
    )
    message_rate: float = Field(
        default=30.0,
        ge=1,
        le=100_000,
        description="Messages a second that a client may send; more closes its socket (4029).",
    )
    message_burst: int = Field(
        default=250,
        ge=2,
        le=100_000,
        description="Messages that it may send at once, before the rate counts.",
    )
    send_timeout: float = Field(
        default=10.0,
        ge=0.5,
        le=300,
        description="How long a frame may take to leave; then the socket is closed (4008).",
    )
    hub_heartbeat: float = Field(
        default=HEARTBEAT,
        ge=0.1,
        le=HEARTBEAT,
        description="After so long without a message the server sends `hb`. Clients count on it.",
    )
    ping_interval: float = Field(
        default=20.0,
        ge=0.1,
        le=300,
        description="How often the server pings a websocket; browsers answer by themselves.",
    )
    ping_timeout: float = Field(
        default=20.0,
        ge=0.1,
        le=300,
        description="How long an answer may take; then the connection is gone.",
    )
    drain: float = Field(
        default=10.0,
        ge=0,
        le=600,
        description="How long a stopping server takes to send its subscribers elsewhere (4001).",
    )

    def limits(self) -> HubLimits:
        """Return the bounds of the hub with these in them."""
        return HubLimits(
            connections=self.max_connections,
            tenant_connections=self.max_environment_connections,
            token_connections=self.max_token_connections,
            strangers=self.max_strangers,
            connect_rate=self.connect_rate,
            connect_burst=self.connect_burst,
            auth_seconds=self.auth_timeout,
            subscriptions=self.max_subscriptions,
            followed_runs=self.max_followed_runs,
            inbound_rate=self.message_rate,
            inbound_burst=self.message_burst,
            send_seconds=self.send_timeout,
            heartbeat_seconds=self.hub_heartbeat,
            drain_seconds=self.drain,
        )
