"""The engine, opened and closed."""

import anyio
import pytest
from pydantic import ValidationError

from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.engine import open_engine
from runwire_engine.environments import Environments
from runwire_engine.flusher import FlusherClosedError
from runwire_engine.listener import Listener
from runwire_engine.outcomes import Completed
from runwire_engine.settings import EngineSettings
from runwire_engine.wanted_runs import NewRun
from tests.support.engines import ALL_TASKS

pytestmark = pytest.mark.anyio


async def test_what_was_handed_in_is_stored_before_the_end(database_url: str, env: int) -> None:
    settings = EngineSettings(database_url=database_url)
    async with open_engine(settings) as engine:
        await engine.catalogue.announce(env, [TaskAnnouncement("plain", "task/plain")])
        await engine.workers.register(env, "w1")
        await engine.runs.trigger(env, NewRun("plain"))
        (run,) = await engine.claims.claim(env, "w1", ALL_TASKS, 1)
        promise = engine.outcomes.submit_nowait(env, Completed(run.id, run.execution, "1"))
    assert promise.result().status == "COMPLETED"
    with pytest.raises(FlusherClosedError):
        await engine.runs.trigger(env, NewRun("plain"))


async def test_triggers_claims_and_outcomes_ring(database_url: str, env: int) -> None:
    settings = EngineSettings(database_url=database_url)
    async with (
        open_engine(settings, sweeping=False) as engine,
        Listener(database_url, environment_id=env) as bells,
    ):
        bell = await anext(bells)
        assert bell.scan
        await engine.catalogue.announce(env, [TaskAnnouncement("plain", "task/plain")])
        await engine.workers.register(env, "w1")
        with anyio.fail_after(60):
            await engine.runs.trigger(env, NewRun("plain"))
            work, moved = False, False
            while not (work and moved):
                bell = await anext(bells)
                work, moved = work or "task/plain" in bell.work, moved or bell.runs_moved
            (run,) = await engine.claims.claim(env, "w1", ALL_TASKS, 1)
            await engine.runs.cancel(env, run.id)
            while ("cancel", run.id) not in [(c.kind, c.target) for c in bell.control]:
                bell = await anext(bells)


async def test_environments_do_not_see_each_other(database_url: str, env: int) -> None:
    async with open_engine(EngineSettings(database_url=database_url), sweeping=False) as engine:
        other = await Environments(engine.database).ensure("staging")
        for environment_id, worker_id in ((env, "w1"), (other, "w2")):
            await engine.catalogue.announce(environment_id, [TaskAnnouncement("plain", "q", 1)])
            await engine.workers.register(environment_id, worker_id)
        mine = await engine.runs.trigger(env, NewRun("plain", idempotency_key="k"))
        theirs = await engine.runs.trigger(other, NewRun("plain", idempotency_key="k"))
        assert mine.id != theirs.id
        assert await engine.claims.claim(other, "w1", ALL_TASKS, 5) == []
        assert [run.id for run in await engine.claims.claim(other, "w2", ALL_TASKS, 5)] == [
            theirs.id
        ]
        assert [run.id for run in await engine.claims.claim(env, "w1", ALL_TASKS, 5)] == [mine.id]


def test_settings_come_from_the_environment_and_hide_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RUNWIRE_DATABASE_URL", "postgresql://u:secret@h/d")
    monkeypatch.setenv("RUNWIRE_LEASE", "2")
    settings = EngineSettings()
    assert (settings.database_url, settings.lease) == ("postgresql://u:secret@h/d", 2.0)
    assert "secret" not in repr(settings)
    assert all(field.description for field in EngineSettings.model_fields.values())
    monkeypatch.delenv("RUNWIRE_DATABASE_URL")
    with pytest.raises(ValidationError):
        EngineSettings()
