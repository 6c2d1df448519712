"""`runwire worker` ends when it is told to, whatever its tasks think of that."""

import time
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
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

@task(id="blocks")
def blocks() -> None:
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
        await bench.until(run_id, "EXECUTING")
        worker.interrupt()
        await worker.until_line("at a second signal")
        assert worker.exit_code is None  # it has ten minutes
        worker.interrupt()
        began = time.monotonic()
        assert await worker.wait() == 0
        assert time.monotonic() - began < 10
        assert (await bench.row(run_id)).status == "QUEUED"  # given back
