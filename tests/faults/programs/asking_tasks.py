"""A task that lives on what is sent to it, and says outside of Runwire what it was given."""

from pydantic import BaseModel

from runwire import streams, task

answers = streams.input("answers", int)


class Questions(BaseModel):
    count: int


# A run whose workers die again and again comes back after its back-off.
@task(id="asks", retry={"max_attempts": 100, "max_timeout": 0.1, "min_timeout": 0.1})
async def asks(payload: Questions) -> list[int]:
    """Wait for so many values, and write down each as it comes."""
    given: list[int] = []
    for _ in range(payload.count):
        value = (await answers.wait()).unwrap()
        given.append(value)
        await streams.append("given", value)
    return given
