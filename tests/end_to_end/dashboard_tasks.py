"""The tasks that test_dashboard.py triggers: slow enough to watch, nasty enough to matter."""

import logging

import anyio
from pydantic import BaseModel, Field

from runwire import (
    Context,
    ScheduledTaskPayload,
    logger,
    metadata,
    schedules,
    streams,
    task,
)

NASTY = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script> ]]>&amp;\u202e'


class Drip(BaseModel):
    """What to write, and how slowly."""

    words: int = Field(description="How many words")
    pause: float = 0.03


def text_of(words: int) -> str:
    """Return the whole text that `drip` writes."""
    return "".join(f"word-{number} " for number in range(words))


@schedules.task(id="yearly", cron={"pattern": "0 0 1 1 *", "timezone": "Asia/Tokyo"})
async def yearly(payload: ScheduledTaskPayload) -> None:
    """Come once a year."""


@task(id="drip")
async def drip(payload: Drip) -> dict[str, int]:
    """Write a text word by word."""
    for number in range(payload.words):
        await streams.append("answer", f"word-{number} ")
        metadata.set("written", number + 1)
        await anyio.sleep(payload.pause)
    return {"written": payload.words}


@task(id="nasty", retry={"max_attempts": 1})
async def nasty(payload: dict[str, str]) -> None:
    """Say in every place what would be a script, were it taken for HTML."""
    metadata.set("nasty", NASTY)
    await streams.append("nasty", NASTY)
    await streams.append("chat", {"choices": [{"delta": {"content": NASTY}}]})
    await streams.append("objects", {"nasty": NASTY})
    raise ValueError(NASTY)


@task(id="chatty", retry={"max_attempts": 2, "min_timeout": 0.01})
async def chatty(payload: int, ctx: Context) -> None:
    """Log a number of lines, fail, and log them once more."""
    logger.debug("not stored")
    for number in range(payload):
        logger.info(f"step {number} {NASTY}", {"number": number, "nasty": NASTY})
    logging.getLogger("shop").warning("from a library")
    if ctx.attempt.number == 1:
        logger.error("giving up", {"why": "the first attempt"})
        raise RuntimeError("the first attempt")


@task(id="patient")
async def patient() -> None:
    """Wait until somebody cancels it."""
    await anyio.sleep_forever()


@task(id="family", retry={"max_attempts": 1})
async def family() -> bool:
    """Have one child that is soon over, and wait for one that is not."""
    await drip.trigger(Drip(words=2, pause=0))
    return (await patient.trigger_and_wait()).ok
