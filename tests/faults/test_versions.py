"""Two versions at once on one database, as while a new one is rolled out.

The source of the first tagged commit runs as it was, hub, worker and client, beside today's, on
today's schema. Followers of runs are moved between the hubs of both again and again. Followers of
feeds stay, each at the hub of the other version: a hub of the first version may miss a revision of
a run that changes while a feed resumes, which nobody can mend any more. Feeds are moved at rest.

RUNWIRE_VERSIONS_RUNS makes it longer (20 runs triggered through each).
"""

import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anyio
import httpx
import psycopg
import pytest

from runwire_engine.environments import Environments
from runwire_engine.migrations import known_migrations
from tests.support.balancer import Balancer, balancer
from tests.support.followers import Follower, told
from tests.support.history import Fault, Finding, check, read_ledger
from tests.support.parts import SPANS, server_on, worker_on
from tests.support.postgres import TestServer, opened_database
from tests.support.processes import CHECKOUT, Process, free_port, running, until_async
from tests.support.server import SECRET
from tests.support.sockets import chunks_of, of_type, open_socket
from tests.support.versions import FIRST, OlderVersion, older

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

RUNS = int(os.environ.get("RUNWIRE_VERSIONS_RUNS", "20"))
SECONDS = RUNS / 8
MOVE_EVERY = 1.0
PATIENCE = 60.0 + RUNS / 4
PROGRAMS = Path("tests/faults/programs")


