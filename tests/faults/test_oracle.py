"""Random faults on everything for a while, then quiet, then each client against the database.

Three hubs and two workers on one Postgres; clients follow runs, tags, batches and streams: some by
the protocol page alone, over sockets that are cut and moved between the hubs, some with the Python
client in processes that are killed and gone on from the cursor they last printed. The checker
compares what each of them saw with the ledger.

    RUNWIRE_FAULTS_SEED=8            these faults (the seed is printed); 0: others each time
    RUNWIRE_ORACLE_SECONDS=120       how long it storms (5)
    RUNWIRE_ORACLE_CLIENTS=200       clients by the protocol page (16)
    RUNWIRE_ORACLE_RUNS=1000         runs, batches included (50)
"""

import json
import os
import random
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

import anyio
import orjson
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from runwire import AsyncRunwire
from runwire._progress import Progress
from runwire.errors import RunwireError
from tests.support.history import (
    UNSETTLED,
    ClientLog,
    Finding,
    Ledger,
    check,
    read_ledger,
)
from tests.support.processes import Process, running
from tests.support.protocol_client import JsonObject, ProtocolClient
from tests.support.stormy import Stormy, stormy_setup

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

SECONDS: Final = float(os.environ.get("RUNWIRE_ORACLE_SECONDS", "5"))
CLIENTS: Final = int(os.environ.get("RUNWIRE_ORACLE_CLIENTS", "16"))
RUNS: Final = int(os.environ.get("RUNWIRE_ORACLE_RUNS", "50"))
WANDERERS: Final = 2
# The everyday storm is the same each day; the long one (`make faults`) is another each time.
USUAL: Final = "0" if "RUNWIRE_ORACLE_SECONDS" in os.environ else "7"
SEED: Final = int(os.environ.get("RUNWIRE_FAULTS_SEED", USUAL)) or random.randrange(1, 2**31)
PROGRAMS: Final = "tests/faults/programs"
KINDS: Final = ("quick", "streaming", "retrying", "failing", "telling")
TAGS: Final = ("red", "green", "blue")
BATCH: Final = 5
PATIENCE: Final = 60.0 + RUNS / 5
Mode = Literal["latest", "every"]


# -- triggers -----------------------------------------------------------------------------------


@dataclass
class Triggered:
    """What was acknowledged."""

    runs: list[str] = field(default_factory=list[str])
    batches: list[str] = field(default_factory=list[str])
    is_over: bool = False


