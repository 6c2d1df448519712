"""What can go wrong in the engine.

EngineError
├── DatabaseUnavailableError   theirs: Postgres is away, starting, full or out of connections
├── CommitUnknownError         nobody's: COMMIT got no answer; it may have happened
├── StatementError             a statement failed; `repeatable` after a deadlock
├── DataRefusedError           yours: Postgres cannot hold a value
├── TransitionRefusedError     the run's state does not allow it (guard of the schema)
├── UnknownTaskError           yours: no worker ever announced the task
├── RunNotFoundError           yours: no run by that id
└── RunFinalError              yours: the run is over
FencedError (runwire.errors) is raised for writes of an execution that lost its run.
"""


class EngineError(Exception):
    """Every error the engine raises on purpose."""


class DatabaseUnavailableError(EngineError):
    """Postgres cannot be used right now; the work may be tried again later."""


class CommitUnknownError(DatabaseUnavailableError):
    """COMMIT got no answer: the transaction may or may not have happened."""


class StatementError(EngineError):
    """A statement failed; `repeatable` says that the same transaction may succeed."""

    def __init__(self, message: str, *, sqlstate: str, repeatable: bool) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.repeatable = repeatable


class DataRefusedError(EngineError):
    """Postgres cannot hold a value that was sent to it."""


class TransitionRefusedError(EngineError):
    """The schema's guard refused a transition that the run's status does not allow."""


class UnknownTaskError(EngineError):
    """No worker has announced this task in this environment."""

    def __init__(self, task: str) -> None:
        super().__init__(
            f"no worker has announced a task {task!r}; start one whose modules define it"
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
