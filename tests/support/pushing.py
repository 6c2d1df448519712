"""Stands for the hub's delivery where a test turns the hub by hand."""

from collections.abc import Sequence

from runwire_realtime.hub import Hub


def joined(messages: Sequence[bytes]) -> bytes:
    """Return messages as one frame."""
    return b"[" + b",".join(messages) + b"]"


def push(hub: Hub, now: float) -> None:
    """Write what is the same for many to those who are free for it."""
    while hub.streams.moved:
        topic, _ = hub.streams.moved.popitem()
        for cohort in list(topic.cohorts):
            if cohort.push(joined, hub.limits, now):
                hub.streams.moved[topic] = None
