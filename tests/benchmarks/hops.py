"""Append → socket, hop by hop: where a chunk's time goes, and where that of the slowest goes.

The processes are those of `latency`, with stamps around some calls (`stamped.py`), which cost a few
microseconds. Each hop is from the place before; the last column is the median of the hundredth of
the chunks that took longest. Below, what a peer's plain statement takes over the same Postgres.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias

import psycopg
import uvloop

from tests.benchmarks.comparison import Column, Comparison, Figures
from tests.benchmarks.cores import SERVER_CORES, cores
from tests.benchmarks.generator import Counted, Load
from tests.benchmarks.queues import percentiles
from tests.benchmarks.sources import ours
from tests.benchmarks.stand import Stand, serving

_STAMPED: Final = (sys.executable, "-m", "tests.benchmarks.stamped")
_PLACES: Final = {
    "taken": "handed over → append is called",
    "begun": "→ its flush begins",
    "sent": "→ placed, bell written, sent",
    "heard": "→ locked, written, committed, rung, heard",
    "in the ring": "→ in the stream's ring",
    "written": "→ written to the socket",
}
_ALL: Final = "all, until the reader has it"
_SELECT: Final = "floor: select 1, answered"
_PLAIN: Final = "floor: a plain insert and NOTIFY, heard"
# Chunk → when it was handed over, and when it passed each place.
_Trace: TypeAlias = dict[tuple[int, int], dict[str, int]]


def tables(stand: Stand, rounds: int, *, short: bool) -> Iterator[Comparison]:
    """Trace both rates of `latency`."""
    seconds = 3 if short else 8
    for per_second, streams in ((100, 1), (2000, 50)):
        title = f"append → socket by hops, {per_second:,} chunks/s over {streams} stream(s), µs"
        columns = [
            Column("p50", "p50"),
            Column("p99", "p99"),
            Column("slowest", "in the slowest 1 %"),
        ]
        command = "python -m tests.benchmarks hops"
        table = Comparison(title, columns, [], command, load_average=os.getloadavg()[0])
        for _ in range(rounds):
            counted, trace = _traced(stand, per_second, streams, seconds)
            for row, figures in _hops(counted, trace).items():
                table.rounds.setdefault(row, []).append(figures)
            for row, figures in _floors(stand, per_second, seconds).items():
                table.rounds.setdefault(row, []).append(figures)
        yield table


def _traced(stand: Stand, per_second: int, streams: int, seconds: int) -> tuple[Counted, _Trace]:
    def steady(load: Load) -> Load:
        return replace(load, rate=per_second, events=per_second * seconds, warm=per_second)

    with tempfile.TemporaryDirectory() as folder:
        fifos = [Path(folder, name) for name in ("server", "appender")]
        for fifo in fifos:
            os.mkfifo(fifo)
        server, appender = [(*_STAMPED, str(fifo), fifo.name) for fifo in fifos]
        with (
            serving(stand, command=server) as served,
            ours(served, streams, writer_on=SERVER_CORES, appender=appender) as source,
        ):
            counted = source.run(steady)
            trace: _Trace = {}
            for fifo in fifos:
                _read(fifo, trace, first=per_second // streams)
    return counted, trace


def _read(fifo: Path, trace: _Trace, first: int) -> None:
    """Read what a process noted, but for the chunks that warmed it up."""
    for line in fifo.read_text().splitlines():
        place, *numbers = line.rsplit(maxsplit=4)
        stream, number, stamp, at = map(int, numbers)
        if number >= first:
            trace.setdefault((stream, number), {"handed over": stamp}).setdefault(place, at)


def _hops(counted: Counted, trace: _Trace) -> dict[str, Figures]:
    whole = [passed for passed in trace.values() if len(passed) == 1 + len(_PLACES)]
    whole.sort(key=lambda passed: passed["written"] - passed["handed over"])
    slowest = whole[-max(1, len(whole) // 100) :]
    rows: dict[str, Figures] = {}
    for before, place in zip(["handed over", *_PLACES], _PLACES, strict=False):
        rows[_PLACES[place]] = {
            **_percentiles([passed[place] - passed[before] for passed in whole]),
            "slowest": statistics.median(p[place] - p[before] for p in slowest) / 1000,
        }
    rows[_ALL] = {"p50": counted.p50 * 1000, "p99": counted.p99 * 1000}
    return rows


def _floors(stand: Stand, per_second: int, seconds: int) -> dict[str, Figures]:
    with (
        cores(SERVER_CORES),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        selected, heard = runner.run(_plain(stand.dsn, per_second, per_second * seconds))
    return {_SELECT: _percentiles(selected), _PLAIN: _percentiles(heard)}


async def _plain(dsn: str, per_second: int, count: int) -> tuple[list[int], list[int]]:
    """Ask, and insert, at a rate, one after the other; return nanoseconds."""
    selected: list[int] = []
    heard: list[int] = []
    async with (
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as writer,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as listener,
        asyncio.TaskGroup() as tasks,
    ):
        await writer.execute(
            "create table if not exists hop_chunks (seq bigserial primary key, body text)"
        )
        await listener.execute("listen hop_chunks")

        async def hear() -> None:
            async for notification in listener.notifies(stop_after=count):
                heard.append(time.monotonic_ns() - int(notification.payload[:20]))

        tasks.create_task(hear())
        due = time.monotonic()
        for asks in [True] * (count // 4) + [False] * count:
            due += 1 / per_second
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            began = time.monotonic_ns()
            if asks:
                await writer.execute("select 1", prepare=True)
                selected.append(time.monotonic_ns() - began)
            else:
                await writer.execute(
                    "with made as (insert into hop_chunks (body) values (%(body)s))"
                    " select pg_notify('hop_chunks', %(body)s::text)",
                    {"body": f"{began:020}{'x' * 80}"},
                    prepare=True,
                )
    return selected, heard


def _percentiles(nanoseconds: Sequence[int]) -> Figures:
    return percentiles([each / 1000 for each in nanoseconds]) if nanoseconds else {}
