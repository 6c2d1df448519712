"""Metadata under many eyes: one `append` after the other to a large document, WATCHERS of it.

Each append must come once and in order to each of them. What it costs must be the change, not the
document: on the wire, and of the hub's core.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from tests.benchmarks.comparison import USAGE, Column, Comparison, Figures, Goal, in_turn
from tests.benchmarks.generator import Load
from tests.benchmarks.sources import watched
from tests.benchmarks.stand import Stand

WATCHERS = 1000
PER_SECOND = 10
LARGE, SMALL = 200_000, 2_000
# What the message around an event of 200 bytes may add.
MOST_BYTES = 500
MOST = 1.5


def tables(stand: Stand, rounds: int, *, short: bool) -> Iterator[Comparison]:
    """Measure it; in short form, for a shorter time. Documents may hold 256 KiB: no more events."""
    seconds = 3 if short else 10

    def shape(load: Load) -> Load:
        events = PER_SECOND * seconds
        return replace(load, sockets=WATCHERS, rate=PER_SECOND, events=events, warm=10)

    def measure(size: int) -> Figures:
        with watched(stand, size) as source:
            it = source.run(shape)
        return {
            "bytes": it.bytes / it.received,
            "cost": it.server_cpu_seconds / it.received * 1e6,
            "p50": it.p50,
            "p99": it.p99,
            **it.usage,
        }

    large, small = f"{LARGE // 1000} KB", f"{SMALL // 1000} KB"
    yield in_turn(
        f"metadata, {PER_SECOND} appends/s to one document, {WATCHERS:,} watchers",
        {large: partial(measure, LARGE), small: partial(measure, SMALL)},
        rounds=rounds,
        columns=[
            Column("bytes", "bytes each"),
            Column("cost", "hub µs each", ".1f"),
            Column("p50", "p50 ms", ".1f"),
            Column("p99", "p99 ms", ".1f"),
            *USAGE,
        ],
        goals=[
            Goal("bytes", MOST_BYTES, most=True, row=large),
            Goal("bytes", MOST, small, most=True, row=large),
            Goal("cost", MOST, small, most=True, row=large),
        ],
        command="python -m tests.benchmarks watchers",
    )
