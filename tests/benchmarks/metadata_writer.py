"""A writer as an outside process: appends each line of its input to a list in a run's metadata.

    python -m tests.benchmarks.metadata_writer RUN_ID BYTES

The document has so many bytes before. Prints "ready" when it may be fed.
"""

import asyncio
import sys

import uvloop

from runwire_engine.engine import open_engine
from runwire_engine.environments import Environments
from runwire_engine.run_metadata import MetadataWrite
from runwire_engine.settings import EngineSettings
from tests.benchmarks.fed import events


async def main(run_id: str, size: int) -> None:
    async with open_engine(EngineSettings(), sweeping=False) as engine:
        metadata = engine.metadata
        environment_id = await Environments(engine.database).ensure("dev")
        await metadata.replace(environment_id, run_id, {"log": ["x" * 1000] * (size // 1000)})
        async for arrived in events():
            for event in arrived:
                write = MetadataWrite(run_id, ({"type": "append", "key": "log", "value": event},))
                await metadata.put(environment_id, write)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], int(sys.argv[2])))
