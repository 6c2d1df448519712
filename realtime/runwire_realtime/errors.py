"""What can go wrong in the server.

RealtimeError
├── RefusedError            yours: a request that is answered with an error
│   ├── UnauthorizedError   the credential is missing, wrong, expired or used up
│   ├── ForbiddenError      the credential does not allow this
│   └── NotFoundError       nothing by that id that the credential may see
├── ScopeError              yours: a scope outside the grammar
└── StartError              the operator's: why a process cannot start, in one line
"""

from runwire.errors import status_of
from runwire.wire import ErrorCode


class RealtimeError(Exception):
    """Every error this package raises on purpose."""


class RefusedError(RealtimeError):
    """A request that is refused: `code` is the protocol's word, `status` the HTTP status.

    `retry` tells official clients whether the same request may be sent again (x-should-retry);
    None leaves it to the status.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        status: int | None = None,
        retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status_of(code) if status is None else status
        self.retry = retry


class UnauthorizedError(RefusedError):
    """The credential is missing, wrong, expired or used up."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.UNAUTHORIZED, message)


class ForbiddenError(RefusedError):
    """The credential is good but does not allow this."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.FORBIDDEN, message)


class NotFoundError(RefusedError):
    """There is nothing by that id, or nothing that this environment may see."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.NOT_FOUND, message)


class ScopeError(RealtimeError):
    """A scope outside the grammar; a token that carries one is refused whole."""


class StartError(RealtimeError):
    """Why a process cannot start: one line for the person at the terminal."""
