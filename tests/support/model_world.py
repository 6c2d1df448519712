"""Everything below the socket for real, one step at a time: for the model test.

The engine's functions, the tail, the reads and two whole hubs run on a real Postgres. Only three
things are the test's: bells (it delivers or loses them), the clock of the feeds (no real time
passes) and the sockets (a `Wire` hands frames to a `ProtocolClient`). Between two steps everything
is at rest, so the same steps lead to the same history. However long the machine stalls: no limit on
a statement's time cuts a read short, and the database's clock stands still in a sweep.
"""

import asyncio
import heapq
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, TypeVar

import anyio
import orjson
import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg.pq.abc import PGconn, PGresult

from runwire_engine.batches import Batches
from runwire_engine.bells import CHANNELS, Payload, StreamMoved, decode, encode
from runwire_engine.cancellations import Cancellations
from runwire_engine.catalogue import Catalogue, TaskAnnouncement
from runwire_engine.changes import read_by_txid
from runwire_engine.claims import Claims
from runwire_engine.database import Database, Row, Transaction
from runwire_engine.direct_call import DirectCall
from runwire_engine.doorbell import Doorbell
from runwire_engine.environments import Environments
from runwire_engine.errors import StatementTimeoutError
from runwire_engine.following import Following
from runwire_engine.listener import Listener
from runwire_engine.outcomes import Outcomes
from runwire_engine.run_metadata import RunMetadata
from runwire_engine.runs import Runs
from runwire_engine.streams import Streams
from runwire_engine.workers import Workers
from runwire_realtime.feed import Feed
from runwire_realtime.feed_loading import FeedLoading
from runwire_realtime.feed_members import FeedMembers
from runwire_realtime.hub import Hub
from runwire_realtime.limits import HubLimits
from runwire_realtime.line import Line
from runwire_realtime.outbox import Outbox
from runwire_realtime.reads import Reads
from runwire_realtime.scope import Grant
from runwire_realtime.subscriber import Subscriber
from tests.support.history import Fault, Finding
from tests.support.protocol_client import ProtocolClient
from tests.support.pushing import joined, push

T = TypeVar("T")
TASK = "task"
# Leases end when a test says so; who was asked to cancel is never made to.
LEASE = 86_400.0
CANCEL_GRACE = 86_400.0
# Turns of the loop without anybody at the database: then nobody has anything left to do.
_CALM_TURNS = 12
# Seconds for one thing on a machine that stalls.
_PATIENCE = 120
# A session's time stands still from here on.
_STOP_CLOCK = "select set_config('runwire.now', clock_timestamp()::text, false)"
# Makes the commit of an append fail where a test asks for it, as a full disk would.
_REFUSALS = """
create table public.refusals (run_id text primary key);
create function public.refuse_commit() returns trigger language plpgsql as $$
begin
    if exists (select from public.refusals where run_id = new.run_id) then
        raise exception 'a commit that fails';
    end if;
    return null;
end
$$;
create constraint trigger refuse_commit after update on runwire.streams
    deferrable initially deferred for each row execute function public.refuse_commit();
"""


class Clock:
    """Stands in for anyio in the feed: time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []
        self._numbers = count()

    def __getattr__(self, name: str) -> Any:
        return getattr(anyio, name)

    def current_time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._numbers), woken))
        await woken.wait()

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        while self._sleepers and self._sleepers[0][0] <= self.now:
            heapq.heappop(self._sleepers)[2].set()


class WatchedDatabase(Database):
    """Knows whether anybody is at the database; gives up nothing that takes long."""

    busy = 0

    def __init__(
        self,
        dsn: str,
        *,
        max_size: int,
        connected: Callable[[Transaction], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(
            dsn,
            max_size=max_size,
            statement_timeout=f"{_PATIENCE}s",
            lock_timeout=f"{_PATIENCE}s",
            transaction_timeout="0",
            wait_seconds=_PATIENCE,
            connected=connected,
        )

    async def connect(self, *, one_plan: bool = False, settings: str = "") -> AsyncConnection[Row]:
        self.busy += 1
        try:
            return await super().connect(one_plan=one_plan, settings=settings)
        finally:
            self.busy -= 1

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[AsyncConnection[Row]]:
        self.busy += 1
        try:
            async with super()._connection() as connection:
                yield connection
        finally:
            self.busy -= 1


class DirectCallsUnderWay:
    """Counts what is asked past the databases' pools, while its patch lasts."""

    def __init__(self, patches: pytest.MonkeyPatch) -> None:
        self.count = 0
        send: Callable[..., asyncio.Future[PGresult]] = getattr(DirectCall, "_sent")  # noqa: B009

        def sent(call: DirectCall, how: Callable[[PGconn], None]) -> asyncio.Future[PGresult]:
            answer = send(call, how)
            self.count += 1
            answer.add_done_callback(self._answered)
            return answer

        patches.setattr(DirectCall, "_sent", sent)

    def _answered(self, _: asyncio.Future[PGresult]) -> None:
        self.count -= 1


