"""`runwire worker` ends when it is told to, whatever its tasks think of that."""

from pathlib import Path

import pytest

from tests.support.parts import worker_on
from tests.support.working import defined, opened_bench

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

STUBBORN = """
import asyncio
import time
from runwire import task

@task(id="swallows")
async def swallows() -> None:
    print("the task began")
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

@task(id="blocks")
def blocks() -> None:
    print("the task began")
    time.sleep(3600)
"""


@pytest.mark.parametrize("task_id", ["swallows", "blocks"])
async def test_a_task_that_ignores_its_end_does_not_keep_the_process(
    database_url: str, tmp_path: Path, task_id: str
) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)

    def named() -> None: ...

    made = defined(named)
    made.id = task_id
    grace = {"RUNWIRE_GRACE": "600"}
    async with (
        opened_bench(database_url) as bench,
        worker_on(database_url, str(tmp_path / "stubborn.py"), environment=grace) as worker,
    ):
        run_id = await bench.start(made)
        await worker.until_line("the task began")
        worker.interrupt()
        await worker.until_line("at a second signal")
        assert worker.exit_code is None  # it has ten minutes
        worker.interrupt()
        # Within the minute that it is waited for, where there are ten.
        assert await worker.wait() == 0
        assert (await bench.row(run_id)).status == "QUEUED"  # given back
