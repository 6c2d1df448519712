"""Queues: naming one that tasks share, and changing what runs at once while it is in use.

    emails = queue(name="emails", concurrency_limit=5)

    @task(id="welcome", queue=emails)
    async def welcome(payload: User) -> None: ...

    await queues.pause(emails)
    await queues.override_concurrency_limit("emails", 20)

The calls need an API key. A queue is given as what `queue` returned, as a task (its queue), by its
name (a task's own is "task/<id>") or id, or as `{"type": "task" | "custom", "name": …}`. Blocking
twins: `runwire.sync.queues`.
"""

import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias, TypedDict, cast
from urllib.parse import quote

import orjson

from runwire import _default
from runwire._client import Client
from runwire._definition import Task
from runwire._task_options import QueueOptions
from runwire.requests import OverrideBody, PauseBody, QueueBody, QueueType
from runwire.wire import JsonObject

__all__ = [
    "Concurrency",
    "Queue",
    "QueueList",
    "QueueOptions",
    "QueuePage",
    "QueueReference",
    "QueueRegistry",
    "Queues",
    "list",
    "override_concurrency_limit",
    "pause",
    "queue",
    "registry",
    "reset_concurrency_limit",
    "resume",
    "retrieve",
]

# Of a task's own queue.
_TASK_PREFIX = "task/"
_ID = re.compile(r"queue_[0-9a-f]{24}")


class QueueName(TypedDict):
    """A queue as Trigger.dev names it: of a task, by its id; else by its name."""

    type: Literal["task", "custom"]
    name: str


QueueReference: TypeAlias = str | QueueOptions | Task[Any, Any, ..., Any] | QueueName


class QueueRegistry(Mapping[str, int | None]):
    """The limits of every queue that was made by `queue`, by name."""

    def __init__(self) -> None:
        self._limits: dict[str, int | None] = {}

    def __getitem__(self, name: str) -> int | None:
        return self._limits[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._limits)

    def __len__(self) -> int:
        return len(self._limits)

    def add(self, options: QueueOptions) -> None:
        """Add a queue; where two of one name say different limits, the lower holds."""
        limits = (self._limits.get(options.name), options.concurrency_limit)
        said = [limit for limit in limits if limit is not None]
        self._limits[options.name] = min(said) if said else None

    def clear(self) -> None:
        """Forget every queue, for tests."""
        self._limits.clear()


_registry = QueueRegistry()


def registry() -> QueueRegistry:
    """Return the queues made so far in this process."""
    return _registry


def queue(name: str, *, concurrency_limit: int | None = None) -> QueueOptions:
    """Name a queue that tasks and triggers may share: `task(queue=…)`, `trigger(…, queue=…)`.

    At most so many of its runs execute at once, for each concurrency key; None: no limit. Workers
    whose modules make it announce it when they start. Raises TaskError.
    """
    options = QueueOptions(name, concurrency_limit)
    _registry.add(options)
    return options


@dataclass(frozen=True)
class Concurrency:
    """The limit that holds, the one in code, and the one put in its place; None: none."""

    current: int | None
    base: int | None
    override: int | None
    overridden_at: datetime | None


@dataclass(frozen=True)
class Queue:
    """A queue as it is now."""

    id: str
    # Of a task's own queue: the task's id.
    name: str
    type: Literal["task", "custom"]
    # How many of its runs execute, and how many are ready and wait.
    running: int
    queued: int
    paused: bool
    concurrency_limit: int | None
    concurrency: Concurrency

    @classmethod
    def of(cls, body: JsonObject) -> "Queue":
        """Return a queue from an answer."""
        given: JsonObject = body["concurrency"]
        at = given["overriddenAt"]
        return cls(
            id=body["id"],
            name=body["name"],
            type=body["type"],
            running=body["running"],
            queued=body["queued"],
            paused=body["paused"],
            concurrency_limit=body["concurrencyLimit"],
            concurrency=Concurrency(
                current=given["current"],
                base=given["base"],
                override=given["override"],
                overridden_at=None if at is None else datetime.fromisoformat(at),
            ),
        )