@dataclass
class Side:
    """One version: its hub, its worker, and how its client's programs are run."""

    name: str
    port: int
    worker: Process
    programs: Path
    environment: Mapping[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass
class Both:
    """Two versions on one database."""

    dsn: str
    environment_id: int
    key: str
    today: Side
    old: Side

    def program(
        self, side: Side, url: str, name: str, *arguments: str
    ) -> AbstractAsyncContextManager[Process]:
        """Run a program with a version's client for the length of a block."""
        environment = {**side.environment, "RUNWIRE_API_URL": url, "RUNWIRE_API_KEY": self.key}
        command = ("python", str(side.programs / f"{name}.py"), *arguments)
        return running(*command, environment=environment)

    async def rows(self, statement: str) -> list[tuple[Any, ...]]:
        async with await psycopg.AsyncConnection.connect(self.dsn) as connection:
            cursor = await connection.execute(statement.encode())
            return await cursor.fetchall()

    async def until_finished(self, runs: int) -> None:
        async def look() -> bool:
            await anyio.sleep(0.1)  # each look is a connection
            finished = "select count(*) from runwire.runs where finished_at is not null"
            return bool((await self.rows(finished))[0][0] >= runs)

        await until_async(look, PATIENCE)


@pytest.fixture(scope="module")
def module_database(postgres: TestServer) -> Any:
    dsn = postgres.create_database()
    yield dsn
    postgres.drop_database(dsn)


@pytest.fixture(scope="module")
def old_version(tmp_path_factory: pytest.TempPathFactory) -> OlderVersion:
    return older(FIRST, tmp_path_factory.mktemp("version"))


@pytest.fixture(scope="module")
async def both(
    module_database: str, old_version: OlderVersion, anyio_backend: str
) -> AsyncGenerator[Both]:
    dsn = module_database
    async with opened_database(dsn, max_size=1) as database:
        environments = Environments(database)
        environment_id = await environments.ensure("dev")
        key = await environments.create_key(environment_id, "tests")
    async with AsyncExitStack() as stack:

        async def side(
            name: str, folder: Path, environment: Mapping[str, str], command: Sequence[str]
        ) -> Side:
            port = free_port()
            given = {**environment, "RUNWIRE_CONCURRENCY": "10"}
            hub = await stack.enter_async_context(
                server_on(dsn, port, SECRET, given, command=command)
            )
            stack.push(told(f"{name} hub", hub))
            module = str(CHECKOUT / PROGRAMS / "mixed_tasks.py")
            worker = await stack.enter_async_context(
                worker_on(dsn, module, environment=given, command=command)
            )
            stack.push(told(f"{name} worker", worker))
            return Side(name, port, worker, folder / PROGRAMS, environment)

        yield Both(
            dsn,
            environment_id,
            key,
            today=await side("today's", CHECKOUT, {}, ("runwire",)),
            old=await side("old", old_version.folder, old_version.environment, old_version.command),
        )


@pytest.mark.timeout(120 + 2 * RUNS)
async def test_both_versions_trigger_execute_and_follow_the_same_runs(both: Both) -> None:
    today, old = both.today, both.old
    async with AsyncExitStack() as stack:
        front = await stack.enter_async_context(balancer(old.port))
        url = f"http://127.0.0.1:{front.port}"

        async def start(side: Side, url: str, name: str, *arguments: str) -> Process:
            process = await stack.enter_async_context(both.program(side, url, name, *arguments))
            stack.push(told(f"{name} {arguments} with the {side.name} client", process))
            return process

        sides: list[tuple[Side, Side, str, Literal["latest", "every"]]] = [
            (today, old, "by-old", "every"),
            (old, today, "by-today", "latest"),
        ]
        by_tag = [
            Follower(
                f"tag {tag} with the {side.name} client",
                mode,
                True,
                await start(side, other.url, "follow", mode, "tag-streams", tag),
            )
            for side, other, tag, mode in sides
        ]
        # Each client triggers through the other version's hub.
        triggers = {
            "by-today": await start(
                today, old.url, "trigger_mixed", str(RUNS), str(SECONDS), "by-today"
            ),
            "by-old": await start(
                old, today.url, "trigger_mixed", str(RUNS), str(SECONDS), "by-old"
            ),
        }
        by_id = {
            tag: await start(side, url, "follow", "every", "runs", f"{RUNS}:{process.log_file}")
            for side, (tag, process) in zip((old, today), triggers.items(), strict=True)
        }
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_move, front, [today.port, old.port])
            for process in triggers.values():
                await process.wait(PATIENCE)
            await both.until_finished(2 * RUNS)
            for process in by_id.values():
                assert await process.wait(PATIENCE) == 0, process.output()[-2000:]
            tasks.cancel_scope.cancel()

        ids = {tag: process.output().split()[:-1] for tag, process in triggers.items()}
        for tag, follower in zip(("by-old", "by-today"), by_tag, strict=True):
            follower.runs = ids[tag]
        followers = [
            *by_tag,
            *(Follower(f"ids {tag}", "every", True, by_id[tag], ids[tag]) for tag in ids),
        ]
        ledger = await read_ledger(both.dsn, both.environment_id)
        assert sorted(ledger.runs) == sorted([*ids["by-old"], *ids["by-today"]])

        def findings() -> list[Finding]:
            logs = [follower.log([*ledger.runs], [*ledger.streams]) for follower in followers]
            return check(ledger, logs)

        unfinished = {Fault.NOT_CONVERGED, Fault.LOST_CHUNK}
        with anyio.move_on_after(15):
            while any(f.fault in unfinished for f in findings()):
                await anyio.sleep(0.25)  # reads files
        found = findings()
        assert found == [], "\n".join(map(str, found[:40]))

    assert all(front.given[side.port] >= 2 for side in (today, old)), front.given
    executed = await both.rows(
        "select w.process_id, count(*) from runwire.run_events e join runwire.workers w"
        " on w.id = e.delta::json -> 'set' ->> 'workerId' where e.type = 'executing' group by 1"
    )
    assert {pid for pid, _ in executed} == {today.worker.pid, old.worker.pid}, executed


async def _move(front: Balancer, ports: Sequence[int]) -> None:
    """Send every follower to the other version's hub, again and again."""
    while True:
        for port in ports:
            await anyio.sleep(MOVE_EVERY)  # so long they follow one hub
            front.backends = [port]
            front.cut()


