"""When a lost socket is opened again, and when not. [core]"""

from typing import Final

from runwire.errors import RunwireError, SubscriptionError, error_of_code
from runwire.wire import FRAME_TOO_LARGE, CloseCode, ErrorCode, may_reconnect

FIRST_WAIT: Final = 0.5  # seconds; full jitter, so that a thousand clients do not return at once
LONGEST_WAIT: Final = 30.0
STABLE: Final = 60.0  # a socket that lived so long starts the count again

_WORD_OF_CLOSE: Final[dict[int, ErrorCode]] = {
    CloseCode.TOKEN_EXPIRED: ErrorCode.UNAUTHORIZED,
    CloseCode.INVALID_TOKEN: ErrorCode.UNAUTHORIZED,
    CloseCode.REVOKED: ErrorCode.UNAUTHORIZED,
    CloseCode.FORBIDDEN: ErrorCode.FORBIDDEN,
    CloseCode.NOT_FOUND: ErrorCode.NOT_FOUND,
    CloseCode.MALFORMED: ErrorCode.MALFORMED,
    FRAME_TOO_LARGE: ErrorCode.TOO_LARGE,
}


def backoff(failures: int, random: float) -> float:
    """Return the seconds before try number `failures` (from 0), `random` in [0, 1)."""
    return random * min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(failures, 16))


class Reconnect:
    """What was tried so far, and when the next try is due."""

    def __init__(self, *, is_refreshable: bool) -> None:
        # Whether asking for the token again may give another one.
        self.is_refreshable = is_refreshable
        self.due: float | None = None
        self._failures = 0
        self._refused_tokens = 0
        self._ready_at: float | None = None

    def ready(self, now: float) -> None:
        """Note that the credential was accepted."""
        self._ready_at, self._refused_tokens = now, 0

    def is_due(self, now: float) -> bool:
        """Say, once, that the next try is due."""
        if self.due is None or now < self.due:
            return False
        self.due = None
        return True

    def lost(self, code: int, reason: str, now: float, random: float) -> RunwireError | None:
        """Note that a socket was closed, or not opened. Return why no other try makes sense."""
        if self._is_final(code):
            return _close_error(code, reason)
        if self._ready_at is not None and now - self._ready_at >= STABLE:
            self._failures = 0
        self._ready_at = None
        self.due = now + backoff(self._failures, random)
        self._failures += 1
        return None

    def _is_final(self, code: int) -> bool:
        if code == CloseCode.TOKEN_EXPIRED:
            return not self.is_refreshable
        if code == CloseCode.INVALID_TOKEN and self.is_refreshable:
            # The token may have ended on its way; a fresh one that is refused is wrong.
            self._refused_tokens += 1
            return self._refused_tokens > 1
        return not may_reconnect(code)


def _close_error(code: int, reason: str) -> RunwireError:
    message = reason or f"the server closed the socket with code {code}"
    word = _WORD_OF_CLOSE.get(code)
    if word is not None:
        return error_of_code(word, message)
    return SubscriptionError(message, code=str(code))
