"""All of Runwire as processes on one Postgres, hubs behind proxies, and what can befall them.

    async with stormy_setup(chance, hubs=3, workers=2, modules="…") as setup:
        await setup.strike()            # one fault, chosen by `chance`; told in `setup.story`
        await setup.calm()              # everything runs again

Every fault is over when `strike` returns, except that what was killed may still be starting.
"""

import os
import random
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio
import psycopg

from runwire_engine.embedded import EmbeddedPostgres
from runwire_engine.environments import Environments
from tests.support.faultproxy import FaultProxy, fault_proxy
from tests.support.parts import LEASE, own_postgres, server_on, worker_on
from tests.support.postgres import opened_database
from tests.support.processes import Process, free_port, until

SECRET = "a secret of the tests, forty bytes long.."


@dataclass
class Part:
    """A process that is started again when it was killed."""

    name: str
    start: Callable[[AsyncExitStack], Awaitable[Process]]
    stack: AsyncExitStack
    process: Process = field(init=False)
    # What became of those before.
    past: list[Process] = field(default_factory=list[Process])

    async def restart(self) -> None:
        await self.process.wait()
        self.past.append(self.process)
        await self.begin()

    async def begin(self) -> None:
        self.process = await self.start(self.stack)


@dataclass
class Stormy:
    """The parts, and one fault after another."""

    chance: random.Random
    postgres: EmbeddedPostgres
    environment_id: int
    key: str
    hubs: list[Part] = field(default_factory=list[Part])
    workers: list[Part] = field(default_factory=list[Part])
    proxies: list[FaultProxy] = field(default_factory=list[FaultProxy])
    # What was done, and when.
    story: list[str] = field(default_factory=list[str])
    began: float = field(default_factory=time.monotonic)

    def urls(self) -> list[str]:
        """Return where the hubs answer, each through its proxy."""
        return [f"http://127.0.0.1:{proxy.port}" for proxy in self.proxies]

    def tell(self, what: str) -> None:
        self.story.append(f"{time.monotonic() - self.began:6.1f} s  {what}")

    async def strike(self) -> None:
        """Do one thing to the hubs, the workers, Postgres or the network."""
        faults: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (3, self._kill_hub),
            (2, self._stop_hub),
            (2, self._terminate_hub),
            (2, self.kill_worker),
            (1, self._stop_worker),
            (1, self._kill_postgres),
            (2, self._kill_backends),
            (4, self._cut),
            (2, self._slice),
            (1, self._stall),
        ]
        weights = [weight for weight, _ in faults]
        await self.chance.choices([fault for _, fault in faults], weights)[0]()

    async def _kill_hub(self) -> None:
        hub = self.chance.choice(self.hubs)
        self.tell(f"SIGKILL {hub.name}")
        hub.process.kill()
        await hub.restart()

    async def _terminate_hub(self) -> None:
        hub = self.chance.choice(self.hubs)
        self.tell(f"SIGTERM {hub.name}")
        hub.process.terminate()
        await hub.restart()

    async def _stop_hub(self) -> None:
        hub = self.chance.choice(self.hubs)
        seconds = self.chance.uniform(0.5, 3.0)
        self.tell(f"SIGSTOP {hub.name} for {seconds:.1f} s")
        hub.process.stall()
        await anyio.sleep(seconds)
        hub.process.resume()

    async def kill_worker(self) -> None:
        worker = self.chance.choice(self.workers)
        self.tell(f"SIGKILL {worker.name}")
        worker.process.kill()
        await worker.restart()

    async def _stop_worker(self) -> None:
        """Past its lease: it comes back as a zombie."""
        worker = self.chance.choice(self.workers)
        self.tell(f"SIGSTOP {worker.name} past its lease")
        worker.process.stall()
        await anyio.sleep(LEASE * 1.5)
        worker.process.resume()

    async def _kill_postgres(self) -> None:
        before = self.postgres.process_id
        if before is None:
            return
        self.tell("SIGKILL Postgres")
        os.kill(before, signal.SIGKILL)
        await until(lambda: self.postgres.process_id not in (before, None))

    async def _kill_backends(self) -> None:
        """Half of all sessions, listeners and senders of bells among them."""
        self.tell("end half of the sessions")
        try:
            async with await psycopg.AsyncConnection.connect(self.postgres.dsn) as connection:
                await connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where pid <> pg_backend_pid() and backend_type = 'client backend'"
                    " and random() < 0.5"
                )
        except psycopg.OperationalError:
            self.tell("(there is no Postgres)")

    async def _cut(self) -> None:
        proxy = self.chance.choice(self.proxies)
        proxy.resets = self.chance.random() < 0.5
        self.tell(f"cut every link of hub {self.proxies.index(proxy)}")
        proxy.cut()

    async def _slice(self) -> None:
        proxy = self.chance.choice(self.proxies)
        self.tell(f"hub {self.proxies.index(proxy)} byte by byte, 50 ms late")
        for lane in (proxy.to_client, proxy.to_server):
            lane.slice_bytes, lane.delay = 1, 0.05
        await anyio.sleep(1.0)
        self._heal(proxy)

    async def _stall(self) -> None:
        proxy = self.chance.choice(self.proxies)
        self.tell(f"stall hub {self.proxies.index(proxy)} for 2 s")
        proxy.stall()
        await anyio.sleep(2.0)
        proxy.flow()

    @staticmethod
    def _heal(proxy: FaultProxy) -> None:
        for lane in (proxy.to_client, proxy.to_server):
            lane.slice_bytes, lane.delay = None, 0.0

    async def calm(self) -> None:
        """Have everything run as it should."""
        for proxy in self.proxies:
            self._heal(proxy)
            proxy.flow()
        for part in (*self.hubs, *self.workers):
            part.process.resume()
            if part.process.exit_code is not None:
                await part.restart()
        self.tell("calm")

    async def query(self, text: str) -> list[tuple[object, ...]] | None:
        """Run SQL; None while there is no Postgres."""
        try:
            async with await psycopg.AsyncConnection.connect(self.postgres.dsn) as connection:
                return await (await connection.execute(text.encode())).fetchall()
        except psycopg.OperationalError:
            return None


