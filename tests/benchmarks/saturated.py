"""Append → socket as fast as it goes: chunks delivered per second, at most WINDOW under way."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from tests.benchmarks import sources
from tests.benchmarks.comparison import OURS, USAGE, Column, Comparison, Figures, Goal, in_turn
from tests.benchmarks.generator import Load
from tests.benchmarks.latency import APART, LISTEN, REDIS, REDIS_DURABLE, alternatives
from tests.benchmarks.sources import Opened
from tests.benchmarks.stand import Stand

STREAMS = 50
# At 100 000 a second 40 ms of them, so that the latency is not only the length of a queue.
WINDOW = 4096
# What each gets through in some seconds.
REDIS_WRITTEN = "redis streams, as one writes them"
EVENTS = {
    OURS: 400_000,
    APART: 400_000,
    LISTEN: 20_000,
    REDIS: 400_000,
    REDIS_DURABLE: 200_000,
    REDIS_WRITTEN: 20_000,
}


def tables(stand: Stand, rounds: int, *, short: bool) -> Iterator[Comparison]:
    """Measure it; in short form, with fewer chunks."""

    def measure(name: str, opened: Opened) -> Figures:
        events = EVENTS[name] // (4 if short else 1)

        def shape(load: Load) -> Load:
            return replace(load, window=WINDOW, events=events, warm=events // 10)

        with opened() as source:
            it = source.run(shape)
        return {
            "chunks": it.per_second,
            "p50": it.p50,
            "p99": it.p99,
            **it.usage,
        }

    measured = {
        **alternatives(stand, STREAMS),
        REDIS_WRITTEN: lambda: sources.redis_written(STREAMS),
    }
    yield in_turn(
        f"append → socket, saturated: {STREAMS} streams, at most {WINDOW:,} chunks under way",
        {name: partial(measure, name, opened) for name, opened in measured.items()},
        rounds=rounds,
        columns=[
            Column("chunks", "chunks/s"),
            Column("p50", "p50 ms", ".1f"),
            Column("p99", "p99 ms", ".1f"),
            *USAGE,
        ],
        goals=[
            Goal("chunks", 100_000),
            Goal("p99", 100, most=True),
            Goal("chunks", 10, REDIS_WRITTEN),
        ],
        command="python -m tests.benchmarks saturated",
    )
