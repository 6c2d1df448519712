"""Which changes start the worker of `runwire dev` again."""

from pathlib import Path

import anyio
import pytest

from runwire_realtime.watch import Watch, folders_of

pytestmark = pytest.mark.anyio


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


async def test_a_change_of_tests_or_installed_packages_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "app" / "tasks.py", "")
    watch = Watch(folders_of(["app.tasks"]))
    for other in ("tests/test_a.py", "app/tests/test_b.py", ".venv/lib/c.py", "venv/d.py"):
        _write(tmp_path / other, "changed")
    _write(tmp_path / "app" / "tasks.py", "changed")
    with anyio.fail_after(60):
        assert await watch.change() == str(tmp_path / "app" / "tasks.py")
    with anyio.move_on_after(1):
        pytest.fail(f"noticed {await watch.change()}")


def test_a_folder_of_tests_that_is_named_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "tests" / "tasks.py", "")
    _write(tmp_path / "app" / "tasks.py", "")
    folders = folders_of(["tests/tasks.py", "app/tasks.py"])
    assert sorted(folders) == [tmp_path, tmp_path / "tests"]
