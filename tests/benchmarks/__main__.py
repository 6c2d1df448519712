"""`make bench`: every figure of the docs, as ratios between alternatives run in turn.

    python -m tests.benchmarks [NAME…] [--rounds N] [--add] [--short]
    python -m tests.benchmarks report

Each name is a module beside this one. Rounds are taken in turn, three unless told otherwise, and
medians printed; `--add` takes them together with the rounds that are kept, for a machine that is
quiet only now and then; `--short` does with fewer events, for a first look. Figures are kept as
JSON in .runwire/bench, short ones in its folder `short`, and `report` prints what they have to do
with the goals. What the peers need is installed by `make bench`; one that is missing is named.
"""

import argparse
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from tests.benchmarks import (
    fanout,
    growth,
    hops,
    latency,
    memory,
    report,
    resume,
    runs,
    saturated,
    start,
    watchers,
    writers,
)
from tests.benchmarks.comparison import Comparison, JsonTables, lines, read, write
from tests.benchmarks.generator import BENCH
from tests.benchmarks.stand import Stand, standing

BENCHMARKS: dict[str, Callable[..., Iterator[Comparison]]] = {
    "fanout": fanout.tables,
    "crowd": fanout.crowd,
    "alone": fanout.alone,
    "latency": latency.tables,
    "saturated": saturated.tables,
    "memory": memory.tables,
    "runs": runs.tables,
    "start": start.tables,
    "writers": writers.tables,
    "resume": resume.tables,
    "watchers": watchers.tables,
    "growth": growth.tables,
    "hops": hops.tables,
}
REPORT = "report"
SHORT = BENCH / "short"


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    options.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*BENCHMARKS, REPORT]))
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--add", action="store_true")
    options.add_argument("--short", action="store_true")
    told = options.parse_args()
    names = [*BENCHMARKS, REPORT]
    if unknown := set(told.names) - set(names):
        options.error(f"no benchmark {', '.join(sorted(unknown))}: there is {', '.join(names)}")
    # Told to end, it ends what it has started, Postgres first of all.
    signal.signal(signal.SIGTERM, _end)
    folder = SHORT if told.short else BENCH
    ours_failed = False
    for name in told.names or names:
        if name == REPORT:
            sys.stdout.write("\n".join([*report.lines(BENCHMARKS, folder), ""]))
            continue
        try:
            with standing() as stand:
                done = run(name, stand, told.rounds, folder, short=told.short, adding=told.add)
        except Exception:
            # The others are measured all the same.
            traceback.print_exc()
            ours_failed = True
        else:
            ours_failed |= any(goal.row in table.left_out for table in done for goal in table.goals)
    sys.exit(ours_failed)


def run(
    name: str, stand: Stand, rounds: int, folder: Path, *, short: bool, adding: bool
) -> list[Comparison]:
    """Print the tables of one benchmark, each when it is done, and keep them."""
    kept: JsonTables = read(name, folder) if adding else {}
    done: list[Comparison] = []
    for table in BENCHMARKS[name](stand, rounds, short=short):
        if table.title in kept:
            table.add(kept[table.title]["rounds"])
        sys.stdout.write("\n".join([*lines(table), "", ""]))
        sys.stdout.flush()
        done.append(table)
        write(name, done, kept, folder)
    return done


if __name__ == "__main__":
    main()
