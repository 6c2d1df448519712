"""A writer as an outside process: appends each line of its input to a run's streams.

    python -m tests.benchmarks.appender RUN_ID

A line is an event of the generator and says itself to which stream it belongs (`#0007.…`); the
stream's key is those four digits. What arrived together is handed over together, one append for
each stream of it, as a task does that goes on writing, and committed by the engine's own group
commit. Prints "ready" when it may be fed.
"""

import asyncio
import os
import sys
from collections import defaultdict, deque

import uvloop

from runwire_engine.engine import open_engine
from runwire_engine.environments import Environments
from runwire_engine.known_appends import Placed
from runwire_engine.settings import EngineSettings
from runwire_engine.streams import Append
from runwire_realtime.garbage import spare_what_stays
from tests.benchmarks.fed import as_json, events, stream_of


async def main(run_id: str) -> None:
    async with open_engine(EngineSettings(), sweeping=False) as engine:
        environment_id = await Environments(engine.database).ensure("dev")
        spare_what_stays()  # as a worker does
        streams, writer = engine.streams, f"benchmark-{os.getpid()}"
        under_way: deque[asyncio.Future[Placed]] = deque()
        async for arrived in events():
            bodies: dict[str, list[str]] = defaultdict(list)
            for event in arrived:
                bodies[stream_of(event)].append(as_json(event))
            for key, together in bodies.items():
                append = Append(run_id=run_id, key=key, bodies=tuple(together), writer=writer)
                under_way.append(await streams.put(environment_id, append))
            # A refused one ends the benchmark.
            while under_way and under_way[0].done():
                await streams.settled(under_way.popleft())
        for promise in under_way:
            await streams.settled(promise)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
