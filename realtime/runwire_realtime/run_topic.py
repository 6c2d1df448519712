"""What the hub knows of one followed run: its recent changes, shared by all its readers. [core]

Readers hold a position (the revision last written to their socket) and take from here what comes
after it: one change, several joined into one patch, or, when the changes are not at hand or as
large as the run, the run itself, which is read from its row.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Final, cast

import orjson

from runwire.wire import Json, JsonObject
from runwire_engine.followed import FollowedRun
from runwire_realtime.limits import HubLimits
from runwire_realtime.run_view import View, is_final, patch_bytes, run_bytes

if TYPE_CHECKING:
    from runwire_realtime.feed_members import FeedMembers
    from runwire_realtime.run_reader import RunReader

# Encoded patches and rows kept: a few views of the newest change.
_ENCODED: Final = 32
# A larger one is mostly payload, which is quicker copied than kept.
_KEPT_DOCUMENT: Final = 4 * 1024


@dataclass(frozen=True, slots=True)
class Step:
    """One revision of a run: what turned `revision - 1` into it."""

    revision: int
    changes: JsonObject
    operations: tuple[JsonObject, ...]
    # A value stands by reference; only the row has it.
    is_partial: bool
    size: int


def step_of(revision: int, delta: str, updated_at: str) -> Step:
    """Read an event's delta. That of "created" is partial: the row says what was created."""
    body: JsonObject = orjson.loads(delta)
    changes: JsonObject = body.get("set") or {}
    operations: list[JsonObject] = body.get("metadata") or []
    is_partial = revision == 1 or _stands_elsewhere(changes.values(), operations)
    return Step(
        revision,
        {**changes, "updatedAt": updated_at},
        tuple(operations),
        is_partial,
        len(delta) + 64,
    )


def _stands_elsewhere(values: Iterable[Json], operations: Sequence[JsonObject]) -> bool:
    return any(map(is_reference, values)) or any(
        is_reference(operation.get("value")) for operation in operations
    )


def is_reference(value: Json) -> bool:
    """Say whether a value only says how large the real one is."""
    return isinstance(value, dict) and list(cast(JsonObject, value)) == ["$large"]


class RunTopic:
    """One run that somebody follows."""

    def __init__(self, environment_id: int, run_id: str, limits: HubLimits) -> None:
        self.environment_id = environment_id
        self.run_id = run_id
        # The newest revision heard of; 0: none.
        self.revision = 0
        # The first revision known to be final.
        self.final_at: int | None = None
        self.status: str | None = None
        self.readers: set[RunReader] = set()
        # Readers that cannot go on without the row; those for which it is being read; and feeds
        # to which the row being read will say whether the run is theirs.
        self.waiting: set[RunReader] = set()
        self.reading: set[RunReader] = set()
        self.considered_by: set[FeedMembers] = set()
        # Events were missed: the next row will say how far the run is; the one being read does.
        self.has_missed = False
        self.makes_up = False
        # The row being read is of a run that is known to be there, or to have been.
        self.was_there = False
        # The day the run was created; None until its row was read.
        self.bucket: date | None = None
        # The streams that readers were told of; `unlisted`: those who were not, or not of all.
        self.stream_keys: set[str] = set()
        self.unlisted: set[RunReader] = set()
        # Every stream of the final run is known.
        self.is_sealed = False
        self._limits = limits
        self._steps: deque[Step] = deque()
        self._bytes = 0
        self._encoded: dict[tuple[int, int, View], bytes] = {}

    @property
    def key(self) -> tuple[int, str]:
        return self.environment_id, self.run_id

    @property
    def steps_held(self) -> int:
        """How many changes are kept."""
        return len(self._steps)

    def add(self, step: Step) -> bool:
        """Take the next change. Return whether it was news."""
        if step.revision <= self.revision:
            return False
        if self._steps and step.revision != self._steps[-1].revision + 1:
            self._forget()
        self._steps.append(step)
        self._bytes += step.size
        self._encoded.clear()
        self.revision = step.revision
        self._learn_status(step.changes.get("status"), step.revision)
        while self.steps_held > 1 and (
            self.steps_held > self._limits.steps_kept or self._bytes > self._limits.steps_bytes
        ):
            self._bytes -= self._steps.popleft().size
        return True

    def moved_to(self, revision: int) -> bool:
        """Note that the run stands at a revision whose changes were not seen."""
        if revision <= self.revision:
            return False
        self._forget()
        self.revision = revision
        return True

    def learn(self, run: FollowedRun) -> None:
        """Take what a row says, which may be ahead of the changes."""
        self.bucket = run.row.bucket
        if self.status is None or run.row.revision >= self.revision:
            self._learn_status(run.row.status, run.row.revision)

    def _learn_status(self, status: Json, revision: int) -> None:
        if not isinstance(status, str) or (self.final_at is not None and not is_final(status)):
            return  # a row read before the end says nothing any more
        self.status = status
        if is_final(status):
            self.final_at = revision if self.final_at is None else min(self.final_at, revision)

    def between(self, base: int, revision: int) -> list[Step] | None:
        """Return the changes that turn one revision into another, or None when some are missing."""
        if not self._steps or self._steps[0].revision > base + 1 or self.revision < revision:
            return None
        first = self._steps[0].revision
        if self._steps[-1].revision < revision:
            return None
        return [self._steps[at - first] for at in range(base + 1, revision + 1)]

    def patch(self, steps: Sequence[Step], view: View) -> bytes:
        """Return one patch for successive changes; encoded once for everybody with that view."""
        base, revision = steps[0].revision - 1, steps[-1].revision
        key = (base, revision, view)
        encoded = self._encoded.get(key)
        if encoded is None:
            encoded = joined_patch(self.run_id, steps, view)
            self._remember(key, encoded)
        return encoded

    def document(self, run: FollowedRun, view: View) -> bytes:
        """Return the run whole; encoded once for everybody with that view."""
        key = (0, run.row.revision, view)
        encoded = self._encoded.get(key)
        if encoded is None:
            encoded = run_bytes(run, view)
            # Kept until the run moves, which may be never, by each of ten thousand runs.
            if len(encoded) <= _KEPT_DOCUMENT:
                self._remember(key, encoded)
        return encoded

    def _remember(self, key: tuple[int, int, View], encoded: bytes) -> None:
        if len(self._encoded) >= _ENCODED:
            self._encoded.clear()
        # Large ones are as many as their readers; keeping them would cost more than encoding.
        if len(encoded) <= self._limits.turn_bytes:
            self._encoded[key] = encoded

    def _forget(self) -> None:
        self._steps.clear()
        self._bytes = 0
        self._encoded.clear()


def joined_patch(run_id: str, steps: Sequence[Step], view: View) -> bytes:
    """Join successive changes into one patch."""
    changes: dict[str, Json] = {}
    operations: list[JsonObject] = []
    for step in steps:
        if "metadata" in step.changes:
            operations = []
        changes.update(step.changes)
        operations.extend(step.operations)
    return patch_bytes(run_id, steps[0].revision - 1, steps[-1].revision, changes, view, operations)


def size_of(steps: Sequence[Step]) -> int:
    return sum(step.size for step in steps)
