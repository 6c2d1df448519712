"""When a task runs by itself, as its code declares it. [core]"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, TypedDict, cast

from runwire.errors import TaskError

# Which ticks get a run after a time when none was made.
Missed: TypeAlias = Literal["newest", "all"]

_FIELDS: Final = 5
_MISSED: Final = ("newest", "all")


class _CronPattern(TypedDict):
    pattern: str


class CronKeywords(_CronPattern, total=False):
    """A cron expression of five fields, and how it is read."""

    # IANA, as Europe/Berlin; UTC unless given.
    timezone: str
    # Only in the environments of these names.
    environments: Sequence[str]
    # Spreads runs over a time: "30m", "2h", or "50%" of the time to the next tick.
    window: str
    missed: Missed


@dataclass(frozen=True)
class CronOptions:
    """The schedule that a task's code declares."""

    pattern: str
    timezone: str = "UTC"
    # None: in all of them.
    environments: tuple[str, ...] | None = None
    window: str | None = None
    missed: Missed = "newest"

    def __post_init__(self) -> None:
        if len(self.pattern.split()) != _FIELDS:
            raise TaskError(
                f"cron {self.pattern!r} does not have five fields: minute, hour, day of the month,"
                " month, day of the week"
            )
        if self.missed not in _MISSED:
            raise TaskError(f"missed is one of {', '.join(_MISSED)}, not {self.missed!r}")

    def holds_in(self, environment: str) -> bool:
        """Say whether the schedule is meant for an environment."""
        return self.environments is None or environment in self.environments


def cron_options(given: "str | CronKeywords | CronOptions") -> CronOptions:
    """Return a cron as written by a user. Raises TaskError for what is none."""
    if isinstance(given, CronOptions):
        return given
    if isinstance(given, str):
        return CronOptions(given)
    values = cast(dict[str, Any], dict(given))
    names = list(CronOptions.__dataclass_fields__)
    unknown = sorted(set(values) - set(names))
    if unknown or "pattern" not in values:
        raise TaskError(
            f"cron has no option {', '.join(unknown)}; it has {', '.join(names)}"
            if unknown
            else 'cron needs a pattern, as {"pattern": "0 9 * * 1", "timezone": "Europe/Berlin"}'
        )
    if values.get("environments") is not None:
        named = values["environments"]
        values["environments"] = (named,) if isinstance(named, str) else tuple(named)
    return CronOptions(**values)
