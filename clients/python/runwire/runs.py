"""Runs: looking at them, stopping them, following them live.

    async for run in runs.subscribe_to_run(handle.id):
        print(run.status, run.metadata)

A subscription yields, ends, or raises; see `Following`. Options of each `subscribe_to_…`: `mode`
("latest", or "every" for each revision), `fields`, `deadline` (seconds the server may stay away,
60 unless told; None for ever), `access_token`, `cursor` (from `subscription.cursor`, to go on in
another process). Blocking twins: `runwire.sync.runs`.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Unpack, cast
from urllib.parse import quote

import anyio
import orjson

from runwire import _default
from runwire._client import Client
from runwire._following import Asked, Event, Updates, request
from runwire._log_line import LogLevel
from runwire._logs import LogEntry, Logs, logs_followed
from runwire._options import travelling_delay
from runwire._run import LargeValue, Run, RunError
from runwire._settings import AccessToken
from runwire._triggering import RunHandle
from runwire.durations import Duration, seconds
from runwire.errors import InvalidValueError
from runwire.requests import RunStatus
from runwire.values import MAX_PAYLOAD_BYTES, encode
from runwire.wire import JsonObject

__all__ = [
    "Event",
    "LargeValue",
    "LogEntry",
    "Logs",
    "Run",
    "RunError",
    "RunPage",
    "Runs",
    "cancel",
    "list",
    "logs",
    "poll",
    "replay",
    "reschedule",
    "retrieve",
    "subscribe_to_batch",
    "subscribe_to_run",
    "subscribe_to_runs",
    "subscribe_to_runs_with_tag",
]

OneOrMore = str | Sequence[str]
UNSET: Any = object()


@dataclass(frozen=True)
class RunPage:
    """Some runs, newest first, and the cursors of the pages beside them (None at the ends)."""

    runs: tuple[Run, ...]
    next: str | None
    previous: str | None


class RunList:
    """The runs that match, newest first: `async for run in …`, or page by page."""

    def __init__(self, connect: Callable[[], Client], filters: dict[str, str]) -> None:
        self._connect = connect
        self._filters = filters

    async def page(self, *, after: str | None = None, before: str | None = None) -> RunPage:
        """Return the page after (or before) a cursor; without one, the first."""
        params = dict(self._filters)
        if after is not None:
            params["page[after]"] = after
        if before is not None:
            params["page[before]"] = before
        response = await self._connect().http.get("/api/v1/runs", params)
        body: JsonObject = orjson.loads(response.content)
        pagination: JsonObject = body.get("pagination", {})
        return RunPage(
            tuple(Run.of(run) for run in cast(Sequence[JsonObject], body["data"])),
            pagination.get("next"),
            pagination.get("previous"),
        )

    async def __aiter__(self) -> AsyncIterator[Run]:
        after: str | None = None
        while True:
            page = await self.page(after=after)
            for run in page.runs:
                yield run
            if page.next is None:
                return
            after = page.next


class Runs:
    """Everything about runs, over one client."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect

    async def retrieve(self, run: str | RunHandle[Any]) -> Run:
        """Return a run as it is now. Raises NotFoundError."""
        response = await self._connect().http.get(f"/api/v3/runs/{_id(run)}")
        return Run.of(orjson.loads(response.content))

    def list(
        self,
        *,
        status: RunStatus | Sequence[RunStatus] | None = None,
        task: OneOrMore | None = None,
        tag: OneOrMore | None = None,
        batch: str | None = None,
        parent: str | RunHandle[Any] | None = None,
        schedule: str | None = None,
        created_from: datetime | None = None,
        created_to: datetime | None = None,
        created_in_last: Duration | None = None,
        page_size: int = 20,
    ) -> RunList:
        """Return the runs that match all filters, newest first; nothing is asked until iterated.

        `parent`: the run that triggered them. `schedule`: the id of the schedule that did.
        """
        filters = {
            "filter[status]": _joined(status),
            "filter[taskIdentifier]": _joined(task),
            "filter[tag]": _joined(tag),
            "filter[batch]": batch,
            "filter[parent]": None if parent is None else _id(parent),
            "filter[schedule]": schedule,
            "filter[createdAt][from]": _time(created_from),
            "filter[createdAt][to]": _time(created_to),
            "filter[createdAt][period]": _span(created_in_last),
            "page[size]": str(page_size),
        }
        given = {name: value for name, value in filters.items() if value is not None}
        return RunList(self._connect, given)

    async def cancel(self, run: str | RunHandle[Any]) -> None:
        """Stop a run, and its children after it, waited for or not.

        One that executes is told to, and is canceled soon after.
        """
        await self._connect().http.post(f"/api/v2/runs/{_id(run)}/cancel")

    async def reschedule(self, run: str | RunHandle[Any], *, delay: Duration | datetime) -> Run:
        """Have a run that waits for its time wait for so long from now, or until another time.

        Raises NotFoundError; ConflictError for a run that is queued already or has started.
        """
        body = {"delay": travelling_delay(delay)}
        response = await self._connect().http.post(f"/api/v1/runs/{_id(run)}/reschedule", json=body)
        return Run.of(orjson.loads(response.content))

    async def replay(self, run: str | RunHandle[Any], *, payload: object = UNSET) -> RunHandle[Any]:
        """Start a new run of the same task, with the same payload unless another is given."""
        body = None
        if payload is not UNSET:
            text = encode(payload, what="payload", limit=MAX_PAYLOAD_BYTES)
            body = {"payload": text, "payloadType": "application/json"}
        response = await self._connect().http.post(f"/api/v1/runs/{_id(run)}/replay", json=body)
        token = response.headers.get("x-trigger-jwt")
        answer: JsonObject = orjson.loads(response.content)
        return RunHandle(answer["id"], answer.get("taskIdentifier", ""), False, token)

    async def poll(
        self,
        run: str | RunHandle[Any],
        *,
        interval: Duration = 1.0,
        timeout: Duration | None = None,
    ) -> Run:
        """Return a run once it is over, asking every `interval`. Raises TimeoutError.

        `subscribe_to_run` does the same without asking, and says what happens on the way.
        """
        with anyio.fail_after(None if timeout is None else seconds(timeout)):
            while True:
                now = await self.retrieve(run)
                if now.is_completed:
                    return now
                await anyio.sleep(seconds(interval))

    def logs(
        self,
        run: str | RunHandle[Any],
        *,
        level: LogLevel = "debug",
        follow: bool = False,
        access_token: AccessToken | None = None,
    ) -> Logs:
        """Read the log of a run: `async for entry in runs.logs(run)`; each is a `LogEntry`.

        `level` is the least urgent wanted; `follow`: also what is yet to come, until the run is
        over. It takes an API key, or a token that names the stream "$log".
        """
        run_id = run.id if isinstance(run, RunHandle) else run
        following = logs_followed(self._connect, run_id, access_token) if follow else None
        return Logs(self._connect, run_id, level, following, access_token)

    def subscribe_to_run(
        self, run: str | RunHandle[Any], *, wait: Duration | None = None, **asked: Unpack[Asked]
    ) -> Updates:
        """Follow one run until it is over; `wait` up to 30 s for one that does not exist yet."""
        return self._updates({"run": run.id if isinstance(run, RunHandle) else run}, asked, wait)

    def subscribe_to_runs_with_tag(
        self,
        tag: OneOrMore,
        *,
        created_at: Duration | datetime | None = None,
        **asked: Unpack[Asked],
    ) -> Updates:
        """Follow the runs that carry a tag, or all of several; it never ends by itself.

        `created_at`: only runs created in the last so long, or since a time; the default is 24 h.
        """
        tags = [tag] if isinstance(tag, str) else [*tag]
        return self._updates({"tags": tags, "createdAt": _since(created_at)}, asked)

    def subscribe_to_batch(self, batch_id: str, **asked: Unpack[Asked]) -> Updates:
        """Follow the runs of a batch until all of them are over."""
        return self._updates({"batch": batch_id}, asked)

    def subscribe_to_runs(
        self,
        *,
        task: OneOrMore | None = None,
        status: RunStatus | Sequence[RunStatus] | None = None,
        created_at: Duration | datetime | None = None,
        **asked: Unpack[Asked],
    ) -> Updates:
        """Follow every run of the environment that matches; it never ends by itself."""
        wanted = {"task": _several(task), "status": _several(status)}
        chosen = {**wanted, "createdAt": _since(created_at)}
        return self._updates(
            {"runs": {name: value for name, value in chosen.items() if value is not None}}, asked
        )

    def _updates(self, to: JsonObject, asked: Asked, wait: Duration | None = None) -> Updates:
        target = {name: value for name, value in to.items() if value is not None}
        return Updates(self._connect, request(target, asked, wait), asked.get("access_token"))


