"""The database becomes another one under those who follow it: restored, rotated, failed over.

Nothing of the old history may be taken for a beginning of the new one: everybody is told, and gets
a snapshot; clients end with what the new history holds, and with nothing else.
"""

import logging
import os
import signal
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest

from runwire import AsyncRunwire, Event, Run
from runwire._progress import Progress
from runwire.errors import NotFoundError
from runwire.wire import JsonObject
from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.embedded import EmbeddedPostgres
from runwire_engine.errors import EngineError
from runwire_engine.migrations import migrate
from runwire_realtime.errors import StartError
from tests.support.backups import back_up, copy_cold, put_back
from tests.support.engines import query
from tests.support.processes import running, until
from tests.support.server import running_realtime
from tests.support.sockets import chunks_of, of_type, open_socket
from tests.support.stage import Stage

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

PATIENCE = 30.0


@asynccontextmanager
async def clusters(count: int = 1) -> AsyncGenerator[list[EmbeddedPostgres]]:
    """Provide Postgres servers of a test's own, of which the first runs, migrated."""
    with tempfile.TemporaryDirectory(prefix="runwire-postgres-") as name:
        folder = Path(name)
        servers = [EmbeddedPostgres(folder / f"server-{n}") for n in range(count)]
        await servers[0].start()
        try:
            await migrate(servers[0].dsn)
            yield servers
        finally:
            for server in servers:
                await server.stop()


@asynccontextmanager
async def stage_on(dsn: str) -> AsyncGenerator[Stage]:
    async with running_realtime(dsn) as server:
        stage = Stage(server)
        announcement = TaskAnnouncement(id="task", queue="task/task")
        await stage.engine.catalogue.announce(stage.env, [announcement])
        await stage.engine.workers.register(stage.env, "w1")
        yield stage


async def soon(work: Callable[[], Awaitable[Any]]) -> Any:
    """Do work as soon as the database is back."""
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                return await work()
            except EngineError:
                await anyio.sleep(0.05)


class Followers:
    """Python clients that follow what is there from the beginning, and what each was told."""

    def __init__(self, stage: Stage, run_id: str, lost: str) -> None:
        self._client = AsyncRunwire(api_url=stage.url, access_token=stage.key)
        # On a socket of its own: a run that is followed in `every` on the same one may join the
        # feed after its snapshot, whose runs are those that are marked.
        self._tag_client = AsyncRunwire(api_url=stage.url, access_token=stage.key)
        self._tagged = self._tag_client.runs.subscribe_to_runs_with_tag("t")
        self._run, self._lost = run_id, lost
        self.by_run: list[Event] = []
        self.by_tag: list[Run] = []
        self.lost_error: Exception | None = None
        self.is_done = False

    async def follow(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow_lost)
            tasks.start_soon(self._follow_tag)
            followed = self._client.runs.subscribe_to_run(self._run, mode="every")
            async for event in followed.with_streams():
                self.by_run.append(event)
            self.is_done = True
            await until(lambda: self.lost_error is not None, PATIENCE)
            try:
                await until(self._has_tag_ended, PATIENCE / 3)
            except TimeoutError:
                told = [(r.id, r.revision, r.status, r.gap) for r in self.by_tag]
                raise AssertionError(f"the tag feed of {self._run} was told {told}") from None
            tasks.cancel_scope.cancel()

    async def _follow_tag(self) -> None:
        async for run in self._tagged:
            self.by_tag.append(run)

    def has_tag_cursor(self) -> bool:
        """Say whether the feed by tag has a place; without one it begins anew, with no gap."""
        return Progress.parse(self._tagged.cursor).cursor is not None

    def _has_tag_ended(self) -> bool:
        return any(run.gap == "epoch_changed" for run in self.by_tag) and any(
            run.status == "COMPLETED" for run in self.by_tag
        )

    async def _follow_lost(self) -> None:
        try:
            async for _ in self._client.runs.subscribe_to_run(self._lost):
                pass
        except NotFoundError as error:
            self.lost_error = error

    @property
    def chunks(self) -> list[tuple[str | None, int | None, Any]]:
        return [(e.gap, e.seq, e.chunk) for e in self.by_run if e.type != "run"]

    @property
    def states(self) -> list[Run]:
        return [event.run for event in self.by_run if event.type == "run"]


async def live_on(stage: Stage, run_id: str, execution: int, kind: str, count: int) -> None:
    """Let a run go on: chunks and revisions of one history."""
    for number in range(count):
        await stage.append(run_id, execution, f"{kind}-{number}")
        await stage.set_metadata(run_id, execution, history=kind, step=number)


