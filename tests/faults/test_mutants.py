"""Four faults planted in the product, each of which the model test must find within a minute.

The patches in `mutants/` are applied to a copy of the source tree, which comes before the checkout
on the path of a session of `test_model.py` of its own.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from tests.support.history import Fault
from tests.support.postgres import TestServer
from tests.support.processes import CHECKOUT

pytestmark = pytest.mark.faults

PACKAGES: Final = ("engine/runwire_engine", "realtime/runwire_realtime", "clients/python/runwire")
MUTANTS: Final = Path(__file__).parent / "mutants"
# Most on a machine that is busy with other tests.
SECONDS: Final = 240.0
# With this seed each is found early; `make faults` takes seeds as they come.
SEED: Final = os.environ.get("RUNWIRE_MUTANTS_SEED", "1")
# What each must be found by: any of these.
FOUND_BY: Final = {
    # Events of a transaction that commits late are lost.
    "naive_tail": {
        Fault.NOT_CONVERGED,
        Fault.MISSING_MEMBER,
        Fault.MISSING_REVISION,
        Fault.NEVER_DONE,
        Fault.LOST_CHUNK,
        Fault.BAD_PATCH,
        Fault.FOREIGN_MEMBER,
    },
    # What no bell told is never told.
    "bell_only": {
        Fault.NOT_CONVERGED,
        Fault.MISSING_MEMBER,
        Fault.LOST_CHUNK,
        Fault.NEVER_DONE,
        Fault.FOREIGN_MEMBER,
    },
    # Streams take what an execution writes that lost its run.
    "no_fence": {Fault.ZOMBIE_ACCEPTED, Fault.ZOMBIE_CHUNK, Fault.WRONG_LEDGER},
    # Chunks are announced, and shown, before their COMMIT.
    "send_before_commit": {Fault.NOT_DURABLE, Fault.FOREIGN_CHUNK, Fault.DOUBLED_CHUNK},
}


def _copied(folder: Path, mutant: str | None) -> dict[str, str]:
    """Copy the packages, apply a patch, and return the environment in which they are used."""
    for package in PACKAGES:
        shutil.copytree(
            CHECKOUT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    if mutant is not None:
        patch = MUTANTS / f"{mutant}.patch"
        command = ("git", "apply", "--whitespace=nowarn", str(patch))
        # Outside of any repository, or git would look for the files in there.
        environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
        subprocess.run(command, cwd=folder, env=environment, check=True, timeout=30)
    path = os.pathsep.join(str((folder / package).parent) for package in PACKAGES)
    return {**os.environ, "PYTHONPATH": path, "RUNWIRE_FAULTS_SEED": SEED}


def _model_test(environment: dict[str, str], examples: int) -> tuple[int, str, float]:
    """Run the model test and return its exit code, its output, and how long it took."""
    command = (
        *(sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"),
        "tests/faults/test_model.py",
    )
    began = time.monotonic()
    ended = subprocess.run(
        command,
        cwd=CHECKOUT,
        env={**environment, "RUNWIRE_MODEL_EXAMPLES": str(examples)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return ended.returncode, ended.stdout, time.monotonic() - began


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize("mutant", sorted(FOUND_BY))
def test_a_planted_fault_is_found_within_a_minute(
    postgres: TestServer, tmp_path: Path, mutant: str
) -> None:
    code, output, seconds = _model_test(_copied(tmp_path, mutant), 2_000)
    assert f"runwire_engine of {tmp_path}" in output, output[-3000:]
    found = [line for line in output.splitlines() if line.startswith("FOUND ")]
    assert code == 1 and found, output[-3000:]
    assert any(str(fault) in found[0] for fault in FOUND_BY[mutant]), found
    sys.stdout.write(f"{mutant}: {found[0]} after {seconds:.1f} s\n")


@pytest.mark.timeout(SECONDS + 30)
def test_the_same_copy_without_a_fault_is_found_clean(postgres: TestServer, tmp_path: Path) -> None:
    code, output, _ = _model_test(_copied(tmp_path, None), 10)
    assert code == 0, output[-3000:]
