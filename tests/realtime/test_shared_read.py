"""One read for all who ask before it begins."""

import anyio
import anyio.lowlevel
import pytest

from runwire_realtime.shared_read import SharedRead

pytestmark = pytest.mark.anyio


async def test_who_asks_before_a_read_begins_shares_it_and_nobody_gets_an_older_one() -> None:
    began: list[int] = []
    go_on = anyio.Event()

    async def read() -> int:
        began.append(len(began) + 1)
        number = began[-1]
        await go_on.wait()
        return number

    shared = SharedRead(read)
    answers: dict[str, int] = {}

    async def ask(name: str) -> None:
        answers[name] = await shared.get()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "first")
        await anyio.wait_all_tasks_blocked()
        for name in ("second", "third"):
            tasks.start_soon(ask, name)
        await anyio.wait_all_tasks_blocked()
        assert began == [1]
        go_on.set()
    assert answers == {"first": 1, "second": 2, "third": 2}


async def test_a_read_that_fails_fails_for_one_and_the_next_tries_again() -> None:
    tries: list[int] = []

    async def read() -> str:
        tries.append(1)
        await anyio.lowlevel.checkpoint()
        if len(tries) == 1:
            raise ValueError("no")
        return "yes"

    shared = SharedRead(read)
    with pytest.raises(ValueError, match="no"):
        await shared.get()
    assert await shared.get() == "yes"
