"""NOTIFYs past the driver's cursors: whole and in order, and an error where one was not sent."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from typing import TypeAlias

import anyio
import psycopg
import pytest

from runwire_engine.notifier import Notifier

pytestmark = pytest.mark.anyio

Connection: TypeAlias = psycopg.AsyncConnection[tuple[object, ...]]


@asynccontextmanager
async def listening(dsn: str) -> AsyncGenerator[tuple[Notifier, Connection, Connection]]:
    """Yield a notifier, its connection, and one that listens to `told`."""
    async with (
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as sender,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as listener,
    ):
        await listener.execute("listen told")
        with closing(Notifier(sender)) as notifier:
            yield notifier, sender, listener


async def heard(listener: Connection, count: int) -> list[str]:
    with anyio.fail_after(60):
        return [told.payload async for told in listener.notifies(stop_after=count)]


async def test_what_is_sent_is_heard_as_it_is_and_in_order(database_url: str) -> None:
    payloads = ["plain", "it's", r"back\slash", '{"a":"é\\n"}', "%s $1", "; notify told, 'no'"]
    async with listening(database_url) as (notifier, _, listener):
        await notifier.send([("told", payload) for payload in payloads])
        await notifier.send([("told", "last")])
        assert await heard(listener, len(payloads) + 1) == [*payloads, "last"]


async def test_more_than_a_socket_takes_at_once_arrives_whole(database_url: str) -> None:
    payloads = [f"{n:07000}" for n in range(400)]
    async with listening(database_url) as (notifier, _, listener):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(notifier.send, [("told", payload) for payload in payloads])
            assert await heard(listener, len(payloads)) == payloads


async def test_what_postgres_refuses_is_an_error_and_the_next_is_sent(database_url: str) -> None:
    async with listening(database_url) as (notifier, _, listener):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="too long"):
            await notifier.send([("told", "x" * 9000)])
        await notifier.send([("told", "next")])
        assert await heard(listener, 1) == ["next"]


async def test_a_lost_connection_is_an_error_each_time(database_url: str) -> None:
    async with listening(database_url) as (notifier, sender, listener):
        await listener.execute("select pg_terminate_backend(%s)", [sender.info.backend_pid])
        for _ in range(2):
            with anyio.fail_after(60), pytest.raises(psycopg.OperationalError):
                while True:
                    await notifier.send([("told", "lost")])
