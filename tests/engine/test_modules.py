"""Importing the modules of tasks."""

import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from runwire_engine.modules import ModuleLoadError, load_modules


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """A working directory of the test's own; what it imports is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def refusal(*names: str) -> str:
    with pytest.raises(ModuleLoadError) as caught:
        load_modules(names)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_a_dotted_module_is_imported_from_the_working_directory(folder: Path) -> None:
    (folder / "shop").mkdir()
    (folder / "shop" / "jobs.py").write_text("value = 1")
    (module,) = load_modules(["shop.jobs"])
    assert module.__name__ == "shop.jobs"


def test_a_file_has_the_name_its_importers_use(folder: Path) -> None:
    (folder / "shop").mkdir()
    (folder / "shop" / "jobs.py").write_text("value = object()")
    (folder / "shop" / "more.py").write_text("from shop.jobs import value")
    jobs, more = load_modules(["shop/jobs.py", "shop/more.py"])
    assert jobs.value is more.value


def test_a_file_elsewhere_is_imported_with_its_neighbours(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "neighbour_of_jobs.py").write_text("value = 7")
    (elsewhere / "jobs.py").write_text("from neighbour_of_jobs import value")
    (module,) = load_modules([str(elsewhere / "jobs.py")])
    assert module.value == 7
    assert load_modules([str(elsewhere / "jobs.py")]) == [module]


def test_a_folder_is_its_files_without_tests_and_private_ones(folder: Path) -> None:
    (folder / "jobs").mkdir()
    for name in ("b", "a", "_private", "test_a", "a_test"):
        (folder / "jobs" / f"{name}.py").write_text("")
    modules = load_modules(["jobs"])
    assert [module.__name__ for module in modules] == ["jobs.a", "jobs.b"]


def test_a_missing_module_is_named(folder: Path) -> None:
    assert refusal("no_such_module.tasks") == "there is no module 'no_such_module.tasks'"


def test_a_missing_file_or_an_empty_folder_is_named(folder: Path) -> None:
    (folder / "empty").mkdir()
    assert refusal("gone.py").startswith("gone.py: there is no such file")
    assert refusal("empty").startswith("empty: the folder holds no Python file")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("x = 1\ndef broken(:\n", "jobs.py:2: SyntaxError"),
        ("import no_such_thing\n", "jobs.py:1: ModuleNotFoundError"),
        ("\n\n1 / 0\n", "jobs.py:3: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)\n", "jobs.py:1: SystemExit: 3"),
        ("import json\njson.loads('{')\n", "jobs.py:2: JSONDecodeError"),
        ("raise ValueError('two\\nlines')\n", "jobs.py:1: ValueError: two"),
    ],
)
def test_a_broken_file_is_told_in_one_line_with_its_place(
    folder: Path, source: str, told: str
) -> None:
    (folder / "jobs.py").write_text(source)
    assert refusal("jobs.py").startswith(told)


def test_two_tasks_of_one_id_are_told_in_one_line(folder: Path) -> None:
    (folder / "twins.py").write_text(
        "from runwire.tasks import task\n"
        "@task(id='modules-twin')\ndef one() -> None: ...\n"
        "@task(id='modules-twin')\ndef two() -> None: ...\n"
    )
    line = refusal("twins.py")
    assert line.startswith("twins.py:4: TaskError")
    assert "twins.one" in line and "twins.two" in line
