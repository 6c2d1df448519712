"""A test that hangs, or kills its process, costs that test alone: on small suites of their own."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]

from tests.support.groups import Groups

CHECKOUT = Path(__file__).parents[1]

CONFTEST = """
from tests.support.groups import Groups

def pytest_xdist_make_scheduler(config, log):
    return Groups(config, log, lambda test: test.partition("::")[0])
"""

SUITE = """
import os
import pytest

@pytest.mark.parametrize("letter", LETTERS)
def test(request, letter):
    with open("began", "a") as file:
        print(request.node.nodeid, file=file)
    if letter == "x":
        os._exit(1)
"""


@pytest.mark.parametrize(
    "files",
    [
        ["x"],
        ["...x"],
        ["x..."],
        ["..", "x", ".", "."],
        ["..", ".", ".x", "."],
        [".", ".", ".", "x.", "."],
        ["..x..", "..x..", "..x..", "x"],
    ],
    ids=" ".join,
)
def test_each_test_is_run_once_and_only_deadly_ones_fail(tmp_path: Path, files: list[str]) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for number, letters in enumerate(files):
        (tmp_path / f"test_{number}.py").write_text(SUITE.replace("LETTERS", repr([*letters])))
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "--no-loadscope-reorder"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    deadly, sound = "".join(files).count("x"), "".join(files).count(".")
    said = f"{deadly} failed" + (f", {sound} passed" if sound else "")
    assert f" {said} in" in ended.stdout.splitlines()[-1], ended.stdout
    began = (tmp_path / "began").read_text().split()
    assert len(began) == len(set(began)) == deadly + sound


class Process:
    """One that only notes what it is given."""

    shutting_down = False

    def __init__(self) -> None:
        self.gateway = SimpleNamespace(id="gw")
        self.given: list[int] = []

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        self.given += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def test_a_process_that_does_not_know_its_tests_yet_is_given_none() -> None:
    def getvalue(name: str) -> list[str]:
        return ["popen", "popen"]

    config = SimpleNamespace(getvalue=getvalue, option=SimpleNamespace(loadscopereorder=False))
    tests = [f"{letter}::test" for letter in "abcdef"]
    groups: Any = Groups(
        cast(pytest.Config, config), Producer("", enabled=False), lambda test: test[0]
    )
    first, second, third, fourth = (Process() for _ in range(4))
    for node in (first, second):
        groups.add_node(node)
        groups.add_node_collection(node, tests)
    groups.schedule()
    # Both die, and both that take their place are there before either knows the tests.
    died_of = [groups.remove_node(first), groups.remove_node(second)]
    groups.add_node(third)
    groups.add_node(fourth)
    groups.add_node_collection(third, tests)
    groups.schedule()
    assert third.given and not fourth.given
    groups.add_node_collection(fourth, tests)
    groups.schedule()
    left = {at for at, test in enumerate(tests) if test not in died_of}
    assert fourth.given and {*third.given, *fourth.given} <= left


CONFTEST_OF_HANGING = """
import subprocess
import time
import pytest
from tests.support.bounds import pytest_runtest_protocol, pytest_timeout_set_timer

@pytest.fixture
def hanging():
    subprocess.Popen(["sh", "-c", "sleep 1000 & wait"], start_new_session=True)
    yield
    time.sleep(1000)
"""


def test_what_hangs_after_a_failure_is_ended_with_its_stacks_and_all_it_started(
    tmp_path: Path,
) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 1\n")
    (tmp_path / "conftest.py").write_text(CONFTEST_OF_HANGING)
    (tmp_path / "test_it.py").write_text("def test_it(hanging): assert False\n")
    # Without capturing all write to this pipe: it ends when the last of them has.
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-s"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(CHECKOUT), "RUNWIRE_TAKE_DOWN_SECONDS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "test_it.py::test_it does not end" in ended.stderr
    assert "in hanging" in ended.stderr, ended.stderr
