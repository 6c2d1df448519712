"""Notices that source files changed, by looking at their times."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

_LOOK_SECONDS: Final = 0.4
# An editor writes several files, or one in several steps: restart when they stand still.
_SETTLE_SECONDS: Final = 0.2
_MOST_FILES: Final = 5000  # a look at this many takes some 20 ms of a thread
# Whatever begins with a dot is skipped, too; no task lives in any of these unless it is named.
_SKIPPED: Final = frozenset(
    {"node_modules", "__pycache__", "site-packages", "dist", "build", "tests", "venv"}
)

Times = Mapping[str, int]


class Watch:
    """Remembers how the sources stood, so that no change is missed between two waits."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._known = _times(folders)

    async def change(self) -> str:
        """Wait until a Python file changes, and the changes settle; return the file's path."""
        while True:
            await anyio.sleep(_LOOK_SECONDS)
            changed = _difference(self._known, await self._look())
            if changed is not None:
                self._known = await self._settled()
                return changed

    async def _settled(self) -> Times:
        before = await self._look()
        while True:
            await anyio.sleep(_SETTLE_SECONDS)
            after = await self._look()
            if after == before:
                return after
            before = after

    async def _look(self) -> Times:
        return await anyio.to_thread.run_sync(_times, self._folders)


def folders_of(modules: Sequence[str]) -> list[Path]:
    """Return where the sources of these modules live: the working folder, and named paths."""
    folders = {Path.cwd()}
    for module in modules:
        path = Path(module)
        if path.exists():
            folders.add((path if path.is_dir() else path.parent).resolve())
    # A folder inside another is looked at with it.
    return [at for at in folders if not any(_is_seen_from(other, at) for other in folders)]


def _is_seen_from(folder: Path, below: Path) -> bool:
    if below == folder or not below.is_relative_to(folder):
        return False
    return not any(map(_is_skipped, below.relative_to(folder).parts))


def _is_skipped(name: str) -> bool:
    return name in _SKIPPED or name.startswith(".")


def _difference(before: Times, after: Times) -> str | None:
    if before == after:
        return None
    return next(
        (path for path in sorted({*before, *after}) if before.get(path) != after.get(path)), None
    )


def _times(folders: Sequence[Path]) -> Times:
    times: dict[str, int] = {}
    for path in _sources(folders):
        try:
            times[path] = os.stat(path).st_mtime_ns
        except OSError:
            continue
        if len(times) >= _MOST_FILES:
            break
    return times


def _sources(folders: Sequence[Path]) -> Iterator[str]:
    for folder in folders:
        for parent, below, files in os.walk(folder):
            below[:] = sorted(name for name in below if not _is_skipped(name))
            for name in files:
                if name.endswith(".py"):
                    yield os.path.join(parent, name)
