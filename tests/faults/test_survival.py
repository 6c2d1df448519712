"""The whole of Runwire loses its parts one after another, and nobody who watches loses anything.

Programs written only from the docs trigger runs of mixed tasks and follow them from several
processes, while server, worker and Postgres are killed and started again. In the end everybody
holds what the database holds, and saw each chunk once and in order.

RUNWIRE_SURVIVAL_RUNS and RUNWIRE_SURVIVAL_ROUNDS make it larger (80 runs, 1 round of each kill).
"""

import json
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import psycopg
import pytest

from runwire_engine.embedded import EmbeddedPostgres
from runwire_engine.environments import Environments
from tests.support.followers import Follower, told
from tests.support.history import Fault, Finding, check, read_ledger
from tests.support.parts import own_postgres, server_on, worker_on
from tests.support.postgres import opened_database
from tests.support.processes import Process, free_port, running, until, until_async

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

RUNS = int(os.environ.get("RUNWIRE_SURVIVAL_RUNS", "80"))
ROUNDS = int(os.environ.get("RUNWIRE_SURVIVAL_ROUNDS", "1"))
PROGRAMS = "tests/faults/programs"
SECRET = "a secret of the tests, forty bytes long.."
TAG = "survival"
BY_ID = min(RUNS, 80)  # one socket holds 100 subscriptions
TRIGGER_SECONDS = max(6.0, 0.05 * RUNS)
PATIENCE = 30.0 + RUNS / 10


