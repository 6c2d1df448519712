"""What one event, one read and one page cost as what is stored, queued and followed grows.

The same operations in one database that is filled further and further: each row is what they cost
there, each goal that it is no more than a little above the first row. Through the engine, one at a
time, microseconds, medians. The last table is the hub's core alone, without sockets and Postgres.
"""

import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path

import anyio
import psycopg

from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.changes import Tail
from runwire_engine.engine import Engine, open_engine
from runwire_engine.following import Following
from runwire_engine.ids import new_worker_id
from runwire_engine.outcomes import Completed
from runwire_engine.placement import Append
from runwire_engine.run_pages import RunQuery, read_page
from runwire_engine.settings import EngineSettings
from runwire_engine.wanted_runs import NewRun
from runwire_realtime.limits import HubLimits
from runwire_realtime.rotation import Rotation
from runwire_realtime.run_places import RUNS_PER_LOOK
from tests.benchmarks.comparison import Column, Comparison, Figures, Goal
from tests.benchmarks.stand import Stand
from tests.support.hub_world import World

_FILL = Path(__file__).with_name("grown_runs.sql")
_COMMAND = "python -m tests.benchmarks growth"
# What an operation on a large installation may cost, as a multiple of a small one.
_MOST = 1.5
_TIMES = 200
_AT_ONCE = 1_000


def tables(stand: Stand, rounds: int, *, short: bool) -> Iterator[Comparison]:
    """Measure beside finished and queued runs, on a long stream, and beside idle readers."""
    large = 100_000 if short else 1_000_000
    yield anyio.run(_runs, stand, [1_000, min(large, 100_000), large])
    yield anyio.run(_chunks, stand, [1_000, min(large, 100_000), large])
    yield _readers(1_000, 10_000 if short else 100_000, rounds)


# Runs


async def _runs(stand: Stand, sizes: Sequence[int]) -> Comparison:
    rows: dict[str, Figures] = {}
    async with open_engine(EngineSettings(database_url=stand.dsn), sweeping=False) as engine:
        env = stand.environment_id
        await engine.catalogue.announce(
            env, [TaskAnnouncement("noop", "task/noop"), TaskAnnouncement("later", "task/later")]
        )
        # As many wait from the first row on as a feed's snapshot holds: a look at its open runs is
        # bounded by that, and is quicker while there are fewer.
        new = [NewRun(task="later", payload=None)] * _AT_ONCE
        await engine.runs.trigger_many(env, new)
        there = 0
        for size in dict.fromkeys(sizes):
            _fill(stand, there + 1, size)
            if there == 0:
                await _operations(engine, env)  # a database that has just started is slow
            there = size
            rows[f"{size:,} finished"] = await _operations(engine, env)
        for _ in range(99):
            await engine.runs.trigger_many(env, new)
        _analyze(stand)
        rows[f"{there:,} finished, 100,000 queued"] = await _operations(engine, env)
    titles = {
        "cycle": "run, start to end",
        "append": "append",
        "snapshot": "tag, first page",
        "resume": "tag, resume",
        "page": "list page",
        "failed": "list, failed",
    }
    return _table("one operation beside many runs, µs", titles, rows)


def _fill(stand: Stand, first: int, last: int) -> None:
    text = _FILL.read_text(encoding="utf-8").replace("%(environment)s", str(stand.environment_id))
    with psycopg.connect(stand.dsn, autocommit=True) as connection:
        connection.execute("set synchronous_commit = off")
        # Transactions of some length each, since the log is read by transaction.
        for start in range(first, last + 1, _AT_ONCE):
            end = min(last, start + _AT_ONCE - 1)
            part = text.replace("%(first)s", str(start)).replace("%(last)s", str(end))
            connection.execute(part.encode())
    _analyze(stand)


def _analyze(stand: Stand) -> None:
    """Do what autovacuum does within a minute."""
    with psycopg.connect(stand.dsn, autocommit=True) as connection:
        connection.execute("vacuum analyze")
        connection.execute("checkpoint")


async def _operations(engine: Engine, env: int) -> Figures:
    following = Following(engine.database)
    owner = await engine.runs.trigger(env, NewRun(task="later", payload=None, delay=86_400.0))
    append = Append(owner.id, "events", ('"a chunk of a stream"',), writer="growth")
    position = await Tail(engine.database).start()
    worker = new_worker_id()
    await engine.workers.register(env, worker)

    async def cycle() -> None:
        await engine.runs.trigger(env, NewRun(task="noop", payload="{}", tags=("user:1",)))
        [run] = await engine.claims.claim(env, worker, {"noop": 1}, 1)
        await engine.outcomes.finish(env, Completed(run.id, run.execution, "{}"))

    async def snapshot() -> None:
        members = await following.tagged(env, ["everyone"], None, 50)
        await following.rows(env, [each.run_id for each in members], 16_384)

    async def resume() -> None:
        await following.tagged(env, ["everyone"], None, 1_000, is_open=True)
        await following.touched(env, position, 20_001, tags=["everyone"])

    async def page() -> None:
        await read_page(engine.database, env, RunQuery())

    async def failed() -> None:
        await read_page(engine.database, env, RunQuery(status=["FAILED"]))

    return {
        "cycle": await _microseconds(cycle),
        "append": await _microseconds(lambda: engine.streams.append(env, append)),
        "snapshot": await _microseconds(snapshot),
        "resume": await _microseconds(resume),
        "page": await _microseconds(page),
        "failed": await _microseconds(failed),
    }


