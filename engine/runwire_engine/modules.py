"""Imports the modules that define tasks.

A name is dotted (`app.tasks`), a path to a file (`tasks.py`) or a path to a folder, of which every
file is imported but tests and those whose names begin with "_" or ".". A file is imported under
the dotted name it has from the working directory, so that it and those who import it see one
module. What goes wrong is told in one line that says where.
"""

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from runwire import values
from runwire_engine.errors import EngineError

# Code that is not the user's: where an error surfaced in it, what matters is who called it.
_LIBRARIES = tuple(
    str(folder)
    for folder in {
        *(
            Path(sysconfig.get_path(name))
            for name in ("stdlib", "platstdlib", "purelib", "platlib")
        ),
        Path(__file__).parent,
        Path(values.__file__).parent,
    }
)


class ModuleLoadError(EngineError):
    """Yours: a module of tasks is missing or broken; the message is one line and says where."""

    def __init__(self, message: str, *, module: str) -> None:
        super().__init__(message)
        self.module = module


def load_modules(names: Sequence[str]) -> list[ModuleType]:
    """Import modules, files and folders of tasks. Raises ModuleLoadError."""
    _search(Path.cwd(), first=True)
    loaded: list[ModuleType] = []
    for name in names:
        if _is_path(name):
            loaded += [_load_file(file, name) for file in _files(Path(name), name)]
        else:
            loaded.append(_import(name, name))
    return loaded


def _is_path(name: str) -> bool:
    return name.endswith(".py") or "/" in name or "\\" in name or Path(name).is_dir()


def _files(path: Path, asked: str) -> Iterable[Path]:
    if path.is_file():
        return [path.resolve()]
    if not path.is_dir():
        raise ModuleLoadError(f"{asked}: there is no such file or folder", module=asked)
    files = sorted(file.resolve() for file in path.glob("*.py") if _holds_tasks(file))
    if not files:
        raise ModuleLoadError(f"{asked}: the folder holds no Python file", module=asked)
    return files


def _holds_tasks(file: Path) -> bool:
    name = file.stem
    return not (name.startswith(("_", ".", "test_")) or name.endswith("_test"))


def _load_file(file: Path, asked: str) -> ModuleType:
    for module in tuple(sys.modules.values()):
        if _file_of(module) == file:
            return module
    dotted = _dotted(file)
    # Files beside it are found as a script would find them.
    _search(file.parent, first=False)
    if dotted is not None:
        return _import(dotted, asked)
    return _execute(file, asked)


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file) if isinstance(file, str) else None


def _dotted(file: Path) -> str | None:
    """Return the file's name as seen from the working directory, if it can have one."""
    try:
        parts = file.relative_to(Path.cwd().resolve()).with_suffix("").parts
    except ValueError:
        return None
    shadowed = len(parts) == 1 and parts[0] in sys.modules
    return None if shadowed or not all(part.isidentifier() for part in parts) else ".".join(parts)


def _import(dotted: str, asked: str) -> ModuleType:
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        if error.name is not None and (dotted == error.name or dotted.startswith(error.name + ".")):
            raise ModuleLoadError(f"there is no module {asked!r}", module=asked) from None
        raise _broken(error, asked) from None
    except (Exception, SystemExit) as error:
        raise _broken(error, asked) from None


def _execute(file: Path, asked: str) -> ModuleType:
    """Import a file from elsewhere under a name of its own."""
    name = f"runwire_file_{file.stem}_{abs(hash(str(file))):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ModuleLoadError(f"{asked}: not a Python file", module=asked)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _broken(error, asked) from None
    return module


def _broken(error: BaseException, asked: str) -> ModuleLoadError:
    place = _place(error) or asked
    what = str(error).strip().splitlines()
    text = f"{place}: {type(error).__name__}: {what[0] if what else 'no message'}"
    return ModuleLoadError(text, module=asked)


def _place(error: BaseException) -> str | None:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_library(frame.filename)]
    where = (own or frames)[-1:]
    return f"{_short(where[0].filename)}:{where[0].lineno}" if where else None


def _is_library(filename: str) -> bool:
    return filename.startswith(_LIBRARIES) or filename.startswith("<frozen importlib")


def _short(filename: str) -> str:
    try:
        return str(Path(filename).resolve().relative_to(Path.cwd().resolve()))
    except ValueError:
        return filename


def _search(folder: Path, *, first: bool) -> None:
    place = str(folder.resolve())
    if place in sys.path:
        return
    if first:
        sys.path.insert(0, place)
    else:
        sys.path.append(place)
