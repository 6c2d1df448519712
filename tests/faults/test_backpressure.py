"""Clients that sleep, flood, come back all at once or never say who they are: others do not notice.

The server is a process of its own. RUNWIRE_CROWD makes the crowds larger (100 clients), and
RUNWIRE_SLEEP the pauses longer (3 s).
"""

import logging
import os
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import quantiles

import anyio
import pytest
from anyio.abc import TaskStatus
from websockets.exceptions import ConnectionClosed, InvalidStatus

from runwire.wire import Json, JsonObject
from runwire_engine.wanted_runs import NewRun
from tests.support.engines import query
from tests.support.faultproxy import fault_proxy
from tests.support.processes import free_port, running, until
from tests.support.server import SECRET
from tests.support.sockets import Socket, chunks_of, of_type, open_socket
from tests.support.stage import Outside, open_outside

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

# What was measured; pytest shows it with --log-cli-level=INFO.
measured = logging.getLogger("runwire.measured")
CROWD = int(os.environ.get("RUNWIRE_CROWD", "100"))
SLEEP = float(os.environ.get("RUNWIRE_SLEEP", "3"))
MEGABYTE = 1_000_000
# What a machine that is busy with other tests may add to any delay, in seconds.
NOISE = 2.0


class Pace:
    """One run's stream, written to at a pace, and how late a reader of it is told."""

    def __init__(self, stage: Outside) -> None:
        self._stage = stage
        self._run = ""
        self._execution = 0
        self.written: list[float] = []
        self.delays: list[float] = []

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Write and read until cancelled."""
        self._run, self._execution = await started(self._stage, "pace")
        async with open_socket(self._stage.url, self._stage.key) as socket:
            await socket.subscribe("pace", {"run": self._run}, streams={"*": {}})
            await socket.until("live")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read, socket)
                task_status.started()
                while True:
                    self.written.append(time.monotonic())
                    await self._stage.append(self._run, self._execution, len(self.written))
                    await anyio.sleep(0.02)  # the pace

    async def _read(self, socket: Socket) -> None:
        while True:
            message = await socket.next()
            if message["type"] == "chunks":
                numbers: list[int] = message["data"]
                for number in numbers:
                    self.delays.append(time.monotonic() - self.written[number - 1])

    async def p99(self, seconds: float) -> float:
        """Return the delay that 99 of 100 chunks of the next seconds, or more, are within."""
        self.delays.clear()
        await anyio.sleep(seconds)
        await until(lambda: len(self.delays) >= 10)
        return quantiles(self.delays, n=100)[98]


@asynccontextmanager
async def paced(stage: Outside) -> AsyncGenerator[Pace]:
    """Have a reader beside the block whose delays tell whether it was disturbed."""
    pace = Pace(stage)
    async with anyio.create_task_group() as tasks:
        await tasks.start(pace.run)
        await pace.p99(0.5)
        yield pace
        tasks.cancel_scope.cancel()


async def started(stage: Outside, *tags: str) -> tuple[str, int]:
    """Return a run that executes."""
    run_id = await stage.trigger(*tags)
    return run_id, await stage.start(run_id)


async def until_chunks(socket: Socket, stream: str, count: int) -> None:
    while len(chunks_of(socket.messages, stream)) < count:
        await socket.next()


# A client that does not read


@pytest.mark.parametrize("send_timeout", [300.0, 1.0], ids=["it-drains", "it-is-closed"])
async def test_a_client_that_sleeps_costs_little_and_gets_each_chunk_once(
    database_url: str, send_timeout: float
) -> None:
    async with open_outside(database_url, send_timeout=send_timeout) as stage:
        runs = [await started(stage, "all") for _ in range(50)]
        (big, execution), *rest = runs
        chunks = [f"{number:04}" + "x" * 64_000 for number in range(160)]
        for at in range(0, len(chunks), 8):
            await stage.append(big, execution, *chunks[at : at + 8], key="big")
        streams: JsonObject = {"*": {}}
        to: JsonObject = {"tags": ["all"]}
        async with open_socket(stage.url, stage.key) as warm:
            await warm.subscribe("a", to, streams=streams)
            await until_chunks(warm, "big", len(chunks))
        async with (
            paced(stage) as pace,
            open_socket(stage.url, stage.key, max_queue=1, close_timeout=0.1) as sleeper,
        ):
            quiet = await pace.p99(1.5)
            before = stage.memory()
            await sleeper.subscribe("a", to, streams=streams)
            highest = 0
            disturbed: list[float] = []
            began = time.monotonic()
            number = 0
            while time.monotonic() < began + SLEEP:
                for run_id, run_execution in rest[:10]:
                    number += 1
                    await stage.set_metadata(run_id, run_execution, n=number)
                disturbed.append(await pace.p99(0.5))
                highest = max(highest, stage.memory())
            assert highest - before < 5 * MEGABYTE
            assert min(disturbed) < 2 * quiet + NOISE
            told = await everything(stage, sleeper, to, streams, len(chunks))
        measured.info(
            f"memory +{(highest - before) / MEGABYTE:.1f} MB, p99 {quiet * 1000:.0f} ms quiet,"
            f" {sorted(disturbed)[len(disturbed) // 2] * 1000:.0f} ms beside the sleeper"
        )
        assert chunks_of(told, "big") == chunks


async def everything(
    stage: Outside, sleeper: Socket, to: JsonObject, streams: JsonObject, count: int
) -> list[JsonObject]:
    """Read on where the sleeper stopped, on another socket if its own was closed."""
    try:
        await until_chunks(sleeper, "big", count)
        return sleeper.messages
    except ConnectionClosed as closed:
        assert closed.rcvd is None or closed.rcvd.code == 4008
    # A sleeper may have taken less than the close frame that came after what it did not take.
    positions: JsonObject = {}
    for message in of_type(sleeper.messages, "chunks"):
        next_seq = message["seq"] + len(message["data"])
        positions.setdefault(message["run"], {})[message["stream"]] = next_seq
    cursors = [m["cursor"] for m in sleeper.messages if "cursor" in m]
    resume = {"cursor": cursors[-1]} if cursors else {}
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", to, streams=streams, positions=positions, **resume)
        socket.messages[:0] = sleeper.messages
        await until_chunks(socket, "big", count)
        return socket.messages


async def test_one_of_many_subscribers_that_is_blocked_holds_up_no_other(database_url: str) -> None:
    async with open_outside(database_url) as stage, AsyncExitStack() as stack:
        run_id, execution = await started(stage, "many")
        sockets = [
            await stack.enter_async_context(open_socket(stage.url, stage.key)) for _ in range(CROWD)
        ]
        for socket in sockets:
            await socket.subscribe("a", {"run": run_id}, streams={"*": {"from": "latest"}})
            await socket.until("live")

        async def round_trip(number: int) -> float:
            began = time.monotonic()
            await stage.append(run_id, execution, number)
            async with anyio.create_task_group() as tasks:
                for socket in sockets:
                    tasks.start_soon(until_number, socket, number)
            return time.monotonic() - began

        alone = [await round_trip(number) for number in range(20)]
        # It asks for more than its buffers take, and takes nothing.
        large, large_execution = await started(stage, "large")
        blocked = await stack.enter_async_context(
            open_socket(stage.url, stage.key, max_queue=1, close_timeout=0.1)
        )
        for _ in range(40):
            await stage.append(large, large_execution, *["x" * 250_000] * 2)
        for to in ({"run": large}, {"run": run_id}):
            await blocked.subscribe(f"s{to['run']}", to, streams={"*": {}})
        beside = [await round_trip(number) for number in range(20, 60)]
        middle, before = sorted(beside)[20], sorted(alone)[10]
        measured.info(
            f"{CROWD} told in {before * 1000:.0f} ms alone, {middle * 1000:.0f} ms beside it"
        )
        assert middle < 2 * before + NOISE


async def until_number(socket: Socket, number: Json) -> None:
    while True:
        message = await socket.next()
        if message["type"] == "chunks" and number in message["data"]:
            return


# Crowds


async def test_a_crowd_that_comes_back_at_once_is_live_within_ten_seconds(
    database_url: str,
) -> None:
    async with open_outside(database_url) as stage:
        runs = [await started(stage, f"crowd:{number % 10}") for number in range(50)]
        sessions_before = await sessions(stage)
        most, times = sessions_before, list[float]()

        async def come_back(number: int) -> None:
            began = time.monotonic()
            while True:
                try:
                    async with open_socket(stage.url, stage.key, open_timeout=30) as socket:
                        await socket.subscribe("tag", {"tags": [f"crowd:{number % 10}"]})
                        await socket.subscribe("run", {"run": runs[number % 50][0]})
                        while len(of_type(socket.messages, "live")) < 2:
                            await socket.next()
                        times.append(time.monotonic() - began)
                        return
                except InvalidStatus as refused:
                    assert refused.response.status_code == 503
                    await anyio.sleep(0.5)  # as a client would

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, await sessions(stage))
                await anyio.sleep(0.05)

        async with anyio.create_task_group() as watching:
            watching.start_soon(watch)
            async with anyio.create_task_group() as tasks:
                for number in range(CROWD):
                    tasks.start_soon(come_back, number)
            watching.cancel_scope.cancel()
        measured.info(
            f"{CROWD} live after {max(times):.1f} s; sessions {sessions_before} to {most}"
        )
        assert len(times) == CROWD and max(times) < 10
        assert most <= 2 * sessions_before + 12  # the hub's own pool opens up to 12


async def sessions(stage: Outside) -> int:
    """Return how many sessions the server has with its database."""
    rows = await query(
        stage.engine.database,
        "select count(*) as sessions from pg_stat_activity where datname = current_database()",
    )
    return int(rows[0]["sessions"])


async def test_strangers_keep_nobody_out(database_url: str) -> None:
    strangers = CROWD * 5
    limits = {"max_strangers": CROWD, "connect_burst": 50_000, "auth_timeout": 3}
    async with open_outside(database_url, **limits) as stage, AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(open_socket(stage.url, close_timeout=0.1))
            for _ in range(strangers)
        ]
        times: list[float] = []
        for _ in range(20):
            began = time.monotonic()
            async with open_socket(stage.url, stage.key):
                times.append(time.monotonic() - began)
        codes = [await socket.closed() for socket in opened]
        measured.info(f"{strangers} strangers; others in after {max(times) * 1000:.0f} ms at most")
        assert max(times) < 1 + NOISE
        # Where opening them takes longer than they may wait, time comes before room.
        assert set(codes) <= {4002, 4009}


async def test_floods_of_subscriptions_meet_limits_and_disturb_no_other_tenant(
    database_url: str,
) -> None:
    async with open_outside(database_url) as stage:
        many = 2_000 if CROWD <= 100 else 100_000
        await query(stage.engine.database, MANY_RUNS, stage.env, many, stage.env)
        async with paced(stage) as pace:
            quiet = await pace.p99(2)
            program = ("python", "-m", "tests.faults.programs.flood", stage.url, stage.key)
            async with running(*program) as flood:
                await flood.until_line("refused: 4029")
                noisy = await pace.p99(3)
                flood.kill()
                assert "unforeseen" not in flood.output()
        measured.info(f"p99 {quiet * 1000:.0f} ms quiet, {noisy * 1000:.0f} ms beside floods")
        assert noisy < 2 * quiet + NOISE


# Runs of one tag, as many as are asked for.
MANY_RUNS = """
with made as (
    insert into runwire.runs (environment_id, id, bucket, task, status, queue, sort_at,
                              created_at, updated_at, finished_at, tags)
    select %s, 'run_' || lpad(number::text, 25, '0'), (now() at time zone 'UTC')::date, 'task',
           'COMPLETED', 'task/task', now(), now(), now(), now(), array['crowd']
      from generate_series(1, %s) as number
    returning id, created_at)
