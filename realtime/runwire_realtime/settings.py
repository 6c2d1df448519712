"""What a server can be told, read once from RUNWIRE_* variables (lists are JSON)."""

import os
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from runwire.wire import Json
from runwire_realtime.errors import StartError
from runwire_realtime.hub_settings import HubSettings
from runwire_realtime.origins import ANY, LOOPBACK, loopback_hosts
from runwire_realtime.tokens import check_secret


class ServerSettings(HubSettings):
    """The server's settings. Secrets show as stars wherever the object is printed."""

    database_url: SecretStr = Field(description="The Postgres to use, as a connection URL.")
    listen_database_url: SecretStr | None = Field(
        default=None,
        description="Where to LISTEN and NOTIFY, if not at RUNWIRE_DATABASE_URL: the same database"
        " without the transaction pooler in between.",
    )
    secret: SecretStr = Field(
        description="The master secret, 32 bytes or more: the keys of tokens are derived from it."
    )
    previous_secret: SecretStr | None = Field(
        default=None,
        description="The master secret before this one; its tokens stay good until they expire.",
    )
    environment: str = Field(
        default="dev", description="The environment that a session of the dashboard opens."
    )
    host: str = Field(default="127.0.0.1", description="The address to listen on.")
    port: int = Field(default=8420, ge=0, le=65535, description="The port to listen on; 0: any.")
    allowed_hosts: tuple[str, ...] = Field(
        default=(),
        description="Host names to answer to; none given: the loopback names when listening on a"
        ' loopback address, else any. "*" is any.',
    )
    allowed_origins: tuple[str, ...] = Field(
        default=(),
        description="Browser origins besides the server's own that may call it, as scheme://host"
        '[:port]; "*" is any and "loopback" any port of this machine. Credentials of the browser'
        " (cookies) are never accepted from them.",
    )
    max_request_bytes: int = Field(
        default=8 * 1024 * 1024,
        ge=1024,
        description="The largest body of one request, but for the items of a batch.",
    )
    max_batch_bytes: int = Field(
        default=64 * 1024 * 1024, ge=1024, description="The largest body of a batch's items."
    )
    pool_size: int = Field(
        default=10, ge=2, le=200, description="Connections to Postgres for requests."
    )

    @field_validator("secret", "previous_secret")
    @classmethod
    def _strong(cls, secret: SecretStr | None) -> SecretStr | None:
        problem = None if secret is None else check_secret(secret.get_secret_value())
        if problem:
            raise ValueError(problem)
        return secret

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            scheme, found, host = origin.partition("://")
            plain = found and scheme in {"http", "https"} and host and "/" not in host
            if origin not in {ANY, LOOPBACK} and not plain:
                raise ValueError(f"{origin!r} is not an origin: write scheme://host[:port]")
        return origins

    @model_validator(mode="after")
    def _rotated(self) -> Self:
        if self.previous_secret is not None and self.previous_secret == self.secret:
            raise ValueError("previous_secret is the same as secret")
        return self

    def hosts(self) -> tuple[str, ...]:
        """Return the host names the server answers to."""
        if self.allowed_hosts:
            return tuple(host.lower() for host in self.allowed_hosts)
        loopback = self.host in {"127.0.0.1", "::1", "localhost"}
        return loopback_hosts() if loopback else (ANY,)


def database_address() -> str:
    """Return RUNWIRE_DATABASE_URL for what needs nothing else. Raises StartError without one."""
    address = os.environ.get("RUNWIRE_DATABASE_URL")
    if not address:
        raise StartError("RUNWIRE_DATABASE_URL is not set")
    return address


def read_settings(**given: Json) -> ServerSettings:
    """Return the settings of the environment; what is given here comes first."""
    return ServerSettings(**given)