async def read_patiently(
    database: Database, name: str, parameters: Mapping[str, object]
) -> list[Row]:
    """Read by txid, again where that took two seconds: what a hub does then is no fault of its."""
    while True:
        try:
            return await read_by_txid(database, name, parameters)
        except StatementTimeoutError:
            pass  # the world gives up if it never comes to rest


class RecordingBell(Doorbell):
    """Keeps what rings, for the test to deliver; looks whether it is committed."""

    def __init__(self, dsn: str, found: Callable[[Finding], None]) -> None:
        super().__init__(dsn)
        self._found = found
        self._look = psycopg.connect(dsn, autocommit=True)

    def ring_feed(
        self, environment_id: int, runs: Iterable[str] = (), streams: Iterable[StreamMoved] = ()
    ) -> None:
        moved = list(streams)
        for each in moved:
            self._check(environment_id, each)
        super().ring_feed(environment_id, runs, moved)

    def _check(self, environment_id: int, moved: StreamMoved) -> None:
        row = self._look.execute(
            "select next_seq from runwire.streams"
            " where environment_id = %s and run_id = %s and key = %s",
            (environment_id, moved.run_id, moved.key),
        ).fetchone()
        if row is None or row[0] < moved.next_seq:
            finding = Finding(
                Fault.NOT_DURABLE, moved.run_id, stream=moved.key, number=moved.next_seq
            )
            self._found(finding)

    def payloads(self) -> list[Payload]:
        """Return what rang since the last time, as it goes through Postgres."""
        return [
            payload
            for environment_id, ringing in self._ringing.items()
            for payload in encode(environment_id, ringing.take())
        ]

    def close(self) -> None:
        self._look.close()


class HandListener(Listener):
    """Hears what the test delivers."""

    async def _run(self) -> None:
        self.reconnected()
        await anyio.sleep_forever()

    def hear(self, payloads: Iterable[Payload]) -> None:
        for channel, payload in payloads:
            assert channel in CHANNELS
            decode(channel, payload, self._ringing)
        self._tell()

    def reconnected(self) -> None:
        """Look everywhere, as after each reconnect."""
        self.listening = True
        self._ringing.scan = True
        self._tell()


class GatedFollowing(Following):
    """Reads at once; while the gate is closed, what was read is handed over later."""

    is_closed = False

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.waiting: list[asyncio.Event] = []

    async def _pass(self, reading: Awaitable[T]) -> T:
        answer = await reading
        if self.is_closed:
            gate = asyncio.Event()
            self.waiting.append(gate)
            await gate.wait()
        return answer

    def release(self, at: int) -> None:
        self.waiting.pop(at).set()

    def open(self) -> None:
        self.is_closed = False
        while self.waiting:
            self.release(0)

    async def rows(self, *args: Any, **options: Any) -> Any:
        return await self._pass(super().rows(*args, **options))

    async def tagged(self, *args: Any, **options: Any) -> Any:
        return await self._pass(super().tagged(*args, **options))

    async def recent(self, *args: Any, **options: Any) -> Any:
        return await self._pass(super().recent(*args, **options))

    async def touched(self, *args: Any, **options: Any) -> Any:
        return await self._pass(super().touched(*args, **options))

    async def events(self, *args: Any, **options: Any) -> Any:
        return await self._pass(super().events(*args, **options))

    async def heads(self, *args: Any, **options: Any) -> Any:
        return await self._pass(super().heads(*args, **options))

    async def chunks(self, *args: Any, **options: Any) -> Any:
        return await self._pass(super().chunks(*args, **options))


class HubProcess:
    """What one server process has, without its sockets."""

    def __init__(self, dsn: str, limits: HubLimits, listeners: dict[str, HandListener]) -> None:
        self.hub = Hub(limits)
        self.database = WatchedDatabase(dsn, max_size=8, connected=self._connected)
        self.following = GatedFollowing(self.database)
        self.reads = Reads(self.hub, self.following)
        self.loading = FeedLoading(self.hub, self.following)
        self.feed = Feed(self.hub, self.reads, self.database, listen_dsn=dsn)
        self.unheard: list[Payload] = []
        self._listeners = listeners

    @property
    def _listener(self) -> HandListener:
        return self._listeners[self.database.dsn]

    async def _connected(self, session: Transaction) -> None:
        await self.feed.connected(session)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        await self.database.open()
        try:
            await self.feed.start()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.reads.run)
                tasks.start_soon(self.loading.run)
                tasks.start_soon(self.feed.run)
                yield
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self.database.close()

    def hear(self) -> None:
        """Hear everything that rang."""
        payloads, self.unheard = self.unheard, []
        self._listener.hear(payloads)

    def reconnect_listener(self) -> None:
        self._listener.reconnected()