@asynccontextmanager
async def stormy_setup(
    chance: random.Random, *, hubs: int, workers: int, modules: str
) -> AsyncGenerator[Stormy]:
    """Start everything."""
    async with own_postgres() as postgres, AsyncExitStack() as stack:
        async with opened_database(postgres.dsn, max_size=1) as database:
            environments = Environments(database)
            environment_id = await environments.ensure("dev")
            key = await environments.create_key(environment_id, "tests")
        setup = Stormy(chance, postgres, environment_id, key)
        for number in range(hubs):
            port = free_port()
            setup.proxies.append(await stack.enter_async_context(fault_proxy(("127.0.0.1", port))))
            setup.hubs.append(_hub(setup, f"hub {number}", port, stack))
        for number in range(workers):
            setup.workers.append(_worker(setup, f"worker {number}", modules, stack))
        async with anyio.create_task_group() as starting:
            for part in (*setup.hubs, *setup.workers):
                starting.start_soon(part.begin)
        setup.began = time.monotonic()
        yield setup


def _hub(setup: Stormy, name: str, port: int, stack: AsyncExitStack) -> Part:
    async def start(on: AsyncExitStack) -> Process:
        return await on.enter_async_context(server_on(setup.postgres.dsn, port, SECRET))

    return Part(name, start, stack)


def _worker(setup: Stormy, name: str, modules: str, stack: AsyncExitStack) -> Part:
    async def start(on: AsyncExitStack) -> Process:
        environment = {"RUNWIRE_CONCURRENCY": "20", "RUNWIRE_API_KEY": setup.key}
        return await on.enter_async_context(
            worker_on(setup.postgres.dsn, modules, environment=environment)
        )

    return Part(name, start, stack)
