"""COMMIT gets no answer, on every path that writes: nothing is done twice, nothing is lost.

Three ways: the answer is lost, the COMMIT is lost, and the connection is lost while Postgres is
still at it, so that whoever looks finds nothing yet.
"""

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import anyio
import orjson
import pytest

from runwire_engine.batches import BatchProgress
from runwire_engine.engine import Engine, open_engine
from runwire_engine.errors import EngineError
from runwire_engine.outcomes import Completed, Finished
from runwire_engine.run_metadata import MetadataWrite
from runwire_engine.settings import EngineSettings
from runwire_engine.states import RunStatus
from runwire_engine.streams import Append, AppendAnswer
from runwire_engine.wanted_runs import NewRun, Parent
from tests.support.engines import ALL_TASKS, assert_dense, claimed, query, there, triggered
from tests.support.faultproxy import FaultProxy, fault_proxy
from tests.support.history import check, read_ledger
from tests.support.processes import until_async

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

Way = Literal["answer lost", "commit lost", "still committing"]
WAYS: Final[tuple[Way, ...]] = ("answer lost", "commit lost", "still committing")
# How long a slow COMMIT takes: longer than a flush waits for a lock in a hurry (0.2 s), and shorter
# than it waits otherwise (2 s).
_SLOW_SECONDS: Final = 0.8
_SLOW: Final = """
create sequence slow_commits;
create function commit_slowly() returns trigger language plpgsql as $$
begin
    if nextval('slow_commits') = 1 then perform pg_sleep({seconds}); end if;
    return null;
end $$;
create constraint trigger commit_slowly after insert or update on runwire.{table}
    deferrable initially deferred for each row execute function commit_slowly()
"""
ONE: Final = {"type": "increment", "key": "n", "value": 1}


