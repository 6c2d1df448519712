"""Trigger so many runs of mixed tasks with a tag, over so many seconds; print their ids.

python trigger_mixed.py COUNT SECONDS TAG
"""

import asyncio
import sys

from runwire import UnreachableError, tasks
from runwire.errors import ServerError

KINDS = ("quick", "streaming", "retrying", "failing", "telling")


def say(line: str) -> None:
    """Print one line."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def trigger(kind: str, number: int, tag: str) -> str:
    """Trigger one run, however long the server stays away; the key makes it one."""
    tags = [tag, f"kind:{kind}"]
    while True:
        try:
            key = f"{tag}-{number}"
            handle = await tasks.trigger(kind, {"number": number}, tags=tags, idempotency_key=key)
        except (UnreachableError, ServerError):
            continue  # each call has waited for several seconds
        return handle.id


async def main(count: int, seconds: float, tag: str) -> None:
    """Trigger them at an even pace."""
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        say(await trigger(kind, number, tag))
        await asyncio.sleep(seconds / count)
    say("all")


asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]))