class Wire:
    """One connection between a client and a hub."""

    def __init__(self, process: HubProcess, client: ProtocolClient, grant: Grant, clock: Clock):
        self.process = process
        self.client = client
        self._clock = clock
        self._paging = anyio.Lock()
        self._line = Line(self._take)
        self.outbox = Outbox(self._woken, process.hub.limits)
        self.outbox.line = self._line
        self.subscriber = Subscriber(
            process.hub, self.outbox, self._load, clock.now, is_browser=False
        )
        self.subscriber.authenticated(grant, clock.now, 0.0)
        self._send(client.requests())

    def _send(self, messages: Iterable[dict[str, Any]]) -> None:
        for message in messages:
            self.subscriber.receive(orjson.dumps(message).decode(), self._clock.now)

    def _load(self, feed: FeedMembers) -> None:
        self.process.loading.begin(feed, self._page_turn)

    @asynccontextmanager
    async def _page_turn(self) -> AsyncGenerator[None]:
        async with self._paging:
            while not self.outbox.has_room and not self.is_closed:
                await self._clock.sleep(0.1)
            yield

    @property
    def is_closed(self) -> bool:
        return self.subscriber.phase == "closed"

    def turn(self) -> bool:
        """Write one frame, and have the client take it. Return whether there was one."""
        push(self.process.hub, self._clock.now)
        if self.is_closed:
            return False
        frame = self.outbox.frame()
        if not frame:
            if self.outbox.closing is not None:
                self.close()
                return True
            self.subscriber.tick(self._clock.now, lambda: "now")
            frame = self.outbox.frame()
        if frame:
            self.subscriber.wrote(self._clock.now)
            self._take(joined(frame))
        self._line.is_free = self.outbox.is_idle
        return bool(frame)

    def _take(self, frame: bytes) -> None:
        self._send(self.client.receive(orjson.loads(frame)))

    def _woken(self) -> None:
        self._line.is_free = False

    def close(self) -> None:
        self._line.is_free = False
        self.subscriber.close()


