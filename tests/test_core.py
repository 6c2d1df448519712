"""The contract of the core: every module that calls itself [core] is held to it, and no other."""

import ast
import subprocess
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PACKAGES = (
    CHECKOUT / "clients/python/runwire",
    CHECKOUT / "engine/runwire_engine",
    CHECKOUT / "realtime/runwire_realtime",
)
# Core by nature, opened by a sentence about something else.
UNMARKED = {"runwire.wire", "runwire.values", "runwire.durations"}


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def test_the_import_contract_lists_exactly_the_modules_that_are_marked_as_core() -> None:
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    listed = next(set(c["source_modules"]) for c in contracts if c["type"] == "forbidden")
    marked = {
        ".".join([package.name, *path.relative_to(package).with_suffix("").parts])
        for package in PACKAGES
        for path in package.rglob("*.py")
        if "[core]" in _docstring(path)
    }
    assert listed == marked | UNMARKED


def test_the_folders_are_no_packages() -> None:
    for folder in ("engine", "realtime", "clients", "clients/python"):
        assert not (CHECKOUT / folder / "__init__.py").exists()


@pytest.mark.parametrize(
    "patch", sorted((CHECKOUT / "tests/faults/mutants").glob("*.patch")), ids=lambda path: path.stem
)
def test_a_planted_fault_fits_the_code_as_it_is(patch: Path) -> None:
    """The test that plants it takes a minute; whoever moves the code learns it here."""
    command = ["git", "apply", "--check", "--whitespace=nowarn", str(patch)]
    checked = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
