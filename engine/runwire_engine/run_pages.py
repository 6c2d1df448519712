"""Lists of runs: filters, pages, and the opaque cursors between them. Newest first.

A list goes along one index: a batch's items, a run's children, a schedule's runs, or each wanted
tag, task, or all runs by creation; whatever else is filtered by is checked row by row. Of several
tags or tasks each gives a page of its own, and the newest of all of them are the page.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

import orjson

from runwire.errors import InvalidValueError
from runwire_engine.database import Database, Row
from runwire_engine.run_row import RunRow, run_row
from runwire_engine.states import FINAL, RunStatus

DEFAULT_SIZE: Final = 25
MAX_SIZE: Final = 1000

# A place in the order of lists: when a run was created, and its id.
_Place: TypeAlias = tuple[datetime, str]


@dataclass(frozen=True, slots=True)
class RunQuery:
    """Which runs to list. Several values of one filter: any of them; several filters: all."""

    status: Sequence[str] = ()
    task: Sequence[str] = ()
    tag: Sequence[str] = ()
    batch: str | None = None
    # The run that triggered them, and the schedule that did.
    parent: str | None = None
    schedule: str | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None
    size: int = DEFAULT_SIZE
    # A cursor: the page of older runs after it, or of newer ones before it.
    after: str | None = None
    before: str | None = None


@dataclass(frozen=True, slots=True)
class RunPage:
    """Runs without their payloads and outputs, and the cursors of the pages around them."""

    runs: list[RunRow]
    # The cursor to give as `after`, and as `before`; None where there is no further page.
    next: str | None
    previous: str | None


async def read_page(database: Database, environment_id: int, query: RunQuery) -> RunPage:
    """Return a page. Raises InvalidValueError for a cursor that no page ever gave out."""
    backwards = query.before is not None
    cursor = query.before if query.before is not None else query.after
    size = max(1, min(query.size, MAX_SIZE))
    places = await _places(
        database, environment_id, query, None if cursor is None else _decode(cursor), size + 1
    )
    more = len(places) > size
    places = places[:size]
    if backwards:
        places.reverse()
    rows = await database.all(
        "run_pages.summaries", {"environment_id": environment_id, "ids": [id for _, id in places]}
    )
    by_id = {row["id"]: run_row(row) for row in rows}
    # The run that a cursor names is on the page it came from.
    older, newer = (True, more) if backwards else (more, cursor is not None)
    return RunPage(
        [by_id[id] for _, id in places if id in by_id],
        next=_encode(places[-1]) if places and older else None,
        previous=_encode(places[0]) if places and newer else None,
    )


async def _places(
    database: Database, environment_id: int, query: RunQuery, cursor: _Place | None, limit: int
) -> list[_Place]:
    """Return the next places from a cursor, in the direction of the page."""
    backwards = query.before is not None
    parameters: dict[str, object] = {
        "environment_id": environment_id,
        "statuses": list(query.status) or None,
        "tasks": list(query.task) or None,
        "batch_id": query.batch,
        "parent_id": query.parent,
        "schedule_id": query.schedule,
        "tags": list(query.tag) or None,
        "created_from": query.created_from,
        "created_to": query.created_to,
        "from_time": cursor[0] if cursor else None,
        "from_id": cursor[1] if cursor else None,
        "limit": limit,
    }
    direction = "before" if backwards else "after"
    found: set[_Place] = set()
    for name, more in _walks(query):
        rows = await database.all(f"run_pages.{name}_{direction}", {**parameters, **more})
        found.update(_place(row) for row in rows)
    return sorted(found, reverse=not backwards)[:limit]


def _walks(query: RunQuery) -> list[tuple[str, Mapping[str, object]]]:
    """Return the statements to run, each with the value whose index it goes along."""
    if query.batch is not None:
        return [("of_batch", {})]
    if query.parent is not None:
        return [("by_parent", {})]
    if query.schedule is not None:
        return [("by_schedule", {})]
    if query.tag:
        return [("by_tag", {"tag": tag}) for tag in dict.fromkeys(query.tag)]
    if query.task:
        return [("by_task", {"task": task}) for task in dict.fromkeys(query.task)]
    if query.status and set(query.status) <= {"DEQUEUED", "EXECUTING"}:
        return [("held", {})]
    if query.status and RunStatus.COMPLETED not in query.status:
        return [(walk, {}) for walk in dict.fromkeys(map(_walk_of, query.status))]
    return [("by_creation", {})]


def _walk_of(status: str) -> str:
    """Name the index in which runs of a status are found among the many that completed."""
    return "failed" if status in FINAL else "open"


def _place(row: Row) -> _Place:
    return row["created_at"], row["id"]


def _encode(place: _Place) -> str:
    text = orjson.dumps([place[0].isoformat(), place[1]])
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def _decode(cursor: str) -> _Place:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        time, id = orjson.loads(text)
        place = datetime.fromisoformat(time), str(id)
        if place[0].tzinfo is None:
            raise ValueError("no time zone")
    except (ValueError, TypeError, binascii.Error):
        raise InvalidValueError("this is not a cursor of a list of runs", code="cursor") from None
    return place
