"""Stands for the hub's delivery where a test turns the hub by hand."""

from collections.abc import Iterable, Sequence
from functools import partial

from runwire_realtime.hub import Hub
from runwire_realtime.line import Line


def joined(messages: Sequence[bytes]) -> bytes:
    """Return messages as one frame."""
    return b"[" + b",".join(messages) + b"]"


def send(now: float, frame: bytes, lines: Iterable[Line]) -> set[Line]:
    """Write a frame to each line that is free; return the others."""
    late: set[Line] = set()
    for line in list(lines):
        if line.is_free:
            line.written_at = now
            line.write(frame)
        else:
            late.add(line)
    return late


def push(hub: Hub, now: float) -> None:
    """Write what is the same for many to those who are free for it."""
    while hub.streams.moved:
        topic, _ = hub.streams.moved.popitem()
        for cohort in list(topic.cohorts):
            if cohort.push(joined, hub.limits, partial(send, now)):
                hub.streams.moved[topic] = None
