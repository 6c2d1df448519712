"""The log of the executing run: live in the dashboard and in `runwire runs logs`.

    logger.info("charged", {"order": 7, "amount": 12.5})

Lines are stored beside the run, in order, soon after. Writing one neither waits nor fails: what
does not fit is cut, and beyond the bounds of a log lines are dropped and counted, which its last
line tells. What the standard `logging` is told inside of a run is in its log, too. Outside of a run
lines go to `logging`, as logger "runwire.task".
"""

import logging
from collections.abc import Mapping
from typing import Final

from runwire import _context
from runwire._log_line import LogLevel

__all__ = ["debug", "error", "info", "log", "warn", "warning"]

_outside: Final = logging.getLogger("runwire.task")
_STANDARD: Final[Mapping[LogLevel, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "log": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}


def debug(message: object, attributes: Mapping[str, object] | None = None) -> None:
    """Write a line that is seen where RUNWIRE_RUN_LOG_LEVEL is debug."""
    _write("debug", message, attributes)


def info(message: object, attributes: Mapping[str, object] | None = None) -> None:
    """Write a line."""
    _write("info", message, attributes)


def log(message: object, attributes: Mapping[str, object] | None = None) -> None:
    """Write a line of the level between info and warn."""
    _write("log", message, attributes)


def warn(message: object, attributes: Mapping[str, object] | None = None) -> None:
    """Write a warning."""
    _write("warn", message, attributes)


def error(message: object, attributes: Mapping[str, object] | None = None) -> None:
    """Write an error; the run goes on."""
    _write("error", message, attributes)


def _write(level: LogLevel, message: object, attributes: Mapping[str, object] | None) -> None:
    runtime = _context.current()
    if runtime is not None:
        runtime.log(level, message, attributes)
    elif attributes:
        _outside.log(_STANDARD[level], "%s %s", message, dict(attributes))
    else:
        _outside.log(_STANDARD[level], "%s", message)


# As the standard library spells it.
warning = warn
