"""Bells are lost in every way there is: the poll delivers, nothing is lost, and it is noticed."""

import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import psycopg
import pytest
from pydantic import SecretStr

from runwire_engine.listener import PING_EVERY, PING_WITHIN, Listener
from tests.support.engines import query
from tests.support.faultproxy import fault_proxy
from tests.support.parts import own_postgres
from tests.support.processes import until, until_async
from tests.support.stage import Stage, open_stage
from tests.support.watching import watched_traffic

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

# Promised: the poll of 1 s and the read; a busy machine takes longer.
POLL_WITHIN = 15.0
Record = Callable[[str, object], None]


def is_listening(stage: Stage) -> bool:
    return stage.server.services.realtime.statistics().notifications == "listening"


async def listen_sessions(stage: Stage) -> list[int]:
    """Return the process ids of the hub's LISTEN sessions: one, or none for a moment."""
    rows = await query(
        stage.engine.database,
        "select pid from pg_stat_activity"
        " where datname = current_database() and application_name = 'runwire-listen'",
    )
    return [row["pid"] for row in rows]


async def is_back(stage: Stage, lost_session: int) -> bool:
    sessions = await listen_sessions(stage)
    return bool(sessions) and lost_session not in sessions and is_listening(stage)


async def readiness(stage: Stage) -> dict[str, Any]:
    async with stage.server.client() as http:
        said: dict[str, Any] = (await http.get("/readyz")).json()
        return said


async def test_a_lost_listen_session_during_writes_costs_no_event_and_is_soon_back(
    database_url: str, record_property: Record
) -> None:
    async with open_stage(database_url) as stage, watched_traffic(stage) as traffic:
        backs: list[float] = []
        began = time.monotonic()
        for _ in range(4):
            await until(lambda: is_listening(stage))
            (lost_session,) = await listen_sessions(stage)
            lost = time.monotonic()
            await query(stage.engine.database, "select pg_terminate_backend(%s)", lost_session)

            await until_async(partial(is_back, stage, lost_session))
            backs.append(time.monotonic() - lost)
            await traffic.until_flowing()
        record_property("back_after", round(max(backs), 2))
        record_property("longest_delay", round(traffic.delays(began)[-1], 2))
        assert max(backs) < 20  # promised: 2 s, on a machine that is not busy
        assert traffic.delays(began)[-1] < POLL_WITHIN


async def test_a_half_open_listen_session_is_noticed_while_the_poll_delivers(
    database_url: str, record_property: Record
) -> None:
    async with fault_proxy(database_url) as proxy:
        listen = SecretStr(proxy.dsn(database_url))
        async with open_stage(database_url, listen_database_url=listen) as stage:
            async with watched_traffic(stage) as traffic:
                await until(lambda: is_listening(stage))
                proxy.stall()
                stalled = time.monotonic()
                await until(lambda: not is_listening(stage), 2 * (PING_EVERY + PING_WITHIN))
                record_property("noticed_after", round(time.monotonic() - stalled, 2))
                await traffic.until_flowing()
                longest = traffic.delays(stalled)[-1]
                record_property("longest_delay", round(longest, 2))
                assert longest < POLL_WITHIN
                proxy.cut()
                proxy.flow()
                await until(lambda: is_listening(stage))


@asynccontextmanager
async def stuck_listener(dsn: str) -> AsyncGenerator[None]:
    """A stranger that listens, never reads, and sits in a transaction; so the queue is full."""
    async with (
        await psycopg.AsyncConnection.connect(dsn) as stuck,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as filler,
    ):
        await stuck.execute("listen somebody")
        await stuck.commit()
        await stuck.execute("select 1")
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            while True:
                await filler.execute(
                    "select pg_notify('somebody', n || repeat('x', 7000))"
                    " from generate_series(1, 20) as n"
                )
        yield


async def test_a_full_notification_queue_fails_no_commit_and_is_cured_without_a_restart(
    record_property: Record, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNWIRE_SWEEP", "0.5")
    async with (
        own_postgres({"max_notify_queue_pages": "64"}) as postgres,
        open_stage(postgres.dsn) as stage,
    ):
        with caplog.at_level(logging.WARNING):
            async with watched_traffic(stage) as traffic:
                async with stuck_listener(postgres.dsn):
                    full = time.monotonic()
                    await traffic.until_flowing(10)
                    await until(lambda: len(traffic.delays(full)) > 10)
                    record_property("longest_delay", round(traffic.delays(full)[-1], 2))
                    assert traffic.delays(full)[-1] < POLL_WITHIN
                    await until(lambda: bool(stage.engine.sweep.alarms.sounding))
                    said = await readiness(stage)
                    assert said["ready"] and "notification queue" in said["warnings"][0]
                gone = time.monotonic()

                async def is_cured() -> bool:
                    said = await readiness(stage)
                    return not said["warnings"] and said["notifications"] == "listening"

                await until_async(is_cured)
                record_property("cured_after", round(time.monotonic() - gone, 2))
                async with Listener(postgres.dsn) as bells:
                    with anyio.fail_after(60):
                        async for bell in bells:
                            if bell.streams:
                                break
        assert caplog.text.count("notification queue of Postgres is full; bells are lost") == 1
        alarms = [line for line in caplog.messages if "% full" in line]
        assert len(alarms) == 2 and alarms[1].startswith("it is over"), alarms
