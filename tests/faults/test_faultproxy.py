"""The fault proxy does to a connection what it says, to the byte."""

from collections.abc import AsyncGenerator

import anyio
import psycopg
import pytest
from anyio.abc import SocketAttribute, SocketStream

from tests.support.faultproxy import FaultProxy, fault_proxy
from tests.support.processes import until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def proxy(anyio_backend: str) -> AsyncGenerator[FaultProxy]:
    """A proxy in front of a server that sends back what it gets."""

    async def echo(stream: SocketStream) -> None:
        async with stream:
            try:
                async for data in stream:
                    await stream.send(data)
            except anyio.BrokenResourceError:
                return

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, echo)
        target = ("127.0.0.1", listener.extra(SocketAttribute.local_port))
        async with fault_proxy(target) as opened:
            yield opened
        tasks.cancel_scope.cancel()


async def received(stream: SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await stream.receive(count - len(data))
    return data


async def received_until_end(stream: SocketStream) -> bytes:
    data = b""
    try:
        async for piece in stream:
            data += piece
    except anyio.BrokenResourceError:
        pass
    return data


async def test_without_faults_every_byte_passes(proxy: FaultProxy) -> None:
    sent = bytes(range(256)) * 1000
    async with await anyio.connect_tcp("127.0.0.1", proxy.port) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.send, sent)
            assert await received(client, len(sent)) == sent

    assert proxy.to_server.passed == proxy.to_client.passed == len(sent)


@pytest.mark.parametrize("count", [0, 1, 2, 17, 99, 100])
async def test_a_cut_on_the_way_back_is_exact_to_the_byte(proxy: FaultProxy, count: int) -> None:
    proxy.to_client.cut_after = count
    async with await anyio.connect_tcp("127.0.0.1", proxy.port) as client:
        await client.send(b"x" * 200)
        assert await received_until_end(client) == b"x" * count
    await until(lambda: proxy.connections == 0)


async def test_a_cut_on_the_way_there_is_exact_to_the_byte(proxy: FaultProxy) -> None:
    proxy.to_server.cut_after = 30
    async with await anyio.connect_tcp("127.0.0.1", proxy.port) as client:
        await client.send(b"x" * 200)
        await received_until_end(client)

    assert proxy.to_server.passed == 30


async def test_a_cut_counts_each_connection_apart(proxy: FaultProxy) -> None:
    proxy.to_client.cut_after = 5
    for _ in range(3):
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as client:
            await client.send(b"0123456789")
            assert await received_until_end(client) == b"01234"


async def test_a_reset_is_a_reset_and_a_polite_cut_is_not(proxy: FaultProxy) -> None:
    for resets in (True, False):
        proxy.resets = resets
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as client:
            await client.send(b"x")
            await received(client, 1)
            proxy.cut()
            with pytest.raises(anyio.BrokenResourceError if resets else anyio.EndOfStream):
                await client.receive()


async def test_a_stall_holds_every_byte_and_no_socket_notices(proxy: FaultProxy) -> None:
    async with await anyio.connect_tcp("127.0.0.1", proxy.port) as client:
        await client.send(b"a")
        await received(client, 1)
        proxy.stall()
        await client.send(b"b")
        with anyio.move_on_after(0.1) as waited:  # that nothing comes can only be seen by waiting
            await client.receive()
        assert waited.cancelled_caught
        assert proxy.connections == 1

        proxy.flow()
        assert await received(client, 1) == b"b"


async def test_slices_leave_one_by_one(proxy: FaultProxy) -> None:
    proxy.to_client.slice_bytes = 1
    async with await anyio.connect_tcp("127.0.0.1", proxy.port) as client:
        client.extra(SocketAttribute.raw_socket)
        await client.send(b"x" * 50)
        pieces: list[bytes] = []
        while sum(map(len, pieces)) < 50:
            pieces.append(await client.receive())

    assert len(pieces) > 1
    assert b"".join(pieces) == b"x" * 50


async def test_a_delay_makes_late_but_not_narrow(proxy: FaultProxy) -> None:
    proxy.to_client.delay = 0.2
    async with await anyio.connect_tcp("127.0.0.1", proxy.port) as client:
        started = anyio.current_time()
        for _ in range(50):
            await client.send(b"x" * 10)
        assert len(await received(client, 500)) == 500
        elapsed = anyio.current_time() - started

    assert 0.2 <= elapsed < 8  # fifty pieces one after the other would take ten seconds


async def test_a_bandwidth_is_kept(proxy: FaultProxy) -> None:
    proxy.to_client.bytes_per_second = 10_000
    proxy.to_client.slice_bytes = 100
    async with await anyio.connect_tcp("127.0.0.1", proxy.port) as client:
        started = anyio.current_time()
        await client.send(b"x" * 2_000)
        await received(client, 2_000)

    assert anyio.current_time() - started >= 0.18


async def test_refused_connections_end_at_once(proxy: FaultProxy) -> None:
    proxy.refuses = True
    async with await anyio.connect_tcp("127.0.0.1", proxy.port) as client:
        assert await received_until_end(client) == b""


async def test_a_dead_server_ends_the_connection() -> None:
    async with fault_proxy(("127.0.0.1", 9)) as proxy:
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as client:
            assert await received_until_end(client) == b""


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("slice_bytes", [None, 1])
async def test_a_commit_loses_its_answer_or_itself(
    database_url: str, after: bool, prepared: bool, slice_bytes: int | None
) -> None:
    async with fault_proxy(database_url) as proxy:
        proxy.to_server.slice_bytes = proxy.to_client.slice_bytes = slice_bytes
        connection = await psycopg.AsyncConnection.connect(proxy.dsn(database_url), autocommit=True)
        async with connection:
            await connection.execute("begin")
            await connection.execute("create table marker ()")
            proxy.cut_next_commit(after=after)
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("commit", prepare=prepared)
        assert proxy.commits_cut == 1

    async with await psycopg.AsyncConnection.connect(database_url) as direct:
        cursor = await direct.execute("select to_regclass('marker') is not null")
        assert await cursor.fetchone() == (after,)


async def test_a_commit_inside_a_pipeline_is_seen(database_url: str) -> None:
    async with fault_proxy(database_url) as proxy:
        connection = await psycopg.AsyncConnection.connect(proxy.dsn(database_url), autocommit=True)
        proxy.cut_next_commit()
        with pytest.raises(psycopg.OperationalError):
            async with connection.pipeline():
                await connection.execute("begin")
                await connection.execute("create table marker ()")
                await connection.execute("commit")
        await connection.close()

    async with await psycopg.AsyncConnection.connect(database_url) as direct:
        cursor = await direct.execute("select to_regclass('marker') is not null")
        assert await cursor.fetchone() == (True,)


async def test_transactions_before_and_after_the_lost_one_are_whole(database_url: str) -> None:
    async with fault_proxy(database_url) as proxy:
        for number in range(3):
            if number == 1:
                proxy.cut_next_commit(after=False)
            try:
                async with await psycopg.AsyncConnection.connect(proxy.dsn(database_url)) as other:
                    await other.execute(f"create table t{number} ()".encode())
            except psycopg.OperationalError:
                assert number == 1

    async with await psycopg.AsyncConnection.connect(database_url) as direct:
        cursor = await direct.execute(
            "select count(*) from pg_tables where tablename in ('t0', 't1', 't2')"
        )
        assert await cursor.fetchone() == (2,)
