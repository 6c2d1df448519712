"""What the engine can be told, read once from RUNWIRE_* variables."""

from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from runwire._log_line import LogLevel


class EngineSettings(BaseSettings):
    """The engine's settings, for workers and servers alike. Spans are seconds."""

    model_config = SettingsConfigDict(
        env_prefix="RUNWIRE_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
    )

    database_url: str = Field(
        default="",
        validate_default=True,
        min_length=1,
        repr=False,
        description="The Postgres to use, as a connection URL.",
    )
    listen_database_url: str = Field(
        default="",
        repr=False,
        description="Where to LISTEN and NOTIFY, if not at RUNWIRE_DATABASE_URL: the same database"
        " without the transaction pooler in between.",
    )
    environment: str = Field(
        default="dev", description="The environment whose runs a worker executes."
    )
    pool_size: int = Field(
        default=10, ge=2, le=200, description="Connections to Postgres for statements."
    )
    lease: float = Field(
        default=30.0,
        ge=0.5,
        description="How long a worker keeps its runs after its last heartbeat.",
    )
    heartbeat: float = Field(default=10.0, gt=0, description="How often a worker renews its lease.")
    sweep: float = Field(
        default=5.0,
        gt=0,
        description="How often each process looks for dead workers, due retries and expired runs.",
    )
    horizon_alarm: float = Field(
        default=60.0,
        gt=0,
        description="How long a transaction may stay open, or a replication slot stand still, until"
        " the log and `/readyz` warn of it: it keeps Postgres from cleaning up.",
    )
    poll: float = Field(
        default=1.0, gt=0, description="How often work is looked for when no bell rings."
    )
    cancel_grace: float = Field(
        default=35.0,
        gt=0,
        description="How long after a cancellation was requested the sweep forces it.",
    )
    concurrency: int = Field(
        default=100, ge=1, le=10_000, description="How many runs a worker executes at once."
    )
    parked: int = Field(
        default=1_000,
        ge=0,
        description="How many runs that wait a worker keeps in memory, to go on in place; what is"
        " beyond that is unwound, and replayed when its wait is over.",
    )
    grace: float = Field(
        default=30.0,
        ge=0,
        description="How long a stopping worker waits for its runs before it gives them back.",
    )
    run_log_level: LogLevel = Field(
        default="info",
        description="The least urgent lines that are stored in the log of a run: debug, info, log,"
        " warn, error.",
    )
    # No resume reaches back further than a token lives, which is a day; the rest is for people.
    retention: float = Field(
        default=7 * 86_400.0,
        ge=3_600,
        description="How long the history of a run (its events and the chunks of its streams) is"
        " kept after its end. It is dropped by whole days of creation.",
    )
    # As long as an idempotency key is good by default.
    run_retention: float = Field(
        default=30 * 86_400.0,
        ge=3_600,
        description="How long a run itself is kept after its end: at least as long as its history.",
    )

    @property
    def listen_dsn(self) -> str:
        """Where to LISTEN and NOTIFY."""
        return self.listen_database_url or self.database_url

    @model_validator(mode="after")
    def _kept_in_order(self) -> Self:
        if self.run_retention < self.retention:
            raise ValueError("RUNWIRE_RUN_RETENTION is less than RUNWIRE_RETENTION")
        return self
