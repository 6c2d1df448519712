"""What every change of status entails besides the run's own row.

In the transaction: the end of the run's streams and, for a failed run, of its idempotency keys.
After the commit: the bells. A statement of its own ends the streams, because only a snapshot taken
under the run's lock is sure to see a stream that was made while that lock was waited for.
"""

from collections.abc import Callable, Sequence
from typing import Final

from runwire_engine.bells import StreamMoved
from runwire_engine.database import Row, Transaction
from runwire_engine.doorbell import Doorbell
from runwire_engine.states import FINAL, RunStatus
from runwire_engine.waits import Waits

# These free the key, so that the same trigger may try anew; CANCELED and COMPLETED keep it.
_FORGET_KEYS: Final = FINAL - {RunStatus.COMPLETED, RunStatus.CANCELED}


class Endings:
    """Collects what one transaction changed: `settle` inside it, `ring` once it is committed."""

    def __init__(
        self,
        bell: Doorbell,
        waits: Waits | None = None,
        canceled: Callable[[], None] | None = None,
    ) -> None:
        """Take who wakes those that wait for runs, and who cancels the children of canceled ones.

        Without, the sweep does it.
        """
        self._bell = bell
        self._waits = waits
        self._canceled = canceled
        self._changed: list[Row] = []
        self._streams: list[tuple[int, StreamMoved]] = []

    def note(self, changed: Sequence[Row]) -> None:
        """Take changes that entail nothing in the transaction; only `ring` is to tell of them."""
        self._changed.extend(changed)

    async def settle(self, tx: Transaction, changed: Sequence[Row]) -> None:
        """Do what the new statuses entail; rows as `outcomes.record` returns them."""
        self._changed.extend(changed)
        final = [row for row in changed if row["status"] in FINAL]
        streaming = [row for row in final if row["stream_keys"]]
        if streaming:
            for row in await tx.all("endings.end_streams", _names(streaming)):
                moved = StreamMoved(row["run_id"], row["key"], row["next_seq"], ended=True)
                self._streams.append((row["environment_id"], moved))
        forgotten = [r for r in final if r["status"] in _FORGET_KEYS and r["idempotency_key"]]
        if forgotten:
            await tx.run("endings.forget_keys", _names(forgotten))
        waited = [row for row in final if row["waited"]]
        if waited:
            await tx.run("waits.forget", _names(waited))

    def ring(self) -> None:
        """Tell who follows the runs, and who could start what these made room for."""
        for environment_id in {row["environment_id"] for row in self._changed}:
            rows = [row for row in self._changed if row["environment_id"] == environment_id]
            streams = [moved for at, moved in self._streams if at == environment_id]
            self._bell.ring_feed(environment_id, [row["id"] for row in rows], streams)
            queues = {r["queue"] for r in rows if r["limited"] or r["status"] == RunStatus.QUEUED}
            if queues:
                self._bell.ring_work(environment_id, queues)
            awaited = [row["id"] for row in rows if row["awaited"] and row["status"] in FINAL]
            if awaited and self._waits is not None:
                self._waits.ended(environment_id, awaited)
        if self._canceled is not None and any(
            row["status"] == RunStatus.CANCELED for row in self._changed
        ):
            self._canceled()


def entails_nothing(row: Row) -> bool:
    """Whether a change has nothing more to be done in its transaction; see `outcomes.record`."""
    keeps_key = row["status"] == RunStatus.COMPLETED or not row["idempotency_key"]
    return keeps_key and not row["stream_keys"] and not row["waited"]


def _names(rows: Sequence[Row]) -> dict[str, object]:
    return {
        "environment_ids": [row["environment_id"] for row in rows],
        "ids": [row["id"] for row in rows],
        "reasons": [str(row["status"]).lower() for row in rows],
    }
