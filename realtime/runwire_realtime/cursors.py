"""Where a subscription resumes: opaque to clients, without authority here. [core]

    run   r1.<epoch>.<revision>
    feed  f1.<epoch>.<snapshot>     a pg_snapshot with "-" for ":" and "_" for ","; the epoch ends
                                    in the life of Postgres that the snapshot is of

Scope is checked anew whatever a cursor says, so the worst a forged one can do is to skip or repeat
what its sender may see anyway.
"""

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

MAX_IN_PROGRESS: Final = 64
_RUN = re.compile(r"r1\.([0-9a-f]{1,64})\.(\d{1,18})", re.ASCII)
_FEED = re.compile(
    r"f1\.([0-9a-f]{1,64})\.(\d{1,19})-(\d{1,19})-(\d{1,19}(?:_\d{1,19})*)?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class RunCursor:
    epoch: str
    revision: int


@dataclass(frozen=True, slots=True)
class FeedCursor:
    epoch: str
    # As Postgres writes a pg_snapshot.
    snapshot: str


Cursor: TypeAlias = RunCursor | FeedCursor


def parse_cursor(text: str) -> Cursor | None:
    """Return the cursor that text spells; None for anything the server never handed out."""
    run = _RUN.fullmatch(text)
    if run is not None:
        return RunCursor(run[1], int(run[2]))
    feed = _FEED.fullmatch(text)
    return None if feed is None else _feed(feed[1], int(feed[2]), int(feed[3]), feed[4] or "")


def run_cursor(epoch: str, revision: int) -> str:
    return f"r1.{epoch}.{revision}"


def feed_cursor(epoch: str, snapshot: str) -> str:
    """Return a feed's cursor; with many transactions in progress one from before them all."""
    oldest, _, in_progress = snapshot.split(":")
    if in_progress.count(",") >= MAX_IN_PROGRESS:
        snapshot = f"{oldest}:{oldest}:"
    return f"f1.{epoch}.{snapshot.replace(':', '-').replace(',', '_')}"


def _feed(epoch: str, oldest: int, end: int, in_progress: str) -> FeedCursor | None:
    """Refuse what Postgres would refuse as a pg_snapshot."""
    ids = [int(text) for text in in_progress.split("_")] if in_progress else []
    is_ordered = all(before < after for before, after in zip(ids, ids[1:], strict=False))
    is_within = all(oldest <= id < end for id in ids)
    # The lower half of an id is never nothing.
    are_ids = all(id % 2**32 for id in (oldest, end, *ids))
    if not (
        0 < oldest <= end < 2**63
        and is_ordered
        and is_within
        and are_ids
        and len(ids) <= MAX_IN_PROGRESS
    ):
        return None
    return FeedCursor(epoch, f"{oldest}:{end}:{','.join(map(str, ids))}")
