"""What is told of Postgres, once as it begins and once as it ends."""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import psycopg
import pytest

from runwire_engine.alarms import Alarms
from runwire_engine.database import Database
from tests.support.parts import own_postgres
from tests.support.postgres import opened_database

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def stranger(dsn: str) -> AsyncGenerator[psycopg.AsyncConnection[tuple[object, ...]]]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield connection


async def sounds(alarms: Alarms) -> str:
    """Return what the alarm of old transactions says; nothing: none."""
    await alarms.look_at_horizon()
    return "".join(alarms.sounding)


async def test_an_open_transaction_is_told_once_and_so_is_its_end(
    database: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Longer than a busy machine takes from the write to the look.
    alarms = Alarms(database, horizon_seconds=1.0)
    assert await sounds(alarms) == ""
    with caplog.at_level(logging.WARNING, "runwire.alarms"):
        async with stranger(database_url) as culprit, stranger(database_url) as innocent:
            await culprit.execute("begin")
            await culprit.execute("select pg_current_xact_id()")
            assert await sounds(alarms) == ""
            await anyio.sleep(1.1)  # it is the time that makes it old
            # Whoever looks at the data meanwhile is held to the same age, and is not to blame.
            await innocent.execute("begin isolation level repeatable read")
            await innocent.execute("select")
            for _ in range(3):
                assert f"process id {culprit.info.backend_pid} " in await sounds(alarms)
            await innocent.execute("commit")
            await culprit.execute("commit")
        assert await sounds(alarms) == ""
    assert len(caplog.messages) == 2
    assert caplog.messages[1] == f"it is over that {caplog.messages[0]}"


async def test_an_old_snapshot_without_a_write_is_told_too(
    database: Database, database_url: str
) -> None:
    alarms = Alarms(database, horizon_seconds=0.1)
    async with stranger(database_url) as reader:
        await reader.execute("begin isolation level repeatable read")
        await reader.execute("select")
        await anyio.sleep(0.2)  # it is the time that makes it old
        assert f"process id {reader.info.backend_pid} " in await sounds(alarms)


async def test_short_transactions_one_after_the_other_are_no_alarm(
    database: Database, database_url: str
) -> None:
    alarms = Alarms(database, horizon_seconds=1.0)
    async with stranger(database_url) as busy:
        for _ in range(8):
            await busy.execute("begin")
            await busy.execute("select pg_current_xact_id()")
            await anyio.sleep(0.15)  # together longer than what is told
            assert await sounds(alarms) == ""
            await busy.execute("commit")


@pytest.mark.faults
async def test_a_prepared_transaction_and_a_forgotten_slot_are_told() -> None:
    settings = {"max_prepared_transactions": "2", "wal_level": "logical"}
    async with (
        own_postgres(settings) as postgres,
        opened_database(postgres.dsn) as database,
        stranger(postgres.dsn) as admin,
    ):
        alarms = Alarms(database, horizon_seconds=1.0)
        await admin.execute("begin")
        await admin.execute("select pg_current_xact_id()")
        await admin.execute("prepare transaction 'forgotten'")
        await anyio.sleep(1.1)  # it is the time that makes it old
        assert "prepared transaction 'forgotten'" in await sounds(alarms)
        await admin.execute("rollback prepared 'forgotten'")
        assert await sounds(alarms) == ""
        await admin.execute("select pg_create_logical_replication_slot('lost', 'pgoutput')")
        await admin.execute("select pg_current_xact_id()")
        assert await sounds(alarms) == ""
        await anyio.sleep(1.1)  # as above
        assert "replication slot 'lost'" in await sounds(alarms)
