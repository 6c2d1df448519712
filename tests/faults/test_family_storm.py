"""Workers are killed while runs wait, have children, tick and stream: nothing twice or lost.

RUNWIRE_STORM_RUNS makes it larger (48 runs, and those of a schedule); RUNWIRE_FAULTS_SEED the same
again, as far as kills go.
"""

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, LiteralString

import anyio
import psycopg
import pytest
from psycopg.rows import dict_row

from runwire import AsyncRunwire
from tests.support.processes import until_async
from tests.support.stormy import Stormy, stormy_setup

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

# A parent, four leaves, and one that blocks.
FAMILY: Final = 6
RUNS: Final = int(os.environ.get("RUNWIRE_STORM_RUNS", "48"))
PARENTS: Final = max(1, RUNS // FAMILY)
TICKS: Final = 20
LEAST_KILLS: Final = 3
SEED: Final = int(os.environ.get("RUNWIRE_FAULTS_SEED", "0")) or random.randrange(1, 2**31)
PATIENCE: Final = 60.0 + RUNS / 2
MODULE: Final = "tests/faults/programs/family_storm_tasks.py"


@dataclass
class Acknowledged:
    """What tasks were told is stored, by the run it was written to."""

    metadata: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    parent: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    chunk: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    @classmethod
    def read(cls, path: Path) -> "Acknowledged":
        told = cls()
        for line in path.read_text().splitlines():
            kind, run_id, value = line.split(" ", 2)
            values: dict[str, list[str]] = getattr(told, kind)
            values.setdefault(run_id, []).append(value)
        return told


@pytest.mark.timeout(180 + RUNS)
async def test_families_of_runs_outlive_their_workers_with_nothing_twice_and_nothing_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sys.stdout.write(f"RUNWIRE_FAULTS_SEED={SEED}\n")
    ledger = tmp_path / "acknowledged"
    ledger.touch()
    monkeypatch.setenv("STORM_LEDGER", str(ledger))
    chance = random.Random(SEED)
    async with stormy_setup(chance, hubs=1, workers=3, modules=MODULE) as setup:
        url = setup.urls()[0]
        async with AsyncRunwire(api_url=url, access_token=setup.key) as client:
            parents = await _begun(client)
            await _many_ticks(setup, client)
        kills = 0
        with anyio.fail_after(PATIENCE):
            while kills < LEAST_KILLS or await _unfinished(setup):
                await setup.kill_worker()
                kills += 1
                await anyio.sleep(chance.uniform(0.2, 2.0))
        await until_async(lambda: _all_ended(setup), PATIENCE)

        told = Acknowledged.read(ledger)
        runs = await _rows(setup, "select * from runwire.runs")
        sys.stdout.write(f"{len(runs)} runs, {kills} kills\n")
        _hold_runs(runs, parents)
        await _hold_ends(setup, runs)
        await _hold_metadata(setup, told)
        await _hold_chunks(setup, told)
        _hold_ticks(runs)


async def _begun(client: AsyncRunwire) -> dict[str, int]:
    """Trigger the parents; return them with their numbers."""
    parents: dict[str, int] = {}
    for number in range(PARENTS):
        handle = await client.tasks.trigger("storm-parent", number)
        parents[handle.id] = number
    return parents


async def _many_ticks(setup: Stormy, client: AsyncRunwire) -> None:
    """Make a schedule that runs each minute, and have it be late by some of them."""
    schedule = await client.schedules.create(
        task="storm-tick", cron="* * * * *", deduplication_key="storm", missed="all"
    )
    await _rows(
        setup,
        "update runwire.schedules set next_at = next_at - make_interval(mins => %s),"
        " due_at = due_at - make_interval(mins => %s) where id = %s returning id",
        TICKS,
        TICKS,
        schedule.id,
    )


def _hold_runs(runs: list[dict[str, Any]], parents: dict[str, int]) -> None:
    """Every run is done, every parent has each of its children once, and its output."""
    assert Counter(run["status"] for run in runs) == Counter({"COMPLETED": len(runs)})
    assert {run["id"] for run in runs if run["task"] == "storm-parent"} == set(parents)
    children = {id: Counter[str]() for id in parents}
    for run in runs:
        if run["parent_id"] is not None:
            children[run["parent_id"]][run["task"]] += 1
    once = Counter({"storm-leaf": 4, "storm-blocking-leaf": 1})
    assert {id: had for id, had in children.items() if had != once} == {}
    outputs = {run["id"]: json.loads(run["output"]) for run in runs if run["id"] in parents}
    assert outputs == {id: 4 * number + 3 for id, number in parents.items()}


async def _hold_ends(setup: Stormy, runs: list[dict[str, Any]]) -> None:
    """Each run ended once."""
    ends = await _rows(
        setup,
        "select run_id, count(*) as n from runwire.run_events where type = 'final' group by run_id",
    )
    assert {row["run_id"]: row["n"] for row in ends} == {run["id"]: 1 for run in runs}


async def _hold_metadata(setup: Stormy, told: Acknowledged) -> None:
    """Each operation that was acknowledged is there, and none is there twice."""
    rows = await _rows(setup, "select run_id, body from runwire.run_metadata")
    documents = {row["run_id"]: json.loads(row["body"]) for row in rows}
    for run_id, document in documents.items():
        own: list[str] = document.get("operations", [])
        _hold_once(own, told.metadata.get(run_id, []), f"metadata of {run_id}")
        assert document.get("count", 0) == len(own), f"increments of {run_id}"
        children: list[str] = document.get("fromChildren", [])
        _hold_once(children, told.parent.get(run_id, []), f"what children wrote to {run_id}")
    assert told.metadata.keys() <= documents.keys()
    assert told.parent.keys() <= documents.keys()


async def _hold_chunks(setup: Stormy, told: Acknowledged) -> None:
    """Each chunk that was acknowledged is there, none is there twice, seqs have no hole."""
    rows = await _rows(
        setup,
        "select s.run_id, s.key, c.seq, c.body from runwire.stream_chunks c"
        " join runwire.streams s on s.id = c.stream_id where s.key in ('log', 'words')"
        " order by s.run_id, s.key, c.seq",
    )
    chunks: dict[str, list[str]] = {}
    numbers: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        chunks.setdefault(row["run_id"], []).append(json.loads(row["body"]))
        numbers.setdefault((row["run_id"], row["key"]), []).append(row["seq"])
    for run_id, values in told.chunk.items():
        _hold_once(chunks.get(run_id, []), values, f"chunks of {run_id}")
    for stream, seqs in numbers.items():
        assert seqs == list(range(len(seqs))), stream


def _hold_ticks(runs: list[dict[str, Any]]) -> None:
    """One run for each minute, from the first to the last."""
    ticks = sorted(run["scheduled_at"] for run in runs if run["scheduled_at"] is not None)
    assert len(ticks) >= TICKS
    assert {(after - before).total_seconds() for before, after in pairwise(ticks)} == {60.0}


def _hold_once(found: Iterable[str], acknowledged: Iterable[str], what: str) -> None:
    counted = Counter(found)
    assert {value: n for value, n in counted.items() if n > 1} == {}, f"{what}: twice"
    assert set(acknowledged) - counted.keys() == set(), f"{what}: lost"


async def _unfinished(setup: Stormy) -> bool:
    rows = await _rows(setup, "select from runwire.runs where finished_at is null limit 1")
    return bool(rows)


async def _all_ended(setup: Stormy) -> bool:
    await anyio.sleep(0.1)  # each look is a connection
    return not await _unfinished(setup)


async def _rows(setup: Stormy, statement: LiteralString, *values: object) -> list[dict[str, Any]]:
    async with (
        await psycopg.AsyncConnection.connect(setup.postgres.dsn, autocommit=True) as connection,
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        return await (await cursor.execute(statement, values)).fetchall()
