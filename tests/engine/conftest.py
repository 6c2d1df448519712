"""Fixtures of the engine's tests."""

from collections.abc import AsyncGenerator

import pytest

from runwire_engine.catalogue import TaskAnnouncement
from runwire_engine.engine import Engine, open_engine
from runwire_engine.settings import EngineSettings

# One task with a queue of its own, one whose queue lets two runs execute for each key.
PLAIN = TaskAnnouncement("plain", "task/plain")
OTHER = TaskAnnouncement("other", "task/other")
LIMITED = TaskAnnouncement("limited", "narrow", concurrency_limit=2)


@pytest.fixture
async def engine(database_url: str, env: int, anyio_backend: str) -> AsyncGenerator[Engine]:
    """An engine that does not sweep by itself, with three tasks and the live worker "w1"."""
    settings = EngineSettings(database_url=database_url)
    async with open_engine(settings, sweeping=False) as opened:
        await opened.catalogue.announce(env, [PLAIN, OTHER, LIMITED])
        await opened.workers.register(env, "w1")
        yield opened
