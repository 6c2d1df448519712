"""Several hubs and workers on one Postgres: killed, drained, restarted in turns, wandered between.

RUNWIRE_HUBS_CLIENTS and RUNWIRE_HUBS_ROUNDS make it larger (100 sockets, 1 round of restarts).
"""

import logging
import os
import random
import statistics
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
import orjson
import psycopg
import pytest

from runwire_engine.environments import Environments
from tests.support.balancer import balancer
from tests.support.followers import Follower, told
from tests.support.history import ClientLog, Fault, Finding, check, read_ledger
from tests.support.parts import server_on, worker_on
from tests.support.postgres import TestServer, opened_database
from tests.support.processes import Process, free_port, running, until, until_async
from tests.support.protocol_client import ProtocolClient
from tests.support.server import SECRET
from tests.support.watchers import Watcher

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

# Shown with: pytest -o log_cli=true --log-cli-level=INFO
measured = logging.getLogger("runwire.measured")

CLIENTS = int(os.environ.get("RUNWIRE_HUBS_CLIENTS", "100"))
ROUNDS = int(os.environ.get("RUNWIRE_HUBS_ROUNDS", "1"))
PROGRAMS = "tests/faults/programs"
HUBS, WORKERS = 3, 2
# What a hub may take to stop: its sockets are sent away over the drain time.
STOP_SECONDS = 15.0
PATIENCE = 60.0


@dataclass
class Fleet:
    """Hubs and workers as processes of their own."""

    dsn: str
    environment_id: int
    key: str
    http: httpx.AsyncClient
    stack: AsyncExitStack
    # Runs that were over when the test began.
    finished_before: int = 0
    hubs: dict[int, Process] = field(default_factory=dict[int, Process])
    workers: list[Process] = field(default_factory=list[Process])

    @property
    def ports(self) -> list[int]:
        return list(self.hubs)

    def client(self, port: int) -> dict[str, str]:
        """What a program needs to know."""
        return {"RUNWIRE_API_URL": f"http://127.0.0.1:{port}", "RUNWIRE_API_KEY": self.key}

    async def start_hub(self, port: int) -> None:
        hub = await self.stack.enter_async_context(server_on(self.dsn, port, SECRET))
        self.stack.push(told(f"hub {port}", hub))
        self.hubs[port] = hub

    async def start_worker(self) -> None:
        modules = [f"{PROGRAMS}/mixed_tasks.py", f"{PROGRAMS}/family_tasks.py"]
        worker = await self.stack.enter_async_context(
            worker_on(self.dsn, *modules, environment={"RUNWIRE_CONCURRENCY": "15"})
        )
        self.stack.push(told("worker", worker))
        self.workers.append(worker)

    async def program(self, port: int, name: str, *arguments: str) -> Process:
        command = ("python", f"{PROGRAMS}/{name}.py", *arguments)
        process = await self.stack.enter_async_context(
            running(*command, environment=self.client(port))
        )
        self.stack.push(told(f"{name} {arguments}", process))
        return process

    async def trigger(self, task: str, payload: str, *tags: str) -> str:
        """Trigger a run through any hub."""
        path = f"/api/v1/tasks/{task}/trigger"
        body = {"payload": payload, "options": {"tags": list(tags)}}
        return str((await self.post(path, json=body))["id"])

    async def post(self, path: str, **options: Any) -> Any:
        """Send a request to any hub and return the answer's JSON."""
        url = f"http://127.0.0.1:{random.choice(self.ports)}{path}"
        answer = await self.http.post(url, **options)
        assert answer.status_code < 300, answer.text
        return answer.json()

    async def rows(self, statement: str) -> list[tuple[Any, ...]]:
        async with await psycopg.AsyncConnection.connect(self.dsn) as connection:
            cursor = await connection.execute(statement.encode())
            return await cursor.fetchall()

    async def finished(self) -> int:
        """Return how many runs are over."""
        return int((await self.rows("select count(finished_at) from runwire.runs"))[0][0])

    async def until_finished(self, runs: int) -> None:
        """Wait until so many runs of this test are over."""

        async def look() -> bool:
            await anyio.sleep(0.1)  # each look is a connection
            return await self.finished() >= self.finished_before + runs

        await until_async(look, PATIENCE)

    async def assert_clean(self, logs: Callable[[Any], Sequence[ClientLog]]) -> None:
        """Check what clients saw; those without an end of their own get a moment for the last."""
        ledger = await read_ledger(self.dsn, self.environment_id)

        def findings() -> list[Finding]:
            return check(ledger, logs(ledger))

        unfinished = {Fault.NOT_CONVERGED, Fault.LOST_CHUNK}
        with anyio.move_on_after(15):
            while any(f.fault in unfinished for f in findings()):
                await anyio.sleep(0.25)  # reads files
        found = findings()
        assert found == [], "\n".join(map(str, found[:40]))
        over = await self.rows(
            "select run_id, count(*) from runwire.run_events where type = 'final' group by 1"
        )
        assert {count for _, count in over} == {1} and len(over) == len(ledger.runs)


