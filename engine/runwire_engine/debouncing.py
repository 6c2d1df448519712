"""Debouncing: triggers of one key that lead to one run, as long as it waits for its time. [core]

The first trigger of a key makes a run that waits `delay`. A further one pushes that run back: it
waits `delay` from then on, never less than before. A trigger that would push it beyond its
`max_delay` since the run was created leaves it as it is and makes the next run of the key.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Debounce:
    """What one trigger says. Spans are seconds."""

    key: str
    delay: float
    # Whether the run takes its payload and options from this trigger, or keeps the first one's.
    is_trailing: bool = False
    max_delay: float | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run that waits for its time under a key."""

    run_id: str
    # Seconds since it was created.
    age: float


@dataclass(slots=True)
class Debounced:
    """A run that triggers lead to: one that waits already, or a new one under the first's id."""

    run_id: str
    is_new: bool
    age: float
    # Seconds from now until it is due.
    delay: float
    # The trigger whose payload and options it takes; None: it keeps its own.
    source: str | None = None
    # The triggers, by the ids their own runs would have had.
    triggers: list[str] = field(default_factory=list[str])

    def takes(self, debounce: Debounce) -> bool:
        """Say whether a trigger may push this run back."""
        return debounce.max_delay is None or self.age + debounce.delay <= debounce.max_delay

    def push(self, trigger: str, debounce: Debounce) -> None:
        """Have the run wait for one more trigger."""
        self.delay = max(self.delay, debounce.delay)
        if debounce.is_trailing:
            self.source = trigger
        self.triggers.append(trigger)


def debounced(waiting: Waiting | None, triggers: Iterable[tuple[str, Debounce]]) -> list[Debounced]:
    """Return the runs that triggers of one key lead to, given in the order they came."""
    runs: list[Debounced] = []
    if waiting is not None:
        runs.append(Debounced(waiting.run_id, False, waiting.age, 0.0))
    for trigger, debounce in triggers:
        if not runs or not runs[-1].takes(debounce):
            runs.append(Debounced(trigger, True, 0.0, 0.0, source=trigger))
        runs[-1].push(trigger, debounce)
    return [run for run in runs if run.triggers]
