"""Runwire as it was: the source tree of an older commit, run as processes beside today's.

    old = older(FIRST, folder)      # skips the test where the history is not there
    async with server_on(dsn, port, secret, environment=old.environment, command=old.command): ...

Its packages come first on PYTHONPATH, before those of the editable install.
"""

import io
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.support.processes import CHECKOUT

# The commit that is tagged v0.1.0. Whoever makes a release adds it here: N and N-1 work together.
FIRST: Final = "fe2e8915803721d5b053ae3a518b86fd6a8908e0"
_PACKAGES: Final = {
    "runwire": "clients/python",
    "runwire_engine": "engine",
    "runwire_realtime": "realtime",
}


@dataclass(frozen=True)
class OlderVersion:
    """An unpacked source tree."""

    commit: str
    folder: Path

    @property
    def environment(self) -> Mapping[str, str]:
        """What makes a Python process run this version's code."""
        paths = [str(self.folder / part) for part in _PACKAGES.values()]
        return {"PYTHONPATH": ":".join(paths)}

    @property
    def command(self) -> tuple[str, ...]:
        """What runs its command line."""
        return ("python", "-m", "runwire_realtime.cli")

    def check(self) -> None:
        """Fail unless a process with this environment imports the packages from here."""
        told = subprocess.run(
            [sys.executable, "-c", _WHERE],
            cwd=CHECKOUT,
            env={"PATH": "", **self.environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        found = dict(line.split("=", 1) for line in told)
        expected = {
            name: str(self.folder / part / name / "__init__.py") for name, part in _PACKAGES.items()
        }
        assert found == expected, found


_WHERE: Final = "\n".join(
    f"import {name}; print('{name}=' + str({name}.__file__))" for name in _PACKAGES
)


def older(commit: str, folder: Path) -> OlderVersion:
    """Unpack a commit's packages and test programs; skip the test without a history."""
    parts = [*_PACKAGES.values(), "tests/faults/programs"]
    try:
        archive = subprocess.run(
            ["git", "archive", commit, *parts], cwd=CHECKOUT, capture_output=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the source of {commit[:7]} is not in this checkout's history: {error}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        # Python 3.11 knows filters from 3.11.4 on; what git packs of our own commit needs none.
        if hasattr(tarfile, "data_filter"):
            packed.extractall(folder, filter="data")
        else:
            packed.extractall(folder)
    version = OlderVersion(commit, folder)
    version.check()
    return version
