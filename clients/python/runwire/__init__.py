"""Tasks, runs and live updates: everything an application imports."""

from runwire import (
    auth,
    batch,
    idempotency_keys,
    logger,
    metadata,
    queues,
    runs,
    schedules,
    streams,
    tags,
    tasks,
    wait,
)
from runwire._async import AsyncRunwire
from runwire._context import Context
from runwire._sync import Runwire
from runwire.errors import (
    AbortTaskRunError,
    ApiError,
    BatchTriggerError,
    ConfigurationError,
    ConflictError,
    FencedError,
    ForbiddenError,
    InvalidValueError,
    NotFoundError,
    NotInRunError,
    NotInTransactionError,
    RunwireError,
    SubscriptionError,
    TaskError,
    UnauthorizedError,
    UnreachableError,
)
from runwire.queues import queue
from runwire.runs import Event, Run
from runwire.schedules import ScheduledTaskPayload
from runwire.tasks import Signal, Task, task

__all__ = [
    "AbortTaskRunError",
    "ApiError",
    "AsyncRunwire",
    "BatchTriggerError",
    "ConfigurationError",
    "ConflictError",
    "Context",
    "Event",
    "FencedError",
    "ForbiddenError",
    "InvalidValueError",
    "NotFoundError",
    "NotInRunError",
    "NotInTransactionError",
    "Run",
    "Runwire",
    "RunwireError",
    "ScheduledTaskPayload",
    "Signal",
    "SubscriptionError",
    "Task",
    "TaskError",
    "UnauthorizedError",
    "UnreachableError",
    "auth",
    "batch",
    "idempotency_keys",
    "logger",
    "metadata",
    "queue",
    "queues",
    "runs",
    "schedules",
    "streams",
    "tags",
    "task",
    "tasks",
    "wait",
]
