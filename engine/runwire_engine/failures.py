"""What an exception in a task becomes: the error that is stored with its run. [core]

The text is cleaned of what Postgres cannot hold and bounded, since an exception's message may be
anything, an entire response body included.
"""

import traceback
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from types import TracebackType

import orjson

from runwire import values

MAX_MESSAGE = 4 * 1024
MAX_STACK = 16 * 1024
_STACK_HEAD = 4 * 1024
_CUT = "\n  … cut …\n"
# Frames of these packages stand above the task's own and say nothing to its author.
_OURS = (str(Path(__file__).parent), str(Path(values.__file__).parent))


class FailureCode(StrEnum):
    """Why a run failed, in one word."""

    TASK_ERROR = "TASK_ERROR"  # the task raised
    TASK_ABORTED = "TASK_ABORTED"  # the task raised AbortTaskRunError
    NON_DETERMINISTIC = "NON_DETERMINISTIC"  # it waited, and came another way when it ran again
    PAYLOAD_INVALID = "PAYLOAD_INVALID"
    OUTPUT_INVALID = "OUTPUT_INVALID"
    OUTPUT_TOO_LARGE = "OUTPUT_TOO_LARGE"
    CATCH_ERROR = "CATCH_ERROR"  # the task's catch_error raised
    TASK_UNKNOWN = "TASK_UNKNOWN"
    MAX_DURATION = "MAX_DURATION"
    CANCELED = "CANCELED"
    INTERNAL = "INTERNAL"


def describe(error: BaseException, code: FailureCode, *, stack: bool = True) -> str:
    """Return the JSON text of an exception as a run's error."""
    trace = _stack(error) if stack else None
    return failure(type(error).__name__, _message(error), code, trace)


def failure(name: str, message: str, code: FailureCode, stack: str | None = None) -> str:
    """Return the JSON text of a run's error."""
    body = {"name": _clean(name)[:256], "message": _cut(_clean(message)), "code": str(code)}
    if stack:
        body["stackTrace"] = stack
    return orjson.dumps(body).decode()


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # whatever it raises, its run must end
        return "(the error has no readable message)"


def _stack(error: BaseException) -> str:
    own = _own_frames(error.__traceback__)
    try:
        told = traceback.TracebackException(type(error), error, own, compact=True)
        text = _clean("".join(told.format()))
    except BaseException:
        return ""
    if len(text.encode()) <= MAX_STACK:
        return text
    raw = text.encode()
    tail = MAX_STACK - _STACK_HEAD - len(_CUT.encode())
    head, rest = raw[:_STACK_HEAD], raw[-tail:]
    return head.decode(errors="ignore") + _CUT + rest.decode(errors="ignore")


def _own_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the task's own first frame on, or None when there is none."""
    for frame in _frames(trace):
        if not frame.tb_frame.f_code.co_filename.startswith(_OURS):
            return frame
    return None


def _frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def _clean(text: str) -> str:
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
