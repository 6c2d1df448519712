"""A resume storm: CLIENTS come back at once to a server that has just started.

Each held a stream as far as chunk HELD and asks for the rest. The time is until the last of them
has been told `live`, from opening the first socket: handshakes, credentials and snapshots included;
strangers are let in as the defaults have it. Every missed chunk must come once to each.
"""

from collections.abc import Iterator
from dataclasses import replace

from tests.benchmarks import generator
from tests.benchmarks.comparison import GENERATOR, OURS, Column, Comparison, Figures, Goal, in_turn
from tests.benchmarks.sources import hellos, ours
from tests.benchmarks.stand import AS_IT_COMES, Stand, serving

CLIENTS = 1000
HELD = 100
MISSED = 100


def tables(stand: Stand, rounds: int, *, short: bool) -> Iterator[Comparison]:
    """Measure it; there is no peer that can do it."""
    clients = CLIENTS // (4 if short else 1)
    with serving(stand) as server, ours(server) as source:
        count = HELD + MISSED
        source.run(lambda load: replace(load, events=count, window=count))

    def measure() -> Figures:
        with serving(stand, AS_IT_COMES) as server:
            load = replace(
                source.load,
                port=server.port,
                servers=[server.server],
                publish="",
                sockets=clients,
                at_once=clients,
                hellos=hellos(stand, source.run_id, 1, start=HELD),
                first=HELD,
                expect=MISSED,
            )
            it = generator.run(load)
        return {"half": it.ready_p50, "all": it.ready_max, GENERATOR: it.generator_cpu}

    yield in_turn(
        f"resume storm: {clients:,} clients at once, each has missed {MISSED} chunks",
        {OURS: measure},
        rounds=rounds,
        columns=[Column("half", "half live, ms"), Column("all", "all live, ms")],
        goals=[Goal("all", 2000, most=True)],
        command="python -m tests.benchmarks resume",
    )
