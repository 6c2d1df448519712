"""The run a request names, if its credential may touch it.

A run of another environment does not exist here. Within the environment an unreadable run answers
403, as a token's holder knows the id it was given; ids cannot be guessed.
"""

from collections.abc import Sequence

from runwire_engine.following import Following
from runwire_engine.run_row import RunRow
from runwire_realtime.api.call import Call
from runwire_realtime.errors import ForbiddenError, NotFoundError


async def readable_run(call: Call) -> RunRow:
    """Return the run in the path. Raises NotFoundError or ForbiddenError."""
    row, batches = await _run(call)
    if not call.grant.may_read_run(row.id, row.task, row.tags, batches):
        raise ForbiddenError("the token does not allow reading this run")
    return row


async def writable_run(call: Call) -> RunRow:
    """Return the run in the path, which the credential may change."""
    row, batches = await _run(call)
    if not call.grant.may_write_run(row.id, row.task, row.tags, batches):
        raise ForbiddenError("the token does not allow changing this run")
    return row


async def run_for_streams(call: Call) -> RunRow:
    """Return the run in the path, to whose streams the credential may append."""
    row, batches = await _run(call)
    if not call.grant.may_write_streams(row.id, row.task, row.tags, batches):
        raise ForbiddenError("the token does not allow writing this run's streams")
    return row


async def run_for_input(call: Call) -> RunRow:
    """Return the run in the path, to which the credential may send input."""
    row, batches = await _run(call)
    if not call.grant.may_send_input(row.id, row.task, row.tags, batches):
        raise ForbiddenError("the token does not allow sending input to this run")
    return row


async def _run(call: Call) -> tuple[RunRow, Sequence[str]]:
    run_id = call.id("runId")
    row = await call.services.engine.runs.retrieve(call.environment_id, run_id)
    if row is None:
        raise NotFoundError("there is no such run")
    return row, await _batches(call, row)


async def _batches(call: Call, row: RunRow) -> Sequence[str]:
    """Return the batches the run stands in; an idempotency hit brings it into later ones, too."""
    if not call.grant.names_batches:
        return (row.batch_id,) if row.batch_id else ()
    following = Following(call.services.engine.database)
    found = await following.rows(call.environment_id, [row.id], limit=0)
    return found[row.id].batches if row.id in found else ()
