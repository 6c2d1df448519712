"""Deadlocks and serialisation failures, planted under every path that writes: nobody notices."""

from collections.abc import Awaitable, Callable
from typing import Final

import pytest

from runwire_engine.batches import BatchProgress
from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.engine import Engine
from runwire_engine.environments import Environments
from runwire_engine.errors import StatementError
from runwire_engine.outcomes import Completed, Failed, Released
from runwire_engine.run_metadata import MetadataWrite
from runwire_engine.streams import Append
from runwire_engine.wanted_runs import NewRun, Parent
from runwire_engine.workers import Swept
from tests.support.engines import ALL_TASKS, assert_dense, claimed, query, there, triggered

pytestmark = pytest.mark.anyio

_FAILURES: Final = 4  # one less than there are tries
# A sequence counts also what is rolled back.
_PLANT: Final = """
create sequence planted_failures;
create function fail_at_first() returns trigger language plpgsql as $$
begin
    if nextval('planted_failures') <= {failures} then
        raise 'planted' using errcode = '{state}';
    end if;
    return null;
end $$;
create trigger fail_at_first before insert or update or delete on runwire.{table}
    for each statement execute function fail_at_first();
"""
# The same at COMMIT: what a deferred check, or a serialisation failure, looks like.
_PLANT_AT_COMMIT: Final = """
create sequence planted_failures;
create function fail_at_first() returns trigger language plpgsql as $$
begin
    if nextval('planted_failures') <= {failures} then
        raise 'planted' using errcode = '{state}';
    end if;
    return null;
end $$;
create constraint trigger fail_at_first after insert or update on runwire.{table}
    deferrable initially deferred for each row execute function fail_at_first();
"""

Plant = Callable[[str], Awaitable[None]]


class Paths:
    """Every way to write. Each sets itself up, then plants the failure, then writes."""

    def __init__(self, engine: Engine, env: int, plant: Plant) -> None:
        self.engine = engine
        self.env = env
        self.plant = plant

    async def trigger(self) -> None:
        await self.plant("runs")
        run_id = await triggered(self.engine, self.env, NewRun("plain", metadata='{"a":1}'))
        assert await assert_dense(self.engine, self.env, run_id) == ["created"]

    async def trigger_many(self) -> None:
        await self.plant("runs")
        answers = await self.engine.runs.trigger_many(self.env, [NewRun("plain")] * 3)
        assert not any(isinstance(answer, Exception) for answer in answers)
        rows = await query(self.engine.database, "select count(*) as n from runwire.runs")
        assert rows[0]["n"] == 3

    async def batch(self) -> None:
        await self.plant("batches")
        batch = await self.engine.batches.create(self.env, 2, "key")
        assert not batch.is_cached

    async def batch_items(self) -> None:
        batch = await self.engine.batches.create(self.env, 2)
        await self.plant("batch_items")
        items = [(n, NewRun("plain", batch=(batch.id, n))) for n in range(2)]
        progress = await self.engine.batches.add_items(self.env, batch.id, items)
        assert progress == BatchProgress(2, 0, sealed=True, enqueued=2, expected=2)

    async def claim(self) -> None:
        run_id = await triggered(self.engine, self.env)
        await self.plant("runs")
        runs = await self.engine.claims.claim(self.env, "w1", ALL_TASKS, 5)
        assert [(run.id, run.execution) for run in runs] == [(run_id, 1)]

    async def append(self) -> None:
        run = await claimed(self.engine, self.env)
        await self.plant("stream_chunks")
        for n in range(2):
            await self.engine.streams.append(self.env, Append(run.id, "k", (str(n),), 1, 1))
        page = await self.engine.streams.read(self.env, run.id, "k")
        assert [chunk.body for chunk in page.chunks] == ["0", "1"]

    async def metadata(self) -> None:
        run = await claimed(self.engine, self.env)
        await self.plant("run_metadata")
        one = {"type": "increment", "key": "n", "value": 1}
        await self.engine.metadata.apply(self.env, MetadataWrite(run.id, (one,), run.execution))
        assert await self.engine.metadata.retrieve(self.env, run.id) == '{"n":1}'

    async def parent_metadata(self) -> None:
        parent = await claimed(self.engine, self.env)
        new = NewRun("plain", parent=Parent(parent.id, parent.execution))
        child = await claimed(self.engine, self.env, new)
        await self.plant("run_metadata")
        one = {"type": "increment", "key": "n", "value": 1}
        write = MetadataWrite(parent.id, (one,), child.execution, child.id)
        await self.engine.metadata.apply(self.env, write)
        assert await self.engine.metadata.retrieve(self.env, parent.id) == '{"n":1}'

    async def outcome(self) -> None:
        run = await claimed(self.engine, self.env)
        await self.plant("runs")
        await self.engine.outcomes.finish(self.env, Completed(run.id, run.execution, "1"))
        types = await assert_dense(self.engine, self.env, run.id)
        assert types.count("final") == 1

    async def retry(self) -> None:
        run = await claimed(self.engine, self.env)
        await self.plant("runs")
        failed = Failed(run.id, run.execution, '{"name":"E"}', retry_in=0.0)
        await self.engine.outcomes.finish(self.env, failed)
        assert (await there(self.engine, self.env, run.id)).status == "QUEUED"

    async def release(self) -> None:
        run = await claimed(self.engine, self.env)
        await self.plant("run_events")
        await self.engine.outcomes.finish(self.env, Released(run.id, run.execution))
        assert (await there(self.engine, self.env, run.id)).attempt == 0

    async def cancel(self) -> None:
        run_id = await triggered(self.engine, self.env)
        await self.plant("runs")
        assert (await self.engine.runs.cancel(self.env, run_id)).status == "CANCELED"
        types = await assert_dense(self.engine, self.env, run_id)
        assert len(types) == 2

    async def tags(self) -> None:
        run_id = await triggered(self.engine, self.env)
        await self.plant("run_tags")
        assert (await self.engine.runs.add_tags(self.env, run_id, ["a"])).tags == ("a",)

    async def promote(self) -> None:
        await triggered(self.engine, self.env, NewRun("plain", delay=60))
        await query(
            self.engine.database,
            "update runwire.runs set delayed_until = now(), sort_at = now()",
        )
        await self.plant("runs")
        assert await self.engine.claims.promote_all() == 1

    async def register(self) -> None:
        await self.plant("workers")
        await self.engine.workers.register(self.env, "w2")

    async def heartbeat(self) -> None:
        await self.plant("workers")
        assert await self.engine.workers.heartbeat("w1")

    async def stop(self) -> None:
        run = await claimed(self.engine, self.env)
        await self.plant("workers")
        assert await self.engine.workers.stop("w1") == 1
        assert (await there(self.engine, self.env, run.id)).status == "QUEUED"

    async def bury(self) -> None:
        run = await claimed(self.engine, self.env)
        await query(
            self.engine.database,
            "update runwire.workers set expires_at = now() - interval '1 minute'",
        )
        await self.plant("workers")
        assert await self.engine.workers.sweep() == Swept(dead_workers=1, lost=1)
        assert (await there(self.engine, self.env, run.id)).status == "QUEUED"

    async def announce(self) -> None:
        await self.plant("tasks")
        announced = [TaskAnnouncement("fresh", "task/fresh", concurrency_limit=3)]
        await self.engine.catalogue.announce(self.env, announced)
        assert await self.engine.catalogue.known(self.env, "fresh")

    async def tidy(self) -> None:
        await query(
            self.engine.database,
            "insert into runwire.writers (environment_id, target, writer_id, last_no, updated_at)"
            " values (%s, 'chunks', 'old', 1, now() - interval '3 days')",
            self.env,
        )
        await self.plant("writers")
        await self.engine.sweep.tidy()
        rows = await query(self.engine.database, "select count(*) as n from runwire.writers")
        assert rows[0]["n"] == 0

    async def environment(self) -> None:
        await self.plant("environments")
        await Environments(self.engine.database).ensure("another")


