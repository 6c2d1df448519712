"""A writer as an outside process: appends each line of its input to a run's streams.

    python -m tests.benchmarks.appender RUN_ID

A line is an event of the generator and says itself to which stream it belongs (`#0007.…`); the
stream's key is those four digits. What arrived together is handed over together, one append for
each stream of it, and committed by the engine's own group commit. Prints "ready" when it may be
fed.
"""

import asyncio
import os
import sys
from collections import defaultdict

import uvloop

from runwire_engine.engine import Engine, open_engine
from runwire_engine.environments import Environments
from runwire_engine.settings import EngineSettings
from runwire_engine.streams import Append
from tests.benchmarks.fed import as_json, events, stream_of

# Appends under way: more than a flush takes, so that the writer is never what waits.
WINDOW = 1024


async def main(run_id: str) -> None:
    async with open_engine(EngineSettings(), sweeping=False) as engine:
        environment_id = await Environments(engine.database).ensure("dev")
        slots = asyncio.Semaphore(WINDOW)
        async with asyncio.TaskGroup() as group:
            async for arrived in events():
                bodies: dict[str, list[str]] = defaultdict(list)
                for event in arrived:
                    bodies[stream_of(event)].append(as_json(event))
                for key, together in bodies.items():
                    await slots.acquire()
                    append = Append(
                        run_id=run_id,
                        key=key,
                        bodies=tuple(together),
                        writer=f"benchmark-{os.getpid()}",
                    )
                    group.create_task(_append(engine, environment_id, append, slots))


async def _append(
    engine: Engine, environment_id: int, append: Append, slots: asyncio.Semaphore
) -> None:
    try:
        await engine.streams.append(environment_id, append)
    finally:
        slots.release()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
