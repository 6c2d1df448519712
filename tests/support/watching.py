"""Runs that go on while something breaks, everybody who watches them, and the check at the end.

    async with watched_traffic(stage) as traffic:
        …                                  # break something
    # here every watcher has seen everything, and the history was clean

Three clients watch: by id with each revision and all chunks, by tag with each revision, by tag with
the newest only. A bare socket watches what is said about freshness, and that it stays open.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import anyio
from websockets.exceptions import ConnectionClosed

from runwire._async import AsyncRunwire
from runwire_engine.errors import EngineError
from runwire_engine.outcomes import Completed
from runwire_engine.run_metadata import MetadataWrite
from runwire_engine.streams import Append
from tests.support.history import ClientLog, Fault, check, read_ledger
from tests.support.processes import until
from tests.support.sockets import Socket, open_socket
from tests.support.stage import Stage

TAG: Final = "watched"
KEY: Final = "text"
# Between two writes of one run: often enough that something is always under way.
PACE: Final = 0.03
PATIENCE: Final = 40.0
# A run's id and a seq of its stream.
Chunk = tuple[str, int]


@dataclass
class Observer:
    """A bare socket that is read all the time, and when it was told what."""

    socket: Socket
    states: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    close_code: int | None = None

    async def read(self) -> None:
        try:
            while True:
                frame = len(self.socket.messages)
                with anyio.move_on_after(1):
                    await self.socket.next()
                now = time.monotonic()
                for message in self.socket.messages[frame:]:
                    if message["type"] == "state":
                        self.states.append((now, message["state"]))
        except ConnectionClosed:
            self.close_code = self.socket.connection.close_code or 1006

    async def told(self, state: str, since: float, within: float) -> float:
        """Wait to be told a state after a time, and return how long that took."""

        def at() -> list[float]:
            return [at for at, told in self.states if told == state and at >= since]

        await until(lambda: bool(at()) or self.close_code is not None, within)
        assert self.close_code is None, f"the socket was closed with {self.close_code}"
        return at()[0] - since


@dataclass
class Traffic:
    """Executing runs that write all the time."""

    stage: Stage
    observer: Observer
    runs: dict[str, int]
    # Chunks whose commit was acknowledged, by run.
    acknowledged: dict[str, int]
    logs: list[ClientLog]
    # When each chunk's commit was acknowledged, and when the first client was handed it.
    written_at: dict[Chunk, float] = field(default_factory=dict[Chunk, float])
    told_at: dict[Chunk, float] = field(default_factory=dict[Chunk, float])
    is_over: bool = False

    async def write(self, run_id: str, execution: int) -> None:
        for number in count():
            if self.is_over:
                break
            body = (str(number),)
            append = Append(run_id, KEY, body, execution=execution, attempt=execution)
            await self.stage.engine.streams.append(self.stage.env, append)
            self.written_at[run_id, number] = time.monotonic()
            self.acknowledged[run_id] = number + 1
            operation = {"type": "set", "key": "n", "value": number}
            write = MetadataWrite(run_id, (operation,), execution)
            await self.stage.engine.metadata.apply(self.stage.env, write)
            await anyio.sleep(PACE)
        await self.stage.engine.outcomes.finish(self.stage.env, Completed(run_id, execution, "1"))

    def delays(self, since: float = 0.0) -> list[float]:
        """Return how long after its commit each chunk was told, smallest first."""
        return sorted(
            self.told_at[chunk] - at
            for chunk, at in self.written_at.items()
            if at >= since and chunk in self.told_at
        )

    def seen(self, log: ClientLog, run_id: str) -> int:
        """Return how many chunks of a run a client has."""
        return len(log.chunks.get((run_id, KEY), ()))

    async def until_flowing(self, chunks: int = 5) -> None:
        """Wait until so many more chunks of each run are written, and told."""
        first = self.logs[0]
        wanted = {run_id: self.seen(first, run_id) + chunks for run_id in self.runs}
        await until(
            lambda: all(self.seen(first, run_id) >= n for run_id, n in wanted.items()), PATIENCE
        )


@asynccontextmanager
async def watched_traffic(stage: Stage, *, runs: int = 3) -> AsyncGenerator[Traffic]:
    """Have runs write and everybody watch, for a block; then end all, and check what was seen."""
    executions: dict[str, int] = {}
    for _ in range(runs):
        run_id = await stage.trigger(TAG)
        executions[run_id] = await stage.start(run_id)
    logs = [ClientLog("by id", "every"), ClientLog("by tag", "every"), ClientLog("newest")]
    for log in logs:
        for run_id in executions:
            log.follows(run_id, *([KEY] if log is logs[0] else []))
    async with (
        open_socket(stage.url, stage.key) as socket,
        AsyncRunwire(api_url=stage.url, access_token=stage.key) as client,
        anyio.create_task_group() as watching,
    ):
        observer = Observer(socket)
        traffic = Traffic(stage, observer, executions, dict.fromkeys(executions, 0), logs)
        await socket.subscribe("all", {"tags": [TAG]})
        watching.start_soon(observer.read)
        watching.start_soon(_keep_lease, stage)
        for run_id in executions:
            watching.start_soon(_follow_run, client, traffic, run_id)
        for log in logs[1:]:
            watching.start_soon(_follow_tag, client, log)
        async with anyio.create_task_group() as writing:
            for run_id, execution in executions.items():
                writing.start_soon(traffic.write, run_id, execution)
            try:
                await traffic.until_flowing()
                yield traffic
            finally:
                traffic.is_over = True
        await _check(traffic)
        watching.cancel_scope.cancel()


async def _keep_lease(stage: Stage) -> None:
    """Keep the worker that a stage pretends to have from being counted as dead."""
    while True:
        with suppress(EngineError):
            await stage.engine.workers.heartbeat("w1")
        await anyio.sleep(5)


async def _check(traffic: Traffic) -> None:
    ledger = await read_ledger(traffic.stage.engine.settings.listen_dsn, traffic.stage.env)
    for run_id, acknowledged in traffic.acknowledged.items():
        assert len(ledger.streams[run_id, KEY].chunks) >= acknowledged, "a commit was taken back"
    unfinished = {Fault.NOT_CONVERGED, Fault.LOST_CHUNK, Fault.MISSING_REVISION}
    with anyio.move_on_after(PATIENCE):
        while any(each.fault in unfinished for each in check(ledger, traffic.logs)):
            await anyio.sleep(0.05)
    assert check(ledger, traffic.logs) == []


async def _follow_run(client: AsyncRunwire, traffic: Traffic, run_id: str) -> None:
    log = traffic.logs[0]
    async for event in client.runs.subscribe_to_run(run_id, mode="every").with_streams():
        if event.type == "run":
            if event.run.gap is not None:
                log.saw_gap(run_id)
            log.saw_run(run_id, event.run.revision, event.run.status)
        else:
            assert event.seq is not None
            traffic.told_at[run_id, event.seq] = time.monotonic()
            log.saw_chunk(run_id, event.type, event.seq, event.chunk)


async def _follow_tag(client: AsyncRunwire, log: ClientLog) -> None:
    async for run in client.runs.subscribe_to_runs_with_tag(TAG, mode=log.mode):
        if run.gap is not None:
            log.saw_gap(run.id)
        log.saw_run(run.id, run.revision, run.status)
