"""What can go wrong, as classes that carry data.

RunwireError
├── InvalidValueError        yours: a value that cannot be sent or stored
├── ConfigurationError       yours: no address, no credential, a wrong option
├── NotInRunError            yours: a call that only makes sense inside an executing run
├── NotInTransactionError    yours: a connection that is in no transaction, or in a failed one
├── NotSetError              yours: nothing was set in `locals` under a key
├── TaskError                yours: a task definition that cannot work
├── AbortTaskRunError        yours, raised on purpose: fail the attempt and do not retry
├── WaitTimeoutError         nobody's: a wait token was not completed in time
├── NonDeterministicError    yours: a task that waited came another way when it ran again
├── SubtaskUnwrapError       a child run that was waited for did not complete
├── BatchTriggerError        a batch could not be started, or not whole; the cause says why
├── ApiError                 theirs: the server refused a request
│   ├── MalformedError (400) ├── UnauthorizedError (401) ├── ForbiddenError (403)
│   ├── NotFoundError (404)  ├── ConflictError (409, 422) ├── TooLargeError (413)
│   ├── RateLimitedError (429) └── ServerError (5xx)
├── SubscriptionError        theirs: a subscription ended for a reason that HTTP has no word for;
│                            else it raises the ApiError that a request would
├── UnreachableError         nobody's: the server stayed away past the deadline
└── FencedError              a write came from an execution that no longer holds its run
"""

from typing import TYPE_CHECKING, Literal

from runwire.wire import ErrorCode

if TYPE_CHECKING:
    from runwire._run import RunError


class RunwireError(Exception):
    """Every error this package raises on purpose."""


class InvalidValueError(RunwireError, ValueError):
    """A value that cannot be sent or stored; `code` says why in one word."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class ConfigurationError(RunwireError):
    """Something that must be configured is missing or wrong."""


class NotInRunError(RunwireError):
    """The call needs an executing run around it."""


class NotInTransactionError(RunwireError):
    """The connection is in no transaction that a run could be triggered in."""


class NotSetError(RunwireError, LookupError):
    """No value was set under a key of `locals`; `key` is the key's id."""

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key


class TaskError(RunwireError):
    """A task definition that cannot work; the message says what to change."""


class AbortTaskRunError(RunwireError):
    """Raise it in a task to fail the run at once, without further attempts."""


class WaitTimeoutError(RunwireError):
    """A wait token was not completed in time."""

    def __init__(self, message: str, *, token_id: str) -> None:
        super().__init__(message)
        self.token_id = token_id


class NonDeterministicError(RunwireError):
    """A task that waited asked for something else when it ran again; the run fails for good."""

    def __init__(self, message: str, *, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


class SubtaskUnwrapError(RunwireError):
    """A child run did not complete: which one, and its error."""

    def __init__(self, error: "RunError", *, run_id: str, task_identifier: str) -> None:
        super().__init__(f"run {run_id} of task {task_identifier!r} failed: {error.message}")
        self.error = error
        self.run_id = run_id
        self.task_identifier = task_identifier


class BatchTriggerError(RunwireError):
    """A batch was not started whole; `__cause__` (also `cause`) is what went wrong.

    `phase` is "create" while there is no batch yet, then "stream": what it had by then goes on, and
    `batch_id` names it. `item_count` is how many items were to be sent, as far as they were known.
    """

    def __init__(
        self,
        cause: BaseException,
        *,
        phase: Literal["create", "stream"],
        batch_id: str | None,
        item_count: int,
    ) -> None:
        what = (
            "a batch could not be created" if batch_id is None else f"batch {batch_id} is not whole"
        )
        super().__init__(f"{what} ({item_count} items): {cause or type(cause).__name__}")
        self.phase: Literal["create", "stream"] = phase
        self.batch_id = batch_id
        self.item_count = item_count
        self.cause = cause
        self.__cause__ = cause

    @property
    def is_rate_limited(self) -> bool:
        """Whether the server had too many requests, and `retry_after` may say until when."""
        return isinstance(self.cause, RateLimitedError)

    @property
    def retry_after(self) -> float | None:
        """Seconds after which to try again, where the server said so."""
        return self.cause.retry_after if isinstance(self.cause, RateLimitedError) else None


class FencedError(RunwireError):
    """The write was refused: another execution holds the run, or the run is final."""

    def __init__(self, message: str, *, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


class ApiError(RunwireError):
    """The server refused; `status` is the HTTP status, `code` the protocol's word for it."""

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class MalformedError(ApiError):
    """The request was not understood."""


class UnauthorizedError(ApiError):
    """The credential is missing, wrong or expired."""


class ForbiddenError(ApiError):
    """The credential does not allow this."""


class NotFoundError(ApiError):
    """There is nothing by that id that this credential may see."""


class ConflictError(ApiError):
    """The state of the thing does not allow this."""


class TooLargeError(ApiError):
    """A body or value over its limit."""


class RateLimitedError(ApiError):
    """Too many requests; `retry_after` is in seconds."""

    retry_after: float | None = None


class ServerError(ApiError):
    """The server failed; the request may be repeated."""


class SubscriptionError(RunwireError):
    """A subscription that the server closed; `code` is the protocol's word for it."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class UnreachableError(RunwireError):
    """The server could not be reached before the deadline (`after` seconds)."""

    def __init__(self, message: str, *, after: float) -> None:
        super().__init__(message)
        self.after = after


_BY_STATUS: dict[int, type[ApiError]] = {
    400: MalformedError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: NotFoundError,
    413: TooLargeError,
    422: ConflictError,
    429: RateLimitedError,
}
_STATUS_OF_CODE: dict[str, int] = {
    ErrorCode.MALFORMED: 400,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.GONE: 410,
    ErrorCode.CONFLICT: 422,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.TOO_MANY: 429,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.INTERNAL: 500,
}


def api_error(status: int, message: str, code: str) -> ApiError:
    """Return the error class that fits an HTTP status."""
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else ApiError)
    return kind(message, status=status, code=code)


def error_of_code(code: str, message: str) -> ApiError:
    """Return the error class that fits a protocol error code."""
    return api_error(_STATUS_OF_CODE.get(code, 500), message, code)


def status_of(code: ErrorCode) -> int:
    """Return the HTTP status that goes with a protocol error code."""
    return _STATUS_OF_CODE[code]
