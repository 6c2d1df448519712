"""Follow runs and print everything seen as JSON lines: a state or a chunk each, and "live".

    python follow.py MODE tag TAG              all runs with a tag, without streams
    python follow.py MODE tag-streams TAG      the same with all their streams
    python follow.py MODE runs COUNT:FILE      the first runs listed in a file, with their streams

The subscriptions by id end by themselves; those by tag when they are told to.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

from runwire import Run, runs
from runwire._following import Events, Updates
from runwire.wire import Mode


def say(**what: Any) -> None:
    """Print one line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def say_run(run: Run) -> None:
    """Print a state."""
    if run.gap is not None:
        say(gap=run.gap, run=run.id)
    say(
        run=run.id,
        revision=run.revision,
        status=run.status,
        metadata=run.metadata,
        output=run.output,
        error=run.error and run.error.message,
        attempt=run.attempt,
    )


async def say_live(followed: Updates | Events) -> None:
    """Print once that the server has told what there is."""
    while followed.state != "live":
        await asyncio.sleep(0.01)
    say(live=True)


async def follow_tag(tag: str, mode: Mode) -> None:
    """Print the states of all runs with a tag."""
    followed = runs.subscribe_to_runs_with_tag(tag, mode=mode, deadline=120)
    async with asyncio.TaskGroup() as beside:
        beside.create_task(say_live(followed))
        async for run in followed:
            say_run(run)


async def follow_tag_with_streams(tag: str, mode: Mode) -> None:
    """Print the states and the chunks of all runs with a tag."""
    followed = runs.subscribe_to_runs_with_tag(tag, mode=mode, deadline=120).with_streams()
    async with asyncio.TaskGroup() as beside:
        beside.create_task(say_live(followed))
        async for event in followed:
            if event.type == "run":
                say_run(event.run)
            else:
                say(chunk=event.chunk, run=event.run.id, stream=event.type, seq=event.seq)


async def follow_run(run_id: str, mode: Mode) -> None:
    """Print the states and the chunks of one run, to its end."""
    async for event in runs.subscribe_to_run(run_id, mode=mode, deadline=120).with_streams():
        if event.type == "run":
            say_run(event.run)
        else:
            if event.gap is not None:
                say(gap=event.gap, run=run_id)
            say(chunk=event.chunk, run=run_id, stream=event.type, seq=event.seq)
    say(done=run_id)


def listed(file: Path) -> list[str]:
    """Return the ids that are in a file by now; another program still writes it."""
    return [line for line in file.read_text().split("\n")[:-1] if line.startswith("run_")]


async def ids(file: Path, count: int) -> AsyncIterator[str]:
    """Yield the first ids of a file as they appear."""
    read = 0
    while read < count:
        for run_id in listed(file)[read:count]:
            yield run_id
            read += 1
        await asyncio.sleep(0.05)


async def follow_runs(count: int, file: Path, mode: Mode) -> None:
    """Follow so many runs, each from the moment its id is there."""
    async with asyncio.TaskGroup() as followers:
        async for run_id in ids(file, count):
            followers.create_task(follow_run(run_id, mode))
    say(done="all")


async def main(mode: Mode, what: str, argument: str) -> None:
    """Follow what the command line says."""
    match what:
        case "tag":
            await follow_tag(argument, mode)
        case "tag-streams":
            await follow_tag_with_streams(argument, mode)
        case _:
            count, _, file = argument.partition(":")
            await follow_runs(int(count), Path(file), mode)


asyncio.run(main(cast(Mode, sys.argv[1]), *sys.argv[2:]))
