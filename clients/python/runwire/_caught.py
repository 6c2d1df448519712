"""What a `catch_error` hook may answer: what becomes of a run whose attempt raised."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypedDict, cast

from runwire._task_options import RetryKeywords, RetryOptions, retry_options
from runwire.durations import Duration, seconds
from runwire.errors import TaskError


class CaughtKeywords(TypedDict, total=False):
    """A verdict as a dict; see `Caught`."""

    skip_retrying: bool
    retry_at: datetime
    retry_delay: Duration
    retry: RetryOptions | RetryKeywords
    error: BaseException


@dataclass(frozen=True)
class Caught:
    """A verdict. Without any of the first four the task's own retry options decide."""

    # No further attempt.
    skip_retrying: bool = False
    # Another attempt at that time, or after that long, whatever max_attempts says.
    retry_at: datetime | None = None
    retry_delay: float | None = None
    # Another attempt as these options say.
    retry: RetryOptions | None = None
    # What the run failed of, instead of what was raised.
    error: BaseException | None = None

    def __post_init__(self) -> None:
        chosen = [
            name
            for name in ("skip_retrying", "retry_at", "retry_delay", "retry")
            if getattr(self, name) not in (None, False)
        ]
        if len(chosen) > 1:
            raise TaskError(f"catch_error answered {' and '.join(chosen)}; it can be one of them")
        if self.retry_at is not None and not isinstance(cast(object, self.retry_at), datetime):
            raise TaskError(f"catch_error: retry_at is a datetime, not {self.retry_at!r}")
        if self.retry_delay is not None and self.retry_delay < 0:
            raise TaskError(f"catch_error: retry_delay cannot be negative: {self.retry_delay}")
        if self.error is not None and not isinstance(cast(object, self.error), BaseException):
            raise TaskError(f"catch_error: error is an exception, not {self.error!r}")


def caught(answer: object) -> Caught | None:
    """Return what a hook answered; None where it left the decision to others.

    Raises TaskError for an answer that is none, InvalidValueError for a duration that is none.
    """
    match answer:
        case None:
            return None
        case Caught():
            return answer
        case dict():
            given = dict(cast(dict[str, Any], answer))
        case _:
            raise TaskError(f"catch_error answers a dict or nothing, not {type(answer).__name__}")
    names = [field.name for field in fields(Caught)]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise TaskError(f"catch_error answers any of {', '.join(names)}, not {', '.join(unknown)}")
    if given.get("retry_delay") is not None:
        given["retry_delay"] = seconds(given["retry_delay"])
    if given.get("retry") is not None:
        given["retry"] = retry_options(given["retry"])
    return Caught(**given)