@asynccontextmanager
async def opened_fleet(dsn: str) -> AsyncGenerator[Fleet]:
    async with opened_database(dsn, max_size=1) as database:
        environments = Environments(database)
        environment_id = await environments.ensure("dev")
        key = await environments.create_key(environment_id, "tests")
    async with AsyncExitStack() as stack:
        headers = {"authorization": f"Bearer {key}"}
        http = await stack.enter_async_context(
            httpx.AsyncClient(headers=headers, timeout=60, trust_env=False)
        )
        fleet = Fleet(dsn, environment_id, key, http, stack)
        async with anyio.create_task_group() as tasks:
            for _ in range(HUBS):
                tasks.start_soon(fleet.start_hub, free_port())
            for _ in range(WORKERS):
                tasks.start_soon(fleet.start_worker)
        yield fleet


@pytest.fixture(scope="module")
async def opened(postgres: TestServer, anyio_backend: str) -> AsyncGenerator[Fleet]:
    dsn = postgres.create_database()
    async with opened_fleet(dsn) as fleet:
        yield fleet
    postgres.drop_database(dsn)


@pytest.fixture
async def fleet(opened: Fleet) -> Fleet:
    """The fleet of this file, as one test after another leaves it; all parts live."""
    opened.finished_before = await opened.finished()
    for port, hub in opened.hubs.items():
        if hub.exit_code is not None:
            await opened.start_hub(port)
    while sum(worker.exit_code is None for worker in opened.workers) < WORKERS:
        await opened.start_worker()
    return opened


@asynccontextmanager
async def watching(
    fleet: Fleet, *, clients: int, runs: int, chunks: int, pause: float
) -> AsyncGenerator[list[Watcher]]:
    """Follow runs that stream words, evenly over the hubs; at the end all must be done."""
    payload = f'{{"number": 1, "chunks": {chunks}, "pause": {pause}}}'
    ids = [await fleet.trigger("streaming", payload) for _ in range(runs)]
    watchers: list[Watcher] = []
    async with anyio.create_task_group() as tasks:
        for number in range(clients):
            run_id = ids[number % runs]
            asked = {"to": {"run": run_id}, "streams": {"words": {"from": "start"}}}
            client = ProtocolClient(f"client {number}", {"s": asked}, mode="every")
            client.log.follows(run_id, "words")
            watcher = Watcher(client, fleet.key, _chooser(fleet, number))
            watchers.append(watcher)
            tasks.start_soon(watcher.run)
        await until(lambda: all(each.live_at is not None for each in watchers), PATIENCE)
        yield watchers
        await until(lambda: all(each.is_done for each in watchers), PATIENCE)
    await fleet.assert_clean(lambda _: [watcher.client.finish() for watcher in watchers])


def _chooser(fleet: Fleet, number: int) -> Callable[[], int]:
    """Begin at a hub by number; afterwards go to any, the dead one included."""
    first = [fleet.ports[number % len(fleet.ports)]]
    return lambda: first.pop() if first else random.choice(fleet.ports)


@pytest.mark.timeout(120 + CLIENTS)
async def test_clients_of_a_killed_hub_resume_elsewhere_and_lose_and_repeat_nothing(
    fleet: Fleet,
) -> None:
    chunks = 40 if CLIENTS <= 100 else 150
    async with watching(fleet, clients=CLIENTS, runs=20, chunks=chunks, pause=0.1) as watchers:
        victim = fleet.ports[0]
        orphans = [watcher for watcher in watchers if watcher.at == victim]
        assert len(orphans) >= CLIENTS // HUBS
        fleet.hubs[victim].kill()
        killed_at = anyio.current_time()
        await until(
            lambda: all((each.live_at or 0) > killed_at or each.is_done for each in orphans),
            PATIENCE,
        )
        took = sorted((each.live_at or 0) - killed_at for each in orphans)
        assert all(each.at != victim for each in orphans)
    assert statistics.median(took) <= 5.0
    middle = statistics.median(took)
    measured.info("%d clients resumed: median %.2f s, last %.2f s", len(took), middle, took[-1])


async def test_clients_wander_between_hubs_and_lose_and_repeat_nothing(fleet: Fleet) -> None:
    async with watching(fleet, clients=30, runs=10, chunks=50, pause=0.08) as watchers:
        for _ in range(12):
            await anyio.sleep(0.25)  # so long they stay
            for watcher in random.sample(watchers, 10):
                watcher.drop()
    assert sum(each.connections for each in watchers) >= 50


