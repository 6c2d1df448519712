"""No-op runs per second of one worker: RUNS are queued first, then it starts.

The time is from the first start to the last end. Ours is the database's, with every state change
and its event in the log; a peer's is its own, and what it keeps is said in `peers/`. Workers have
core 0, the database the rest. All execute the same number of runs at once, but for pgqueuer, which
may execute three times as many: so many are held by ours, counting those whose end is not stored
yet, and pgqueuer has one bound for both.
"""

from collections.abc import Iterator

from tests.benchmarks import queues, worker
from tests.benchmarks.comparison import OURS, Column, Comparison, Figures, Goal, in_turn
from tests.benchmarks.cores import SERVER_CORES
from tests.benchmarks.queues import CELERY, DBOS, PGQUEUER, PROCRASTINATE
from tests.benchmarks.stand import Stand

# What each gets through in a few seconds.
RUNS = {OURS: 20_000, PGQUEUER: 20_000, PROCRASTINATE: 2_000, DBOS: 1_000, CELERY: 4_000}


def tables(stand: Stand, rounds: int, *, short: bool) -> Iterator[Comparison]:
    """Measure with ten and with a hundred runs at once."""
    worker.announce(stand, SERVER_CORES)
    for concurrency in (10, 100):
        yield _table(stand, rounds, concurrency, part=4 if short else 1)


def _table(stand: Stand, rounds: int, concurrency: int, part: int) -> Comparison:
    def ours() -> Figures:
        count = RUNS[OURS] // part
        worker.queue(stand, count)
        with worker.working(stand, concurrency, SERVER_CORES):
            seconds, _ = worker.finished(stand, "noop", count, 60)
        return {"runs": count / seconds}

    peers = {
        name: lambda name=name: queues.throughput(stand, name, RUNS[name] // part, concurrency)
        for name in queues.SCRIPTS
    }
    return in_turn(
        f"no-op runs, one worker, {concurrency} at once",
        {OURS: ours, **peers},
        rounds=rounds,
        columns=[Column("runs", "runs/s")],
        goals=[
            Goal("runs", 1.5, PGQUEUER),
            Goal("runs", 10, PROCRASTINATE),
            Goal("runs", 10, DBOS),
        ],
        command="python -m tests.benchmarks runs",
    )
