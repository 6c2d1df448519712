"""The groups of queues: how ready runs find their way to a claim.

A queue with a limit, or a paused one, has a group for each concurrency key; its ready runs carry
`limited`, by which a claim knows that they go through a group. A trigger reads whether there is a
group without a lock, so a run that is queued while its queue gets or loses a limit may carry the
wrong word: claims that meet it put it right, and so does the sweep.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from runwire_engine.database import Statements

_MATCHED_AT_ONCE: Final = 5_000


async def declare_queues(
    tx: Statements,
    environment_id: int,
    limits: Mapping[str, int | None],
    *,
    tasks: Collection[str] = (),
) -> None:
    """Give queues the limits that code says: of these tasks, or a trigger.

    None takes a limit off, unless a task that is not among these may have named it. A limit that
    somebody has put in its place stays.
    """
    names = sorted(limits)
    changed = await tx.all(
        "queues.declare",
        {
            "environment_id": environment_id,
            "names": names,
            "limits": [limits[name] for name in names],
            "tasks": sorted(tasks),
        },
    )
    if changed:
        await apply(tx, environment_id, [row["name"] for row in changed])


async def mention_queues(tx: Statements, environment_id: int, names: Collection[str]) -> None:
    """Note that there are such queues; what is known of one stays."""
    await tx.run("queues.mention", {"environment_id": environment_id, "names": sorted(names)})


async def apply(tx: Statements, environment_id: int, names: Collection[str]) -> None:
    """Have claims go by what is said of queues now."""
    named = {"environment_id": environment_id, "names": sorted(names)}
    changed = await tx.all("queues.apply", named)
    if changed:
        await match_runs(tx, environment_id, {row["queue"] for row in changed})


async def match_runs(
    tx: Statements, environment_id: int | None = None, queues: Collection[str] = ()
) -> bool:
    """Send ready runs through groups exactly where there are some, a bounded number of runs.

    Of certain queues of one environment, or of all; say whether there may be more.
    """
    moved = await tx.all(
        "queues.match",
        {"environment_id": environment_id, "queues": sorted(queues), "limit": _MATCHED_AT_ONCE},
    )
    runs: int = sum(row["runs"] for row in moved)
    return runs >= _MATCHED_AT_ONCE


async def make_groups(
    tx: Statements, environment_id: int, groups: Sequence[tuple[str, str]]
) -> None:
    """Make groups (queue and concurrency key) that are missing, of queues that have groups."""
    await tx.run(
        "queues.make_groups",
        {
            "environment_id": environment_id,
            "queues": [queue for queue, _ in groups],
            "keys": [key for _, key in groups],
        },
    )
