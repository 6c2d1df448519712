"""A writer as an outside process: appends each line of its input to one stream, group-committed.

    python -m tests.benchmarks.appender RUN_ID KEY [KEY…]

Lines go to the keys in turn. Prints "ready" when it may be fed.
"""

import asyncio
import os
import sys

import orjson
import uvloop

from runwire_engine.engine import Engine, open_engine
from runwire_engine.environments import Environments
from runwire_engine.settings import EngineSettings
from runwire_engine.streams import Append

WINDOW = 4096  # lines in flight: more than a flush takes, so that the writer is never what waits


async def main(run_id: str, keys: list[str]) -> None:
    settings = EngineSettings()
    async with open_engine(settings, sweeping=False) as engine:
        environment_id = await Environments(engine.database).ensure("dev")
        reader = asyncio.StreamReader(limit=1 << 20)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        slots = asyncio.Semaphore(WINDOW)
        number = 0
        async with asyncio.TaskGroup() as group:
            while line := await reader.readline():
                await slots.acquire()
                body = orjson.dumps(line.decode().rstrip("\n")).decode()
                key = keys[number % len(keys)]
                group.create_task(_append(engine, environment_id, run_id, key, body, slots))
                number += 1


async def _append(
    engine: Engine, environment_id: int, run_id: str, key: str, body: str, slots: asyncio.Semaphore
) -> None:
    try:
        append = Append(run_id=run_id, key=key, bodies=(body,), writer=f"benchmark-{os.getpid()}")
        await engine.streams.append(environment_id, append)
    finally:
        slots.release()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], sys.argv[2:]))
