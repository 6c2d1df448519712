"""A cron as the HTTP API tells it."""

from typing import Literal

from pydantic import BaseModel

from runwire.errors import InvalidValueError
from runwire_engine.cron import parse_cron


class Generator(BaseModel):
    """Where the ticks come from, and the same in words."""

    type: Literal["CRON"] = "CRON"
    expression: str
    description: str


def generator(cron: str, timezone: str) -> Generator:
    """Return a cron as it is told; one that has become invalid is told as it stands."""
    try:
        description = parse_cron(cron, timezone).description
    except InvalidValueError:
        description = cron
    return Generator(expression=cron, description=description)
