"""Changes of a run that were read from the log, for one reader. [core]"""

from collections import deque
from collections.abc import Sequence

from runwire.wire import GapReason
from runwire_realtime.run_past import RunPast
from runwire_realtime.run_topic import Step


class RunHistory:
    """What comes next after the revision written; or, first, how the run came to be as it was."""

    def __init__(self) -> None:
        self._steps: deque[Step] = deque()
        # The revision after which a change is known to be in the log.
        self._missed_after = 0
        # What the run was where a cursor is, while that is gathered; why it cannot be.
        self._past: RunPast | None = None
        self.past_gap: GapReason | None = None

    def past(self, revision: int, limit_bytes: int) -> RunPast:
        """Return the run's past up to a revision; as long as it is not whole, it is to be read."""
        if self._past is None:
            self._past = RunPast(revision, limit_bytes)
        return self._past

    def take_past(self) -> RunPast | None:
        """Return the past that was gathered, if any, and forget it."""
        past, self._past = self._past, None
        return past

    def after(self, written: int) -> int:
        """Return the revision after which changes are to be read."""
        return written if self._past is None else self._past.after

    def next(self, written: int) -> Step | None:
        """Return the change that follows the revision written, where it was read."""
        while self._steps and self._steps[0].revision <= written:
            self._steps.popleft()
        return self._steps[0] if self._steps else None

    def clear(self) -> None:
        self._steps.clear()

    def missed(self, written: int) -> None:
        """Note that there is a change after the revision written."""
        self._missed_after = written

    def take(self, after: int, written: int, steps: Sequence[Step]) -> bool:
        """Take changes that come after a revision. Return whether some are not there any more."""
        if self._past is not None:
            if after == self._past.after:
                self.past_gap = self._past.add(steps)
            return False
        if after != written:
            return False
        # It may have been written by other means before it was read: then nothing is there yet.
        is_lost = steps[0].revision != after + 1 if steps else after == self._missed_after
        self._steps = deque(() if is_lost else steps)
        return is_lost
