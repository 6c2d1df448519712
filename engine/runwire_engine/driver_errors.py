"""The driver's errors, translated into ours: once, where statements run.

The text of an error of ours never has a value in it: what users wrote stays out of logs.
"""

import psycopg

from runwire_engine.errors import (
    DatabaseUnavailableError,
    DataRefusedError,
    DiskFullError,
    EngineError,
    LockHeldError,
    ReadOnlyError,
    StatementError,
    StatementTimeoutError,
    TransitionRefusedError,
)


def translate(error: psycopg.Error | UnicodeError, name: str = "a statement") -> EngineError:
    """Return our error for a driver error."""
    if isinstance(error, UnicodeError):
        return DataRefusedError(f"{name}: a text has characters that UTF-8 cannot hold")
    state = error.sqlstate
    if state is None:
        return _translate_the_drivers_own(error, name)
    message = f"{name}: {error.diag.message_primary}"
    if state in {"RW001", "RW002", "RW003"}:
        return TransitionRefusedError(error.diag.message_primary or "")
    # Class 22 quotes the value it refuses.
    if state[:2] == "22":
        return DataRefusedError(f"{name}: {type(error).__name__} ({state})")
    if state[:2] == "54" or state == "23514":
        return DataRefusedError(message)
    if state == "55P03":
        return LockHeldError(message)
    if state == "53100":
        return DiskFullError(message)
    # Also: what was the primary is a standby now.
    if state == "25006":
        return ReadOnlyError(message)
    if state == "57014":
        return StatementTimeoutError(message)
    # The last two: the session idled in a transaction, or its transaction took too long.
    if state[:2] in {"08", "53", "57"} or state in {"25P03", "25P04"}:
        return DatabaseUnavailableError(message)
    repeatable = isinstance(
        error, psycopg.errors.DeadlockDetected | psycopg.errors.SerializationFailure
    )
    return StatementError(message, sqlstate=state, repeatable=repeatable)


def _translate_the_drivers_own(error: psycopg.Error, name: str) -> EngineError:
    if isinstance(error, psycopg.DataError):
        return DataRefusedError(f"{name}: a value that Postgres cannot hold (a NUL in a text?)")
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return DatabaseUnavailableError(f"{name}: the connection to Postgres is lost")
    return StatementError(f"{name}: {type(error).__name__}", sqlstate="", repeatable=False)


class Refusal:
    """Why a connection could not be made, fit for showing: libpq's text has no password."""

    def __init__(self, error: psycopg.Error) -> None:
        # One line per address that was tried; the server's own words come after FATAL.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        server = [line.partition("FATAL:")[2].strip() for line in lines if "FATAL:" in line]
        self.reason = server[0] if server else (lines[0] if lines else type(error).__name__)
        self.is_a_poolers = "unsupported startup parameter" in self.reason
        self.is_final = bool(server) and any(
            words in self.reason
            for words in ("authentication", "does not exist", "pg_hba.conf", "not permitted")
        )
