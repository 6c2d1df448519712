"""Follow runs through one server, saying with every line where to go on in another process.

    python wander.py '[{"name": "a", "kind": "tag", "target": "TAG", "mode": "every", ...}, ...]'

Each line is what one subscription saw, and the cursor to take it up from after it. The process may
be killed at any moment: the next one is given the cursors of the last whole lines.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

from runwire import runs


def say(**what: Any) -> None:
    """Print one line, in one write."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def subscription(asked: dict[str, Any]) -> Any:
    """Return what a description asks for."""
    options: dict[str, Any] = {"mode": asked["mode"], "deadline": None}
    if asked.get("cursor"):
        options["cursor"] = asked["cursor"]
    match asked["kind"]:
        case "tag":
            found = runs.subscribe_to_runs_with_tag(asked["target"], **options)
        case "batch":
            found = runs.subscribe_to_batch(asked["target"], **options)
        case "run":
            found = runs.subscribe_to_run(asked["target"], **options)
        case _:
            found = runs.subscribe_to_runs(**options)
    return found


async def events(followed: Any, has_streams: bool) -> AsyncIterator[Any]:
    """Yield what comes, with or without streams."""
    async for each in followed:
        yield each if has_streams else None, each.run if has_streams else each


async def follow(asked: dict[str, Any]) -> None:
    """Print what one subscription sees, until it ends."""
    has_streams = asked["streams"]
    followed = subscription(asked)
    if has_streams:
        followed = followed.with_streams()
    async for event, run in events(followed, has_streams):
        head = {"name": asked["name"], "cursor": followed.cursor, "run": run.id}
        if event is not None and event.type != "run":
            say(**head, stream=event.type, seq=event.seq, chunk=event.chunk, gap=event.gap)
        else:
            say(**head, revision=run.revision, status=run.status, gap=run.gap)
    say(name=asked["name"], cursor=followed.cursor, done=True)


async def main(wanted: list[dict[str, Any]]) -> None:
    """Follow everything at once."""
    async with asyncio.TaskGroup() as followers:
        for asked in wanted:
            followers.create_task(follow(asked))


asyncio.run(main(json.loads(sys.argv[1])))
