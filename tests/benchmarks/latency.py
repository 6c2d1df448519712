"""Append → socket: milliseconds from handing a chunk to the writer until one socket has it.

Ours appends through the engine in a process of its own; the chunk is durable before it is sent.
Hubs have core 0; our writer too, since with Node on LISTEN they are one process; Postgres or Redis
and the generator share the rest. One row more has our writer there: the hub has its core alone. In
another the chunks are written by a task as tasks do (`streams.writer`), in a worker on core 0.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from tests.benchmarks import queues, sources
from tests.benchmarks.comparison import OURS, USAGE, Column, Comparison, Figures, Goal, in_turn
from tests.benchmarks.cores import REST, SERVER_CORES
from tests.benchmarks.generator import Load
from tests.benchmarks.sources import Opened
from tests.benchmarks.stand import Stand

APART = "runwire, writer beside Postgres"
RELAYED = "runwire, from a task"
LISTEN = "node ws on LISTEN"
REDIS = "redis streams, pipelined"
REDIS_DURABLE = "redis streams, pipelined, fsync"
DBOS = "dbos stream reader"


def tables(stand: Stand, rounds: int, *, short: bool) -> Iterator[Comparison]:
    """Measure both rates, as chunks per second over so many streams."""
    seconds = 3 if short else 8
    yield _table(stand, rounds, per_second=100, streams=1, seconds=seconds)
    yield _table(stand, rounds, per_second=2000, streams=50, seconds=seconds)


def alternatives(stand: Stand, streams: int) -> dict[str, Opened]:
    """Return those that one socket can read chunks of."""
    return {
        OURS: lambda: sources.served(stand, streams, writer_on=SERVER_CORES),
        APART: lambda: sources.served(stand, streams, writer_on=REST),
        LISTEN: lambda: sources.node_listen(stand, streams),
        REDIS: lambda: sources.redis_streams(streams),
        REDIS_DURABLE: lambda: sources.redis_streams(streams, is_durable=True),
    }


def _table(stand: Stand, rounds: int, *, per_second: int, streams: int, seconds: int) -> Comparison:
    def steady(load: Load) -> Load:
        return replace(load, rate=per_second, events=per_second * seconds, warm=per_second)

    def measure(opened: Opened) -> Figures:
        with opened() as source:
            it = source.run(steady)
        return {"p50": it.p50, "p99": it.p99, "max": it.max, **it.usage}

    measured: dict[str, Callable[[], Figures]] = {
        name: partial(measure, opened) for name, opened in alternatives(stand, streams).items()
    }
    measured[RELAYED] = lambda: measure(lambda: sources.relayed(stand, streams))
    goals = [
        Goal("p50", 1.5, most=True),
        Goal("p99", 4.0, most=True),
        Goal("p99", 1.0, LISTEN, most=True),
    ]
    if streams == 1:
        # One stream of it takes some 400 chunks a second: the other table is beyond it.
        measured[DBOS] = lambda: queues.stream(stand, per_second, per_second * seconds)
        goals.append(Goal("p50", round(1 / 6, 3), DBOS, most=True))
    return in_turn(
        f"append → socket, {per_second:,} chunks/s over {streams} stream(s), milliseconds",
        measured,
        rounds=rounds,
        columns=[
            Column("p50", "p50", ".2f"),
            Column("p99", "p99", ".2f"),
            Column("max", "slowest", ".1f"),
            *USAGE,
        ],
        goals=goals,
        command="python -m tests.benchmarks latency",
    )
