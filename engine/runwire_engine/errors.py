"""What can go wrong in the engine.

EngineError
├── DatabaseUnavailableError   theirs: Postgres is away, starting, full or out of connections
│   ├── LockHeldError          somebody else's: a lock was not had in time
│   ├── CommitUnknownError     nobody's: COMMIT got no answer; it may have happened
│   ├── StatementTimeoutError  a statement took longer than it may, and was given up
│   └── WritesRefusedError     theirs: nothing can be stored now
│       ├── DiskFullError      no disk space is left
│       └── ReadOnlyError      it is set to read-only, or has become a standby
├── StandbyError               theirs: this Postgres only follows another
├── StatementError             a statement failed; `repeatable` after a deadlock
├── DataRefusedError           yours: Postgres cannot hold a value
│   └── TooManyTagsError       yours: more tags than a run may have
├── TransitionRefusedError     the run's state does not allow it (guard of the schema)
├── UnknownTaskError           yours: no worker ever announced the task
├── RunNotFoundError           yours: no run by that id
├── RunFinalError              yours: the run is over
├── NotDelayedError            yours: the run does not wait for a time
├── BatchNotFoundError         yours: no batch by that id
├── WaitpointNotFoundError     yours: no waitpoint by that id
├── ScheduleNotFoundError      yours: no schedule by that id
├── ScheduleDeclaredError      yours: the schedule stands in the code of its task
├── QueueNotFoundError         yours: no queue by that name or id
├── NoOverrideError            yours: the queue has no other limit than code says
├── TokenUsedError             yours: a one-time token that has paid for a run already
├── StreamFullError            yours: the stream has reached its limit
├── KeyRefusedError            yours: not an API key, or another environment's
├── MigrationRefusedError      yours: this code and this database do not fit together
└── EmbeddedPostgresError      theirs: the embedded Postgres does not start
    └── DataDirectoryLockedError   yours: another process has this data folder open
FencedError (runwire.errors) is raised for writes of an execution that lost its run.
"""

from runwire.errors import NotFoundError


class EngineError(Exception):
    """Every error the engine raises on purpose."""


class DatabaseUnavailableError(EngineError):
    """Postgres cannot be used right now; the work may be tried again later."""


class LockHeldError(DatabaseUnavailableError):
    """Somebody sits on a lock that is needed; the work may be tried again later."""


class CommitUnknownError(DatabaseUnavailableError):
    """COMMIT got no answer: the transaction may or may not have happened."""


class StatementTimeoutError(DatabaseUnavailableError):
    """A statement took longer than it may, or was canceled by somebody."""


class WritesRefusedError(DatabaseUnavailableError):
    """Postgres answers, but stores nothing now; reading goes on."""


class DiskFullError(WritesRefusedError):
    """Postgres has no disk space left."""


class ReadOnlyError(WritesRefusedError):
    """Postgres is set to read-only, or has become a standby."""


class StandbyError(EngineError):
    """This Postgres is a standby: what it shows may be old, and its snapshots are incomplete."""


class StatementError(EngineError):
    """A statement failed; `repeatable` says that the same transaction may succeed."""

    def __init__(self, message: str, *, sqlstate: str, repeatable: bool) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.repeatable = repeatable


class DataRefusedError(EngineError):
    """Postgres cannot hold a value that was sent to it."""


class TooManyTagsError(DataRefusedError):
    """The run would have more tags than a run may have; none of the new ones was added."""

    def __init__(self, run_id: str, most: int) -> None:
        super().__init__(f"a run has at most {most} tags; {run_id} got none of these")
        self.run_id = run_id


class TransitionRefusedError(EngineError):
    """The schema's guard refused a transition that the run's status does not allow."""


class UnknownTaskError(EngineError, NotFoundError):
    """No worker has announced this task in this environment.

    Inside a run and a transaction it is what the HTTP API's answer becomes: a NotFoundError.
    """

    def __init__(self, task: str) -> None:
        super().__init__(
            f"no worker has announced a task {task!r}; start one whose modules define it",
            status=404,
            code="not_found",
        )
        self.task = task


class RunNotFoundError(EngineError):
    """There is no such run in this environment."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"there is no run {run_id}")
        self.run_id = run_id


class RunFinalError(EngineError):
    """The run is over, and this can no longer be done to it."""

    def __init__(self, run_id: str, status: str) -> None:
        super().__init__(f"run {run_id} is over ({status})")
        self.run_id = run_id
        self.status = status


class NotDelayedError(EngineError):
    """The run does not wait for a time: it is queued already, or has started."""

    def __init__(self, run_id: str, status: str) -> None:
        super().__init__(f"run {run_id} cannot be rescheduled: it is {status}")
        self.run_id = run_id
        self.status = status


class BatchNotFoundError(EngineError):
    """There is no such batch in this environment."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"there is no batch {batch_id}")
        self.batch_id = batch_id


class WaitpointNotFoundError(EngineError):
    """There is no such waitpoint in this environment."""

    def __init__(self, waitpoint_id: str) -> None:
        super().__init__(f"there is no waitpoint {waitpoint_id}")
        self.waitpoint_id = waitpoint_id


class ScheduleNotFoundError(EngineError):
    """There is no such schedule in this environment."""

    def __init__(self, schedule_id: str) -> None:
        super().__init__(f"there is no schedule {schedule_id}")
        self.schedule_id = schedule_id


class ScheduleDeclaredError(EngineError):
    """The schedule is declared in the code of its task, and is changed there only."""

    def __init__(self, schedule_id: str, task: str) -> None:
        super().__init__(
            f"schedule {schedule_id} stands in the code of task {task!r}: change its cron there;"
            " it can be deactivated"
        )
        self.schedule_id = schedule_id
        self.task = task


class QueueNotFoundError(EngineError):
    """There is no such queue in this environment: no worker and no trigger has named it."""

    def __init__(self, queue: str) -> None:
        super().__init__(f"there is no queue {queue!r}: no worker and no trigger has named it")
        self.queue = queue


class NoOverrideError(EngineError):
    """The queue's limit is what code says; there is nothing to reset."""

    def __init__(self, queue: str) -> None:
        super().__init__(f"the limit of queue {queue!r} is not overridden")
        self.queue = queue


class TokenUsedError(EngineError):
    """The one-time token has triggered a run already."""

    def __init__(self) -> None:
        super().__init__("this one-time token was used already")


class StreamFullError(EngineError):
    """The stream would grow beyond its limit (`limit` bytes)."""

    def __init__(self, run_id: str, key: str, limit: int) -> None:
        super().__init__(f"stream {key!r} of {run_id} would grow beyond {limit} bytes")
        self.run_id = run_id
        self.key = key
        self.limit = limit


class KeyRefusedError(EngineError):
    """A text that cannot be an API key of this environment."""


class MigrationRefusedError(EngineError):
    """This version of the code and this database do not fit together."""


class EmbeddedPostgresError(EngineError):
    """The embedded Postgres cannot be made or started."""


class DataDirectoryLockedError(EmbeddedPostgresError):
    """Another process supervises the Postgres in this data folder."""

    def __init__(self, directory: str) -> None:
        super().__init__(f"the data folder {directory} is in use by another runwire process")
        self.directory = directory
