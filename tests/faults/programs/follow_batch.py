"""Follow a batch to its end and print each of its runs with its last status.

python follow_batch.py BATCH
"""

import asyncio
import sys

from runwire import runs


async def main(batch_id: str) -> None:
    """Follow; print when it is over."""
    last: dict[str, str] = {}
    async for run in runs.subscribe_to_batch(batch_id, deadline=120):
        last[run.id] = run.status
    for run_id, status in last.items():
        sys.stdout.write(f"{run_id} {status}\n")


asyncio.run(main(sys.argv[1]))
