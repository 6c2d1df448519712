"""What a statement reads does not grow with what is stored: looked up in the plans it gets.

Every statement is held against tables that have grown, with the plan that was made for it while
they were empty (which Postgres keeps until somebody analyzes them), and with those made since. One
that reads, sorts or throws away many times what it answers is found here. A new statement has to
be listed: with its parameters, or among those that are left out, with the reason.
"""

import os
from collections.abc import Generator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

import psycopg
import pytest

from tests.support.grown import (
    Connection,
    Cost,
    Parameters,
    execute,
    grow,
    keep_statistics,
    prepare,
    statement_names,
)
from tests.support.postgres import TestServer

RUNS: Final = int(os.environ.get("RUNWIRE_GROWN_RUNS", "6000"))


def run(kind: str, number: int = 1) -> str:
    """Return the id of a run of `grown`."""
    return f"run_{kind}{number:020}"


# The id of the stream with many chunks, as it turns out to be.
LONG: Final = "the long stream"
LONG_ALONE: Final = "the long stream alone"
LONG_TWICE: Final = "the long stream twice"
_NOW: Final = datetime.now(UTC)
_FINISHED: Final = [run("finished", n) for n in (1, 2, 3)]
_NEW: Final = run("new")

# By their names; a statement that needs others has them below.
_USUAL: Final[dict[str, object]] = {
    "environment_id": 1,
    "environment_ids": [1],
    "id": run("executing"),
    "run_id": run("executing"),
    "batch_id": f"batch_{1:020}",
    "ids": _FINISHED,
    "run_ids": _FINISHED,
    "target_id": run("finished"),
    "targets": _FINISHED,
    "parents": [run("finished")],
    "worker_id": "worker-1",
    "key": run("finished"),
    "keys": _FINISHED,
    "task": "task-2",
    "tasks": ["task-1"],
    "name": "queue-2",
    "names": ["queue-2", "narrow"],
    "queues": ["narrow"],
    "limit": 20,
    "offset": 0,
    "now": _NOW,
    "since": None,
    "from_time": None,
    "from_id": None,
    "created_from": None,
    "created_to": None,
    "statuses": None,
    "tags": None,
    "is_open": False,
    "kept": timedelta(hours=1),
    "history": timedelta(days=1),
    "runs": timedelta(days=30),
    "day": date.today() - timedelta(days=2),
    "bucket": date.today(),
    "limit_chunks": 100,
    "limit_bytes": 100_000,
    "generation": 0,
    "execution": 1,
    "waits": False,
    "error": "{}",
    "result": "[]",
    "lease": 30,
    "grace": 35,
    "seconds": 30,
    "writer_id": "writer-1",
    "target": "chunks",
    "number": 7,
    "type": "IMPERATIVE",
    "request_key": "request",
}

# Statements whose usual parameters do: by key, or the next of an order.
_BY_KEY: Final = """
batches.held_key batches.answered_request batches.lock batches.forget_key batches.seal
batches.count batches.retrieve batches.end
catalogue.known
changes.place changes.is_cut_off changes.now changes.tail
claims.wait_for_claim claims.lost claims.promote claims.next_due
debounces.hold debounces.waiting
endings.forget_keys
following.rows following.batch following.batch_runs following.creations
following.place following.revisions
outcomes.statuses
queues.mention queues.apply queues.retrieve queues.page queues.match
run_metadata.retrieve run_metadata.lock_runs run_metadata.documents
run_pages.summaries
runs.retrieve runs.events runs.lock runs.reset_key
cancellations.cancel cancellations.take cancellations.drop cancellations.lock_children
schedules.lock schedules.retrieve schedules.delete schedules.list schedules.undeclare
streams.lock_runs streams.lock_runs_to_change streams.there streams.lock_free_runs
streams.of_run
sweep.delete_request_keys sweep.delete_writers sweep.delete_idempotency_keys
sweep.delete_debounce_keys sweep.delete_used_tokens sweep.delete_revoked_tokens
sweep.delete_groups sweep.delete_workers
ticks.look ticks.due ticks.resume ticks.forget
triggers.existing triggers.tasks triggers.hold_parents triggers.parents
triggers.answered_requests triggers.free_requests triggers.held_keys
waitpoints.free_key waitpoints.of_key waitpoints.retrieve waitpoints.time_out waitpoints.next_due
waitpoints.delete_old
waits.take_wakes waits.take_wakes_of
waits.lock waits.await_runs waits.over waits.journal waits.marks waits.results waits.forget
waits.waiters waits.note_input waits.drop_wakes waits.due waits.lock_waiters waits.unresolved
waits.note_journal
workers.held workers.cancel_requests workers.orphans workers.overdue_cancels workers.expire
workers.bury workers.heartbeat workers.stop
writers.ensure writers.answered writers.record writers.close
retention.keeper retention.still_keeps retention.expired_runs retention.note_emptied
retention.delete_streams retention.delete_metadata retention.delete_batch_items
retention.delete_idempotency_keys retention.delete_runs retention.delete_batches
"""