async def fill_log(stage: Stage) -> None:
    """Let the database live on for a while, megabytes of its log, until the hub has seen that.

    It looks once a second; an older copy is known by a log that is shorter than what was seen.
    """
    before = stage.server.services.realtime.statistics().flushed
    await query(stage.engine.database, "create table if not exists public.life (text text)")
    text = "insert into public.life select repeat('x', 1000) from generate_series(1, 4000)"
    await query(stage.engine.database, text)
    grown = before + 4_000_000
    await until(lambda: stage.server.services.realtime.statistics().flushed >= grown, PATIENCE)


async def told_of_another_history(stage: Stage, run_id: str, old: dict[str, str]) -> None:
    """Resume by hand with positions of the old history, as a client in a new process does."""
    async with open_socket(stage.url) as socket:
        ready = await socket.authenticate(stage.key)
        assert ready["epoch"] != old["epoch"]
        streams: JsonObject = {"text": {"from": 4}}
        await socket.subscribe("run", {"run": run_id}, cursor=old["run"], streams=streams)
        messages = await socket.until("done")
        gaps = {gap.get("stream"): gap for gap in of_type(messages, "gap")}
        assert {gap["reason"] for gap in gaps.values()} == {"epoch_changed"}
        assert gaps["text"]["next"] == 0 and None in gaps
        whole = chunks_of(messages, "text")
        assert whole and not any("lost" in str(chunk) for chunk in whole)
        feeds: dict[str, JsonObject] = {"tag": {"tags": ["t"]}, "all": {"runs": {}}}
        for sub, to in feeds.items():
            for mode in ("latest", "every"):
                name = f"{sub}-{mode}"
                await socket.subscribe(name, to, cursor=old["tag"], mode=mode)
                kinds = [m for m in await socket.until("live", sub=name) if m.get("sub") == name]
                assert [m["type"] for m in kinds] == ["gap", "snapshot", "live"]
                assert kinds[0]["reason"] == "epoch_changed"


async def positions(stage: Stage, run_id: str) -> dict[str, str]:
    async with open_socket(stage.url) as socket:
        ready = await socket.authenticate(stage.key)
        await socket.subscribe("run", {"run": run_id})
        run = (await socket.until("live"))[0]["cursor"]
        await socket.subscribe("tag", {"tags": ["t"]})
        tag = (await socket.until("cursor", sub="tag"))[-1]["cursor"]
    return {"epoch": ready["epoch"], "run": run, "tag": tag}