class Lossy:
    """An engine whose next COMMIT gets no answer; `sound` is another on the same database."""

    def __init__(self, sound: Engine, env: int, engine: Engine, proxy: FaultProxy) -> None:
        self.sound = sound
        self.env = env
        self.engine = engine
        self.proxy = proxy

    async def lose(
        self, way: Way, table: str, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Do work that writes to a table, and lose what its COMMIT is answered."""
        if way != "still committing":
            self.proxy.cut_next_commit(after=way == "answer lost")
            await work()
            assert self.proxy.commits_cut == 1
            return
        script = _SLOW.format(seconds=_SLOW_SECONDS, table=table)
        await query(self.sound.database, script)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(work)
                await until_async(self.is_committing)
                self.proxy.cut()
        rows = await query(self.sound.database, "select last_value from slow_commits")
        assert rows[0]["last_value"] >= 1

    async def is_committing(self) -> bool:
        rows = await query(
            self.sound.database,
            "select count(*) as n from pg_stat_activity"
            " where datname = current_database() and wait_event = 'PgSleep'",
        )
        return bool(rows[0]["n"])

    async def assert_clean(self) -> None:
        assert check(await read_ledger(self.sound.settings.database_url, self.env)) == []


@asynccontextmanager
async def lossy(sound: Engine, env: int) -> AsyncGenerator[Lossy]:
    dsn = sound.settings.database_url
    async with fault_proxy(dsn) as proxy:
        settings = EngineSettings(database_url=proxy.dsn(dsn), listen_database_url=dsn)
        async with open_engine(settings, sweeping=False) as engine:
            yield Lossy(sound, env, engine, proxy)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("request_key", [None, "r"])
async def test_a_trigger_makes_one_run_and_uses_its_token_once(
    engine: Engine, env: int, way: Way, request_key: str | None
) -> None:
    async with lossy(engine, env) as at:
        later = datetime.now(UTC) + timedelta(minutes=5)
        paid = ("jti", later)
        new = NewRun("plain", one_time_jti=paid, idempotency_key="k", request_key=request_key)
        made: list[str] = []

        async def work() -> None:
            answer = await at.engine.runs.trigger(env, new)
            assert not answer.is_cached
            made.append(answer.id)

        await at.lose(way, "runs", work)
        rows = await query(engine.database, "select id from runwire.runs")
        assert [row["id"] for row in rows] == made
        assert await assert_dense(engine, env, made[0]) == ["created"]


@pytest.mark.parametrize("way", WAYS)
async def test_a_child_is_triggered_once(engine: Engine, env: int, way: Way) -> None:
    parent = await claimed(engine, env)
    async with lossy(engine, env) as at:

        async def work() -> None:
            await at.engine.runs.trigger(
                env, NewRun("plain", parent=Parent(parent.id, parent.execution), request_key="1")
            )

        await at.lose(way, "runs", work)
        rows = await query(
            engine.database, "select id from runwire.runs where parent_id = %s", parent.id
        )
        assert len(rows) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_a_batch_gets_each_item_once(engine: Engine, env: int, way: Way) -> None:
    batch = await engine.batches.create(env, 3)
    async with lossy(engine, env) as at:

        async def work() -> None:
            items = [(n, NewRun("plain", batch=(batch.id, n))) for n in range(3)]
            progress = await at.engine.batches.add_items(env, batch.id, items)
            assert progress == BatchProgress(3, 0, sealed=True, enqueued=3, expected=3)

        await at.lose(way, "runs", work)
        rows = await query(engine.database, "select id from runwire.runs")
        assert len(rows) == 3
        await at.assert_clean()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", ["parent", "root"])
async def test_an_operation_on_metadata_is_applied_once(
    engine: Engine, env: int, way: Way, target: str
) -> None:
    root = await claimed(engine, env)
    parent = await claimed(engine, env, NewRun("plain", parent=Parent(root.id, root.execution)))
    run = await claimed(engine, env, NewRun("plain", parent=Parent(parent.id, parent.execution)))
    run_id = {"parent": parent.id, "root": root.id}[target]
    async with lossy(engine, env) as at:

        async def work() -> None:
            write = MetadataWrite(run_id, (ONE,), run.execution, run.id)
            answers = await at.engine.metadata.apply_many(env, [write, write])
            assert not any(isinstance(answer, Exception) for answer in answers)

        await at.lose(way, "run_metadata", work)
        assert await engine.metadata.retrieve(env, run_id) == '{"n":2}'
        await at.assert_clean()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("owner", "is_new"), [("own", True), ("own", False), ("parent", True)])
async def test_a_chunk_is_appended_once(
    engine: Engine, env: int, way: Way, owner: str, is_new: bool
) -> None:
    parent = await claimed(engine, env)
    run = await claimed(engine, env, NewRun("plain", parent=Parent(parent.id, parent.execution)))
    run_id = run.id if owner == "own" else parent.id
    writer = None if owner == "own" else run.id

    def append(body: str) -> Append:
        attempt = 1 if writer is None else None
        return Append(run_id, "k", (body,), run.execution, attempt, writer=writer)

    first = 0 if is_new else 1
    async with lossy(engine, env) as at:
        if not is_new:
            await at.engine.streams.append(env, append("0"))

        async def work() -> None:
            answers = await at.engine.streams.append_many(env, [append("1"), append("2")])
            assert answers == [
                AppendAnswer(first, first + 1),
                AppendAnswer(first + 1, first + 2),
            ]

        await at.lose(way, "stream_chunks", work)
        page = await engine.streams.read(env, run_id, "k")
        assert [chunk.body for chunk in page.chunks] == [*([] if is_new else ["0"]), "1", "2"]
        await at.assert_clean()


@pytest.mark.parametrize("way", WAYS)
async def test_a_run_completes_once(engine: Engine, env: int, way: Way) -> None:
    run = await claimed(engine, env)
    async with lossy(engine, env) as at:

        async def work() -> None:
            answer = await at.engine.outcomes.finish(env, Completed(run.id, run.execution, "1"))
            assert answer == Finished(run.id, RunStatus.COMPLETED)

        await at.lose(way, "runs", work)
        assert (await assert_dense(engine, env, run.id)).count("final") == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_executing", [True, False])
async def test_a_run_is_canceled_once(
    engine: Engine, env: int, way: Way, is_executing: bool
) -> None:
    run_id = (await claimed(engine, env)).id if is_executing else await triggered(engine, env)
    before = (await there(engine, env, run_id)).revision
    async with lossy(engine, env) as at:

        async def work() -> None:
            run = await at.engine.runs.cancel(env, run_id)
            assert run.status == ("EXECUTING" if is_executing else "CANCELED")

        await at.lose(way, "runs", work)
        assert (await there(engine, env, run_id)).revision == before + 1
        await assert_dense(engine, env, run_id)


@pytest.mark.parametrize("way", WAYS)
async def test_tags_are_added_once(engine: Engine, env: int, way: Way) -> None:
    run_id = await triggered(engine, env)
    async with lossy(engine, env) as at:

        async def work() -> None:
            assert (await at.engine.runs.add_tags(env, run_id, ["a", "b"])).tags == ("a", "b")

        await at.lose(way, "runs", work)
        assert (await there(engine, env, run_id)).revision == 2


@pytest.mark.parametrize("way", WAYS)
async def test_a_worker_that_leaves_gives_its_runs_back_once(
    engine: Engine, env: int, way: Way
) -> None:
    run = await claimed(engine, env)
    async with lossy(engine, env) as at:

        async def work() -> None:
            await at.engine.workers.stop("w1")

        await at.lose(way, "runs", work)
        row = await there(engine, env, run.id)
        assert (row.status, row.attempt, row.revision) == ("QUEUED", 0, 3)


@pytest.mark.parametrize("way", WAYS)
async def test_what_a_claim_took_is_handed_out_once(engine: Engine, env: int, way: Way) -> None:
    run_id = await triggered(engine, env)
    async with lossy(engine, env) as at:
        taken: list[tuple[str, int]] = []

        async def work() -> None:
            with anyio.fail_after(60):
                while not taken:
                    try:
                        runs = await at.engine.claims.claim(env, "w1", ALL_TASKS, 5)
                    except EngineError:
                        continue  # as a worker does: it asks again
                    taken.extend((run.id, run.execution) for run in runs)

        await at.lose(way, "runs", work)
        assert taken == [(run_id, 1)]
        assert (await there(engine, env, run_id)).revision == 2


# The guard of a writer that is not sure -----------------------------------------------------------

# Holds a flush up after it has taken its locks, and before it has recorded itself.
_HOLD_UP = """
create function hold_up() returns trigger language plpgsql as $$
begin
    if new.last_no > 0 then perform pg_sleep(1.5); end if;
    return new;
end $$;
create trigger hold_up before insert on runwire.writers
    for each row execute function hold_up()
"""


async def test_a_flush_that_may_yet_commit_is_not_written_by_another_lane(
    engine: Engine, env: int
) -> None:
    run, other = await claimed(engine, env), await claimed(engine, env)
    for each in (run, other):
        await engine.streams.append(env, Append(each.id, "k", ('"first"',), 1, 1))
    async with lossy(engine, env) as at:
        await query(engine.database, _HOLD_UP)
        bodies = [orjson.dumps(n).decode() for n in range(4)]
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:

                async def write() -> None:
                    appends = [
                        Append(each.id, "k", (body,), 1, 1)
                        for body in bodies
                        for each in (run, other)
                    ]
                    answers = await at.engine.streams.append_many(env, appends)
                    assert not any(isinstance(answer, Exception) for answer in answers)

                tasks.start_soon(write)
                await until_async(at.is_committing)
                at.proxy.cut()
        for each in (run, other):
            page = await engine.streams.read(env, each.id, "k")
            assert [chunk.body for chunk in page.chunks] == ['"first"', *bodies]
        await at.assert_clean()
