"""Proves that followed runs stand where the database says, a few at each poll.

The tail tells of every event once. Should one be lost all the same, a run that nothing else happens
to would show an old state for ever. So runs are compared in rotation: one that was behind, and
still is after the tail has been read again, is read anew, and the log says so.
"""

import logging
from typing import Final

from runwire_engine.errors import EngineError
from runwire_engine.following import Following
from runwire_realtime.hub import Hub, RunKey
from runwire_realtime.rotation import Rotation

logger = logging.getLogger("runwire.feed")

# With a look each second, ten thousand followed runs are all looked at within 20 s.
RUNS_PER_LOOK: Final = 500


class RunPlaces:
    """Compares what the hub holds with what is."""

    def __init__(self, hub: Hub, following: Following) -> None:
        self._hub = hub
        self._following = following
        self._rotation = Rotation(lambda: hub.runs, RUNS_PER_LOOK)
        # Runs that were behind, and how far they are; how often the tail had been read then.
        self._suspects: dict[RunKey, int] = {}
        self._tails_read = 0

    async def look(self, tails_read: int) -> None:
        """Compare the next runs; `tails_read`: how often the tail was read so far."""
        # Two more: one may have been under way, from before the look.
        if self._suspects and tails_read < self._tails_read + 2:
            return
        self._make_up()
        part = self._rotation.take()
        self._tails_read = tails_read
        for environment_id in {key[0] for key in part}:
            ids = [run_id for owner, run_id in part if owner == environment_id]
            try:
                revisions = await self._following.revisions(environment_id, ids)
            except EngineError:
                return  # the tail tells; the next turn looks again
            self._suspects |= self._hub.behind(environment_id, revisions)

    def _make_up(self) -> None:
        suspects, self._suspects = self._suspects, {}
        for key, revision in suspects.items():
            topic = self._hub.runs.get(key)
            if topic is not None and 0 < topic.revision < revision:
                logger.error(
                    "run %s is at revision %d, and was heard of at %d only; it is read again",
                    key[1],
                    revision,
                    topic.revision,
                )
                self._hub.make_up(key)