@dataclass(frozen=True)
class QueuePage:
    """Some queues, by name; `count` is of all pages."""

    queues: tuple[Queue, ...]
    page: int
    total_pages: int
    count: int


class QueueList:
    """The queues of an environment: `async for queue in …`, or page by page."""

    def __init__(self, connect: Callable[[], Client], first: int, per_page: int) -> None:
        self._connect = connect
        self._first = first
        self._per_page = per_page

    async def page(self, number: int | None = None) -> QueuePage:
        """Return a page, from 1; without a number, the first that was asked for."""
        params = {"page": str(number or self._first), "perPage": str(self._per_page)}
        response = await self._connect().http.get("/api/v1/queues", params)
        body: JsonObject = orjson.loads(response.content)
        pages: JsonObject = body["pagination"]
        return QueuePage(
            tuple(Queue.of(each) for each in cast("tuple[JsonObject, ...]", body["data"])),
            pages["currentPage"],
            pages["totalPages"],
            pages["count"],
        )

    async def __aiter__(self) -> AsyncIterator[Queue]:
        number = self._first
        while True:
            page = await self.page(number)
            for each in page.queues:
                yield each
            number += 1
            if number > page.total_pages:
                return


class Queues:
    """Everything about queues, over one client."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect

    def list(self, *, page: int = 1, per_page: int = 25) -> QueueList:
        """Return the queues by name, from a page on; nothing is asked until iterated."""
        return QueueList(self._connect, page, per_page)

    async def retrieve(self, queue: QueueReference) -> Queue:
        """Return a queue as it is now. Raises NotFoundError."""
        kind, name = _reference(queue)
        response = await self._connect().http.get(_path(name), {"type": kind})
        return Queue.of(orjson.loads(response.content))

    async def pause(self, queue: QueueReference) -> Queue:
        """Start nothing of a queue any more; what executes goes on. Raises NotFoundError."""
        kind, name = _reference(queue)
        return await self._post(f"{_path(name)}/pause", PauseBody(type=kind, action="pause"))

    async def resume(self, queue: QueueReference) -> Queue:
        """Have a paused queue go on, at once. Raises NotFoundError."""
        kind, name = _reference(queue)
        return await self._post(f"{_path(name)}/pause", PauseBody(type=kind, action="resume"))

    async def override_concurrency_limit(
        self, queue: QueueReference, concurrency_limit: int
    ) -> Queue:
        """Put another limit (0 to 100 000) in place of the one in code, until it is reset.

        What executes beyond a lower limit goes on. Raises NotFoundError.
        """
        kind, name = _reference(queue)
        body = OverrideBody(type=kind, concurrency_limit=concurrency_limit)
        return await self._post(f"{_path(name)}/concurrency/override", body)

    async def reset_concurrency_limit(self, queue: QueueReference) -> Queue:
        """Go back to the limit in code. Raises NotFoundError; MalformedError when it holds."""
        kind, name = _reference(queue)
        return await self._post(f"{_path(name)}/concurrency/reset", QueueBody(type=kind))

    async def _post(self, path: str, body: QueueBody) -> Queue:
        response = await self._connect().http.post(
            path, json=body.model_dump(mode="json", by_alias=True)
        )
        return Queue.of(orjson.loads(response.content))


def _reference(queue: QueueReference) -> tuple[QueueType, str]:
    match queue:
        case str():
            name = queue
        case QueueOptions():
            name = queue.name
        case Task():
            name = queue.queue.name
        case _:
            return queue["type"], queue["name"]
    if _ID.fullmatch(name):
        return "id", name
    if name.startswith(_TASK_PREFIX):
        return "task", name.removeprefix(_TASK_PREFIX)
    return "custom", name


def _path(name: str) -> str:
    # A slash is escaped twice: servers read the first escape before they look for the route.
    return f"/api/v1/queues/{quote(name.replace('/', '%2F'), safe='')}"


_default_queues = Queues(_default.client)
list = _default_queues.list
retrieve = _default_queues.retrieve
pause = _default_queues.pause
resume = _default_queues.resume
override_concurrency_limit = _default_queues.override_concurrency_limit
reset_concurrency_limit = _default_queues.reset_concurrency_limit
