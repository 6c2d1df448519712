"""The blocking twins: the async classes, run on a thread of their own."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, Unpack

from runwire._cron import Missed
from runwire._default import Blocking as Owner
from runwire._following import Asked, BlockingUpdates
from runwire._log_line import LogLevel
from runwire._run import Run
from runwire._settings import AccessToken, Settings
from runwire._sync_tasks import SyncBatches, SyncTasks
from runwire._triggering import RunHandle
from runwire.auth import Auth, Expiry, Scopes
from runwire.durations import Duration
from runwire.idempotency_keys import SyncIdempotencyKeys
from runwire.queues import Queue, QueueList, QueuePage, QueueReference
from runwire.queues import Queues as AsyncQueues
from runwire.requests import RunStatus
from runwire.runs import UNSET, LogEntry, RunList, RunPage
from runwire.runs import Runs as AsyncRuns
from runwire.schedules import Schedule, ScheduleKeywords, ScheduleList, SchedulePage
from runwire.schedules import Schedules as AsyncSchedules
from runwire.streams import Streams, SyncStreams
from runwire.tasks import AnyTask
from runwire.wait import SyncWait

OneOrMore = str | Sequence[str]


class SyncRunList:
    """The runs that match, newest first."""

    def __init__(self, owner: Owner, runs: RunList) -> None:
        self._owner = owner
        self._runs = runs

    def page(self, *, after: str | None = None, before: str | None = None) -> RunPage:
        """Return the page after (or before) a cursor; without one, the first."""
        return self._owner.run(self._runs.page(after=after, before=before))

    def __iter__(self) -> Iterator[Run]:
        after: str | None = None
        while True:
            page = self.page(after=after)
            yield from page.runs
            if page.next is None:
                return
            after = page.next


class SyncRuns:
    """Everything about runs; see `runwire.runs`."""

    def __init__(self, owner: Callable[[], Owner]) -> None:
        self._owner = owner
        self._runs = AsyncRuns(lambda: owner().client)

    def retrieve(self, run: str | RunHandle[Any]) -> Run:
        """Return a run as it is now. Raises NotFoundError."""
        return self._owner().run(self._runs.retrieve(run))

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
    ) -> SyncRunList:
        """Return the runs that match all filters, newest first."""
        runs = self._runs.list(
            status=status,
            task=task,
            tag=tag,
            batch=batch,
            parent=parent,
            schedule=schedule,
            created_from=created_from,
            created_to=created_to,
            created_in_last=created_in_last,
            page_size=page_size,
        )
        return SyncRunList(self._owner(), runs)

    def cancel(self, run: str | RunHandle[Any]) -> None:
        """Stop a run."""
        self._owner().run(self._runs.cancel(run))

    def reschedule(self, run: str | RunHandle[Any], *, delay: Duration | datetime) -> Run:
        """Have a run that waits for its time wait for so long from now, or until another time."""
        return self._owner().run(self._runs.reschedule(run, delay=delay))

    def replay(self, run: str | RunHandle[Any], *, payload: object = UNSET) -> RunHandle[Any]:
        """Start a new run of the same task, with the same payload unless another is given."""
        return self._owner().run(self._runs.replay(run, payload=payload))

    def poll(
        self,
        run: str | RunHandle[Any],
        *,
        interval: Duration = 1.0,
        timeout: Duration | None = None,
    ) -> Run:
        """Return a run once it is over. Raises TimeoutError."""
        return self._owner().run(self._runs.poll(run, interval=interval, timeout=timeout))

    def logs(
        self,
        run: str | RunHandle[Any],
        *,
        level: LogLevel = "debug",
        follow: bool = False,
        access_token: AccessToken | None = None,
    ) -> Iterator[LogEntry]:
        """Read the log of a run, as `Runs.logs` does."""
        logs = self._runs.logs(run, level=level, follow=follow, access_token=access_token)
        return self._owner().portal.iterate(logs.generator())

    def subscribe_to_run(
        self, run: str | RunHandle[Any], *, wait: Duration | None = None, **asked: Unpack[Asked]
    ) -> BlockingUpdates:
        """Follow one run until it is over."""
        updates = self._runs.subscribe_to_run(run, wait=wait, **asked)
        return BlockingUpdates(self._owner().portal, updates)

    def subscribe_to_runs_with_tag(
        self,
        tag: OneOrMore,
        *,
        created_at: Duration | datetime | None = None,
        **asked: Unpack[Asked],
    ) -> BlockingUpdates:
        """Follow the runs that carry a tag, or all of several; it never ends by itself."""
        updates = self._runs.subscribe_to_runs_with_tag(tag, created_at=created_at, **asked)
        return BlockingUpdates(self._owner().portal, updates)

    def subscribe_to_batch(self, batch_id: str, **asked: Unpack[Asked]) -> BlockingUpdates:
        """Follow the runs of a batch until all of them are over."""
        updates = self._runs.subscribe_to_batch(batch_id, **asked)
        return BlockingUpdates(self._owner().portal, updates)

    def subscribe_to_runs(
        self,
        *,
        task: OneOrMore | None = None,
        status: RunStatus | Sequence[RunStatus] | None = None,
        created_at: Duration | datetime | None = None,
        **asked: Unpack[Asked],
    ) -> BlockingUpdates:
        """Follow every run of the environment that matches; it never ends by itself."""
        updates = self._runs.subscribe_to_runs(
            task=task, status=status, created_at=created_at, **asked
        )
        return BlockingUpdates(self._owner().portal, updates)


class SyncQueueList:
    """The queues of an environment, by name."""

    def __init__(self, owner: Owner, queues: QueueList) -> None:
        self._owner = owner
        self._queues = queues

    def page(self, number: int | None = None) -> QueuePage:
        """Return a page, from 1; without a number, the first that was asked for."""
        return self._owner.run(self._queues.page(number))

    def __iter__(self) -> Iterator[Queue]:
        page = self.page()
        yield from page.queues
        for number in range(page.page + 1, page.total_pages + 1):
            yield from self.page(number).queues


class SyncQueues:
    """Everything about queues; see `runwire.queues`."""

    def __init__(self, owner: Callable[[], Owner]) -> None:
        self._owner = owner
        self._queues = AsyncQueues(lambda: owner().client)

    def list(self, *, page: int = 1, per_page: int = 25) -> SyncQueueList:
        """Return the queues by name, from a page on."""
        return SyncQueueList(self._owner(), self._queues.list(page=page, per_page=per_page))

    def retrieve(self, queue: QueueReference) -> Queue:
        """Return a queue as it is now. Raises NotFoundError."""
        return self._owner().run(self._queues.retrieve(queue))

    def pause(self, queue: QueueReference) -> Queue:
        """Start nothing of a queue any more; what executes goes on."""
        return self._owner().run(self._queues.pause(queue))

    def resume(self, queue: QueueReference) -> Queue:
        """Have a paused queue go on, at once."""
        return self._owner().run(self._queues.resume(queue))

    def override_concurrency_limit(self, queue: QueueReference, concurrency_limit: int) -> Queue:
        """Put another limit in place of the one in code, until it is reset."""
        return self._owner().run(self._queues.override_concurrency_limit(queue, concurrency_limit))

    def reset_concurrency_limit(self, queue: QueueReference) -> Queue:
        """Go back to the limit in code."""
        return self._owner().run(self._queues.reset_concurrency_limit(queue))


class SyncScheduleList:
    """All schedules, oldest first: `for schedule in …`, or page by page."""

    def __init__(self, owner: Owner, schedules: ScheduleList) -> None:
        self._owner = owner
        self._schedules = schedules

    def page(self, number: int = 1) -> SchedulePage:
        """Return a page; the first is 1."""
        return self._owner.run(self._schedules.page(number))

    def __iter__(self) -> Iterator[Schedule]:
        number = 1
        while True:
            page = self.page(number)
            yield from page.schedules
            if number >= page.pages:
                return
            number += 1


class SyncSchedules:
    """Everything about schedules; see `runwire.schedules`."""

    def __init__(self, owner: Callable[[], Owner]) -> None:
        self._owner = owner
        self._schedules = AsyncSchedules(lambda: owner().client)

    def create(
        self,
        *,
        task: str | AnyTask,
        cron: str,
        deduplication_key: str,
        timezone: str = "UTC",
        external_id: str | None = None,
        window: str | None = None,
        missed: Missed = "newest",
    ) -> Schedule:
        """Make a schedule, or change the one with the same deduplication key."""
        return self._owner().run(
            self._schedules.create(
                task=task,
                cron=cron,
                deduplication_key=deduplication_key,
                timezone=timezone,
                external_id=external_id,
                window=window,
                missed=missed,
            )
        )

    def update(self, schedule_id: str, **changes: Unpack[ScheduleKeywords]) -> Schedule:
        """Change what is given of a schedule that was made by a call. Raises NotFoundError."""
        return self._owner().run(self._schedules.update(schedule_id, **changes))

    def retrieve(self, schedule_id: str) -> Schedule:
        """Return a schedule as it is now. Raises NotFoundError."""
        return self._owner().run(self._schedules.retrieve(schedule_id))

    def list(self, *, per_page: int = 50) -> SyncScheduleList:
        """Return all schedules, oldest first; nothing is asked until iterated."""
        return SyncScheduleList(self._owner(), self._schedules.list(per_page=per_page))

    def activate(self, schedule_id: str) -> Schedule:
        """Have a schedule tick again, from now on. Raises NotFoundError."""
        return self._owner().run(self._schedules.activate(schedule_id))

    def deactivate(self, schedule_id: str) -> Schedule:
        """Have a schedule stand still until it is activated. Raises NotFoundError."""
        return self._owner().run(self._schedules.deactivate(schedule_id))

    def del_(self, schedule_id: str) -> None:
        """Delete a schedule that was made by a call; its runs stay. Raises NotFoundError."""
        self._owner().run(self._schedules.del_(schedule_id))

    def timezones(self, *, exclude_utc: bool = False) -> tuple[str, ...]:
        """Return the names of every time zone a cron may be read in."""
        return self._owner().run(self._schedules.timezones(exclude_utc=exclude_utc))


class SyncAuth:
    """Mints public tokens; see `runwire.auth`."""

    def __init__(self, owner: Callable[[], Owner]) -> None:
        self._owner = owner
        self._auth = Auth(lambda: owner().client)

    def create_public_token(
        self,
        *,
        scopes: Scopes,
        expiration_time: Expiry = "15m",
        fields: Sequence[str] | None = None,
        streams: Sequence[str] | None = None,
    ) -> str:
        """Return a token that may do what any one of the scopes allows."""
        return self._owner().run(
            self._auth.create_public_token(
                scopes=scopes, expiration_time=expiration_time, fields=fields, streams=streams
            )
        )

    def create_trigger_public_token(
        self, task: OneOrMore, *, expiration_time: Expiry = "15m", multiple_use: bool = False
    ) -> str:
        """Return a token that triggers a task, or any of several; once, unless told otherwise."""
        return self._owner().run(
            self._auth.create_trigger_public_token(
                task, expiration_time=expiration_time, multiple_use=multiple_use
            )
        )

    def create_batch_trigger_public_token(
        self, task: OneOrMore, *, expiration_time: Expiry = "15m", multiple_use: bool = False
    ) -> str:
        """Return a token that triggers batches of a task, or of any of several."""
        return self._owner().run(
            self._auth.create_batch_trigger_public_token(
                task, expiration_time=expiration_time, multiple_use=multiple_use
            )
        )


class Runwire:
    """The twin of `AsyncRunwire` for code without a loop: the same calls, blocking.

    Its connections live on a thread, started when first needed; use `with`, or call `close`.
    """

    def __init__(
        self, *, api_url: str | None = None, access_token: AccessToken | None = None
    ) -> None:
        owner = Owner(Settings.of(api_url, access_token))
        self._blocking = owner
        self.tasks = SyncTasks(lambda: owner)
        self.runs = SyncRuns(lambda: owner)
        self.batch = SyncBatches(lambda: owner, lambda: owner)
        self.idempotency_keys = SyncIdempotencyKeys(lambda: owner, lambda: owner)
        self.queues = SyncQueues(lambda: owner)
        self.streams = SyncStreams(lambda: owner.portal, Streams(lambda: owner.client))
        self.auth = SyncAuth(lambda: owner)
        self.schedules = SyncSchedules(lambda: owner)
        self.wait = SyncWait(lambda: owner, lambda: owner)

    def close(self) -> None:
        """Close every connection and end the thread."""
        self._blocking.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
