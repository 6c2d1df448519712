"""Installs the suite into `.runwire/autobahn`, where a Python 2.7 is found."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.processes import CHECKOUT

AUTOBAHN: Final = CHECKOUT / ".runwire" / "autobahn"
# Which Python it was installed for; written last.
INTERPRETER: Final = AUTOBAHN / "python"
_REQUIREMENTS: Final = Path(__file__).parent / "requirements.txt"
MISSING: Final = (
    "Autobahn|Testsuite needs a Python 2.7 with pip (python2.7 on the PATH, in pyenv, or $PYTHON27)"
)


def is_installed() -> bool:
    """Say whether the suite is there and its Python still is."""
    return INTERPRETER.exists() and Path(INTERPRETER.read_text().strip()).exists()


def install() -> bool:
    """Install the suite unless it is there. Return False where there is no Python 2.7."""
    if is_installed():
        return True
    python = next((each for each in _candidates() if _is_fit(each)), None)
    if python is None:
        return False
    site = AUTOBAHN / "site"
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    pip = [python, "-W", "ignore", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(site), "-r", str(_REQUIREMENTS)], check=True)
    INTERPRETER.write_text(f"{python}\n")
    return True


def _candidates() -> Iterator[str]:
    given = os.environ.get("PYTHON27")
    if given:
        yield given
    yield from filter(None, (shutil.which("python2.7"), shutil.which("python2")))
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(pyenv.glob("versions/2.7*/bin/python2.7"), reverse=True))


def _is_fit(python: str) -> bool:
    """Say whether it runs, is 2.7, and has pip; a shim of pyenv may be none of it."""
    probe = "import sys, pip; sys.exit(sys.version_info[:2] != (2, 7))"
    try:
        found = subprocess.run([python, "-c", probe], capture_output=True, timeout=30, check=False)
    except OSError:
        return False
    return found.returncode == 0
