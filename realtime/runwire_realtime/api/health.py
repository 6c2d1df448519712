"""GET /healthz: the process answers. GET /readyz: it can serve; else the reasons."""

from typing import Final

import anyio
from pydantic import BaseModel
from starlette.responses import Response

from runwire_engine.database import Database
from runwire_engine.errors import DatabaseUnavailableError, DiskFullError
from runwire_realtime.api.answer import answer
from runwire_realtime.api.call import Call
from runwire_realtime.api.ok import Ok
from runwire_realtime.api.operation import Operation
from runwire_realtime.feed import Notifications
from runwire_realtime.schema import problem_with
from runwire_realtime.services import Services

# A probe asks every few seconds; an answer later than this is as good as none.
_PATIENCE: Final = 2.0


class Readiness(BaseModel):
    ready: bool
    # Why not.
    reasons: list[str]
    # Whether bells of Postgres are heard, or everything comes with the poll, once a second; which
    # of the two is found out as the server starts.
    notifications: Notifications
    # What is wrong with Postgres, but holds up nobody yet.
    warnings: list[str]


async def healthz(call: Call) -> Response:
    """Answer, which is all that it proves."""
    return answer(Ok())


async def readyz(call: Call) -> Response:
    """Answer 200 when requests and subscriptions can be served now, else 503 with the reasons."""
    services = call.services
    reasons = await reasons_not_ready(services)
    readiness = Readiness(
        ready=not reasons,
        reasons=reasons,
        notifications=services.realtime.statistics().notifications,
        warnings=services.engine.sweep.alarms.sounding,
    )
    return answer(readiness, 503 if reasons else 200)


async def reasons_not_ready(services: Services) -> list[str]:
    """Return why the server cannot serve now; nothing: it can."""
    problem: str | None = "the database does not answer"
    database = services.engine.database
    with anyio.move_on_after(_PATIENCE):
        problem = await problem_with(database) or await _refusal_to_write(database)
    reasons = [] if problem is None else [problem]
    statistics = services.realtime.statistics()
    if statistics.is_draining:
        reasons.append("the server stops")
    if statistics.is_stale:
        reasons.append("the hub has not caught up with the database")
    return reasons


async def _refusal_to_write(database: Database) -> str | None:
    """Return why the database stores nothing now, though it can be read."""
    refusal = database.refuses_writes
    if isinstance(refusal, DiskFullError):
        return "the database has no disk space left; what is stored can be read"
    try:
        row = await database.one("database.is_read_only")
    except DatabaseUnavailableError:
        return "the database does not answer"
    if refusal is not None or (row is not None and row["is_read_only"]):
        return "the database is read-only"
    return None


OPERATIONS: Final = (
    Operation(
        "GET", "/healthz", "health", "Say that the process answers", healthz, Ok, credential="open"
    ),
    Operation(
        "GET",
        "/readyz",
        "readiness",
        "Say whether requests and subscriptions can be served now",
        readyz,
        Readiness,
        credential="open",
    ),
)
