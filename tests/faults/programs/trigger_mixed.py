"""Trigger so many runs of mixed tasks with a tag, over so many seconds; print their ids.

    python trigger_mixed.py COUNT SECONDS TAG
"""

import asyncio
import sys

from runwire import tasks

KINDS = ("quick", "streaming", "retrying", "failing", "telling")


async def main(count: int, seconds: float, tag: str) -> None:
    """Trigger them at an even pace."""
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        handle = await tasks.trigger(kind, {"number": number}, tags=[tag, f"kind:{kind}"])
        print(handle.id, flush=True)
        await asyncio.sleep(seconds / count)
    print("all", flush=True)


asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]))
