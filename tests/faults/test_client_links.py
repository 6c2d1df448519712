"""The link of a client is cut at any byte, stalls, or its process sleeps: it sees all there is.

RUNWIRE_EVERY_OFFSET=1 cuts at every byte instead of some; RUNWIRE_SLEEP_SECONDS says how long the
process is stopped (3, which is longer than its token lives; 45 is longer than silence is borne).
"""

import json
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from runwire import AsyncRunwire, Event, _connection
from tests.support.faultproxy import FaultProxy, Lane, fault_proxy
from tests.support.processes import running
from tests.support.scripted_server import TOKEN, ScriptedServer, scripted_server
from tests.support.stage import Stage, open_stage

pytestmark = [pytest.mark.anyio, pytest.mark.faults]
IS_WHOLE = os.environ.get("RUNWIRE_EVERY_OFFSET") == "1"
SAMPLES = 10
SLEEP = float(os.environ.get("RUNWIRE_SLEEP_SECONDS", "3"))
CARRIERS = pytest.mark.parametrize("carrier", ["socket", "events"])


@asynccontextmanager
async def behind(stage: Stage, carrier: str) -> AsyncGenerator[FaultProxy]:
    host, _, port = stage.url.removeprefix("http://").partition(":")
    async with fault_proxy((host, int(port))) as proxy:
        proxy.websockets = "pass" if carrier == "socket" else "refused"
        yield proxy


async def gather(proxy: FaultProxy, key: str, run: str) -> list[Event]:
    url = f"http://127.0.0.1:{proxy.port}"
    async with AsyncRunwire(api_url=url, access_token=key) as client:
        following = client.runs.subscribe_to_run(run, mode="every").with_streams()
        with anyio.fail_after(60):
            return [event async for event in following]


async def finished_run(stage: Stage) -> str:
    """Return a run of which a session tells some 4 KiB."""
    run = await stage.trigger("links")
    execution = await stage.start(run)
    for number in range(6):
        await stage.append(run, execution, f"{number} " + "é" * 60)
        await stage.append(run, execution, {"number": number}, key="log")
    await stage.set_metadata(run, execution, note="x" * 1500)
    await stage.complete(run, execution)
    return run


def facts(events: list[Event]) -> dict[str, list[object]]:
    """Return what was seen of each stream, and the end."""
    seen: dict[str, list[object]] = {"end": [events[-1].run.status, events[-1].run.output]}
    for event in events:
        if event.type != "run":
            seen.setdefault(event.type, []).append((event.seq, event.chunk, event.gap))
    return seen


def offsets(size: int) -> Iterator[int]:
    yield from range(1, size, 1 if IS_WHOLE else max(1, size // SAMPLES))


@CARRIERS
@pytest.mark.parametrize("way", ["to_client", "to_server"])
@pytest.mark.timeout(1800 if IS_WHOLE else 120)
async def test_a_link_that_is_reset_at_any_byte_loses_and_repeats_nothing(
    database_url: str, carrier: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connection, "FIRST_WAIT", 0.005)
    async with open_stage(database_url) as stage:
        run = await finished_run(stage)
        async with behind(stage, carrier) as proxy:
            lane: Lane = getattr(proxy, way)
            before = lane.passed
            whole = await gather(proxy, stage.key, run)
            size = lane.passed - before
            assert way == "to_server" or size > 3000
            proxy.resets, lane.cuts_once = True, True
            for offset in offsets(size):
                lane.cut_after, before = offset, proxy.cuts
                events = await gather(proxy, stage.key, run)
                # How it is framed differs a little: the last bytes may not come that far.
                assert proxy.cuts == before + 1 or offset > 0.9 * size, offset
                assert facts(events) == facts(whole), offset
                revisions = [event.run.revision for event in events if event.type == "run"]
                assert revisions == sorted(set(revisions)), offset


async def test_a_link_that_stalls_is_noticed_within_two_and_a_half_heartbeats_and_resumed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half-open: no byte passes and nobody is told."""
    monkeypatch.setattr(_connection, "FIRST_WAIT", 0.02)
    heartbeat = 0.8  # a machine that is busy may hold everything up for a second
    async with scripted_server(ScriptedServer(heartbeat=heartbeat)) as server:
        async with fault_proxy(("127.0.0.1", server.port)) as proxy:
            seen: list[object] = []
            url = f"http://127.0.0.1:{proxy.port}"
            async with AsyncRunwire(api_url=url, access_token=TOKEN) as client:
                following = client.runs.subscribe_to_run("run_a").with_streams("log")

                async def follow() -> None:
                    async for event in following:
                        seen.extend([event.chunk] if event.type == "log" else [])

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(follow)
                    await server.write("before")
                    # A quiet link that is heard is kept.
                    await anyio.sleep(3 * heartbeat)  # longer than silence is borne
                    assert seen == ["before"] and server.opened == 1
                    proxy.stall()
                    stalled = anyio.current_time()
                    await server.write("meanwhile")
                    with anyio.fail_after(60):
                        while following.state == "live":
                            await anyio.sleep(0.005)  # polls
                    noticed = anyio.current_time() - stalled
                    # Generous, for a machine that is busy; 2.5 is what it is without one.
                    assert noticed < 2.5 * heartbeat + 8
                    # The network is another one now: what hangs in the old one stays there.
                    proxy.cut()
                    proxy.flow()
                    with anyio.fail_after(60):
                        await server.finish()
    assert seen == ["before", "meanwhile"]


def lines_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.split("\n")[:-1] if line.startswith("{")]


@CARRIERS
@pytest.mark.timeout(120 + 2 * SLEEP)
async def test_a_process_that_slept_longer_than_its_token_goes_on_where_it_was(
    database_url: str, carrier: str
) -> None:
    async with open_stage(database_url) as stage:
        run = await stage.trigger("sleep")
        execution = await stage.start(run)
        async with behind(stage, carrier) as proxy:
            environment = {
                "RUNWIRE_API_URL": stage.url,
                "RUNWIRE_API_KEY": stage.key,
                "RUNWIRE_FOLLOW_URL": f"http://127.0.0.1:{proxy.port}",
            }
            program = ("python", "tests/faults/programs/follow_by_tokens.py", run)
            async with running(*program, environment=environment) as follower:
                await stage.append(run, execution, "first")
                await follower.until_line('"seq": 0')
                follower.stall()
                for number in range(10):
                    await stage.append(run, execution, number)
                    await stage.set_metadata(run, execution, number=number)
                    await anyio.sleep(SLEEP / 10)  # its token ends meanwhile
                follower.resume()
                await stage.complete(run, execution)
                assert await follower.wait(60.0) == 0, follower.output()[-2000:]
                seen = lines_of(follower.output())
    chunks = [line["seq"] for line in seen if line.get("type") == "text"]
    assert chunks == list(range(11))
    revisions = [line["revision"] for line in seen if line.get("type") == "run"]
    assert revisions == list(range(revisions[0], revisions[-1] + 1))
    assert [line["gap"] for line in seen if line.get("gap")] == []
    assert seen[-1] == {"done": True}