insert into runwire.run_tags (environment_id, tag, created_at, run_id)
select %s, 'crowd', created_at, id from made
"""


# A link that stalls


async def test_a_link_that_stalls_is_noticed_by_the_server_and_nothing_of_it_stays(
    database_url: str,
) -> None:
    # In production a ping comes every 20 s and may take 20 s: 40 s at most.
    limits = {"ping_interval": 1, "ping_timeout": 1, "send_timeout": 2}
    async with open_outside(database_url, **limits) as stage:
        run_id, execution = await started(stage)
        host, port = stage.url.removeprefix("http://").split(":")
        async with fault_proxy((host, int(port))) as proxy:
            through = f"http://127.0.0.1:{proxy.port}"
            async with AsyncExitStack() as stack:
                options = {"close_timeout": 0.1, "ping_interval": None}
                sockets = [
                    await stack.enter_async_context(open_socket(through, stage.key, **options))
                    for _ in range(10)
                ]
                for socket in sockets:
                    await socket.subscribe("a", {"run": run_id}, streams={"*": {}})
                    await socket.until("live")
                assert stage.connections() == 10
                proxy.stall()
                began = time.monotonic()
                # Half of the stalled sockets hold a frame that does not leave.
                await stage.append(run_id, execution, *["x" * 200_000] * 4)
                await until(lambda: stage.connections() == 0, 30)
                took = time.monotonic() - began
        measured.info(f"10 stalled sockets gone after {took:.1f} s")
        async with open_socket(stage.url, stage.key) as socket:
            await socket.subscribe("a", {"run": run_id}, streams={"*": {}})
            await until_chunks(socket, "text", 4)


async def test_a_link_of_single_bytes_late_and_slow_is_only_slower(database_url: str) -> None:
    async with open_outside(database_url) as stage:
        run_id, execution = await started(stage)
        host, port = stage.url.removeprefix("http://").split(":")
        async with fault_proxy((host, int(port))) as proxy:
            pace, count = (20_000, 8) if CROWD <= 100 else (2_000, 60)
            for lane in (proxy.to_server, proxy.to_client):
                lane.slice_bytes, lane.delay, lane.bytes_per_second = 1, 0.3, pace
            through = f"http://127.0.0.1:{proxy.port}"
            async with open_socket(through, stage.key, close_timeout=0.1) as socket:
                await socket.subscribe("a", {"run": run_id}, streams={"*": {}})
                await socket.until("live")
                for number in range(count):
                    await stage.append(run_id, execution, number)
                await stage.complete(run_id, execution)
                told = await socket.until("done")
        assert chunks_of(told, "text") == list(range(count))


# The end, and a loop that is held up


async def test_sigterm_closes_one_by_one_and_ends_in_time_though_clients_sleep(
    database_url: str,
) -> None:
    drain = 2 if CROWD <= 100 else 5
    async with open_outside(database_url, drain=drain) as stage, AsyncExitStack() as stack:
        for number in range(100):
            await stage.engine.runs.trigger(stage.env, NewRun("task", f'"{"x" * 15_000}{number}"'))
        sockets = [
            await stack.enter_async_context(open_socket(stage.url, stage.key)) for _ in range(CROWD)
        ]
        options = {"max_queue": 1, "close_timeout": 0.1}
        for _ in range(5):
            sleeper = await stack.enter_async_context(open_socket(stage.url, stage.key, **options))
            for number in range(20):
                await sleeper.subscribe(f"s{number}", {"runs": {}})
        times: list[float] = []

        async def closed(socket: Socket) -> None:
            with anyio.fail_after(60):
                assert await socket.closed() == 4001
            times.append(time.monotonic() - began)

        began = time.monotonic()
        stage.process.terminate()
        async with anyio.create_task_group() as tasks:
            for socket in sockets:
                tasks.start_soon(closed, socket)
        assert await stage.process.wait() == 0
        took = time.monotonic() - began
        measured.info(
            f"{CROWD} closed from {min(times):.1f} to {max(times):.1f} s, ended {took:.1f} s"
        )
        assert max(times) - min(times) > drain * 0.2
        assert took < drain + 20


async def test_a_loop_that_was_held_up_is_told_of_and_takes_nobody_for_dead(
    database_url: str,
) -> None:
    port = free_port()
    environment = {
        "RUNWIRE_DATABASE_URL": database_url,
        "RUNWIRE_SECRET": SECRET,
        # Shorter than the loop is held up: counted in its own turns, nobody is late.
        "RUNWIRE_SEND_TIMEOUT": "1",
    }
    program = "tests.faults.programs.held_up_server"
    async with (
        open_outside(database_url) as stage,
        running("python", "-m", program, str(port), environment=environment) as server,
    ):
        url = f"http://127.0.0.1:{port}"
        await server.until_ready(f"{url}/readyz")
        run_id, execution = await started(stage)
        large = ["x" * 200_000] * 4
        async with AsyncExitStack() as stack:
            sockets = [
                await stack.enter_async_context(open_socket(url, stage.key)) for _ in range(20)
            ]
            # The last one is in the middle of a frame when the loop stops.
            slow = await stack.enter_async_context(open_socket(url, stage.key, max_queue=1))
            for socket in (*sockets, slow):
                await socket.subscribe("a", {"run": run_id}, streams={"*": {}})
                await socket.until("live")
            for _ in range(10):
                await stage.append(run_id, execution, *large)
            server.send(signal.SIGUSR1)
            await server.until_line("the event loop is held up")
            await server.until_line("in hold_up")
            await stage.append(run_id, execution, "after")
            await server.until_line("the event loop turns again")
            for socket in (slow, *sockets):
                await until_number(socket, "after")
                assert len(chunks_of(socket.messages, "text")) == 41
                assert not of_type(socket.messages, "state")
