"""What is called flaky, and what is not: `tests/once_more.py` on suites of a few lines."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]

SUITE = """
from pathlib import Path

def test_sound(): pass

def test_shaky():
    marker = Path("marker")
    was_there = marker.exists()
    marker.touch()
    assert was_there

def test_broken(): assert False
"""


def _once_more(folder: Path, suite: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "suite").mkdir()
    (folder / "suite/conftest.py").touch()
    (folder / "suite/test_it.py").write_text(suite)
    command = [sys.executable, "-m", "tests.once_more", "-p", "no:cacheprovider", *arguments]
    environment = {"PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_a_suite_that_passes_is_run_once(tmp_path: Path) -> None:
    ended = _once_more(tmp_path, SUITE, "-k", "sound")
    assert ended.returncode == 0 and "alone" not in ended.stdout


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one", "two"])
def test_what_passes_alone_is_named_as_flaky_and_fails_nothing(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    ended = _once_more(tmp_path, SUITE, "-k", "sound or shaky", *options)
    assert ended.returncode == 0, ended.stdout
    assert "FLAKY suite/test_it.py::test_shaky" in ended.stdout


def test_what_fails_twice_fails_the_suite_also_beside_a_flake(tmp_path: Path) -> None:
    ended = _once_more(tmp_path, SUITE)
    assert ended.returncode == 1
    assert "FLAKY suite/test_it.py::test_shaky" in ended.stdout
    assert "BROKEN suite/test_it.py::test_broken" in ended.stdout


FAULTS_OF_ITS_OWN = """
from pathlib import Path
marker = Path("marker")
if not marker.exists():
    marker.touch()
    raise ImportError("the first time only")

def test_sound(): pass
"""


@pytest.mark.parametrize(
    ("suite", "options", "code"),
    [
        (FAULTS_OF_ITS_OWN, (), 2),
        (FAULTS_OF_ITS_OWN, ("-n", "1"), 1),
        (SUITE, ("--no-such-option",), 4),
        (SUITE, ("-k", "nothing_is_named_so"), 5),
        (SUITE, ("-k", "shaky or broken", "--maxfail", "1"), 1),
    ],
    ids=["import", "import in another process", "option", "no tests", "stopped"],
)
def test_what_is_not_the_failure_of_a_test_is_not_tried_again(
    tmp_path: Path, suite: str, options: tuple[str, ...], code: int
) -> None:
    ended = _once_more(tmp_path, suite, *options)
    assert ended.returncode == code, ended.stdout
    assert "alone" not in ended.stdout


def test_so_many_failures_are_no_flakes(tmp_path: Path) -> None:
    many = "import pytest\n@pytest.mark.parametrize('n', range(21))\ndef test_it(n): assert False\n"
    ended = _once_more(tmp_path, many)
    assert ended.returncode == 1 and "alone" not in ended.stdout