_PAGES: Final[list[dict[str, object]]] = [
    {"tasks": None},
    {"tasks": None, "from_time": _NOW, "from_id": run("finished")},
]
# What is held against growth by other parameters, in each of these ways.
_CASES: Final[dict[str, list[dict[str, object]]]] = {
    "batches.abandoned": [{"quiet": timedelta(hours=1), "most": 1000}],
    "batches.claim_key": [{"ttl": 60}],
    "batches.claim_request": [{}],
    "batches.move_request": [{}],
    "batches.create": [
        {"id": "batch_new00000", "run_count": 3, "parent_id": None, "idempotency_key": None}
    ],
    "batches.items": [{"indexes": [1, 2, 3]}],
    "batches.note_errors": [{"errors": "[]"}],
    "claims.lock_groups": [
        {
            "reach": 128,
            "cursor_queues": [],
            "cursor_keys": [],
            "held_queues": [],
            "held_keys": [],
            "slots": 10,
        }
    ],
    "claims.pick_limited": [
        {"keys": ["key-1"], "limits": [5], "turns": 5, "slots": 10},
    ],
    "claims.take": [
        {
            "ids": ids,
            "tasks": ["task-2"],
            "max_attempts": [3],
            "queues": ["queue-2"],
            "keys": [""],
            "had_turns": [0],
            "reach": 100,
            "slots": slots,
        }
        for ids, slots in (([run("ready", 1), run("ready", 2)], 0), ([], 10))
    ],
    "claims.take_lone": [{"run_id": run("ready"), "tasks": ["task-2"], "max_attempts": [3]}],
    "debounces.claim": [{"tasks": ["task-2"], "keys": ["new"], "ids": [_NEW]}],
    "following.events": [{"after": 1}],
    "environments.name": [{"id": 1}],
    "debounces.point": [
        {
            "tasks": ["task-2"],
            "keys": [run("delayed")],
            "ids": [run("delayed")],
            "delays": [30.0],
        }
    ],
    "debounces.push": [
        {
            "run_id": run("delayed"),
            "takes": True,
            "payload": "{}",
            "payload_type": "application/json",
            "payload_shown": "{}",
            "tags": ["everyone", "other"],
            "max_attempts": 3,
            "max_duration": None,
            "idempotency_key": None,
            "metadata": '{"a":1}',
            "delay": 30,
        }
    ],
    "debounces.move_keys": [{"tasks": ["task-2"], "keys": [run("finished")], "ids": [_NEW]}],
    "endings.end_streams": [{"reasons": ["final"] * 3, "environment_ids": [1, 1, 1]}],
    "following.tagged": [
        {"first": "everyone", "tags": ["everyone"], "since": "-infinity"},
        {"first": "finished-7", "tags": ["finished-7", "everyone"], "since": "-infinity"},
    ],
    "following.open_tagged": [
        {"first": "everyone", "tags": ["everyone"], "since": "-infinity"},
        {"first": "finished-7", "tags": ["finished-7", "everyone"], "since": "-infinity"},
    ],
    "following.recent": [{"tasks": tasks, "since": "-infinity"} for tasks in (None, ["task-2"])],
    "following.open_recent": [
        {"tasks": None, "since": "-infinity"},
        {"tasks": None, "since": "-infinity", "statuses": ["QUEUED"]},
    ],
    "following.failed_recent": [{"tasks": None, "since": "-infinity", "statuses": ["FAILED"]}],
    "following.touched": [
        {"snapshot": None, "tags": ["everyone"], "tasks": None, "batch_id": None}
    ],
    "following.before": [{"revisions": [3, 3, 3]}],
    "following.creations": [{"batch_id": None}],
    "following.heads": [
        {"keys": ["log", "log", "log"]},
        {"keys": [None, None, None]},
    ],
    "following.chunks": [
        {"stream_ids": LONG_ALONE, "buckets": [date.today()], "from_seqs": [seq]}
        for seq in (0, RUNS // 2, RUNS - 5)
    ],
    "following.text": [{"stream_id": LONG, "from_seq": RUNS // 2, "before_seq": RUNS // 2 + 50}],
    "outcomes.complete": [
        {
            "ids": [run("executing", 1), run("executing", 2)],
            "executions": [1, 1],
            "outputs": ["{}", None],
            "output_types": ["application/json", None],
        }
    ],
    "outcomes.record": [
        {
            "ids": [run("executing", 1), run("executing", 2)],
            "executions": [1, 1],
            "statuses": ["COMPLETED", "DELAYED"],
            "outputs": ["{}", None],
            "output_types": ["application/json", None],
            "errors": [None, "{}"],
            "delays": [None, 3.0],
            "released": [False, False],
            "lost": [False, False],
            "alone": alone,
        }
        for alone in (True, False)
    ],
    "queues.declare": [{"limits": [None, 5]}],
    "queues.pause": [{"paused": True}],
    "queues.override": [{"limit": 3}],
    "queues.name_of": [{"id": "queue_1"}],
    "queues.make_groups": [{"keys": ["key-1"]}],
    "queues.match": [{"environment_id": 1, "queues": ["narrow"]}, {"environment_id": None}],
    "retention.delete_tags": [
        {"tags": ["finished-1"], "tagged_at": [_NOW], "tagged": [run("finished")]}
    ],
    "run_metadata.write": [
        {
            "run_ids": [run("executing")],
            "bodies": ['{"step":2}'],
            "deltas": ['{"metadata":[]}'],
        }
    ],
    "runs.add_tags": [{"tags": ["new"]}],
    "runs.reschedule": [{"run_id": run("delayed"), "until": None, "delay": 30}],
    "schedules.lock_by_key": [{"deduplication_key": "7"}],
    "schedules.change": [
        {
            "id": f"sched_{1:020}",
            "cron": "* * * * *",
            "timezone": "UTC",
            "due_window": None,
            "missed": "newest",
            "external_id": None,
            "active": True,
            "next_at": _NOW,
            "due_at": _NOW,
        }
    ],
    "streams.make": [{"run_ids": [run("executing")], "keys": ["new"], "buckets": [date.today()]}],
    "streams.announce": [{"run_ids": [run("executing")], "keys": ["new"]}],
    "streams.keep_reserved": [{"run_ids": [run("executing")], "keys": ["$log"]}],
    "streams.lock": [{"keys": ["log"] * 3}],
    "streams.lock_free": [{"keys": ["log"] * 3}],
    "streams.parts": [{"targets": ["7"], "parts": ["a"]}],
    "streams.keep_parts": [{"targets": ["7"], "parts": ["a"], "answers": ["{}"]}],
    "streams.write": [
        {
            "ids": LONG_ALONE,
            "next_seqs": [RUNS + 2],
            "sizes": [10],
            "executions": [1],
            "attempts": ["[]"],
            "ended_executions": [None],
            "chunk_buckets": [date.today()] * 2,
            "chunk_streams": LONG_TWICE,
            "chunk_seqs": [RUNS, RUNS + 1],
            "chunk_executions": [1, 1],
            "chunk_attempts": [1, 1],
            "chunk_writers": [None, None],
            "chunk_bodies": ["1", "2"],
        }
    ],
    "streams.heads": [{"keys": ["log"] * 3}],
    "streams.chunks": [{"stream_id": LONG, "from_seq": seq} for seq in (0, RUNS // 2, RUNS - 5)],
    "ticks.ticked": [{"schedule_ids": [f"sched_{1:020}"], "ats": [_NOW]}],
    "ticks.link": [{"run_ids": [run("ready")], "schedule_ids": [f"sched_{1:020}"], "ats": [_NOW]}],
    "ticks.advance": [
        {
            "ids": [f"sched_{1:020}"],
            "next_ats": [_NOW],
            "due_ats": [_NOW],
            "last_ats": [_NOW],
            "errors": [None],
            "suspend": [False],
        }
    ],
    "ticks.put_off": [{"id": f"sched_{1:020}"}],
    "triggers.claim_requests": [{"keys": ["a", "b", "c"]}],
    "triggers.move_requests": [{}],
    "triggers.use_tokens": [{"jtis": ["a"], "expire": [_NOW]}],
    "triggers.free_tokens": [{"jtis": ["a"]}],
    "triggers.claim_keys": [{"tasks": ["task-2"], "keys": ["a"], "ids": [_NEW], "ttls": [60.0]}],
    "triggers.held_keys": [{"tasks": ["task-2"] * 3}],
    "triggers.insert": [
        {
            "ids": [_NEW],
            "queues": ["queue-2"],
            "concurrency_keys": [""],
            "payloads": ["{}"],
            "payload_types": ["application/json"],
            "metadata": ['{"a":1}'],
            "delays_until": [None],
            "delays": [None],
            "ttls": [60.0],
            "max_attempts": [3],
            "max_durations": [None],
            "priorities": [0.0],
            "idempotency_keys": [None],
            "request_keys": ["e"],
            "parent_ids": [None],
            "root_ids": [None],
            "depths": [0],
            "batch_ids": [None],
            "are_tests": [False],
            "awaited": [False],
            "tag_places": [1],
            "tags": ["everyone"],
            "makes_groups": True,
        }
    ],
    "triggers.list_in_batches": [{"batch_ids": [f"batch_{1:020}"], "indexes": [99], "ids": [_NEW]}],
    "waitpoints.create": [
        {
            "id": "waitpoint_new00000",
            "tags": [],
            "timeout_at": None,
            "timeout": 60,
            "key": "new",
            "key_ttl": 60,
        }
    ],
    "waitpoints.complete": [
        {"id": f"waitpoint_{1:020}", "output": "1", "output_type": "application/json"}
    ],
    "waitpoints.list": [
        {
            "key": key,
            "after_time": None,
            "after_id": None,
            "before_time": None,
            "before_id": None,
        }
        for key in (None, "key-7")
    ],
    "waits.note_targets": [{"targets": ["waitpoint_new00000"]}],
    "waits.store": [
        {
            "branches": ["main"],
            "ordinals": [1],
            "kinds": ["time"],
            "step_targets": ["time"],
            "run_ids": [""],
            "cached_ids": [""],
            "batch_ids": [None],
            "waitpoint_ids": [None],
            "stream_keys": [None],
            "seqs": [None],
            "dues": [None],
            "dues_in": [5.0],
        }
    ],
    "waits.keep_open": [{"open_branches": ["main"], "open_ordinals": [0]}],
    "waits.keep_marks": [{"marks": "{}"}],
    "waits.park": [{}],
    "waits.input": [{"branch": "main", "ordinal": 0}],
    "waits.due": [{}, {"environment_id": None}],
    "waits.resume": [{"ids": [run("waiting")], "anyway": True}],
    "waits.parked": [{"executions": [1, 1, 1]}],
    "workers.held": [{"ids": ["worker-1"]}],
    "workers.cancel_requests": [{"id": "worker-1"}],
    "workers.register": [
        {"id": "worker-new", "host": "", "process_id": 1, "version": "", "declares": []}
    ],
    "environments.key_by_hash": [{"hash": b"1" * 32}],
    "environments.environment_of_key": [{"hash": b"1" * 32}],
    "environments.ensure": [{"name": "dev"}],
    "run_pages.held_after": _PAGES,
    "run_pages.held_before": _PAGES,
    "run_pages.failed_after": [{"tasks": None, "statuses": ["FAILED"]}],
    "run_pages.failed_before": [{"tasks": None, "statuses": ["FAILED"]}],
}
_WALKS: Final[dict[str, dict[str, object]]] = {
    "by_creation": {},
    "by_task": {"task": "task-2"},
    "by_tag": {"tag": "everyone"},
    "by_parent": {"parent_id": run("finished"), "schedule_id": None},
    "by_schedule": {"schedule_id": "sched_hourly"},
    "of_batch": {"parent_id": None, "schedule_id": None},
    "open": {},
}
_PAGE_CASES: Final[dict[str, list[dict[str, object]]]] = {
    f"run_pages.{walk}_{direction}": [{**case, **more} for case in _PAGES]
    for walk, more in _WALKS.items()
    for direction in ("after", "before")
}

_ONE: Final = "reads or writes one row of a table that does not grow with runs"
_RARE: Final = "at a start, or by a person"
# What is not held against growth, and why.
_LEFT_OUT: Final[dict[str, str]] = {
    "alarms.notification_queue": "reads no table",
    "alarms.horizon": "reads the sessions of Postgres",
    "catalogue.announce": "as many rows as there are tasks in the code",
    "catalogue.list": "every task, which a page shows",
    "changes.begin": "a transaction",
    "changes.settle": "settings",
    "changes.commit": "a transaction",
    "changes.epoch": _ONE,
    "changes.rotate": _RARE,
    "changes.begin_history": _RARE,
    "changes.adopt_events": _RARE,
    "database.idle_timeout": "a setting",
    "database.is_read_only": "a setting",
    "database.one_plan": "a setting",
    "doorbell.ring": "reads no table",
    "environments.insert_key": _RARE,
    "environments.restore_key": _RARE,
    "environments.revoke_key": _RARE,
    "environments.list_keys": "every key, which a page shows",
    "following.since": "reads no table",
    "queues.count": "a row for each name of a queue, which are as many as the code has",
    "retention.take_time": "a setting",
    "retention.old_days": "reads the names of partitions",
    "retention.close_day": "once for each day",
    "retention.leftovers": "reads the names of partitions",
    "retention.detach": "once for each day",
    "retention.finish_detach": "once for each day",
    "retention.drop": "once for each day",
    "retention.note_dropped": "a row for each day",
    "retention.days_to_empty": "a row for each day",
    "runs.make_partitions": "once for each day",
    "schedules.clock": "reads no table",
    "schedules.insert": "inserts by key",
    "schedules.count": "counts what a page shows a part of",
    "streams.append_known": "a CALL has no plan; test_plans.py holds what it reads",
    "streams.append_lone": "a CALL has no plan; test_plans.py holds what it reads",
    "streams.hasten": "a setting",
    "sweep.make_partitions": "once for each day",
    "sweep.stale_statistics": "reads the statistics of tables",
    "transactional.begin": "locks",
    "triggers.lone": "a CALL has no plan; what it reads it reads by whole keys",
}
_LEFT_OUT_FILES: Final[dict[str, str]] = {
    "migrations": "once for each version",
    "testing": "for tests",
}


# Statements that read more than they answer, and why that is so.
_READS_MORE: Final[dict[str, str]] = {
    "queues.page": "counts what waits: its answer is a number",
    "queues.retrieve": "counts what waits: its answer is a number",
    "queues.match": "at a change of a limit, and once in a pass of the sweep: ready runs only",
    "queues.apply": "at a change of a limit, which is a change of each of its groups",
    "sweep.delete_groups": "groups of the last minute; an index would cost each claim more",
    "retention.delete_batches": "once in a pass of the retention",
    "waitpoints.list": "with the values at hand it goes along the index",
}


@dataclass(frozen=True, slots=True)
class Grown:
    """A database that grew under sessions that had planned before."""

    dsn: str
    # Whose plans were made while everything was empty.
    early: Connection
    values: Parameters


def _held() -> dict[str, list[Parameters]]:
    by_key: dict[str, list[dict[str, object]]] = {name: [{}] for name in _BY_KEY.split()}
    return {
        name: [{**_USUAL, **case} for case in cases]
        for name, cases in {**by_key, **_CASES, **_PAGE_CASES}.items()
    }


HELD: Final = _held()


@pytest.fixture(scope="module")
def grown(postgres: TestServer) -> Generator[Grown]:
    dsn = postgres.create_database()
    with (
        psycopg.connect(dsn, autocommit=True) as early,
        psycopg.connect(dsn, autocommit=True) as filling,
    ):
        [(first,)] = filling.execute("select id from runwire.environments").fetchall()
        assert first == 1
        keep_statistics(filling)
        _plan(early, "force_generic_plan")
        empty = {"long": 0, "snapshot": _snapshot(filling)}
        for name, case in _cases():
            try:
                execute(early, name, _values(case, empty))
            except psycopg.errors.IntegrityError:
                pass  # it was planned all the same
        grow(filling, RUNS)
        [(long,)] = filling.execute("select id from runwire.streams where key = 'long'").fetchall()
        values = {"long": long, "snapshot": _snapshot(filling)}
        filling.execute(_NEWS)
        yield Grown(dsn, early, values)
    postgres.drop_database(dsn)


# What the tail has to read: few events after many.
_NEWS: Final = """
    insert into runwire.run_events
           (bucket, environment_id, run_id, revision, type, delta, task, tags)
    select bucket, environment_id, id, 9, 'metadata', '{}', task, tags
      from runwire.runs where status = 'EXECUTING' limit 5
"""


def _snapshot(connection: Connection) -> str:
    [(snapshot,)] = connection.execute("select pg_current_snapshot()::text").fetchall()
    return str(snapshot)


def _cases() -> list[tuple[str, Parameters]]:
    return [(name, case) for name, cases in HELD.items() for case in cases]


def _values(case: Parameters, values: Parameters) -> Parameters:
    long = values["long"]
    known = {LONG: long, LONG_ALONE: [long], LONG_TWICE: [long, long]}
    filled = {
        name: known[value] if isinstance(value, str) and value in known else value
        for name, value in case.items()
    }
    return {**filled, "snapshot": values["snapshot"]}


def _plan(connection: Connection, mode: str) -> None:
    """Have each statement planned as it is from now on: for any values, or for those at hand."""
    connection.execute(f"set plan_cache_mode = {mode}".encode())
    for name in HELD:
        prepare(connection, name)


def _costs(connection: Connection, values: Parameters) -> dict[str, Cost]:
    return {
        f"{name} {number}": execute(connection, name, _values(case, values))
        for number, (name, case) in enumerate(_cases())
        if name not in _READS_MORE
    }


def test_every_statement_is_held_against_growth_or_left_out_for_a_reason() -> None:
    names = set(statement_names())
    files = {name for name in names if name.partition(".")[0] in _LEFT_OUT_FILES}
    analyses = {name for name in names if name.startswith("sweep.analyze_")}
    assert set(HELD) | set(_LEFT_OUT) | files | analyses == names
    assert not set(HELD) & set(_LEFT_OUT)
    assert set(_READS_MORE) <= set(HELD)


def test_plans_made_while_everything_was_empty_stay_bearable(grown: Grown) -> None:
    # Not more: the sweep has young tables analyzed within seconds, and then all is planned anew.
    bound = 2 * RUNS
    costs = _costs(grown.early, grown.values)
    assert {name: cost for name, cost in costs.items() if cost.pages > bound} == {}


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
def test_no_statement_reads_or_sorts_much_that_it_does_not_return(grown: Grown, mode: str) -> None:
    with psycopg.connect(grown.dsn, autocommit=True) as connection:
        connection.execute("analyze")
        _plan(connection, mode)
        costs = _costs(connection, grown.values)
    assert {name: cost for name, cost in costs.items() if cost.faults} == {}
    enough = {name: _PAGES_OF.get(name.split()[0], _pages_for(costs[name])) for name in costs}
    assert {name: cost for name, cost in costs.items() if cost.pages > enough[name]} == {}


# One that looks around first: a hundred keys, two dozen pages each.
_PAGES_OF: Final = {"claims.lock_groups": 3000}


def _pages_for(cost: Cost) -> int:
    """Return how many pages a statement may look at: indexes are looked up for each row."""
    return 400 + 60 * cost.answered


def test_a_plan_that_reads_too_much_is_found(grown: Grown) -> None:
    with psycopg.connect(grown.dsn, autocommit=True) as connection:
        connection.execute("set max_parallel_workers_per_gather = 0")
        connection.execute("set enable_indexscan = off")
        connection.execute("set enable_bitmapscan = off")
        prepare(connection, "runs.retrieve")
        cost = execute(connection, "runs.retrieve", _USUAL)
    assert cost.faults == (f"Seq Scan runs of {_runs(grown)} rows",)


def _runs(grown: Grown) -> int:
    [(count,)] = grown.early.execute("select count(*) from runwire.runs").fetchall()
    return int(count)