@dataclass
class Setup:
    """Everything as processes of their own, and how to kill each."""

    postgres: EmbeddedPostgres
    port: int
    key: str
    environment_id: int
    stack: AsyncExitStack
    server: Process = field(init=False)
    worker: Process = field(init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> dict[str, str]:
        """What a program needs to know."""
        return {"RUNWIRE_API_URL": self.url, "RUNWIRE_API_KEY": self.key}

    async def start_server(self) -> None:
        self.server = await self.stack.enter_async_context(
            server_on(self.postgres.dsn, self.port, SECRET)
        )
        self.stack.push(told("server", self.server))

    async def start_worker(self) -> None:
        modules = f"{PROGRAMS}/mixed_tasks.py"
        environment = {"RUNWIRE_CONCURRENCY": "20", **self.client}
        self.worker = await self.stack.enter_async_context(
            worker_on(self.postgres.dsn, modules, environment=environment)
        )
        self.stack.push(told("worker", self.worker))

    async def kill_server(self) -> None:
        self.server.kill()
        await self.server.wait()
        await self.start_server()

    async def kill_worker(self) -> None:
        self.worker.kill()
        await self.worker.wait()
        await self.start_worker()

    async def kill_postgres(self) -> None:
        """Its supervisor brings it back."""
        before = self.postgres.process_id
        assert before is not None
        os.kill(before, signal.SIGKILL)
        await until(lambda: self.postgres.process_id != before)

    async def finished(self) -> int:
        """Return how many runs are over."""
        try:
            async with await psycopg.AsyncConnection.connect(self.postgres.dsn) as connection:
                cursor = await connection.execute(
                    "select count(*) from runwire.runs where finished_at is not null"
                )
                row = await cursor.fetchone()
        except psycopg.OperationalError:
            return -1  # it is away
        return int(row[0]) if row is not None else -1

    async def until_finished(self, runs: int, seconds: float = PATIENCE) -> None:
        async def look() -> bool:
            await anyio.sleep(0.1)  # each look is a connection
            return await self.finished() >= runs

        await until_async(look, seconds)


@asynccontextmanager
async def set_up() -> AsyncGenerator[Setup]:
    async with own_postgres() as postgres, AsyncExitStack() as stack:
        async with opened_database(postgres.dsn, max_size=1) as database:
            environments = Environments(database)
            environment_id = await environments.ensure("dev")
            key = await environments.create_key(environment_id, "tests")
        setup = Setup(postgres, free_port(), key, environment_id, stack)
        await setup.start_server()
        await setup.start_worker()
        yield setup


@pytest.mark.timeout(120 + RUNS + 30 * ROUNDS)
async def test_a_run_is_whole_for_everybody_whatever_is_killed() -> None:
    async with set_up() as setup, AsyncExitStack() as stack:

        async def program(name: str, *arguments: str) -> Process:
            command = ("python", f"{PROGRAMS}/{name}.py", *arguments)
            process = await stack.enter_async_context(running(*command, environment=setup.client))
            stack.push(told(name, process))
            return process

        by_tag = await program("follow", "latest", "tag", TAG)
        with_streams = await program("follow", "every", "tag-streams", TAG)
        triggers = await program("trigger_mixed", str(RUNS), str(TRIGGER_SECONDS), TAG)
        by_id = await program("follow", "every", "runs", f"{BY_ID}:{triggers.log_file}")
        await setup.until_finished(1)

        kills = [setup.kill_server, setup.kill_worker, setup.kill_postgres] * ROUNDS
        for number, kill in enumerate(kills, 1):
            await kill()
            await setup.until_finished(number * RUNS * 3 // 4 // len(kills))

        await triggers.wait(PATIENCE)
        ids = triggers.output().split()
        assert ids[-1:] == ["all"], triggers.output()
        await setup.until_finished(RUNS)
        assert await by_id.wait(PATIENCE) == 0, by_id.output()[-2000:]

        followers = [
            Follower("by tag", "latest", False, by_tag),
            Follower("by tag, with streams", "every", True, with_streams),
            Follower("by id, with streams", "every", True, by_id, ids[:BY_ID]),
        ]
        ledger = await read_ledger(setup.postgres.dsn, setup.environment_id)
        assert sorted(ledger.runs) == sorted(ids[:-1]), "each trigger is one run"
        assert len(ledger.runs) == RUNS

        def findings() -> list[Finding]:
            logs = [follower.log([*ledger.runs], [*ledger.streams]) for follower in followers]
            return check(ledger, logs)

        # Those by tag have no end of their own: they are given a moment for the last of it.
        unfinished = {Fault.NOT_CONVERGED, Fault.LOST_CHUNK}
        with anyio.move_on_after(10):
            while any(f.fault in unfinished for f in findings()):
                await anyio.sleep(0.25)  # reads files
        found = findings()
        assert found == [], "\n".join(map(str, found[:40]))

        states = await _states(setup)
        for follower in followers:
            assert follower.process.exit_code in (None, 0), follower.process.output()[-2000:]
            seen = follower.last_states()
            wanted = states if follower.runs is None else {id: states[id] for id in follower.runs}
            assert {id: _comparable(line) for id, line in seen.items()} == wanted, follower.name
        statuses = [state["status"] for state in states.values()]
        assert statuses.count("COMPLETED") == RUNS // 5 * 4
        assert statuses.count("FAILED") == RUNS // 5


def _comparable(state: dict[str, Any]) -> dict[str, Any]:
    return {name: state[name] for name in ("status", "metadata", "output", "error", "attempt")}


async def _states(setup: Setup) -> dict[str, dict[str, Any]]:
    """Return the state of each run as the database has it."""
    async with await psycopg.AsyncConnection.connect(setup.postgres.dsn) as connection:
        cursor = await connection.execute(
            "select r.id, r.status, m.body, r.output, r.error, r.attempt"
            " from runwire.runs r left join runwire.run_metadata m"
            " on m.environment_id = r.environment_id and m.run_id = r.id"
        )
        rows = await cursor.fetchall()
    return {
        run_id: {
            "status": status,
            "metadata": json.loads(body) if body else {},
            "output": json.loads(output) if output else None,
            "error": json.loads(error)["message"] if error else None,
            "attempt": attempt,
        }
        for run_id, status, body, output, error, attempt in rows
    }
