"""Run states and the transition table. [core]

Rule: what a run may become is written here, once, and in the table runwire.run_transitions that a
migration fills; a test compares the two row for row. Everything else asks `may_become`.
"""

from enum import StrEnum
from typing import Final


class RunStatus(StrEnum):
    PENDING_VERSION = "PENDING_VERSION"  # no worker knows the wanted code version yet
    DELAYED = "DELAYED"  # waits for its time: a trigger's delay or a retry's back-off
    QUEUED = "QUEUED"  # ready to be claimed
    DEQUEUED = "DEQUEUED"  # claimed; its child process starts
    EXECUTING = "EXECUTING"
    WAITING = "WAITING"  # suspended; its slot is free
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"
    FAILED = "FAILED"  # the task's own error, attempts used up
    CRASHED = "CRASHED"  # the process died under it, attempts used up
    SYSTEM_FAILURE = "SYSTEM_FAILURE"  # our fault
    EXPIRED = "EXPIRED"  # its ttl passed before it started
    TIMED_OUT = "TIMED_OUT"  # max_duration passed


S = RunStatus

INITIAL: Final = frozenset({S.PENDING_VERSION, S.DELAYED, S.QUEUED})
HELD: Final = frozenset({S.DEQUEUED, S.EXECUTING})  # a worker has it; it counts against limits
FINAL: Final = frozenset(
    {S.COMPLETED, S.CANCELED, S.FAILED, S.CRASHED, S.SYSTEM_FAILURE, S.EXPIRED, S.TIMED_OUT}
)

TRANSITIONS: Final[dict[RunStatus, frozenset[RunStatus]]] = {
    S.PENDING_VERSION: frozenset({S.QUEUED, S.EXPIRED, S.CANCELED}),
    S.DELAYED: frozenset({S.QUEUED, S.EXPIRED, S.CANCELED}),
    S.QUEUED: frozenset({S.DEQUEUED, S.EXECUTING, S.EXPIRED, S.CANCELED}),
    S.DEQUEUED: frozenset(
        {
            S.EXECUTING,
            S.QUEUED,
            S.DELAYED,
            S.CANCELED,
            S.FAILED,
            S.CRASHED,
            S.SYSTEM_FAILURE,
            S.TIMED_OUT,
        }
    ),
    S.EXECUTING: frozenset(
        {S.WAITING, S.QUEUED, S.DELAYED, S.COMPLETED, S.CANCELED, S.FAILED, S.CRASHED}
        | {S.SYSTEM_FAILURE, S.TIMED_OUT}
    ),
    S.WAITING: frozenset(
        {S.QUEUED, S.EXECUTING, S.CANCELED, S.FAILED, S.CRASHED, S.SYSTEM_FAILURE, S.TIMED_OUT}
    ),
    S.COMPLETED: frozenset(),
    S.CANCELED: frozenset(),
    S.FAILED: frozenset(),
    S.CRASHED: frozenset(),
    S.SYSTEM_FAILURE: frozenset(),
    S.EXPIRED: frozenset(),
    S.TIMED_OUT: frozenset(),
}


def may_become(before: RunStatus, after: RunStatus) -> bool:
    """Say whether a run may go from one status to another."""
    return after in TRANSITIONS[before]
