"""`make bench`: every figure of the docs, as ratios between alternatives run in turn.

    python -m tests.benchmarks [fanout] [latency] [runs] [start]

Three rounds, medians. The peers are Node programs in `peers/`, installed by `make bench`.
"""

import statistics
import sys
from collections.abc import Callable

import anyio

from runwire_engine.engine import open_engine
from runwire_engine.environments import Environments
from runwire_engine.runs import NewRun
from runwire_engine.settings import EngineSettings
from tests.benchmarks import engine_runs, fanout, latency
from tests.benchmarks.stand import Stand, standing

ROUNDS = 3


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def writer_for(stand: Stand) -> Callable[[], tuple[str, list[str]]]:
    """Return what makes a queued run of its own and the command of a writer into its stream."""

    def make() -> tuple[str, list[str]]:
        run_id = anyio.run(_new_run, stand)
        return run_id, [sys.executable, "-m", "tests.benchmarks.appender", run_id, "events"]

    return make


async def _new_run(stand: Stand) -> str:
    async with open_engine(EngineSettings(database_url=stand.dsn), sweeping=False) as engine:
        environment_id = await Environments(engine.database).ensure("dev")
        # Far in the future, so that no worker takes it: it only owns a stream.
        new = NewRun(task="noop", payload=None, delay=86_400.0)
        return (await engine.runs.trigger(environment_id, new)).id


def bench_fanout(stand: Stand) -> None:
    ours: list[fanout.Measured] = []
    node: list[fanout.Measured] = []
    for _ in range(ROUNDS):
        ours.append(fanout.ours(stand, writer_for(stand)))
        node.append(fanout.node())
    our = statistics.median(r.per_second for r in ours)
    their = statistics.median(r.per_second for r in node)
    say(f"fan-out, 1 → {fanout.SOCKETS} sockets, backlog {fanout.BACKLOG}, 200-byte events:")
    say(f"  runwire {our:12,.0f} events/s   node ws {their:12,.0f} events/s   {our / their:.1f} ×")
    for name, rounds in (("runwire", ours), ("node ws", node)):
        server = statistics.median(r.server_cpu for r in rounds)
        generator = statistics.median(r.generator_cpu for r in rounds)
        say(f"  {name}: server {server:.2f} of its core, generator {generator:.2f} of its core")


def bench_latency(stand: Stand) -> None:
    for per_second in (100, 1000):
        ours: list[latency.Measured] = []
        node: list[latency.Measured] = []
        for _ in range(ROUNDS):
            ours.append(latency.ours(stand, per_second, writer_for(stand)))
            node.append(latency.node(stand, per_second))
        say(f"append → socket, {per_second} chunks/s, milliseconds p50 / p99:")
        our = [statistics.median(getattr(r, name) for r in ours) for name in ("p50", "p99")]
        their = [statistics.median(getattr(r, name) for r in node) for name in ("p50", "p99")]
        ratios = " / ".join(f"{mine / other:.2f} ×" for mine, other in zip(our, their, strict=True))
        say(
            f"  runwire {our[0]:.2f} / {our[1]:.2f}"
            f"   node {their[0]:.2f} / {their[1]:.2f}   {ratios}"
        )


def bench_runs(stand: Stand) -> None:
    rounds = [engine_runs.throughput(stand) for _ in range(ROUNDS)]
    runs = statistics.median(r.runs_per_second for r in rounds)
    trips = statistics.median(r.round_trips_per_second for r in rounds)
    say(f"no-op runs, one worker: {runs:,.0f} runs/s ({runs / trips:.2f} × `select 1` round trips)")


def bench_start(stand: Stand) -> None:
    rounds = [engine_runs.latency(stand) for _ in range(ROUNDS)]
    p50 = statistics.median(r.start_p50 for r in rounds)
    p99 = statistics.median(r.start_p99 for r in rounds)
    call = statistics.median(r.call_p50 for r in rounds)
    say(f"trigger → first line, {engine_runs.PER_SECOND}/s over HTTP, milliseconds:")
    say(f"  p50 {p50:.2f}, p99 {p99:.2f}   (the trigger call itself: p50 {call:.2f})")


BENCHMARKS: dict[str, Callable[[Stand], None]] = {
    "fanout": bench_fanout,
    "latency": bench_latency,
    "runs": bench_runs,
    "start": bench_start,
}


def main(names: list[str]) -> None:
    with standing() as stand:
        anyio.run(engine_runs.announce, stand)
        for name in names or BENCHMARKS:
            BENCHMARKS[name](stand)


if __name__ == "__main__":
    main(sys.argv[1:])
