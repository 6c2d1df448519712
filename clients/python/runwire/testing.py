"""Testing tasks with pytest: what the fixtures `run_task` and `clock` offer.

    def test_a_story_is_written(run_task: RunTask) -> None:
        result = run_task.sync(write_story, StoryPrompt(topic="tides"))
        assert result.ok and "tides" in result.unwrap().text
        assert result.streams["openai"]

The fixtures come with the package; they need `pip install "runwire[server,embedded]"`. Async tests
say `await run_task(…)`, whatever plugin runs them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar, Unpack

from runwire._options import TriggerKeywords
from runwire.durations import Duration
from runwire.requests import RunStatus
from runwire.runs import LogEntry, RunError
from runwire.tasks import Task
from runwire.wire import Json, JsonObject

__all__ = [
    "Clock",
    "RunTask",
    "StartedRun",
    "SyncRunTask",
    "SyncStartedRun",
    "TaskFailedError",
    "TaskResult",
]

PayloadT = TypeVar("PayloadT")
OutputT = TypeVar("OutputT")
OutputT_co = TypeVar("OutputT_co", covariant=True)


class TaskFailedError(AssertionError):
    """`unwrap` of a run that did not complete; carries its result."""

    def __init__(self, result: "TaskResult[Any]") -> None:
        why = result.error
        told = "" if why is None else f": {why.name}: {why.message}"
        stack = "" if why is None or why.stack_trace is None else f"\n{why.stack_trace}"
        super().__init__(f"run of {result.task!r} ended {result.status}{told}{stack}")
        self.result = result


@dataclass(frozen=True)
class TaskResult(Generic[OutputT_co]):
    """A run that is over, whole."""

    id: str
    task: str
    status: RunStatus
    # As the function returned it; None unless the run completed.
    output: OutputT_co | None
    error: RunError | None
    # How often it was tried.
    attempts: int
    tags: tuple[str, ...] = ()
    # As it was in the end, and after each change.
    metadata: JsonObject = field(default_factory=dict[str, Json])
    metadata_history: tuple[JsonObject, ...] = ()
    # The chunks of each stream, in order.
    streams: Mapping[str, tuple[Json, ...]] = field(default_factory=dict[str, "tuple[Json, ...]"])
    # The lines of its log, in order.
    logs: tuple[LogEntry, ...] = ()
    # The runs it triggered, in order; those with a delay may not have started.
    children: tuple["TaskResult[Any]", ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the run completed."""
        return self.status == "COMPLETED"

    def unwrap(self) -> OutputT_co:
        """Return the output. Raises TaskFailedError, with the traceback, unless it completed."""
        if not self.ok:
            raise TaskFailedError(self)
        return self.output  # type: ignore[return-value]  # completed: what the function returned


class Clock(Protocol):
    """The time that runs see: the database's, ahead of the real one by what was skipped."""

    def now(self) -> datetime:
        """Return the time of the test's database, in UTC."""
        ...

    def advance(self, duration: Duration) -> None:
        """Move time forward: waits, delays, retries, expiries and schedules within become due."""
        ...

    def advance_to(self, time: datetime) -> None:
        """Move time forward to a moment. Raises ValueError for one that has passed."""
        ...


class SyncStartedRun(Protocol[OutputT_co]):
    """A run under way, for plain tests."""

    @property
    def id(self) -> str: ...

    def status(self) -> RunStatus:
        """Return the status it has now."""
        ...

    def until(self, *statuses: RunStatus, timeout: Duration = ...) -> RunStatus:
        """Wait until it has one of these statuses, skipping nothing. Raises TimeoutError."""
        ...

    def result(
        self, *, skip_waits: bool = ..., timeout: Duration = ...
    ) -> "TaskResult[OutputT_co]":
        """Wait until it is over. Raises TimeoutError."""
        ...


class StartedRun(Protocol[OutputT_co]):
    """A run under way."""

    @property
    def id(self) -> str: ...

    @property
    def sync(self) -> SyncStartedRun[OutputT_co]:
        """The blocking twins."""
        ...

    async def status(self) -> RunStatus:
        """Return the status it has now."""
        ...

    async def until(self, *statuses: RunStatus, timeout: Duration = ...) -> RunStatus:
        """Wait until it has one of these statuses, skipping nothing. Raises TimeoutError."""
        ...

    async def result(
        self, *, skip_waits: bool = ..., timeout: Duration = ...
    ) -> "TaskResult[OutputT_co]":
        """Wait until it is over. Raises TimeoutError."""
        ...


class SyncRunTask(Protocol):
    """The blocking twins of `RunTask`, for plain tests."""

    def __call__(
        self,
        task: Task[PayloadT, OutputT, ..., Any],
        payload: PayloadT = ...,
        *,
        skip_waits: bool = ...,
        timeout: Duration = ...,
        **options: Unpack[TriggerKeywords],
    ) -> "TaskResult[OutputT]":
        """Run a task until it is over; see `RunTask`."""
        ...

    def start(
        self,
        task: Task[PayloadT, OutputT, ..., Any],
        payload: PayloadT = ...,
        **options: Unpack[TriggerKeywords],
    ) -> SyncStartedRun[OutputT]:
        """Start a run and leave it to the test."""
        ...

    def runs(
        self, task: Task[Any, OutputT, ..., Any], *, timeout: Duration = ...
    ) -> "list[TaskResult[OutputT]]":
        """Wait until nothing executes, and return the runs of a task that are over, in order."""
        ...


class RunTask(Protocol):
    """Runs tasks as a worker does: with retries, queues, children, waits and hooks."""

    async def __call__(
        self,
        task: Task[PayloadT, OutputT, ..., Any],
        payload: PayloadT = ...,
        *,
        skip_waits: bool = ...,
        timeout: Duration = ...,
        **options: Unpack[TriggerKeywords],
    ) -> "TaskResult[OutputT]":
        """Run a task until it is over and nothing executes; return all that became of it.

        Whenever nothing executes, the clock moves on to when the next wait, delay or retry is over,
        unless `skip_waits` is False. Takes the options of `trigger`. Raises InvalidValueError for a
        payload that does not fit, TimeoutError after `timeout` (30 s of real time).
        """
        ...

    @property
    def sync(self) -> SyncRunTask:
        """The blocking twins."""
        ...

    async def start(
        self,
        task: Task[PayloadT, OutputT, ..., Any],
        payload: PayloadT = ...,
        **options: Unpack[TriggerKeywords],
    ) -> StartedRun[OutputT]:
        """Start a run and leave it to the test: to advance the clock, to cancel, to look."""
        ...

    async def runs(
        self, task: Task[Any, OutputT, ..., Any], *, timeout: Duration = ...
    ) -> "list[TaskResult[OutputT]]":
        """Wait until nothing executes, and return the runs of a task that are over, in order.

        For runs that the test did not start: of schedules, of children.
        """
        ...