def _id(run: str | RunHandle[Any]) -> str:
    return quote(run.id if isinstance(run, RunHandle) else run, safe="")


def _several(value: OneOrMore | None) -> "Sequence[str] | None":
    return None if value is None else [value] if isinstance(value, str) else [*value]


def _joined(value: OneOrMore | None) -> str | None:
    several = _several(value)
    if several is not None and any("," in one for one in several):
        raise InvalidValueError("a filter value cannot hold a comma", code="filter")
    return None if several is None else ",".join(several)


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone().isoformat()


def _span(value: Duration | None) -> str | None:
    return None if value is None else f"{seconds(value):g}s"


def _since(value: Duration | datetime | None) -> str | float | None:
    if value is None or isinstance(value, datetime):
        return _time(value)
    return seconds(value)


_default_runs = Runs(_default.client)
retrieve = _default_runs.retrieve
list = _default_runs.list
cancel = _default_runs.cancel
reschedule = _default_runs.reschedule
replay = _default_runs.replay
poll = _default_runs.poll
logs = _default_runs.logs
subscribe_to_run = _default_runs.subscribe_to_run
subscribe_to_runs_with_tag = _default_runs.subscribe_to_runs_with_tag
subscribe_to_batch = _default_runs.subscribe_to_batch
subscribe_to_runs = _default_runs.subscribe_to_runs