@pytest.mark.timeout(180 + 30 * ROUNDS)
async def test_hubs_restarted_one_after_another_cost_nobody_an_event(
    fleet: Fleet,
) -> None:
    runs, tag = 40 * ROUNDS, "rolling"
    async with AsyncExitStack() as stack:
        front = await stack.enter_async_context(balancer(*fleet.ports))
        by_tag = [
            Follower("by tag", "latest", False, await fleet.program(front.port, *FOLLOW_TAG)),
            Follower("with streams", "every", True, await fleet.program(front.port, *FOLLOW_ALL)),
        ]
        # A feed in `every` that is lost before its first cursor begins anew, and says so: a gap.
        for follower in by_tag:
            await follower.process.until_line('"live"')
        seconds = str(6 * ROUNDS)
        triggers = await fleet.program(front.port, "trigger_mixed", str(runs), seconds, tag)
        by_id = await fleet.program(
            front.port, "follow", "every", "runs", f"{runs}:{triggers.log_file}"
        )
        await fleet.until_finished(1)

        stops: list[float] = []
        for port in fleet.ports * ROUNDS:
            hub = fleet.hubs[port]
            began = anyio.current_time()
            hub.terminate()
            assert await hub.wait(STOP_SECONDS) == 0
            stops.append(anyio.current_time() - began)
            await fleet.start_hub(port)
        measured.info("%d hubs stopped within %.2f s each", len(stops), max(stops))

        await triggers.wait(PATIENCE)
        ids = triggers.output().split()
        assert ids.pop() == "all"
        await fleet.until_finished(runs)
        assert await by_id.wait(PATIENCE) == 0, by_id.output()[-2000:]
        followers = [*by_tag, Follower("by id", "every", True, by_id)]
        for follower in followers:
            follower.runs = ids
        await fleet.assert_clean(
            lambda ledger: [each.log([*ledger.runs], [*ledger.streams]) for each in followers]
        )
        assert len(ids) == len(set(ids)) == runs
        assert all(each.process.exit_code in (None, 0) for each in followers)
        # Each hub was come back to.
        assert set(front.given) == set(fleet.ports)


FOLLOW_TAG = ("follow", "latest", "tag", "rolling")
FOLLOW_ALL = ("follow", "every", "tag-streams", "rolling")


async def test_families_over_several_workers_end_once_each_though_a_worker_is_killed(
    fleet: Fleet,
) -> None:
    families, children = 10, 6
    entries = [{"task": "parent", "payload": f'{{"children": {children - 1}}}'}] * families
    batch_id = await _batch(fleet, entries)
    (port, *_) = fleet.ports
    followed = await fleet.program(port, "follow_batch", batch_id)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_kill_one_in_the_middle, fleet, families)
        assert await followed.wait(PATIENCE) == 0
    await fleet.until_finished(families * (children + 1))
    runs = await fleet.rows(
        "select id, task, status, parent_id, output, error from runwire.runs"
        " where task in ('parent', 'child')"
    )
    assert len(runs) == families * (children + 1)
    assert [run for run in runs if run[2] != "COMPLETED"] == []
    # Each parent has each child once, however often either was started.
    for parent in [run for run in runs if run[1] == "parent"]:
        own = sorted(int(run[4]) for run in runs if run[3] == parent[0])
        assert own == list(range(children))
    seen = dict(line.split() for line in followed.output().splitlines())
    assert seen == {run[0]: "COMPLETED" for run in runs if run[1] == "parent"}
    started = await fleet.rows(
        "select distinct delta::json -> 'set' ->> 'workerId' from runwire.run_events"
        " where type = 'executing' and task in ('parent', 'child')"
    )
    assert len(started) >= 2
    await fleet.assert_clean(lambda _: [])


async def _batch(fleet: Fleet, items: Sequence[dict[str, Any]]) -> str:
    """Announce a batch through one hub and send its items through another."""
    batch_id = str((await fleet.post("/api/v3/batches", json={"runCount": len(items)}))["id"])
    lines = b"\n".join(orjson.dumps({"index": n, **item}) for n, item in enumerate(items))
    answer = await fleet.post(
        f"/api/v3/batches/{batch_id}/items",
        content=lines,
        headers={"content-type": "application/x-ndjson"},
    )
    assert answer["sealed"], answer
    return batch_id


async def _kill_one_in_the_middle(fleet: Fleet, runs: int) -> None:
    await fleet.until_finished(runs)
    victim = fleet.workers[0]
    victim.kill()
    await victim.wait()
