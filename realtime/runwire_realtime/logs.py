"""Log records without secrets: no token, key, password or payload leaves the process in a line."""

import copy
import logging
import re
import sys
import traceback
from types import TracebackType
from typing import Final, TypeAlias

from runwire._log_line import LogLevel

_STANDARD_LEVELS: Final[dict[LogLevel, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "log": logging.WARNING,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
_REDACTED: Final = "[redacted]"
# Each pattern is linear; group 1, where there is one, is kept.
_SECRETS: Final = (
    re.compile(r"eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"),
    re.compile(r"tr_[a-z]{1,16}_[sp]k_[0-9A-Za-z]+"),
    re.compile(r"(\b[Bb]earer[ .])[^\s\"',]+"),
    re.compile(r"(://[^\s:/@]{0,128}:)[^\s@/]+(?=@)"),
    re.compile(r"(\b(?:token|password|secret|sign-in)=)[^\s&\"']+", re.IGNORECASE),
)

_Exception: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)


def redact(text: str) -> str:
    """Return text with everything that looks like a secret replaced."""
    for pattern in _SECRETS:
        text = pattern.sub(lambda found: (found[1] if found.lastindex else "") + _REDACTED, text)
    return text


class RedactingFormatter(logging.Formatter):
    """Formats a record, then redacts the whole line, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        # Another handler may have left its own text of the traceback on the record.
        own = copy.copy(record)
        own.exc_text = None
        return redact(super().format(own))

    def formatException(self, ei: _Exception) -> str:
        """Format a traceback by its places and the error's class only.

        The text of a foreign error may quote what it choked on: a payload, a row, a DSN.
        """
        kind, error, trace = ei
        if kind is None or error is None:
            return ""
        places = "".join(traceback.format_tb(trace)).rstrip()
        causes = _causes(error)
        return f"Traceback (most recent call last):\n{places}\n{' <- '.join(causes)}"


def _causes(error: BaseException) -> list[str]:
    names: list[str] = []
    at: BaseException | None = error
    while at is not None and len(names) < 8:
        own = type(at).__module__.partition(".")[0].startswith("runwire")
        names.append(f"{type(at).__name__}: {at}" if own else type(at).__name__)
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return names


def hear_runs(least: LogLevel) -> None:
    """Let the process's loggers make the records that the logs of its runs hold.

    Standard error goes on showing what it showed: warnings of others, and Runwire's own words.
    """
    root = logging.getLogger()
    for handler in root.handlers:
        handler.addFilter(_is_for_the_operator)
    root.setLevel(min(root.level, _STANDARD_LEVELS[least]))


def _is_for_the_operator(record: logging.LogRecord) -> bool:
    is_own = record.name == "runwire" or record.name.startswith("runwire.")
    return is_own or record.levelno >= logging.WARNING


def configure_logging(level: int = logging.INFO) -> None:
    """Send the process's log to standard error through the redacting formatter."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("runwire").setLevel(level)
    # What uvicorn reports of an application was reported by it already, or meant: a stream of
    # events that must not look finished is broken off.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    # The pool warns of each try while Postgres is away, several lines each; who needs the database
    # says so itself.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
