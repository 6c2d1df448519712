"""One stream to many sockets: events delivered per second, and what each costs when it is alone.

Three shapes: with a backlog, where servers may join events; every event alone, where none can; and
20 events a second, where the time until the last of 1 000 sockets has it is what a user feels. The
server has core 0 to itself in every row, the generator and all else have the rest.

Each alternative is started anew for each round and measured in all shapes that one table needs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

from tests.benchmarks.comparison import OURS, USAGE, Column, Comparison, Figures, Goal, in_turn
from tests.benchmarks.generator import Load
from tests.benchmarks.sources import Opened, nats, node_hub, served
from tests.benchmarks.stand import Stand

PLAIN = "runwire, plain ASGI"
NODE = "node ws"
NODE_JOINED = "node, frames joined"
NATS = "nats websocket"


def tables(stand: Stand, rounds: int, *, short: bool) -> Iterator[Comparison]:
    """Measure 1 000 sockets with a backlog; in short form, with fewer events."""
    events = 1280 // (4 if short else 1)
    yield _backlog(
        _sources(stand), rounds, sockets=1000, window=32, events=events, goal=15, command="fanout"
    )


def crowd(stand: Stand, rounds: int, *, short: bool) -> Iterator[Comparison]:
    """Measure 5 000 sockets with a backlog; in short form, with fewer events."""
    events = 256 // (4 if short else 1)
    yield _backlog(
        _sources(stand), rounds, sockets=5000, window=16, events=events, goal=10, command="crowd"
    )


def alone(stand: Stand, rounds: int, *, short: bool) -> Iterator[Comparison]:
    """Measure every event alone, and 20 a second; in short form, with fewer events."""
    part = 4 if short else 1
    yield _alone(_sources(stand), rounds, events=400 // part, seconds=8 // part)


def _sources(stand: Stand) -> Mapping[str, Opened]:
    return {
        OURS: lambda: served(stand),
        PLAIN: lambda: served(stand, is_plain=True),
        NODE: lambda: node_hub("fanout_hub.mjs"),
        NODE_JOINED: lambda: node_hub("joined_hub.mjs"),
        NATS: nats,
    }


def _backlog(
    sources: Mapping[str, Opened],
    rounds: int,
    *,
    sockets: int,
    window: int,
    events: int,
    goal: float,
    command: str,
) -> Comparison:
    def shape(load: Load) -> Load:
        return replace(load, sockets=sockets, window=window, events=events, warm=2 * window)

    def measure(opened: Opened) -> Figures:
        with opened() as source:
            it = source.run(shape)
        return {"events": it.per_second, "frames": it.received / it.frames, **it.usage}

    goals = [Goal("events", goal, NODE)]
    if sockets == 1000:
        goals += [Goal("events", 0.8, NODE_JOINED), Goal("events", 1.0, NATS)]
        goals += [Goal("events", 4, NODE, row=PLAIN)]
    return in_turn(
        f"fan-out, 1 → {sockets:,} sockets, 200-byte events, backlog {window}",
        {name: partial(measure, opened) for name, opened in sources.items()},
        rounds=rounds,
        columns=[Column("events", "events/s"), Column("frames", "events/frame", ".1f"), *USAGE],
        goals=goals,
        command=f"python -m tests.benchmarks {command}",
    )


def _alone(sources: Mapping[str, Opened], rounds: int, *, events: int, seconds: int) -> Comparison:
    def one_by_one(load: Load) -> Load:
        return replace(load, sockets=1000, window=1, events=events, warm=20)

    def steady(load: Load) -> Load:
        # Events go on where the first shape ended: each source is started anew instead.
        return replace(load, sockets=1000, rate=20, events=20 * seconds, warm=20)

    def measure(opened: Opened) -> Figures:
        with opened() as source:
            alone = source.run(one_by_one)
        with opened() as source:
            timed = source.run(steady)
        return {
            "events": alone.per_server_second,
            "p50": timed.p50,
            "p99": timed.p99,
            **alone.usage,
        }

    return in_turn(
        "fan-out, 1 → 1,000 sockets, every event alone; and 20 events/s",
        {name: partial(measure, opened) for name, opened in sources.items()},
        rounds=rounds,
        columns=[
            Column("events", "events/CPU second"),
            Column("p50", "p50 ms at 20/s", ".1f"),
            Column("p99", "p99 ms at 20/s", ".1f"),
            *USAGE,
        ],
        goals=[Goal("events", 1.2, NODE), Goal("p99", 0.7, NODE, most=True)],
        command="python -m tests.benchmarks alone",
    )
