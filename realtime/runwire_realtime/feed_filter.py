"""Which runs a feed is about, by their rows and by what happens to them. [core]"""

from datetime import datetime
from typing import TYPE_CHECKING, cast

from runwire_engine.followed import Before, FollowedRun, Touched
from runwire_realtime.subscription import BatchTarget, FeedTarget, RunsTarget, TagsTarget

if TYPE_CHECKING:
    from runwire_realtime.hub import RunEvent


class FeedFilter:
    """What a feed's target lets through."""

    def __init__(self, target: FeedTarget) -> None:
        self._target = target
        # Of a tags or runs feed: runs created before are not in it.
        self.since: datetime | None = None

    def includes(self, run: FollowedRun) -> bool:
        """Say whether a run as it is now belongs to the feed."""
        row = run.row
        match self._target:
            case TagsTarget(tags):
                return set(tags) <= set(row.tags) and self._is_recent(run)
            case RunsTarget(tasks, statuses):
                return (
                    (tasks is None or row.task in tasks)
                    and (statuses is None or row.status in statuses)
                    and self._is_recent(run)
                )
            case BatchTarget(batch_id):
                return batch_id in run.batches

    def _is_recent(self, run: FollowedRun) -> bool:
        return self.since is None or run.row.created_at >= self.since

    def is_left_by(self, event: "RunEvent") -> bool:
        """Say whether a run that was in the feed leaves it."""
        tags, status = event.step.changes.get("tags"), event.step.changes.get("status")
        match self._target:
            case TagsTarget(wanted):
                was_held = set(wanted) <= set(event.tags)
                return (
                    was_held
                    and isinstance(tags, list)
                    and not set(wanted) <= set(cast(list[str], tags))
                )
            case RunsTarget(tasks, statuses) if statuses is not None:
                is_ours = tasks is None or event.task in tasks
                return is_ours and isinstance(status, str) and status not in statuses
            case _:
                return False

    def may_be_entered_by(self, event: "RunEvent") -> bool:
        """Say whether a run may be in the feed after an event; its row says whether it is."""
        status = event.step.changes.get("status")
        match self._target:
            case TagsTarget(tags):
                return set(tags) <= set(event.tags)
            case RunsTarget(tasks, statuses):
                is_other = (
                    statuses is not None and isinstance(status, str) and status not in statuses
                )
                return not is_other and (tasks is None or event.task in tasks)
            case BatchTarget():
                return True

    def may_have_entered(self, touched: Touched) -> bool:
        """Say whether what is news of a run may have brought it into the feed."""
        match self._target:
            case TagsTarget():
                return touched.tagged == touched.first
            case RunsTarget(_, statuses):
                return statuses is not None
            case BatchTarget():
                return True

    def held_then(self, before: Before) -> bool:
        """Say whether the feed held a run as it was, for sure."""
        match self._target:
            case TagsTarget(tags):
                return set(tags) <= set(before.tags)
            case RunsTarget(_, statuses):
                return statuses is None or before.status in statuses
            case BatchTarget(batch_id):
                # An item may stand for a run that was there before; nobody knows since when.
                return before.batch_id == batch_id