async def _microseconds(operation: Callable[[], Awaitable[object]], times: int = _TIMES) -> float:
    taken: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        await operation()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6


# One stream


async def _chunks(stand: Stand, sizes: Sequence[int]) -> Comparison:
    rows: dict[str, Figures] = {}
    env = stand.environment_id
    async with open_engine(EngineSettings(database_url=stand.dsn), sweeping=False) as engine:
        new = NewRun(task="later", payload=None, delay=86_400.0)
        owner = (await engine.runs.trigger(env, new)).id
        append = Append(owner, "long", ('"a chunk of a stream"',), writer="growth")
        await engine.streams.append(env, append)
        [stream] = await engine.streams.heads(env, [(owner, "long")])
        for size in dict.fromkeys(sizes):
            _lengthen(stand, stream.id, size)
            rows[f"{size:,} chunks"] = await _reads(engine, env, append, (stream.id, stream.bucket))
    titles = {
        "append": "append",
        "start": "100 from start",
        "tail": "last 100",
        "text": "1 000 as text",
    }
    return _table("one operation on a long stream, µs", titles, rows)


async def _reads(engine: Engine, env: int, append: Append, stream: tuple[int, date]) -> Figures:
    following = Following(engine.database)
    [head] = await engine.streams.heads(env, [(append.run_id, append.key)])

    def page(seq: int) -> Callable[[], Awaitable[object]]:
        return lambda: following.chunks([(*stream, seq)], 65_536, 100)

    return {
        "append": await _microseconds(lambda: engine.streams.append(env, append)),
        "start": await _microseconds(page(0)),
        "tail": await _microseconds(page(head.next_seq - 100)),
        "text": await _microseconds(lambda: following.text(*stream, 1_000, 1_000_000), 50),
    }


def _lengthen(stand: Stand, stream_id: int, size: int) -> None:
    with psycopg.connect(stand.dsn, autocommit=True) as connection:
        connection.execute(
            "insert into runwire.stream_chunks (bucket, stream_id, seq, writer, body)"
            " select s.bucket, s.id, n, 'growth', '\"a chunk of a stream\"'"
            " from runwire.streams s, generate_series(s.next_seq, %(size)s - 1) n"
            " where s.id = %(stream)s",
            {"size": size, "stream": stream_id},
        )
        connection.execute(
            "update runwire.streams set next_seq = greatest(next_seq, %s) where id = %s",
            [size, stream_id],
        )
    _analyze(stand)


# Readers


def _readers(few: int, many: int, rounds: int) -> Comparison:
    rows: dict[str, Figures] = {}
    for count in (few, many):
        measured = [_beside(count) for _ in range(rounds if count == few else 1)]
        rows[f"{count:,} idle subscriptions"] = {
            name: statistics.median(each[name] for each in measured) for name in measured[0]
        }
    # The look each second takes so many at a time, in rotation: it has no goal.
    titles = {"event": "event to one", "look": "a look each second"}
    return _table("the hub's core beside idle subscriptions, µs", titles, rows, flat=["event"])


def _beside(count: int) -> Figures:
    """Follow so many tags and runs to which nothing happens, and one run that changes."""
    world = World(HubLimits(subscriptions=1_000, inbound_burst=1_000))
    clients = [world.connect() for _ in range(0, count, 500)]
    # Tags before there are runs: the world, which is no database, looks for theirs among all.
    for number in range(1, count, 2):
        clients[number // 500].subscribe(f"s{number}", {"tags": [f"user:{number}"]})
    world.settle()
    for number in range(0, count, 2):
        world.create(f"run_{number:024}")
        clients[number // 500].subscribe(f"s{number}", {"run": f"run_{number:024}"})
    world.settle()
    followed = [held for client in clients for held in client.subscriptions.values()]
    assert len(followed) == count and all(held.is_live for held in followed)
    world.create("run_watched00000000")
    watcher = world.connect()
    watcher.subscribe("watched", {"run": "run_watched00000000"})
    world.settle()

    def event() -> None:
        world.change("run_watched00000000", {"attempt": 1})
        world.tail()
        world.push()
        watcher.turn()

    places = Rotation(lambda: world.hub.runs, RUNS_PER_LOOK)

    def look() -> None:
        places.take()

    return {"event": _microseconds_of(event), "look": _microseconds_of(look)}


def _microseconds_of(operation: Callable[[], None]) -> float:
    taken: list[float] = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        operation()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6


def _table(
    title: str,
    titles: Mapping[str, str],
    rows: Mapping[str, Figures],
    flat: Sequence[str] | None = None,
) -> Comparison:
    """Return a table whose last row must cost about what the first does, in all or these."""
    first, *_, last = rows
    goals = [Goal(figure, _MOST, first, most=True, row=last) for figure in flat or titles]
    columns = [Column(figure, name) for figure, name in titles.items()]
    return Comparison(
        title, columns, goals, _COMMAND, rounds={name: [row] for name, row in rows.items()}
    )
