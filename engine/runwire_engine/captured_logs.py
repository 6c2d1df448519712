"""What the standard `logging` is told inside of a run goes into the log of that run, too.

A handler of the root logger finds the run by the context variable, so that code which knows nothing
of Runwire is captured, in asyncio tasks and in threads that took the context along
(`asyncio.to_thread`). Which records there are at all is for the levels of their loggers to say.
Records of Runwire itself are not captured: what stores a log must not write to it.
"""

import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from runwire import _context
from runwire._log_line import LogLevel

_LEVELS: Final[tuple[tuple[int, LogLevel], ...]] = (
    (logging.ERROR, "error"),
    (logging.WARNING, "warn"),
    (logging.INFO, "info"),
)
# What every record has; the rest is what `extra=` gave it.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_MAX_TRACE: Final = 8 * 1024  # characters


class RunHandler(logging.Handler):
    """Hands records to the executing run; outside of one it does nothing."""

    def emit(self, record: logging.LogRecord) -> None:
        runtime = _context.current()
        if runtime is None or record.name == "runwire" or record.name.startswith("runwire."):
            return
        runtime.log(_level(record), _message(record), _attributes(record), record.name)


def _level(record: logging.LogRecord) -> LogLevel:
    for least, name in _LEVELS:
        if record.levelno >= least:
            return name
    return "debug"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:
        # Arguments that do not fit their text: the text is still worth something.
        return str(record.msg)


def _attributes(record: logging.LogRecord) -> dict[str, object]:
    attributes = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    if record.exc_info and record.exc_info[1] is not None:
        attributes["exception"] = _formatter.formatException(record.exc_info)[-_MAX_TRACE:]
    return attributes


_formatter: Final = logging.Formatter()
_lock = threading.Lock()
_handler: Final = RunHandler()
_users = 0


@contextmanager
def capturing() -> Generator[None]:
    """Capture for the length of a block; several workers of a process share one handler."""
    _count(+1)
    try:
        yield
    finally:
        _count(-1)


def _count(change: int) -> None:
    global _users
    with _lock:
        _users += change
        root = logging.getLogger()
        if _users and _handler not in root.handlers:
            root.addHandler(_handler)
        elif not _users:
            root.removeHandler(_handler)
