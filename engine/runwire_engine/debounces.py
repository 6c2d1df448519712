"""Debounce keys as they are stored: which run a trigger's key leads to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import orjson

from runwire.values import decode
from runwire_engine.database import Statements
from runwire_engine.debouncing import Debounce, Debounced, Waiting, debounced

# As everywhere in an event: larger values are read from the row.
_LARGEST_SHOWN: Final = 8192


@dataclass(frozen=True, slots=True)
class DebouncedTrigger:
    """A trigger with a debounce key, by the id that a run of its own would have."""

    id: str
    task: str
    debounce: Debounce


async def hold_keys(
    tx: Statements, environment_id: int, names: Iterable[tuple[str, str]], *, waits: bool
) -> set[tuple[str, str]]:
    """Keep others away from debounce keys (task and key); return those that were to be had."""
    wanted = sorted(set(names))
    rows = await tx.all(
        "debounces.hold",
        {
            "environment_id": environment_id,
            "waits": waits,
            "tasks": [task for task, _ in wanted],
            "keys": [key for _, key in wanted],
        },
    )
    return {(row["task"], row["key"]) for row in rows}


async def debounced_runs(
    tx: Statements, environment_id: int, now: datetime | None, triggers: Sequence[DebouncedTrigger]
) -> list[Debounced]:
    """Return the runs that triggers lead to; their keys are held already.

    Those that wait are held, too, until the transaction ends, so that none starts meanwhile.
    """
    fixed: dict[str, object] = {"environment_id": environment_id, "now": now}
    groups: dict[tuple[str, str], list[DebouncedTrigger]] = {}
    for trigger in triggers:
        groups.setdefault((trigger.task, trigger.debounce.key), []).append(trigger)
    names = sorted(groups)
    rows = await tx.all(
        "debounces.claim",
        {
            **fixed,
            "tasks": [task for task, _ in names],
            "keys": [key for _, key in names],
            "ids": [groups[name][0].id for name in names],
        },
    )
    held = {(row["task"], row["key"]): row["run_id"] for row in rows}
    ids = sorted(held[name] for name in names if held[name] != groups[name][0].id)
    waiting = await tx.all("debounces.waiting", {**fixed, "ids": ids}) if ids else []
    found = {row["id"]: Waiting(row["id"], row["age"]) for row in waiting}
    runs: list[Debounced] = []
    last: list[Debounced] = []
    for name in names:
        of_key = debounced(found.get(held[name]), [(t.id, t.debounce) for t in groups[name]])
        last.append(of_key[-1])
        runs += of_key
    await tx.run(
        "debounces.point",
        {
            **fixed,
            "tasks": [task for task, _ in names],
            "keys": [key for _, key in names],
            "ids": [run.run_id for run in last],
            "delays": [run.delay for run in last],
        },
    )
    return runs


def shown_payload(payload: str | None, kind: str) -> str:
    """Return a payload as an event tells it, as JSON text."""
    if payload is None:
        return "null"
    size = len(payload.encode())
    if size > _LARGEST_SHOWN:
        return orjson.dumps({"$large": {"bytes": size}}).decode()
    match kind:
        case "text/plain":
            return orjson.dumps(payload).decode()
        case "application/super+json":
            value = decode(payload)
            return orjson.dumps(value["json"] if isinstance(value, dict) else value).decode()
        case _:
            return payload
