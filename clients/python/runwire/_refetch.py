"""Whether and when `retry.fetch` sends a request again. [core]

A status is looked up among patterns in the order they were given: "429", "500-599", "5xx",
"408,409,5xx", "all". The first that fits says how long to wait.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias, TypedDict, get_args

from runwire._backoff import next_delay
from runwire._task_options import RetryKeywords, RetryOptions, retry_options
from runwire.durations import seconds
from runwire.errors import InvalidValueError, RunwireError

ResetFormat: TypeAlias = Literal[
    "unix_timestamp", "unix_timestamp_in_ms", "iso_8601", "iso_8601_duration_openai_variant"
]

# Of a strategy that goes by headers, which has no other end.
MAX_BY_HEADERS: Final = 10

_PATTERN = re.compile(r"[1-5]\d\d|[1-5]\d\d-[1-5]\d\d|[1-5]xx|[1-5]\dx|all")


class HeadersStrategy(TypedDict, total=False):
    """Wait until the time that a header of the response tells."""

    strategy: Literal["headers"]
    # 0 there: nothing will ever be allowed, so the request is not sent again.
    limit_header: str
    # More than 0 there: the limit was not what refused it, so the wait is an ordinary back-off.
    remaining_header: str
    reset_header: str
    reset_format: ResetFormat
    max_attempts: int


class BackoffStrategy(RetryKeywords, total=False):
    """Wait longer each time, as a task's `retry` does."""

    strategy: Literal["backoff"]


class FetchRetryKeywords(TypedDict, total=False):
    """The `retry` of `retry.fetch`."""

    by_status: Mapping[str, HeadersStrategy | BackoffStrategy]
    timeout: RetryOptions | RetryKeywords
    connection_error: RetryOptions | RetryKeywords


@dataclass(frozen=True)
class ByHeaders:
    reset_header: str
    reset_format: ResetFormat = "unix_timestamp"
    limit_header: str | None = None
    remaining_header: str | None = None
    max_attempts: int = MAX_BY_HEADERS


Strategy: TypeAlias = ByHeaders | RetryOptions

_DEFAULT: Final[Mapping[str, Strategy]] = {"408,409,429,5xx": RetryOptions()}


@dataclass(frozen=True)
class FetchRetry:
    """When a request is sent again, and what is waited."""

    by_status: Mapping[str, Strategy] = field(default_factory=lambda: _DEFAULT)
    timeout: RetryOptions = RetryOptions()
    connection_error: RetryOptions = RetryOptions()

    def after_response(
        self, status: int, headers: Mapping[str, str], attempt: int, now: datetime, random: float
    ) -> float | None:
        """Return the seconds until the request is sent again, or None to keep the response."""
        if 200 <= status < 300:
            return None
        for pattern, strategy in self.by_status.items():
            if fits(status, pattern):
                if isinstance(strategy, RetryOptions):
                    return next_delay(strategy, attempt, random)
                return _by_headers(strategy, headers, attempt, now, random)
        return None


def fits(status: int, pattern: str) -> bool:
    """Say whether a status is among those of a pattern."""
    return any(_fits(str(status), part.strip()) for part in pattern.split(","))


def _fits(status: str, part: str) -> bool:
    if part == "all":
        return True
    first, _, last = part.partition("-")
    if last:
        return first <= status <= last
    return len(part) == 3 and all(p in ("x", s) for p, s in zip(part, status, strict=True))


def fetch_retry(given: FetchRetry | FetchRetryKeywords | None) -> FetchRetry:
    """Return the `retry` of a fetch as written by a user. Raises InvalidValueError."""
    if given is None or isinstance(given, FetchRetry):
        return given or FetchRetry()
    values: dict[str, Any] = dict(given)
    _known(values, {"by_status", "timeout", "connection_error"}, "retry.fetch")
    ready: dict[str, Any] = {
        name: _options(values[name], name)
        for name in ("timeout", "connection_error")
        if values.get(name) is not None
    }
    if values.get("by_status") is not None:
        ready["by_status"] = {
            _pattern(pattern): _strategy(dict(strategy), pattern)
            for pattern, strategy in values["by_status"].items()
        }
    return FetchRetry(**ready)


def _pattern(pattern: object) -> str:
    text = str(pattern)
    if not all(_PATTERN.fullmatch(part.strip()) for part in text.split(",")):
        raise _refused(
            f"by_status has no statuses {text!r}: write 429, 500-599, 5xx, several with commas, all"
        )
    return text


def _strategy(given: dict[str, Any], pattern: str) -> Strategy:
    match given.pop("strategy", None):
        case "backoff":
            return _options(given, f"by_status {pattern}")
        case "headers":
            _known(given, set(ByHeaders.__dataclass_fields__), f"by_status {pattern}")
            if not given.get("reset_header"):
                raise _refused(f"by_status {pattern}: the strategy headers needs a reset_header")
            if given.get("reset_format", "unix_timestamp") not in get_args(ResetFormat):
                formats = ", ".join(get_args(ResetFormat))
                raise _refused(f"by_status {pattern}: reset_format is one of {formats}")
            return ByHeaders(**given)
        case other:
            raise _refused(f"by_status {pattern}: strategy is backoff or headers, not {other!r}")


def _options(given: Any, what: str) -> RetryOptions:
    try:
        return retry_options(given)
    except RunwireError as error:
        raise _refused(f"{what}: {error}") from error


def _by_headers(
    strategy: ByHeaders, headers: Mapping[str, str], attempt: int, now: datetime, random: float
) -> float | None:
    if attempt >= strategy.max_attempts or _number(headers, strategy.limit_header) == 0:
        return None
    remaining = _number(headers, strategy.remaining_header)
    if remaining is not None and remaining > 0:
        return next_delay(RetryOptions(), attempt, random, max_attempts=strategy.max_attempts)
    told = headers.get(strategy.reset_header)
    return None if told is None else _until(told.strip(), strategy.reset_format, now)


def _number(headers: Mapping[str, str], name: str | None) -> float | None:
    text = None if name is None else headers.get(name)
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _until(told: str, format: ResetFormat, now: datetime) -> float | None:
    """Return the seconds until what a header tells; None for what cannot be read."""
    try:
        if format == "iso_8601_duration_openai_variant":
            return seconds(told)
        return max(0.0, (_time(told, format) - now).total_seconds())
    except (ValueError, OverflowError, OSError, RunwireError):
        return None


def _time(told: str, format: ResetFormat) -> datetime:
    if format == "iso_8601":
        time = datetime.fromisoformat(told)
        return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return datetime.fromtimestamp(float(told) / (1000 if format.endswith("_ms") else 1), UTC)


def _known(values: Mapping[str, object], names: set[str], what: str) -> None:
    unknown = sorted(set(values) - names)
    if unknown:
        raise _refused(f"{what} has no {', '.join(unknown)}; it has {', '.join(sorted(names))}")


def _refused(message: str) -> InvalidValueError:
    return InvalidValueError(message, code="option")