class World:
    """The engine, two hubs, and a loop that runs only while a step is made."""

    def __init__(self, dsn: str, limits: Iterable[HubLimits]) -> None:
        self.dsn = dsn
        self.clock = Clock()
        self.findings: list[Finding] = []
        self.database = WatchedDatabase(dsn, max_size=8)
        self.bell = RecordingBell(dsn, self.findings.append)
        listeners: dict[str, HandListener] = {}

        def listen(dsn: str, **options: Any) -> HandListener:
            listeners[dsn] = HandListener(dsn, **options)
            return listeners[dsn]

        self._patches = pytest.MonkeyPatch()
        self._patches.setattr("runwire_realtime.feed.Listener", listen)
        self._direct_calls = DirectCallsUnderWay(self._patches)
        self.hubs = [
            HubProcess(make_conninfo(dsn, application_name=f"hub{number}"), each, listeners)
            for number, each in enumerate(limits)
        ]
        self.runs = Runs(self.database, self.bell, Cancellations(self.database, self.bell))
        self.batches = Batches(self.database, self.bell)
        self.streams = Streams(self.database, self.bell)
        self.metadata = RunMetadata(self.database, self.bell)
        self.outcomes = Outcomes(self.database, self.bell)
        self.claims = Claims(self.database, self.bell)
        self.workers = self._workers(self.database, self.claims)
        self._catalogue = Catalogue(self.database, self.bell)
        self._numbers = count(1)
        self._ids = count(1)
        self._runner = asyncio.Runner()
        self._stop = asyncio.Event()
        self._runner.run(self._start())

    def _workers(self, database: Database, claims: Claims) -> Workers:
        return Workers(database, self.bell, claims, lease=LEASE, cancel_grace=CANCEL_GRACE)

    async def _start(self) -> None:
        ready = asyncio.Event()
        self._life = asyncio.get_running_loop().create_task(self._live(ready))
        while not ready.is_set():
            await asyncio.sleep(0.001)
            self._must_live()

    async def _live(self, ready: asyncio.Event) -> None:
        self._patches.setattr("runwire_realtime.feed.anyio", self.clock)
        # Nobody would see that reads gather: the world would be at rest.
        self._patches.setattr("runwire_realtime.reads._GATHERING", 0.0)
        for name in ("runs.new_run_id", "batches.new_run_id"):
            self._patches.setattr(f"runwire_engine.{name}", self.new_run_id)
        self._patches.setattr("runwire_engine.batches.new_batch_id", self.new_batch_id)
        for name in ("changes", "following"):
            self._patches.setattr(f"runwire_engine.{name}.read_by_txid", read_patiently)
        try:
            async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as admin:
                await admin.execute(_REFUSALS)
            await self.database.open()
            async with anyio.create_task_group() as tasks:
                for part in (self.runs, self.streams, self.metadata, self.outcomes):
                    tasks.start_soon(part.run)
                async with self.hubs[0].running(), self.hubs[1].running():
                    await self.rest()
                    ready.set()
                    await self._stop.wait()
                tasks.cancel_scope.cancel()
        finally:
            self._patches.undo()
            with anyio.CancelScope(shield=True):
                await self.database.close()
            self.bell.close()

    def _must_live(self) -> None:
        if self._life.done():
            self._life.result()
            raise AssertionError("the world came to its end")

    def step(self, work: Awaitable[T]) -> T:
        """Do something and let everybody come to rest; bells wait for the test."""

        async def do() -> T:
            answer = await work
            await self.rest()
            return answer

        answer = self._runner.run(do())
        self._must_live()
        payloads = self.bell.payloads()
        for hub in self.hubs:
            hub.unheard += payloads
        return answer

    def call(self, work: Callable[[], T]) -> T:
        """Do something that does not wait, where everybody lives, and let them come to rest."""

        async def do() -> T:
            return work()

        return self.step(do())

    async def rest(self) -> None:
        """Return once nobody has anything to do."""
        calm = 0
        databases = [self.database, *(hub.database for hub in self.hubs)]
        with anyio.fail_after(_PATIENCE):
            while calm < _CALM_TURNS:
                if self._direct_calls.count or any(each.busy for each in databases):
                    calm = 0
                    await asyncio.sleep(0.0003)
                else:
                    calm += 1
                    await asyncio.sleep(0)

    async def sweep(self) -> None:
        """Sweep in one moment: the random time that puts off a lost run's return never passes."""

        async def stop_clock(session: Transaction) -> None:
            await session.connection.execute(_STOP_CLOCK)

        database = WatchedDatabase(self.dsn, max_size=1, connected=stop_clock)
        await database.open()
        try:
            await self._workers(database, Claims(database, self.bell)).sweep()
        finally:
            await database.close()

    async def pass_time(self, seconds: float) -> None:
        """Let time pass for the hubs, in small steps."""
        for _ in range(round(seconds / 0.5)):
            self.clock.pass_by(0.5)
            await self.rest()

    async def settle(self, turns: Callable[[], bool]) -> None:
        """Let everything arrive: time passes, and `turns` writes what there is to write."""
        quiet = 0
        for _ in range(300):
            await self.pass_time(1.0)
            is_busy = turns()
            await self.rest()
            quiet = 0 if is_busy else quiet + 1
            if quiet == 3:
                return
        raise AssertionError("the hubs do not come to rest")

    async def new_environment(self) -> int:
        """Return a fresh tenant, for one example, in which ids begin anew."""
        self._ids = count(1)
        environment_id = await Environments(self.database).ensure(f"model-{next(self._numbers)}")
        await self._catalogue.announce(environment_id, [TaskAnnouncement(TASK, f"task/{TASK}")])
        return environment_id

    def new_run_id(self) -> str:
        """Return the next id: the same history has the same ids in the same order."""
        return f"run_{next(self._ids):08d}"

    def new_batch_id(self) -> str:
        return f"batch_{next(self._ids):08d}"

    async def execute(self, text: str, *parameters: object) -> list[dict[str, Any]]:
        """Run SQL of the test, committed."""
        async with self.database.transaction() as tx:
            cursor = await tx.connection.execute(text.encode(), parameters)
            return await cursor.fetchall() if cursor.description else []

    async def set_epoch(self) -> None:
        """Make this another history, as a restore does; everybody lost their connections."""
        await self.execute("update runwire.generations set generation = gen_random_uuid()")
        for hub in self.hubs:
            hub.reconnect_listener()

    def close(self) -> None:
        async def end() -> None:
            self._stop.set()
            await asyncio.wait([self._life])

        try:
            if not self._life.done():
                self._runner.run(end())
        finally:
            self._runner.close()
