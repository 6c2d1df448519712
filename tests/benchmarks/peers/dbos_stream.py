"""DBOS: a workflow writes to its stream, a second process reads it; no websocket, in its favour.

At its best here: LISTEN/NOTIFY (its default), the reader woken by it rather than by its poll;
values written from the workflow itself, which costs less than from a step.
The reader checks that each number comes once and in order, and takes the time.

    python -m tests.benchmarks.peers.dbos_stream URL write PER_SECOND COUNT

prints what the reader says.
"""

import asyncio
import json
import subprocess
import sys
import time

from dbos import DBOS, SetWorkflowID

from tests.benchmarks.pace import waits

WORKFLOW = "peer-stream"


def launch(url: str) -> None:
    DBOS(
        config={
            "name": "peer",
            "system_database_url": url,
            "run_admin_server": False,
            "use_listen_notify": True,
            "log_level": "ERROR",
        }
    )


def write(url: str, per_second: int, count: int) -> None:
    launch(url)
    go = asyncio.Event()

    @DBOS.workflow()
    async def writer() -> None:
        await DBOS.write_stream_async("e", [-1, 0])
        await go.wait()
        for number, wait in enumerate(waits(per_second, count)):
            await asyncio.sleep(wait)
            await DBOS.write_stream_async("e", [number, time.monotonic_ns()])
        await DBOS.close_stream_async("e")

    DBOS.launch()

    async def run() -> None:
        with SetWorkflowID(WORKFLOW):
            handle = await DBOS.start_workflow_async(writer)
        told = ["-m", "tests.benchmarks.peers.dbos_stream", url, "read", "0", str(count)]
        reader = await asyncio.create_subprocess_exec(sys.executable, *told, stdout=subprocess.PIPE)
        assert reader.stdout is not None
        await reader.stdout.readline()  # it has read the first value
        go.set()
        await handle.get_result()
        print((await reader.stdout.readline()).decode().strip(), flush=True)
        await reader.wait()

    asyncio.run(run())
    DBOS.destroy()


def read(url: str, count: int) -> None:
    launch(url)
    DBOS.launch()

    async def run() -> None:
        latencies: list[float] = []
        async for number, at in DBOS.read_stream_async(WORKFLOW, "e"):
            if number != len(latencies) - (not latencies and number < 0):
                raise AssertionError(f"{number} instead of {len(latencies)}")
            if number < 0:
                print("ready", flush=True)
                continue
            latencies.append((time.monotonic_ns() - at) / 1e6)
        if len(latencies) != count:
            raise AssertionError(f"{len(latencies)} of {count}")
        print(json.dumps({"latencies": latencies}), flush=True)

    asyncio.run(run())
    DBOS.destroy()


if sys.argv[2] == "write":
    write(sys.argv[1], int(sys.argv[3]), int(sys.argv[4]))
else:
    read(sys.argv[1], int(sys.argv[4]))