async def trigger_all(setup: Stormy, chance: random.Random, made: Triggered) -> None:
    """Trigger runs and batches through whichever hub answers, each under a key of its own."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncRunwire(api_url=url, access_token=setup.key))
            for url in setup.urls()
        ]
        number = 0
        while number < RUNS:
            amount = BATCH if chance.random() < 0.1 else 1
            items = [_item(chance, number + at) for at in range(min(amount, RUNS - number))]
            await _trigger(clients, chance, items, made)
            number += len(items)
            await anyio.sleep(SECONDS / RUNS)
    made.is_over = True


async def _trigger(
    clients: Sequence[AsyncRunwire], chance: random.Random, items: list[Any], made: Triggered
) -> None:
    key = items[0]["options"]["idempotency_key"]
    while True:
        client = chance.choice(clients)
        try:
            if len(items) == 1:
                item = items[0]
                handle = await client.tasks.trigger(
                    item["task"], item["payload"], **item["options"]
                )
                made.runs.append(handle.id)
            else:
                batch = await client.batch.trigger(items, idempotency_key=f"batch-{key}")
                made.batches.append(batch.batch_id)
            return
        except RunwireError:
            continue  # each call has waited for several seconds


def _item(chance: random.Random, number: int) -> dict[str, Any]:
    tags = sorted({"all", *chance.sample(TAGS, chance.randint(0, 2))})
    return {
        "task": KINDS[number % len(KINDS)],
        "payload": {"number": number, "chunks": 12},
        "options": {"tags": tags, "idempotency_key": f"oracle-{number}"},
    }


# -- clients by the protocol page ---------------------------------------------------------------


@dataclass
class Socketed:
    """A client of the protocol, on one hub after another."""

    client: ProtocolClient
    chance: random.Random
    connections: int = 0

    async def run(self, setup: Stormy) -> None:
        while not self.client.is_over:
            try:
                await self._connect(self.chance.choice(setup.urls()), setup.key)
            except (OSError, WebSocketException, TimeoutError):
                pass
            await anyio.sleep(self.chance.uniform(0, 0.5))

    async def _connect(self, url: str, key: str) -> None:
        address = url.replace("http", "ws", 1) + "/realtime/v1/socket"
        protocols = [Subprotocol("runwire.v1")]
        async with connect(
            address, subprotocols=protocols, max_size=None, open_timeout=5, close_timeout=1
        ) as connection:
            self.connections += 1
            await connection.send(json.dumps({"type": "auth", "token": key}))
            for message in self.client.requests():
                await connection.send(json.dumps(message))
            # It moves to another hub by itself, too.
            with anyio.move_on_after(self.chance.uniform(1.0, SECONDS)):
                while not self.client.is_over:
                    for answer in self.client.receive(orjson.loads(await connection.recv())):
                        await connection.send(json.dumps(answer))


def socketed(chance: random.Random, number: int, made: Triggered) -> Socketed:
    """Return a client that follows something or other."""
    mode: Mode = chance.choice(("latest", "every"))
    streams: JsonObject = chance.choice(({}, {"*": {"from": "start"}}))
    subs: dict[str, JsonObject] = {}
    for at in range(chance.randint(1, 3)):
        subs[f"s{at}"] = {"to": _target(chance, made), "streams": streams}
    # What left a feed of statuses while Postgres crashed nobody knows: in `every` it says so.
    by_status = any("status" in each["to"].get("runs", {}) for each in subs.values())
    gaps = ["overflow"] if by_status and mode == "every" else []
    client = ProtocolClient(f"socket {number} ({mode})", subs, mode=mode, allowed_gaps=gaps)
    return Socketed(client, random.Random(chance.random()))


def _target(chance: random.Random, made: Triggered) -> JsonObject:
    kinds = ["tags", "tags", "runs", "status"]
    kinds += ["run"] * 4 if made.runs else []
    kinds += ["batch"] * 2 if made.batches else []
    match chance.choice(kinds):
        case "run":
            return {"run": chance.choice(made.runs)}
        case "batch":
            return {"batch": chance.choice(made.batches)}
        case "runs":
            return {"runs": {"task": [chance.choice(KINDS)]}}
        case "status":
            return {"runs": {"status": ["EXECUTING", "COMPLETED"]}}
        case _:
            return {"tags": chance.choice((["all"], ["red"], ["red", "green"]))}


# -- the Python client, from process to process -------------------------------------------------


@dataclass
class Wanderer:
    """Subscriptions of the Python client, each gone on with in one process after another."""

    name: str
    chance: random.Random
    subscriptions: list[dict[str, Any]]
    lines: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    processes: int = 0
    process: Process | None = None
    _read: int = 0

    async def run(self, setup: Stormy) -> None:
        while True:
            self.processes += 1
            open_ones = [each for each in self.subscriptions if not each.get("is_done")]
            # A feed of which the server has given no cursor yet begins anew.
            for each in open_ones:
                if each["kind"] != "run" and Progress.parse(each.get("cursor")).cursor is None:
                    self.lines.append({"name": each["name"], "anew": True})
            environment = {
                "RUNWIRE_API_URL": self.chance.choice(setup.urls()),
                "RUNWIRE_API_KEY": setup.key,
            }
            command = ("python", f"{PROGRAMS}/wander.py", json.dumps(open_ones))
            async with running(*command, environment=environment) as self.process:
                self._read = 0
                try:
                    # Python starts slowly: shorter lives would see nothing.
                    await anyio.sleep(self.chance.uniform(3.0, 6.0))
                finally:
                    self.process.kill()
                    with anyio.CancelScope(shield=True):
                        await self.process.wait()
                    self.take()

    def take(self) -> None:
        """Take the whole lines that there are."""
        if self.process is None:
            return
        whole = self.process.output().split("\n")[:-1]
        for text in whole[self._read :]:
            assert text.startswith("{"), self.process.output()[-3000:]
            line: dict[str, Any] = json.loads(text)
            self.lines.append(line)
            mine = next(each for each in self.subscriptions if each["name"] == line["name"])
            mine["cursor"], mine["is_done"] = line["cursor"], "done" in line
        self._read = len(whole)

    def logs(self, ledger: Ledger) -> list[ClientLog]:
        return [self._log(each, ledger) for each in self.subscriptions]

    def _log(self, asked: dict[str, Any], ledger: Ledger) -> ClientLog:
        log = ClientLog(f"{self.name}, {asked['name']}", cast(Mode, asked["mode"]))
        wanted = [run.id for run in ledger.runs.values() if _is_wanted(asked, run.id, ledger)]
        for run_id in wanted:
            keys = [key for run, key in ledger.streams if run == run_id and asked["streams"]]
            log.follows(run_id, *keys)
        for line in (line for line in self.lines if line["name"] == asked["name"]):
            match line:
                case {"run": run, "stream": stream, "seq": int(seq), "chunk": chunk}:
                    log.saw_chunk(run, stream, seq, chunk)
                case {"run": run, "revision": int(revision), "status": status, "gap": gap}:
                    if gap == "overflow" and Progress.parse(line["cursor"]).cursor is None:
                        # Lost before the server's first cursor, it began anew by itself.
                        log.left(run)
                    elif gap is not None:
                        log.saw_gap(run)
                    log.saw_run(run, revision, status)
                case {"anew": True}:
                    for run_id in [run_id for run_id, seen in log.runs.items() if seen]:
                        log.left(run_id)
                case _:
                    assert "done" in line, line
        return log


def _is_wanted(asked: dict[str, Any], run_id: str, ledger: Ledger) -> bool:
    run = ledger.runs[run_id]
    match asked["kind"]:
        case "tag":
            return asked["target"] in run.tags
        case "run":
            return bool(asked["target"] == run_id)
        case _:
            return True


def wanderer(chance: random.Random, number: int, made: Triggered) -> Wanderer:
    """Return subscriptions of one process: a tag in both modes, and some runs."""
    asked: list[dict[str, Any]] = [
        {"kind": "tag", "target": chance.choice(TAGS), "mode": "every", "streams": True},
        {"kind": "tag", "target": "all", "mode": "latest", "streams": False},
    ]
    asked += [
        {"kind": "run", "target": run_id, "mode": "every", "streams": True}
        for run_id in chance.sample(made.runs, min(3, len(made.runs)))
    ]
    for at, each in enumerate(asked):
        each["name"] = f"{at} {each['kind']} {each['mode']}"
    return Wanderer(f"wanderer {number}", random.Random(chance.random()), asked)


# -- the run ------------------------------------------------------------------------------------


@asynccontextmanager
async def storm() -> AsyncGenerator[Stormy]:
    sys.stdout.write(f"RUNWIRE_FAULTS_SEED={SEED}\n")
    chance = random.Random(SEED)
    async with stormy_setup(
        chance, hubs=3, workers=2, modules=f"{PROGRAMS}/mixed_tasks.py"
    ) as setup:
        try:
            yield setup
        except BaseException:
            sys.stdout.write("\n".join(setup.story) + "\n")
            for part in (*setup.hubs, *setup.workers):
                for process in (*part.past[-1:], part.process):
                    sys.stdout.write(f"-- {part.name}\n{process.output()[-1500:]}\n")
            raise


@pytest.mark.timeout(120 + 3 * (SECONDS + PATIENCE))
async def test_every_client_ends_with_what_the_database_holds_whatever_breaks() -> None:
    async with storm() as setup, anyio.create_task_group() as tasks:
        made = Triggered()
        chance = random.Random(SEED + 1)
        tasks.start_soon(trigger_all, setup, random.Random(SEED + 2), made)
        sockets: list[Socketed] = []
        wanderers: list[Wanderer] = []
        end = anyio.current_time() + SECONDS
        while anyio.current_time() < end:
            for _ in range(max(1, CLIENTS // 8)):
                if len(sockets) < CLIENTS:
                    sockets.append(socketed(chance, len(sockets), made))
                    tasks.start_soon(sockets[-1].run, setup)
            if len(wanderers) < WANDERERS and len(made.runs) > 3:
                wanderers.append(wanderer(chance, len(wanderers), made))
                tasks.start_soon(wanderers[-1].run, setup)
            await anyio.sleep(chance.uniform(0, 0.5))
            await setup.strike()
        await setup.calm()
        ledger = await _until_all_is_over(setup, made)
        assert len(ledger.runs) == RUNS, "each trigger is one run"

        def findings() -> list[Finding]:
            for one in wanderers:
                one.take()
            for each in sockets:
                each.client.note_streams(ledger.streams)
            logs = [each.client.log for each in sockets]
            return check(ledger, logs + [log for each in wanderers for log in each.logs(ledger)])

        def is_under_way() -> bool:
            faults = {finding.fault for finding in findings()}
            is_live = all(each.client.is_live for each in sockets)
            return faults <= UNSETTLED and (bool(faults) or not is_live)

        with anyio.move_on_after(PATIENCE):
            while is_under_way():
                await anyio.sleep(0.5)  # reads files
        for each in sockets:
            each.client.finish()
        found = findings()
        tasks.cancel_scope.cancel()
        moves = sum(each.connections for each in sockets)
        lives = sum(each.processes for each in wanderers)
        sys.stdout.write(
            f"{len(setup.story)} faults, {len(sockets)} clients on {moves} connections,"
            f" {len(wanderers)} wanderers in {lives} processes\n"
        )
        for finding in found[:2]:
            for each in sockets:
                if each.client.log.name == finding.client:
                    sys.stdout.write(f"-- {finding}\n{each.client.story(finding.run_id)}\n")
        assert not found, "\n".join(map(str, found[:40]))


async def _until_all_is_over(setup: Stormy, made: Triggered) -> Ledger:
    with anyio.fail_after(PATIENCE):
        while True:
            rows = await setup.query("select count(*) from runwire.runs where finished_at is null")
            if made.is_over and rows == [(0,)]:
                return await read_ledger(setup.postgres.dsn, setup.environment_id)
            await anyio.sleep(0.2)  # each look is a connection