async def check_two_histories(
    stage: Stage, lose: Callable[[], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    """Have clients follow runs of which `lose` takes the last part away."""
    run_id = await stage.trigger("t")
    execution = await stage.start(run_id)
    await live_on(stage, run_id, execution, "kept", 3)
    await _remember(stage)
    lost = await stage.trigger("t")
    followers = Followers(stage, run_id, lost)
    old: dict[str, str] = {}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(followers.follow)
        await live_on(stage, run_id, execution, "lost", 4)
        await fill_log(stage)
        await until(lambda: len(followers.chunks) == 7 and len(followers.by_tag) > 1, PATIENCE)
        await until(followers.has_tag_cursor, PATIENCE)
        old.update(await positions(stage, run_id))
        with caplog.at_level(logging.WARNING, "runwire.feed"):
            await lose()
            await soon(lambda: live_on(stage, run_id, execution, "new", 6))
            await soon(lambda: stage.complete(run_id, execution))
            await until(lambda: followers.is_done, PATIENCE)
    assert "history" in caplog.text

    kept = [f"kept-{n}" for n in range(3)]
    new = [f"new-{n}" for n in range(6)]
    chunks = followers.chunks
    assert [chunk for _, _, chunk in chunks] == [
        *kept,
        *[f"lost-{n}" for n in range(4)],
        *kept,
        *new,
    ]
    assert [seq for _, seq, _ in chunks] == [*range(7), *range(9)]
    assert [gap for gap, _, _ in chunks] == [*[None] * 7, "epoch_changed", *[None] * 8]
    states = followers.states
    marked = [state for state in states if state.gap is not None]
    assert [state.gap for state in marked] == ["epoch_changed"]
    after = states[states.index(marked[0]) :]
    assert not [state for state in after if state.metadata.get("history") == "lost"]
    assert after[-1].status == "COMPLETED"
    revisions = [state.revision for state in after]
    assert revisions == list(range(revisions[0], revisions[0] + len(revisions)))
    await told_of_another_history(stage, run_id, old)


_remembering: list[Callable[[], Awaitable[None]]] = []


async def _remember(stage: Stage) -> None:
    for remember in _remembering:
        await remember()
    # The server has to be there again before the test goes on.
    await soon(lambda: query(stage.engine.database, "select 1"))


@pytest.fixture(autouse=True)
def _forget() -> None:
    _remembering.clear()


@pytest.mark.timeout(150)
async def test_an_older_copy_put_back_under_a_running_server_is_another_history(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The copy itself does not know: it has the name, the timeline and the generation it had."""
    async with clusters() as [postgres]:
        copy = postgres.folder / "copy"

        async def take() -> None:
            await postgres.stop()
            await copy_cold(postgres, copy)
            await postgres.start()

        async def lose() -> None:
            await postgres.stop()
            await put_back(postgres, copy)
            await postgres.start()

        _remembering.append(take)
        async with stage_on(postgres.dsn) as stage:
            await check_two_histories(stage, lose, caplog)


@pytest.mark.timeout(150)
async def test_a_recovery_to_a_point_in_time_is_another_history(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with clusters() as [postgres]:
        copy = postgres.folder / "copy"

        async def lose() -> None:
            await postgres.stop()
            await put_back(postgres, copy)
            with (postgres.cluster / "postgresql.auto.conf").open("a") as settings:
                settings.write("restore_command = 'false'\nrecovery_target = 'immediate'\n")
                settings.write("recovery_target_action = 'promote'\n")
            (postgres.cluster / "recovery.signal").touch()
            await postgres.start()

        _remembering.append(lambda: back_up(postgres, copy))
        async with stage_on(postgres.dsn) as stage:
            await check_two_histories(stage, lose, caplog)
            [row] = await query(
                stage.engine.database, "select timeline_id from pg_control_checkpoint()"
            )
            assert row["timeline_id"] == 2


@pytest.mark.timeout(150)
async def test_a_standby_that_lagged_and_was_promoted_is_another_history(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with clusters(2) as [primary, standby]:
        epoch = await _one(primary, "select runwire.epoch_v2()")

        async def follow() -> None:
            """Make the standby, and cut it off from here on."""
            await back_up(primary, standby.cluster, "-R")
            await standby.start()
            here = await _one(primary, "select pg_current_wal_lsn()::text")
            caught_up = f"select pg_last_wal_replay_lsn() >= '{here}'"
            with anyio.fail_after(PATIENCE):
                while not await _one(standby, caught_up):
                    await anyio.sleep(0.05)
            await _one(standby, "alter system set primary_conninfo = ''")
            await _one(standby, "select pg_reload_conf()")
            with anyio.fail_after(PATIENCE):
                while await _one(standby, "select count(*) from pg_stat_wal_receiver"):
                    await anyio.sleep(0.05)

        async def lose() -> None:
            assert primary.process_id is not None
            os.kill(primary.process_id, signal.SIGKILL)
            assert await _one(standby, "select pg_promote()")
            # At once, and not only after the next checkpoint.
            assert await _one(standby, "select runwire.epoch_v2()") != epoch

        _remembering.append(follow)
        hosts = f"{primary.socket_directory},{standby.socket_directory}"
        dsn = f"user=runwire dbname=runwire host={hosts} target_session_attrs=read-write"
        async with stage_on(dsn) as stage:
            await check_two_histories(stage, lose, caplog)


async def _one(postgres: EmbeddedPostgres, text: str) -> Any:
    async with await psycopg.AsyncConnection.connect(postgres.dsn, autocommit=True) as connection:
        cursor = await connection.execute(text.encode())
        row = await cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]


async def test_nothing_starts_on_a_standby() -> None:
    """Each says so in one line."""
    async with clusters(2) as [primary, standby]:
        await back_up(primary, standby.cluster, "-R")
        await standby.start()
        with pytest.raises(StartError, match="standby"):
            async with running_realtime(standby.dsn):
                pass
        environment = {"RUNWIRE_DATABASE_URL": standby.dsn, "RUNWIRE_SECRET": "s" * 40}
        for command in (
            ("server", "--port", "0"),
            ("worker", "tests/faults/programs/mixed_tasks.py"),
            ("migrate",),
            ("rotate-epoch",),
        ):
            async with running("runwire", *command, environment=environment) as process:
                assert await process.wait(PATIENCE) == 1, process.output()
                [line] = process.output().splitlines()
                assert line.startswith("runwire: ") and "standby" in line


@pytest.mark.timeout(120)
async def test_a_rotated_epoch_is_noticed_by_a_running_server(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage_on(database_url) as stage:
        run_id = await stage.trigger("t")
        execution = await stage.start(run_id)
        await live_on(stage, run_id, execution, "kept", 5)
        old = await positions(stage, run_id)
        async with open_socket(stage.url, stage.key) as socket:
            await socket.subscribe("a", {"run": run_id})
            await socket.until("live")
            with caplog.at_level(logging.WARNING, "runwire.feed"):
                async with running(
                    "runwire", "rotate-epoch", environment={"RUNWIRE_DATABASE_URL": database_url}
                ) as process:
                    assert await process.wait(PATIENCE) == 0, process.output()
                    said = process.output()
                assert await socket.closed() == 4010
            # By the look at the place, or by one at a new connection, whichever comes first.
            noticed = ("history of the database is another one", "leads to another history")
            assert any(words in caplog.text for words in noticed)
        async with open_socket(stage.url) as socket:
            epoch = (await socket.authenticate(stage.key))["epoch"]
        assert f"the epoch is {epoch} now" in said
        await stage.complete(run_id, execution)
        await told_of_another_history(stage, run_id, old)


async def test_events_of_another_database_are_no_news_once_the_epoch_was_rotated(
    database_url: str,
) -> None:
    """A dump brings transaction ids along that this Postgres has not given out yet."""
    async with stage_on(database_url) as stage:
        run_id = await stage.trigger("t")
        await query(
            stage.engine.database,
            "update runwire.run_events set txid = (txid::text::bigint + 1000000000)::text::xid8",
        )
        async with running(
            "runwire", "rotate-epoch", environment={"RUNWIRE_DATABASE_URL": database_url}
        ) as process:
            assert await process.wait(PATIENCE) == 0, process.output()
        rows = await query(
            stage.engine.database,
            "select run_id from runwire.run_events"
            " where not pg_visible_in_snapshot(txid, pg_current_snapshot())",
        )
        assert rows == []
        async with open_socket(stage.url, stage.key) as socket:
            await socket.subscribe("a", {"tags": ["t"]}, mode="every")
            await socket.until("live")
            await stage.engine.runs.cancel(stage.env, run_id)
            assert (await socket.until("patch"))[-1]["set"]["status"] == "CANCELED"


# Positions that are beyond what is there


async def test_positions_beyond_the_head_are_gaps(database_url: str) -> None:
    async with stage_on(database_url) as stage:
        run_id = await stage.trigger("t")
        execution = await stage.start(run_id)
        await live_on(stage, run_id, execution, "kept", 2)
        at = await positions(stage, run_id)
        prefix, _, revision = at["run"].rpartition(".")
        beyond = f"{prefix}.{int(revision) + 3}"
        feed, _, _ = at["tag"].rpartition(".")
        async with open_socket(stage.url, stage.key) as socket:
            streams: JsonObject = {"text": {"from": 1}}
            await socket.subscribe("run", {"run": run_id}, cursor=beyond, streams=streams)
            messages = await socket.until("chunks")
            if not of_type(messages, "live"):
                messages += await socket.until("live")
            gaps = of_type(messages, "gap")
            assert {(gap["reason"], gap.get("next")) for gap in gaps} == {
                ("ahead", None),
                ("ahead", 0),
            }
            assert of_type(messages, "snapshot")[0]["runs"][0]["revision"] == int(revision)
            assert chunks_of(messages, "text")[0] == "kept-0"
            for mode in ("latest", "every"):
                cursor = f"{feed}.{2**40 + 1}-{2**40 + 1}-"
                await socket.subscribe(mode, {"tags": ["t"]}, cursor=cursor, mode=mode)
                kinds = [m for m in await socket.until("live", sub=mode) if m.get("sub") == mode]
                assert [m["type"] for m in kinds] == ["gap", "snapshot", "live"]
                assert kinds[0]["reason"] == "ahead"


@pytest.mark.timeout(90)
async def test_sequences_that_jump_in_a_crash_make_no_gap() -> None:
    seen: list[Event] = []
    async with clusters() as [postgres], anyio.create_task_group() as tasks:
        tasks.start_soon(postgres.supervise)
        async with stage_on(postgres.dsn) as stage:
            run_id = await stage.trigger("t")
            execution = await stage.start(run_id)

            async def follow() -> None:
                client = AsyncRunwire(api_url=stage.url, access_token=stage.key)
                followed = client.runs.subscribe_to_run(run_id, mode="every").with_streams()
                seen.extend([event async for event in followed])

            tasks.start_soon(follow)
            await stage.append(run_id, execution, "a", key="one")
            assert postgres.process_id is not None
            os.kill(postgres.process_id, signal.SIGKILL)
            await soon(lambda: stage.append(run_id, execution, "b", key="one"))
            await soon(lambda: stage.append(run_id, execution, "c", key="two"))
            await soon(lambda: stage.complete(run_id, execution))
            await until(lambda: bool(seen), PATIENCE)
            rows = await query(stage.engine.database, "select id from runwire.streams order by id")
            assert rows[1]["id"] > rows[0]["id"] + 1, "the sequence did not jump"
        tasks.cancel_scope.cancel()
    chunks = [(event.type, event.seq, event.chunk) for event in seen if event.type != "run"]
    assert sorted(chunks) == [("one", 0, "a"), ("one", 1, "b"), ("two", 0, "c")]
    assert all(event.gap is None for event in seen if event.type != "run")
    revisions = [event.run.revision for event in seen if event.type == "run"]
    assert revisions == list(range(revisions[0], revisions[0] + len(revisions)))
    assert all(event.run.gap is None for event in seen if event.type == "run")