@pytest.mark.parametrize("to_today", [True, False], ids=["old to today's", "today's to old"])
async def test_a_cursor_that_one_version_gave_is_resumed_by_the_other(
    both: Both, to_today: bool
) -> None:
    sides = (both.old, both.today) if to_today else (both.today, both.old)
    first, second = sides
    tag = f"cursors-{first.name}"
    feed: dict[str, Any] = {"tags": [tag]}
    async with open_socket(first.url, both.key) as socket:
        ready = socket.messages[0]
        await socket.subscribe("feed", feed, mode="every")
        await socket.until("live", sub="feed")
        ids = await _trigger(both, first.url, tag, 3)
        for run_id in ids:
            await socket.subscribe(run_id, {"run": run_id}, mode="every", streams={"*": {}})
            await socket.until("done", sub=run_id)
        await socket.until("cursor", sub="feed")
        seen = list(socket.messages)
        # A cursor says "everything up to here": those of an older moment may follow.
        cursor = of_type(seen, "cursor")[-1]["cursor"]
    revisions = {m["run"]["id"]: m["run"]["revision"] for m in of_type(seen, "run")}
    for patch in of_type(seen, "patch"):
        revisions[patch["run"]] = patch["revision"]
    later = await _trigger(both, first.url, tag, 2)
    await _until_over(both, later)

    async with open_socket(second.url, both.key) as socket:
        assert socket.messages[0]["epoch"] == ready["epoch"]
        await socket.subscribe("feed", feed, mode="every", cursor=cursor)
        resumed = await socket.until("live", sub="feed")
        assert of_type(resumed, "gap") == [] and of_type(resumed, "snapshot") == []
        assert {m["run"] for m in of_type(resumed, "joined")} >= set(later)
        run_id = ids[0]
        held = f"r1.{ready['epoch']}.{revisions[run_id]}"
        streams = {"*": {"from": "start"}}
        await socket.subscribe("run", {"run": run_id}, cursor=held, streams=streams)
        again = await socket.until("done", sub="run")
        assert of_type(again, "gap") == []
        words = chunks_of([m for m in seen if m.get("run") == run_id], "words")
        assert chunks_of([m for m in again if m.get("run") == run_id], "words") == words != []


async def _trigger(both: Both, url: str, tag: str, count: int) -> list[str]:
    """Trigger runs that stream some words."""
    headers = {"authorization": f"Bearer {both.key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
        ids: list[str] = []
        for number in range(count):
            payload = f'{{"number": {number}, "chunks": 5}}'
            body = {"payload": payload, "options": {"tags": [tag]}}
            answer = await http.post("/api/v1/tasks/streaming/trigger", json=body)
            assert answer.status_code == 200, answer.text
            ids.append(answer.json()["id"])
        return ids


async def _until_over(both: Both, ids: Sequence[str]) -> None:
    listed = ", ".join(f"'{run_id}'" for run_id in ids)

    async def look() -> bool:
        over = f"select count(finished_at) from runwire.runs where id in ({listed})"
        return bool((await both.rows(over))[0][0] == len(ids))

    await until_async(look)


# Beyond -------------------------------------------------------------------------------------------

LAST = known_migrations()[-1].version
FUTURE = "insert into runwire.migrations (version, name, checksum) values "


@pytest.mark.parametrize(
    ("ledger", "told"),
    [
        (
            f"{FUTURE} ({LAST + 1}, 'more', 'x'),"
            f" ({LAST + 2}, 'drop_something_needs_{LAST + 1:04}', 'x')",
            f"needs a version of Runwire that has migration {LAST + 1}",
        ),
        (f"delete from runwire.migrations where version = {LAST}", "lacks 1 migration"),
        ("drop table runwire.migrations", "has no schema of Runwire"),
    ],
    ids=["too new", "too old", "none"],
)
@pytest.mark.parametrize("part", ["server", "worker"])
async def test_a_process_that_does_not_fit_the_database_says_so_in_one_line_and_ends(
    database_url: str, part: str, ledger: str, told: str
) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(ledger.encode())
    environment = {**SPANS, "RUNWIRE_DATABASE_URL": database_url, "RUNWIRE_SECRET": SECRET}
    command = {
        "server": ("runwire", "server", "--port", str(free_port())),
        "worker": ("runwire", "worker", str(PROGRAMS / "mixed_tasks.py")),
    }[part]
    async with running(*command, environment=environment) as process:
        assert await process.wait() == 1
        assert len(lines := process.output().splitlines()) == 1, lines
        (line,) = lines
    assert line.startswith("runwire: ") and told in line


@pytest.mark.parametrize("part", ["server", "worker"])
async def test_a_process_starts_on_a_database_that_is_newer_than_it_knows(
    database_url: str, part: str
) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        needs = f"{FUTURE} ({LAST + 1}, 'more_needs_{LAST:04}', 'x')"
        await connection.execute(needs.encode())
    if part == "server":
        async with server_on(database_url, free_port(), SECRET) as process:
            assert process.exit_code is None
    else:
        async with worker_on(database_url, str(PROGRAMS / "mixed_tasks.py")) as process:
            assert process.exit_code is None
