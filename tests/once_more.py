"""Run pytest; run what failed once more, alone, to tell a flaky test from a broken one.

    python -m tests.once_more -n 4 --dist loadfile

Ends as pytest ended, but with 0 where every failed test passed the second time, in one process with
nothing beside it; each of those is then named as FLAKY. Anything else that went wrong is final: a
file that cannot be imported, a wrong option, a session that was stopped, too many failures.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

_FILE: Final = "RUNWIRE_RESULTS_FILE"
# So many broken at once are no flakes, and one after the other they would take too long.
MOST: Final = 20


@dataclass(eq=False)
class Results:
    """Writes which tests passed and which failed to a file, as a plugin of the session."""

    file: Path
    passed: set[str] = field(default_factory=set[str])
    failed: set[str] = field(default_factory=set[str])
    # False when something besides tests failed: the tests that ran may not be all there are.
    is_whole: bool = True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.is_whole = self.is_whole and not report.failed

    def pytest_internalerror(self) -> None:
        self.is_whole = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
        elif report.passed and report.when == "call":
            self.passed.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        found = {
            "passed": sorted(self.passed - self.failed),
            "failed": sorted(self.failed),
            "whole": self.is_whole and not (session.shouldstop or session.shouldfail),
        }
        self.file.write_text(json.dumps(found))


def pytest_configure(config: pytest.Config) -> None:
    """Note results in the process that hears of all tests."""
    file = os.environ.get(_FILE)
    if file and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Results(Path(file)))


def _run(arguments: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Run pytest; return its exit code and what it noted, which is nothing where it never began."""
    with tempfile.TemporaryDirectory(prefix="runwire-results-") as folder:
        file = Path(folder) / "results.json"
        command = [sys.executable, "-m", "pytest", "-p", "tests.once_more", *arguments]
        code = subprocess.run(command, env={**os.environ, _FILE: str(file)}, check=False).returncode
        return code, json.loads(file.read_text()) if file.exists() else {"whole": False}


def main(arguments: Sequence[str]) -> int:
    """Run the tests as `arguments` say, then those that failed; return the exit code."""
    code, results = _run(arguments)
    if code != pytest.ExitCode.TESTS_FAILED or not results["whole"]:
        return code
    failed = results["failed"]
    if not 0 < len(failed) <= MOST:
        return code
    print(f"\nOnce more, alone: {len(failed)} that failed", flush=True)
    again, results = _run(failed)
    flaky = set(failed) & set(results.get("passed", ()))
    for test in failed:
        if test in flaky:
            print(f"FLAKY {test}: failed among the others, passed alone")
        else:
            print(f"BROKEN {test}: failed twice")
    sys.stdout.flush()
    return again if len(flaky) == len(failed) else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