PATHS: Final = [name for name in vars(Paths) if not name.startswith("_")]


def planted(engine: Engine, state: str, failures: int, text: str = _PLANT) -> Plant:
    """Return what makes the first writes of a table fail."""

    async def plant(table: str) -> None:
        script = text.format(state=state, failures=failures, table=table)
        async with engine.database.transaction() as tx:
            await tx.script("planting a failure", script)

    return plant


@pytest.mark.parametrize("path", PATHS)
async def test_a_lost_deadlock_is_tried_again_and_nobody_notices(
    engine: Engine, env: int, path: str
) -> None:
    state = "40P01" if PATHS.index(path) % 2 else "40001"
    await getattr(Paths(engine, env, planted(engine, state, _FAILURES)), path)()
    rows = await query(engine.database, "select last_value from planted_failures")
    assert rows[0]["last_value"] > _FAILURES, "nothing of it was written: this shows nothing"


@pytest.mark.parametrize("path", ["trigger", "claim", "outcome", "cancel", "append", "metadata"])
async def test_a_serialisation_that_is_lost_at_the_commit_is_tried_again(
    engine: Engine, env: int, path: str
) -> None:
    plant = planted(engine, "40001", _FAILURES, _PLANT_AT_COMMIT)
    await getattr(Paths(engine, env, plant), path)()


@pytest.mark.parametrize("path", ["trigger", "outcome", "append", "metadata", "cancel", "register"])
async def test_what_loses_for_ever_is_given_up_after_five_tries(
    engine: Engine, env: int, path: str
) -> None:
    with pytest.raises(StatementError, match="planted"):
        await getattr(Paths(engine, env, planted(engine, "40P01", 1_000)), path)()
    rows = await query(engine.database, "select last_value from planted_failures")
    assert rows[0]["last_value"] == 5
