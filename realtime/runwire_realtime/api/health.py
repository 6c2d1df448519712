"""GET /healthz: the process answers. GET /readyz: it can serve; else the reasons."""

from typing import Final

import anyio
from pydantic import BaseModel
from starlette.responses import Response

from runwire_realtime.api.answer import answer
from runwire_realtime.api.call import Call
from runwire_realtime.api.ok import Ok
from runwire_realtime.api.operation import Operation
from runwire_realtime.schema import problem_with
from runwire_realtime.services import Services

# A probe asks every few seconds; an answer later than this is as good as none.
_PATIENCE: Final = 2.0


class Readiness(BaseModel):
    ready: bool
    reasons: list[str]


async def healthz(call: Call) -> Response:
    """Answer, which is all that it proves."""
    return answer(Ok())


async def readyz(call: Call) -> Response:
    """Answer 200 when requests and subscriptions can be served now, else 503 with the reasons."""
    reasons = await reasons_not_ready(call.services)
    return answer(Readiness(ready=not reasons, reasons=reasons), 503 if reasons else 200)


async def reasons_not_ready(services: Services) -> list[str]:
    """Return why the server cannot serve now; nothing: it can."""
    problem: str | None = "the database does not answer"
    with anyio.move_on_after(_PATIENCE):
        problem = await problem_with(services.engine.database)
    reasons = [] if problem is None else [problem]
    if services.realtime.statistics().is_stale:
        reasons.append("the hub has not caught up with the database")
    return reasons


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
