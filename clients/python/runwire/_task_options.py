"""The options of a task: how it is retried, which queue its runs wait in."""

from dataclasses import dataclass, fields
from typing import Any, Final, TypedDict, cast

from runwire.durations import Duration, seconds
from runwire.errors import TaskError

MAX_ID_LENGTH: Final = 128


@dataclass(frozen=True)
class RetryOptions:
    """How often a run is tried, and what it waits in between. Times are seconds."""

    max_attempts: int = 3  # the first one included
    factor: float = 2.0
    min_timeout: float = 1.0
    max_timeout: float = 60.0
    randomize: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.max_attempts <= 1000:
            raise TaskError(f"retry max_attempts is 1 to 1000, not {self.max_attempts}")
        if self.factor < 1 or self.min_timeout < 0 or self.max_timeout < self.min_timeout:
            raise TaskError("retry needs factor >= 1 and 0 <= min_timeout <= max_timeout")


@dataclass(frozen=True)
class QueueOptions:
    """Which queue a task's runs wait in, and how many of it execute at once (None: no limit)."""

    name: str
    concurrency_limit: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= MAX_ID_LENGTH:
            raise TaskError(f"a queue name is 1 to {MAX_ID_LENGTH} characters")
        if self.concurrency_limit is not None and self.concurrency_limit < 0:
            raise TaskError("concurrency_limit cannot be negative")


class RetryKeywords(TypedDict, total=False):
    max_attempts: int
    factor: float
    min_timeout: Duration
    max_timeout: Duration
    randomize: bool


class QueueKeywords(TypedDict, total=False):
    name: str
    concurrency_limit: int | None


def retry_options(given: RetryOptions | RetryKeywords | None) -> RetryOptions:
    """Return retry options as written by a user. Raises TaskError for a key that is none."""
    if given is None or isinstance(given, RetryOptions):
        return given or RetryOptions()
    values = _known(dict(given), RetryOptions, "retry")
    for key in ("min_timeout", "max_timeout"):
        if key in values:
            values[key] = seconds(cast(Duration, values[key]))
    minimum = values.get("min_timeout", 0.0)
    if "max_timeout" not in values and isinstance(minimum, float):
        values["max_timeout"] = max(RetryOptions.max_timeout, minimum)
    return RetryOptions(**cast(Any, values))


def queue_options(given: QueueOptions | QueueKeywords | str | None, task: str) -> QueueOptions:
    """Return queue options as written by a user; without a name, the task's own queue."""
    match given:
        case None:
            return QueueOptions(name=f"task/{task}")
        case str():
            return QueueOptions(name=given)
        case QueueOptions():
            return given
        case _:
            values = {"name": f"task/{task}", **_known(dict(given), QueueOptions, "queue")}
            return QueueOptions(**cast(Any, values))


def _known(values: dict[str, object], options: type[Any], what: str) -> dict[str, object]:
    names = [field.name for field in fields(options)]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise TaskError(f"{what} has no option {', '.join(unknown)}; it has {', '.join(names)}")
    return values
