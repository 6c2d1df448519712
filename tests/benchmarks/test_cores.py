"""What is measured has a core of its own."""

import os
import subprocess
import sys

import pytest

from tests.benchmarks.cores import REST, SERVER_CORES, cores
from tests.benchmarks.program import next_line, program

AFFINITY = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores to tell apart")
def test_a_program_gets_its_core_also_while_all_else_is_kept_to_the_others() -> None:
    with cores(REST):
        with program(AFFINITY, {}, SERVER_CORES) as server:
            assert next_line(server) == "[0]"
        around = subprocess.run(AFFINITY, capture_output=True, text=True, check=True, timeout=30)
    assert around.stdout.strip() == str(sorted(REST))
