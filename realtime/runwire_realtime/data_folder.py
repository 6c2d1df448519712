"""What `runwire dev` keeps between starts: the master secret and the API key, for us only."""

import os
from collections.abc import Callable
from pathlib import Path

from runwire_engine.environments import new_key
from runwire_realtime.errors import StartError
from runwire_realtime.tokens import new_secret


class DataFolder:
    """A folder of the person's own."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def make(self) -> None:
        """Make the folder. Raises StartError when that is impossible."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            ignore = self.path / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
        except OSError as error:
            raise StartError(f"cannot use the data folder {self.path}: {error.strerror}") from None

    def secret(self) -> str:
        """Return the master secret, made at the first start."""
        return self._kept("secret", new_secret)

    def api_key(self) -> str:
        """Return the development API key, made at the first start."""
        return self._kept("api-key", new_key)

    def _kept(self, name: str, make: Callable[[], str]) -> str:
        file = self.path / name
        try:
            if not file.exists():
                _write_private(file, make())
            return file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise StartError(f"cannot read {file}: {error}") from None


def _write_private(file: Path, text: str) -> None:
    """Write a file that was never readable by others, whole or not at all."""
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as out:
        out.write(text + "\n")
    new.replace(file)
