"""Redis Streams as one writes to them from Python: redis-py on asyncio, an XADD for each chunk.

Each stream's next XADD waits for the answer to its last one, since the order must hold; streams do
not wait for each other. At its best so: uvloop and hiredis's parser.

    python -m tests.benchmarks.peers.redis_writer PORT
"""

import asyncio
import sys
from collections import defaultdict

import uvloop
from redis.asyncio import Redis

from tests.benchmarks.fed import as_json, events, stream_of


async def main(port: int) -> None:
    redis = Redis(port=port)
    await redis.ping()
    queues: dict[str, asyncio.Queue[str]] = defaultdict(asyncio.Queue)

    async def append(stream: str) -> None:
        while True:
            await redis.xadd(f"e:{stream}", {"d": as_json(await queues[stream].get())})

    async with asyncio.TaskGroup() as group:
        async for arrived in events():
            for event in arrived:
                stream = stream_of(event)
                if stream not in queues:
                    group.create_task(append(stream))
                queues[stream].put_nowait(event)


uvloop.run(main(int(sys.argv[1])))
