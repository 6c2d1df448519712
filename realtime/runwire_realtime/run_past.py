"""A run as it was at a revision, folded from its history: for a client that holds nothing. [core]

The history begins with what the creation set; each later change is put on top as a client does it.
A value that stands in the history by reference stands so in the run.
"""

from collections.abc import Sequence
from itertools import takewhile

import orjson

from runwire._views import Views
from runwire.wire import GapReason, JsonObject
from runwire_engine.followed import FollowedRun, LoggedEvent
from runwire_realtime.beginnings import beginning
from runwire_realtime.run_topic import Step, is_reference, joined_patch, step_of
from runwire_realtime.run_view import View, run_bytes, wire_time


class RunPast:
    """Gathers the history of a run up to a revision, page by page."""

    def __init__(self, revision: int, limit_bytes: int) -> None:
        self._revision = revision
        self._room = limit_bytes
        self._steps: list[Step] = []

    @property
    def after(self) -> int:
        """The revision after which the next page begins."""
        return self._steps[-1].revision if self._steps else 0

    @property
    def is_whole(self) -> bool:
        return self.after == self._revision

    def add(self, page: Sequence[Step]) -> GapReason | None:
        """Take the next page. Return why the run cannot be folded, if so."""
        if not page or page[0].revision != self.after + 1:
            return GapReason.RETENTION
        for step in takewhile(lambda each: each.revision <= self._revision, page):
            self._steps.append(step)
            self._room -= step.size
        return GapReason.OVERFLOW if self._room < 0 else None

    @property
    def has_references(self) -> bool:
        """Whether values stand by reference that were there once."""
        created, later = self._steps[0], self._steps[1:]
        return is_reference(created.changes.get("metadata")) or any(s.is_partial for s in later)

    def document(self, run: FollowedRun, view: View) -> bytes:
        """Return the run as it was, as far as the view goes; `run` is what it is now."""
        created, later = self._steps[0], self._steps[1:]
        first = beginning(run, created.changes, by_reference=True)
        assert first is not None
        views = Views()
        views.hold(orjson.loads(run_bytes(first, view)))
        if later:
            patch: JsonObject = orjson.loads(joined_patch(run.row.id, later, view))
            views.patch(patch)
        return orjson.dumps(views.get(run.row.id))


def logged_steps(events: Sequence[LoggedEvent]) -> list[Step]:
    """Return changes as they stand in the log."""
    return [step_of(each.revision, each.delta, wire_time(each.created_at)) for each in events]
